//! Maglev consistent hashing (Eisenbud et al., NSDI 2016).
//!
//! A ring is a table of backend ids filled so that every backend has the same share within one slot,
//! and so that a change of the backends moves few slots. It depends on the endpoints and the seed
//! alone: every node of a cluster builds the same one.

mod build;

pub use build::{EndpointHash, build};

/// Slots for each backend, at least: shares differ by 1.25 % at most.
const PER_BACKEND: usize = 80;

/// Ring lengths: one slot for one backend, then primes, in steps of some 40 % that keep the memory near what
/// 80 slots a backend take.
pub const LENGTHS: [u32; 21] = [
    1, 163, 241, 401, 563, 809, 1_123, 1_447, 2_003, 2_801, 4_001, 5_623, 8_009, 11_213, 16_001, 22_409,
    32_003, 44_809, 64_007, 90_401, 131_071,
];

/// The ring length for a number of backends; 0 for none.
///
/// It depends on the count alone, in steps, so that all nodes agree and a small change keeps it.
/// Beyond 1638 backends the longest ring is used and shares get coarser.
pub const fn ring_length(backends: usize) -> u32 {
    if backends < 2 {
        return backends as u32;
    }
    let mut i = 1;
    while i < LENGTHS.len() - 1 {
        if LENGTHS[i] as usize >= backends.saturating_mul(PER_BACKEND) {
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
