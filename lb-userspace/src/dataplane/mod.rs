//! Kernel maps and programs.

pub mod bpf_store;
pub mod counters;
pub mod flows;
pub mod links;
pub mod load;
pub mod memory;
pub mod mmap;
pub mod pin;
pub mod pod;
pub mod store;
pub mod sys;
