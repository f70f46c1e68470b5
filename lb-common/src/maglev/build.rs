//! The permutation fill of the paper's section 3.4.

use crate::addr::{Address, Port};

/// An endpoint's place in the permutations: derived from its identity and the cluster's seed alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct EndpointHash {
    offset: u64,
    skip: u64,
}

impl EndpointHash {
    /// The place of the endpoint `address:port`.
    pub fn new<A: Address>(address: A, port: Port, seed: u64) -> Self {
        let identity = mix(address.fold() ^ seed).wrapping_add(port.get() as u64);
        Self { offset: mix(identity), skip: mix(identity ^ 0x6a09_e667_f3bc_c908) }
    }
}

/// Fills `ring` with indices into `endpoints`: every slot filled, shares equal within one.
///
/// `endpoints` must be in an order all nodes agree on. `next` is scratch of the same length. With no
/// endpoints the ring is left alone.
///
/// # Panics
/// When `next` is shorter than `endpoints`.
pub fn build(endpoints: &[EndpointHash], ring: &mut [u32], next: &mut [u32]) {
    const EMPTY: u32 = u32::MAX;
    let length = ring.len() as u64;
    if endpoints.is_empty() || ring.is_empty() {
        return;
    }
    let next = &mut next[..endpoints.len()];
    for (next, endpoint) in next.iter_mut().zip(endpoints) {
        *next = scale(endpoint.offset, length);
    }
    ring.fill(EMPTY);
    let mut filled = 0;
    loop {
        for (index, (next, endpoint)) in next.iter_mut().zip(endpoints).enumerate() {
            // A prime length makes every skip visit every slot once.
            let skip = if length > 1 { scale(endpoint.skip, length - 1) + 1 } else { 0 };
            let advance = |slot: u32| {
                let slot = slot as u64 + skip as u64;
                (if slot >= length { slot - length } else { slot }) as u32
            };
            let mut slot = *next;
            while ring[slot as usize] != EMPTY {
                slot = advance(slot);
            }
            ring[slot as usize] = index as u32;
            *next = advance(slot);
            filled += 1;
            if filled == ring.len() {
                return;
            }
        }
    }
}

/// Brings a hash below `limit`, by multiplication instead of division: it is done for each slot of a ring.
const fn scale(hash: u64, limit: u64) -> u32 {
    (((hash >> 32) * limit) >> 32) as u32
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
