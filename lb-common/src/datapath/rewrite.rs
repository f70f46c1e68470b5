//! The bytes that change: addresses, ports, checksums, TTL.

use super::parse::Parsed;
use super::refuse::Reset;
use crate::addr::{Address, Ipv4, Port, Proto};
use crate::wire::{Checksum, Delta, PacketMut, field};

/// New addresses for a packet. What is `None` stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation<A> {
    /// New source address and port.
    pub source: Option<(A, Port)>,
    /// New destination address and port.
    pub destination: Option<(A, Port)>,
}

impl<A: Address> Translation<A> {
    /// Only the destination changes.
    #[inline(always)]
    pub const fn destination(address: A, port: Port) -> Self {
        Self { source: None, destination: Some((address, port)) }
    }

    /// Only the source changes.
    #[inline(always)]
    pub const fn source(address: A, port: Port) -> Self {
        Self { source: Some((address, port)), destination: None }
    }

    /// The destination changes as well.
    #[inline(always)]
    #[must_use]
    pub const fn with_destination(mut self, address: A, port: Port) -> Self {
        self.destination = Some((address, port));
        self
    }

    /// The source changes as well.
    #[inline(always)]
    #[must_use]
    pub const fn with_source(mut self, address: A, port: Port) -> Self {
        self.source = Some((address, port));
        self
    }
}

/// Offset of the transport checksum inside the transport header.
#[inline(always)]
pub const fn checksum_offset(proto: Proto) -> usize {
    match proto {
        Proto::TCP => field::TCP_CHECKSUM,
        _ => field::UDP_CHECKSUM,
    }
}

/// Rewrites a frame in place and keeps both checksums as right, or as wrong, as they were.
///
/// Returns nothing when the frame is shorter than `parsed` says, which parsing has excluded.
#[inline(always)]
#[must_use]
pub fn translate4<P: PacketMut>(
    packet: &mut P,
    parsed: &Parsed<Ipv4>,
    translation: &Translation<Ipv4>,
) -> Option<()> {
    let (l3, l4, tuple) = (parsed.l3, parsed.l4, &parsed.tuple);
    let mut addresses = Delta::default();
    let mut ports = Delta::default();
    if let Some((address, port)) = translation.source {
        packet.write(l3 + field::IPV4_SOURCE, address.octets())?;
        packet.write(l4 + field::SOURCE_PORT, port.octets())?;
        addresses = addresses.double_word(tuple.source.octets(), address.octets());
        ports = ports.word(tuple.source_port.octets(), port.octets());
    }
    if let Some((address, port)) = translation.destination {
        packet.write(l3 + field::IPV4_DESTINATION, address.octets())?;
        packet.write(l4 + field::DESTINATION_PORT, port.octets())?;
        addresses = addresses.double_word(tuple.destination.octets(), address.octets());
        ports = ports.word(tuple.destination_port.octets(), port.octets());
    }
    let checksum = Checksum(packet.read(l3 + field::IPV4_CHECKSUM)?);
    packet.write(l3 + field::IPV4_CHECKSUM, checksum.updated(addresses).0)?;

    let offset = l4 + checksum_offset(tuple.proto);
    let checksum = Checksum(packet.read(offset)?);
    if tuple.proto == Proto::UDP {
        // RFC 768: zero means that the sender made no checksum; a sum of zero is sent as all ones.
        if checksum.0 != [0, 0] {
            let updated = checksum.updated(addresses.and(ports));
            packet.write(offset, if updated.0 == [0, 0] { [0xff, 0xff] } else { updated.0 })?;
        }
    } else {
        packet.write(offset, checksum.updated(addresses.and(ports)).0)?;
    }
    Some(())
}

/// Takes one from the TTL.
#[inline(always)]
#[must_use]
pub fn decrement_ttl4<P: PacketMut>(packet: &mut P, parsed: &Parsed<Ipv4>) -> Option<()> {
    set_ttl4(packet, parsed, parsed.ttl - 1)
}

/// Sets the TTL and keeps the header checksum in step.
#[inline(always)]
#[must_use]
pub fn set_ttl4<P: PacketMut>(packet: &mut P, parsed: &Parsed<Ipv4>, ttl: u8) -> Option<()> {
    let offset = parsed.l3 + field::IPV4_TTL;
    let old: [u8; 2] = packet.read(offset)?;
    let new = [ttl, old[1]];
    packet.write(offset, new)?;
    let checksum = Checksum(packet.read(parsed.l3 + field::IPV4_CHECKSUM)?);
    packet.write(parsed.l3 + field::IPV4_CHECKSUM, checksum.updated(Delta::default().word(old, new)).0)
}

/// Turns a segment into the RST that answers it: ends swapped, numbers and flags replaced.
///
/// The Ethernet header is the caller's.
#[inline(always)]
#[must_use]
pub fn reset4<P: PacketMut>(packet: &mut P, parsed: &Parsed<Ipv4>, reset: &Reset) -> Option<()> {
    let (l3, l4, tuple) = (parsed.l3, parsed.l4, &parsed.tuple);
    let mut delta = Delta::default();
    for (index, (old, new)) in reset.old.iter().zip(reset.new).enumerate() {
        packet.write(l4 + field::TCP_SEQUENCE + 4 * index, new)?;
        delta = delta.double_word(*old, new);
    }
    let checksum = Checksum(packet.read(l4 + field::TCP_CHECKSUM)?);
    packet.write(l4 + field::TCP_CHECKSUM, checksum.updated(delta).0)?;
    // Swapping both addresses and both ports leaves every sum as it was.
    packet.write(l3 + field::IPV4_SOURCE, tuple.destination.octets())?;
    packet.write(l3 + field::IPV4_DESTINATION, tuple.source.octets())?;
    packet.write(l4 + field::SOURCE_PORT, tuple.destination_port.octets())?;
    packet.write(l4 + field::DESTINATION_PORT, tuple.source_port.octets())?;
    set_ttl4(packet, parsed, super::refuse::TTL)
}
