//! What tests of this and other crates share: frames, tables in memory, and a reference executor.
//!
//! [`World`] describes a node once; it can be poured into [`ARRIVAL, MemoryTables`] or into a kernel's maps.
//! [`run`] does with a frame in memory what lb-ebpf does with one in the kernel.
//!
//! A crate of its own, and lb-common's tests that use it are files of `tests/`: its unit tests would see two lb-commons.
#![forbid(unsafe_code)]

mod desk;
mod execute;
mod fixtures;
mod frame;
pub mod fuzz;
mod memory;
mod world;

pub use desk::blank_desk;
pub use execute::{Action, run};
pub use fixtures::{Fixture, Input, Step, fixtures};
pub use frame::{Frame, STATION, checksums_hold, fragments, icmp_error};
pub use memory::{ARRIVAL, Frontend, Kept, MemoryTables, blank_flow};
pub use world::{
    AddressFilter, EndpointFilter, Entry, NodePortFilter, Numbered, World, client, node, pod, remote_pod, vip,
};
