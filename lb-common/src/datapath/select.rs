//! The hashes that pick ring slots and flow sets.
//!
//! Two rounds of multiply and shift over 64 bits: cheap for the BPF machine (one multiplication each),
//! and with a secret seed nobody outside can aim at one backend or one set.

use super::parse::Tuple;
use crate::addr::{Address, Port, Proto};

const M1: u64 = 0xff51_afd7_ed55_8ccd;
const M2: u64 = 0xc4ce_b9fe_1a85_ec53;

/// Mixes two words into one: the finaliser of MurmurHash3 around a multiplication.
#[inline(always)]
pub const fn mix(a: u64, b: u64) -> u64 {
    let mut h = (a ^ (a >> 32)).wrapping_mul(M1) ^ b;
    h = (h ^ (h >> 29)).wrapping_mul(M2);
    h ^ (h >> 32)
}

/// The hash that picks the backend of a flow: equal for the same five values and the same seed, on
/// every node and in every hook.
#[inline(always)]
pub fn flow_hash<A: Address>(tuple: &Tuple<A>, seed: u64) -> u32 {
    let ports = (tuple.source_port.to_be16() as u64) << 16 | tuple.destination_port.to_be16() as u64;
    let addresses = mix(tuple.source.fold() ^ seed, tuple.destination.fold());
    finish(mix(addresses, ports << 8 | tuple.proto.0 as u64))
}

/// The bits that pick a slot. One round more than a table needs: consecutive source ports, of which Linux
/// gives every second one, would otherwise walk over the ring in even steps.
#[inline(always)]
pub const fn finish(hash: u64) -> u32 {
    (mix(hash, 0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// The hash that names the flow set of a client: its low bits pick the set, its high bits are the tag. One round
/// more than a mix: a client's ports lie side by side, and should fill sets like any others.
#[inline(always)]
pub fn client_hash<A: Address>(client: A, port: Port, proto: Proto, seed: u64) -> u64 {
    let hash = mix(client.fold() ^ seed, (port.to_be16() as u64) << 8 | proto.0 as u64).wrapping_mul(M1);
    hash ^ (hash >> 32)
}

/// The hash that names the NAT line of a backend and `group`, a run of [`crate::abi::NAT_LINE`] masquerading ports.
#[inline(always)]
pub fn nat_hash<A: Address>(backend: A, backend_port: Port, group: u16, proto: Proto) -> u32 {
    let ports = (backend_port.to_be16() as u64) << 16 | group as u64;
    (mix(backend.fold(), ports << 8 | proto.0 as u64) >> 16) as u32
}
