//! The bytes that change: addresses, ports, checksums, TTL.

use super::Family;
use super::parse::{Parsed, Quote};
use super::refuse::{self, Reset};
use crate::addr::{Address, Port, Proto};
use crate::wire::{Checksum, Delta, ETHERNET_LENGTH, PacketMut, TCP_LENGTH, field};

/// New addresses for a packet. An end whose address is `UNSPECIFIED` stays as it is.
///
/// (Not `Option`s: what is inside `None` is nothing at all, and the verifier objects to copying it.)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation<A> {
    /// New source address and port.
    pub source: (A, Port),
    /// New destination address and port.
    pub destination: (A, Port),
}

impl<A: Address> Translation<A> {
    const STAYS: (A, Port) = (A::UNSPECIFIED, Port::new(0));

    /// Only the destination changes.
    #[inline(always)]
    pub const fn destination(address: A, port: Port) -> Self {
        Self { source: Self::STAYS, destination: (address, port) }
    }

    /// Only the source changes.
    #[inline(always)]
    pub const fn source(address: A, port: Port) -> Self {
        Self { source: (address, port), destination: Self::STAYS }
    }

    /// The destination changes as well.
    #[inline(always)]
    #[must_use]
    pub const fn with_destination(mut self, address: A, port: Port) -> Self {
        self.destination = (address, port);
        self
    }

    /// The source changes as well.
    #[inline(always)]
    #[must_use]
    pub const fn with_source(mut self, address: A, port: Port) -> Self {
        self.source = (address, port);
        self
    }

    /// The new source, if there is one.
    #[inline(always)]
    pub fn new_source(&self) -> Option<(A, Port)> {
        (self.source.0 != A::UNSPECIFIED).then_some(self.source)
    }

