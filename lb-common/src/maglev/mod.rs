//! Maglev consistent hashing (Eisenbud et al., NSDI 2016).
//!
//! A ring is a table of backend ids filled so that every backend has the same share within one slot,
//! and so that a change of the backends moves few slots. It depends on the endpoints and the seed
//! alone: every node of a cluster builds the same one.

mod build;

pub use build::{EndpointHash, build};

/// Ring lengths: one slot for one backend, then primes. The paper wants at least 100 slots a backend for shares
/// within 1 %; steps of some 40 % keep the memory near that.
pub const LENGTHS: [u32; 20] = [
    1, 211, 307, 503, 701, 1_009, 1_409, 1_801, 2_503, 3_511, 5_003, 7_001, 10_007, 14_009, 20_011, 28_001,
    40_009, 56_003, 80_021, 131_071,
];

/// The ring length for a number of backends; 0 for none.
///
/// It depends on the count alone, in steps, so that all nodes agree and a small change keeps it.
/// Beyond 1310 backends the longest ring is used and shares get coarser.
pub const fn ring_length(backends: usize) -> u32 {
    if backends < 2 {
        return backends as u32;
    }
    let mut i = 1;
    while i < LENGTHS.len() - 1 {
        if LENGTHS[i] as usize >= backends.saturating_mul(100) {
            return LENGTHS[i];
        }
        i += 1;
    }
    LENGTHS[LENGTHS.len() - 1]
}

/// The slot of a flow, `0..length`, by multiplication instead of division.
#[inline(always)]
pub const fn slot(hash: u32, length: u32) -> u32 {
    ((hash as u64 * length as u64) >> 32) as u32
}
