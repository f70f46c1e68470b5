//! What becomes of a Service on its way from the API to the kernel's maps, short of the maps themselves.
//!
//! ```text
//!   source ──► convert ──► model ──► desired ──► plan ──► store
//!   kubernetes            validated   what the    ordered   a trait: maps,
//!   or manifests          objects     maps hold   changes   or memory in tests
//! ```
//!
//! [`reconcile`] is the loop around it. Nothing here can name aya or a program: this crate compiles, and its tests run,
//! without a BPF toolchain. Which module may name which is a table in `xtask/src/tidy/modules.rs`.
#![forbid(unsafe_code)]

pub mod allocate;
pub mod convert;
pub mod desired;
pub mod model;
pub mod network;
pub mod objects;
pub mod plan;
pub mod reconcile;
pub mod seed;
pub mod source;
pub mod store;
