//! What the restoring program and the bench agree on.

/// Words of the one entry of `CONTROL`.
pub const CONTROL_WORDS: usize = TEMPLATE + 10;
/// Counts packets.
pub const COUNTER: usize = 0;
/// An odd number: flows are visited in an order that no prefetcher guesses.
pub const MULTIPLIER: usize = 1;
/// Number of flows, a power of two, less one.
pub const MASK: usize = 2;
/// Number of the first flow.
pub const BASE: usize = 3;
/// The packet's length: answers are shorter, and the next packet needs its own length again.
pub const LENGTH: usize = 4;
/// The packet's first bytes.
pub const TEMPLATE: usize = 5;

/// The clients' network (the last 32 bits of IPv6 addresses): 64.0.0.0/7.
pub const CLIENT_NET: u32 = 0x4000_0000;
/// Bits of a flow's number that go into its client's port; the others go into the address.
pub const PORT_BITS: u32 = 14;
/// The lowest client port: where Linux takes them from (ip_local_port_range).
pub const FIRST_PORT: u16 = 32_768;
/// The network of a flood's sources, 198.18.0.0/15: for measurements (RFC 2544).
pub const FLOOD_NET: u32 = 0xc612_0000;
/// The length of its prefix.
pub const FLOOD_NET_LENGTH: u32 = 15;
/// The lowest port of a flood's sources.
pub const FLOOD_FIRST_PORT: u16 = 1024;
/// How many ports there are from there on.
pub const FLOOD_PORTS: u32 = 65_536 - FLOOD_FIRST_PORT as u32;
/// Masquerading ports that can be kept.
pub const PORTS: u32 = 65_536;

/// Words of eight bytes that hold all headers.
#[inline(always)]
pub const fn words(ipv6: bool) -> usize {
    if ipv6 { 10 } else { 7 }
}

/// Where the masquerading port of a flow stands.
#[inline(always)]
pub const fn nat_port_index(ipv6: bool, flow: u32) -> u32 {
    (flow & (PORTS / 2 - 1)) + if ipv6 { PORTS / 2 } else { 0 }
}

/// Words of the one entry of `SINK`.
pub const SINK_WORDS: usize = SINK_FRAME + FRAME_WORDS;
/// Packets that have arrived.
pub const SINK_SEEN: usize = 0;
/// Of these, those with the destination that follows.
pub const SINK_RIGHT: usize = 1;
/// The destination's network, as its four bytes lie in memory.
pub const SINK_ADDRESS: usize = 2;
/// Its mask.
pub const SINK_MASK: usize = 3;
/// The destination's port, as its two bytes lie in memory.
pub const SINK_PORT: usize = 4;
/// One of the packets.
pub const SINK_FRAME: usize = 5;
/// Words of a kept packet: all of it.
pub const FRAME_WORDS: usize = 8;
/// One packet of so many is kept, the first among them.
pub const SINK_EVERY: u64 = 4096;

/// Words of the one entry of `DOOR`.
pub const DOOR_WORDS: usize = 3;
/// The interface to send to.
pub const DOOR_INTERFACE: usize = 0;
/// The MAC addresses, destination first.
pub const DOOR_MACS: usize = 1;