    /// The new destination, if there is one.
    #[inline(always)]
    pub fn new_destination(&self) -> Option<(A, Port)> {
        (self.destination.0 != A::UNSPECIFIED).then_some(self.destination)
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
/// Returns nothing when the frame is shorter than `parsed` says, which parsing has excluded, or when a
/// port of SCTP would change: its checksum covers ports and is not ours to compute (RFC 9260, 6.8).
#[inline(always)]
#[must_use]
pub fn translate<A: Family, P: PacketMut>(
    packet: &mut P,
    parsed: &Parsed<A>,
    translation: &Translation<A>,
) -> Option<()> {
    let (l3, l4, tuple) = (parsed.l3(), parsed.l4(), &parsed.tuple);
    let mut addresses = Delta::default();
    let mut ports = Delta::default();
    if let Some((address, port)) = translation.new_source() {
        address.write(packet, l3 + A::SOURCE)?;
        replace_port(packet, l4 + field::SOURCE_PORT, tuple.source_port, port, tuple.proto)?;
        addresses = addresses.and(tuple.source.change(address));
        ports = ports.word(tuple.source_port.octets(), port.octets());
    }
    if let Some((address, port)) = translation.new_destination() {
        address.write(packet, l3 + A::DESTINATION)?;
        replace_port(packet, l4 + field::DESTINATION_PORT, tuple.destination_port, port, tuple.proto)?;
        addresses = addresses.and(tuple.destination.change(address));
        ports = ports.word(tuple.destination_port.octets(), port.octets());
    }
    A::update_header(packet, l3, addresses)?;
    update_transport(packet, l4, tuple.proto, addresses.and(ports))
}

#[inline(always)]
fn replace_port<P: PacketMut>(
    packet: &mut P,
    offset: usize,
    old: Port,
    new: Port,
    proto: Proto,
) -> Option<()> {
    match proto {
        Proto::SCTP => (old == new).then_some(()),
        _ => packet.write(offset, new.octets()),
    }
}

/// Updates the checksum of the transport header at `l4`.
#[inline(always)]
fn update_transport<P: PacketMut>(packet: &mut P, l4: usize, proto: Proto, change: Delta) -> Option<()> {
    if proto == Proto::SCTP {
        return Some(());
    }
    let offset = l4 + checksum_offset(proto);
    let checksum = Checksum(packet.read(offset)?);
    if proto == Proto::TCP {
        return packet.write(offset, checksum.updated(change).0);
    }
    // RFC 768: zero means that the sender made no checksum; a sum of zero is sent as all ones.
    if checksum.0 == [0, 0] {
        return Some(());
    }
    let updated = checksum.updated(change);
    packet.write(offset, if updated.0 == [0, 0] { [0xff, 0xff] } else { updated.0 })
}

/// Rewrites the addresses of a datagram's later fragment. `UNSPECIFIED`: the address stays.
#[inline(always)]
#[must_use]
pub fn translate_fragment<A: Family, P: PacketMut>(packet: &mut P, source: A, destination: A) -> Option<()> {
    let mut change = Delta::default();
    for (offset, new) in [(A::SOURCE, source), (A::DESTINATION, destination)] {
        if new != A::UNSPECIFIED {
            let old = A::read(packet, ETHERNET_LENGTH + offset)?;
            new.write(packet, ETHERNET_LENGTH + offset)?;
            change = change.and(old.change(new));
        }
    }
    A::update_header(packet, ETHERNET_LENGTH, change)
}

/// New addresses for an ICMP error and for what it quotes. What is `UNSPECIFIED` stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorTranslation<A> {
    /// Who reports.
    pub source: A,
    /// To whom.
    pub destination: A,
    /// Who spoke to whom.
    pub quoted: Translation<A>,
}

/// Rewrites an ICMP error: outer addresses, quoted addresses and ports, and every checksum.
#[inline(always)]
#[must_use]
pub fn translate_error<A: Family, P: PacketMut>(
    packet: &mut P,
    quote: &Quote<A>,
    translation: &ErrorTranslation<A>,
) -> Option<()> {
    let mut outer = Delta::default();
    let (source, destination) = (translation.source, translation.destination);
    if source != A::UNSPECIFIED {
        source.write(packet, ETHERNET_LENGTH + A::SOURCE)?;
        outer = outer.and(quote.source.change(source));
    }
    if destination != A::UNSPECIFIED {
        destination.write(packet, ETHERNET_LENGTH + A::DESTINATION)?;
        outer = outer.and(quote.destination.change(destination));
    }
    A::update_header(packet, ETHERNET_LENGTH, outer)?;

    let (tuple, quoted) = (&quote.tuple, &translation.quoted);
    let mut addresses = Delta::default();
    let mut ports = Delta::default();
    if let Some((address, port)) = quoted.new_source() {
        address.write(packet, quote.l3() + A::SOURCE)?;
        replace_port(packet, quote.l4() + field::SOURCE_PORT, tuple.source_port, port, tuple.proto)?;
        addresses = addresses.and(tuple.source.change(address));
        ports = ports.word(tuple.source_port.octets(), port.octets());
    }
    if let Some((address, port)) = quoted.new_destination() {
        address.write(packet, quote.l3() + A::DESTINATION)?;
        replace_port(
            packet,
            quote.l4() + field::DESTINATION_PORT,
            tuple.destination_port,
            port,
            tuple.proto,
        )?;
        addresses = addresses.and(tuple.destination.change(address));
        ports = ports.word(tuple.destination_port.octets(), port.octets());
    }
    // The quoted header's own checksum makes up for its addresses, so that neither is seen in the sum
    // over the whole; IPv6 has none, but counts its outer addresses.
    A::update_header(packet, quote.l3(), addresses)?;
    let mut change = ports.and(if A::ICMP == Proto::ICMP { Delta::default() } else { addresses.and(outer) });
    // Of TCP the checksum is seldom quoted; nobody looks at it.
    if tuple.proto == Proto::UDP {
        let offset = quote.l4() + checksum_offset(tuple.proto);
        if let Some(old) = packet.read::<2>(offset) {
            update_transport(packet, quote.l4(), tuple.proto, addresses.and(ports))?;
            change = change.word(old, packet.read(offset)?);
        }
    }
    let offset = quote.icmp() + field::ICMP_CHECKSUM;
    let checksum = Checksum(packet.read(offset)?);
    packet.write(offset, checksum.updated(change).0)
}

/// Takes one from TTL or hop limit.
#[inline(always)]
#[must_use]
pub fn decrement_ttl<A: Family, P: PacketMut>(packet: &mut P, parsed: &Parsed<A>) -> Option<()> {
    A::set_ttl(packet, parsed.l3(), parsed.ttl - 1)
}

/// Turns a segment into the RST that answers it: ends swapped, and a header of its own.
///
/// The Ethernet header is the caller's, and what the frame has behind [`refuse::reset_length`].
#[inline(always)]
#[must_use]
pub fn reset<A: Family, P: PacketMut>(packet: &mut P, parsed: &Parsed<A>, reset: &Reset) -> Option<()> {
    let (l3, l4, tuple) = (parsed.l3(), parsed.l4(), &parsed.tuple);
    let [s0, s1] = tuple.destination_port.octets();
    let [d0, d1] = tuple.source_port.octets();
    let ports = [s0, s1, d0, d1];
    let [sequence, acknowledgement, flags] = reset.new;
    // The pseudo header (RFC 9293, 3.1): addresses, protocol and length.
    let pseudo = A::UNSPECIFIED.change(tuple.source).and(A::UNSPECIFIED.change(tuple.destination));
    let pseudo = pseudo.with_word([0, Proto::TCP.0]).with_word((TCP_LENGTH as u16).to_be_bytes());
    let sum = [ports, sequence, acknowledgement, flags].into_iter().fold(pseudo, Delta::with_double_word);
    let [c0, c1] = Checksum([0xff, 0xff]).updated(sum).0;
    packet.write(l4, ports)?;
    packet.write(l4 + field::TCP_SEQUENCE, sequence)?;
    packet.write(l4 + field::TCP_ACKNOWLEDGEMENT, acknowledgement)?;
    packet.write(l4 + field::TCP_OFFSET_FLAGS, flags)?;
    // (No data is urgent.)
    packet.write(l4 + field::TCP_CHECKSUM, [c0, c1, 0, 0])?;
    // Swapping both addresses leaves the header's sum as it was.
    tuple.destination.write(packet, l3 + A::SOURCE)?;
    tuple.source.write(packet, l3 + A::DESTINATION)?;
    A::set_length(packet, l3, refuse::reset_length(parsed))?;
    A::set_ttl(packet, l3, refuse::TTL)
}
