//! The programs: what the machine must have for them, how they are loaded, what the verifier makes of them.

mod at_once;
pub mod checks;
pub mod conntrack;
mod handed_over;
mod image;
mod kernel_types;
pub mod load;
pub mod log;
pub mod note;
mod object;
pub mod verifier;

/// What benchmarks compare with, built from `lb-ebpf/src/floors`; never attached by the agent.
#[cfg(feature = "bench")]
pub static FLOORS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shunt-floors"));
