//! Filters of one bit for each address or port, in mmapable arrays: the addresses that packets may have business with, and the
//! local clients that may have flows.
//!
//! Most packets of a node are between pods, and nobody's here. One bit or two tell that without a look at the flow table.
//! Whoever writes a frontend, or an address to masquerade with, sets its bit before; programs set a local client's before
//! they make its first flow. No bit is ever cleared, for flows outlive Services, and clients come back. A bit that is set
//! for nothing costs the look that it would have saved.
//!
//! Clients of other networks have no bit: there are too many of them, and whoever invents addresses could set every bit. (A pod
//! that may invent some inside the pods' range can set those, until `shunt cleanup`: that costs looks, no more.)

use crate::addr::{Address, Port};

/// Words of a filter.
pub const ADDRESS_WORDS: u32 = 8192;

/// Which word of a filter is about an address, and which bit of it.
#[inline(always)]
pub fn address_bit<A: Address>(address: A) -> (u32, u64) {
    place(address.fold())
}

/// Which word of the filter of endpoints is about an address and a port, and which bit of it.
#[inline(always)]
pub fn endpoint_bit<A: Address>(address: A, port: Port) -> (u32, u64) {
    place(address.fold() ^ (port.to_be16() as u64) << 32)
}

#[inline(always)]
const fn place(folded: u64) -> (u32, u64) {
    // The golden ratio's bits spread neighbouring addresses; the high ones of the product depend on all.
    let hash = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((hash >> 51) as u32 % ADDRESS_WORDS, 1 << (hash >> 45 & 63))
}

/// Words of the filter of nodePorts, which has a bit for each port of whatever protocol: most packets to the node's own addresses are
/// for its own programs. It is as the others are: a bit is set before the frontend is written, and never cleared.
pub const NODE_PORT_WORDS: u32 = (1 << u16::BITS) / u64::BITS;

/// Which word of that filter is about a port, and which bit of it.
#[inline(always)]
pub const fn port_bit(port: Port) -> (u32, u64) {
    // The order of bytes does not matter, as long as everybody takes the same.
    let number = port.to_be16() as u32;
    (number / u64::BITS, 1 << (number % u64::BITS))
}
