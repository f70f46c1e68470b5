//! Kernel maps and programs.
//!
//! Everything of aya and every unsafe block of the agent is in here.

mod at_once;
pub mod bpf_store;
pub mod checks;
pub mod clients;
pub mod config;
pub mod counters;
pub mod flows;
pub mod interfaces;
pub mod links;
pub mod load;
pub mod maps;
pub mod memory;
pub mod mmap;
pub mod pin;
pub mod size;
pub mod store;
pub mod sys;
pub mod table;
pub mod verifier;
