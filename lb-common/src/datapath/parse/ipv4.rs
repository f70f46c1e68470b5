//! IPv4 (RFC 791). Options are skipped; nothing is rejected for having them.

use super::{Parsed, Transport, Tuple, is_martian, looked_at, transport};
use crate::abi::Reason;
use crate::addr::{Ipv4, Proto};
use crate::wire::{self, ETHERNET_LENGTH, ETHERTYPE_IPV4, IPV4_LENGTH, Packet, TCP_LENGTH, field};

/// Reads an Ethernet frame with IPv4 in it.
///
/// # Errors
/// See [`crate::datapath::Family::parse`].
#[inline(always)]
pub fn parse4<P: Packet>(packet: &P) -> Result<Parsed<Ipv4>, Reason> {
    const L3: usize = ETHERNET_LENGTH;
    if packet.read::<2>(field::ETHERTYPE) != Some(ETHERTYPE_IPV4) {
        return Err(Reason::NotIp);
    }
    let header = wire::ipv4(packet.words(L3).ok_or(Reason::Malformed)?);
    let header_length = usize::from(header.vihl & 0xf) * 4;
    let l3_length = u16::from_be_bytes(header.tot_len);
    let payload_length = usize::from(l3_length).wrapping_sub(header_length);
    if header.vihl >> 4 != 4
        || header_length < IPV4_LENGTH
        || usize::from(l3_length) < header_length
        || usize::from(l3_length) > packet.length().wrapping_sub(L3)
    {
        return Err(Reason::Malformed);
    }
    let source = Ipv4::from_octets(header.src_addr);
    let destination = Ipv4::from_octets(header.dst_addr);
    if is_martian(source, destination) {
        return Err(Reason::Martian);
    }
    // An offset: ports are in the first fragment only.
    if header.frags[0] & 0x1f != 0 || header.frags[1] != 0 {
        return Err(Reason::Fragment);
    }
    let first_fragment = header.frags[0] & 0x20 != 0;
    let l4 = L3 + header_length;
    let proto = Proto(header.proto);
    if proto == Proto::ICMP {
        let kind = packet.read::<2>(l4).ok_or(Reason::Malformed)?[0];
        return Err(if is_error(kind) { Reason::IcmpError } else { Reason::OtherProtocol });
    }
    let Transport { source_port, destination_port, flags, segment } =
        transport(packet, l4, proto, payload_length, first_fragment)?;
    Ok(Parsed {
        tuple: Tuple { source, destination, source_port, destination_port, proto },
        l4,
        l3_length,
        ttl: header.ttl,
        flags,
        segment,
        first_fragment,
        identification: u32::from(u16::from_ne_bytes(header.id)),
    })
}

/// See [`crate::datapath::Family::headers`].
#[inline(always)]
pub fn headers4<P: Packet>(packet: &P) -> usize {
    const LONGEST: usize = ETHERNET_LENGTH + 60 + TCP_LENGTH;
    let first = packet.read::<2>(ETHERNET_LENGTH);
    let Some((vihl, proto)) = first.zip(packet.read::<2>(ETHERNET_LENGTH + field::IPV4_TTL)) else {
        return LONGEST;
    };
    ETHERNET_LENGTH + usize::from(vihl[0] & 0xf) * 4 + looked_at(Proto(proto[1]))
}

/// Destination unreachable, time exceeded and parameter problem (RFC 792): they quote a packet.
const fn is_error(kind: u8) -> bool {
    matches!(kind, 3 | 11 | 12)
}
