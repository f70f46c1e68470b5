//! Everything a developer runs: set-up, build, checks, tests and the lab.
//!
//! `main.rs` parses the command line and calls one function of this library, so that the tests under
//! `tests/` can use the same API server. The lab is a crate of its own, which knows nothing of this one.

pub mod architecture;
pub mod bench;
pub mod build;
pub mod command;
pub mod debian;
pub mod image;
pub mod kube;
pub mod lint;
pub mod progress;
pub mod run;
pub mod setup;
pub mod test;
pub mod tidy;
pub mod twin;
pub mod vm;

pub use lb_lab::repository;
