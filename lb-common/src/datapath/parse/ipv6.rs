//! IPv6 (RFC 8200) and its extension headers.

use super::{Parsed, Transport, Tuple, is_martian, looked_at, transport};
use crate::abi::Reason;
use crate::addr::{Ipv6, Proto};
use crate::wire::{ETHERNET_LENGTH, ETHERTYPE_IPV6, IPV6_LENGTH, Packet, TCP_LENGTH, field};

/// Extension headers that are walked through. More than these nobody sends in earnest.
const EXTENSIONS: usize = 6;

/// Where the transport header may start at the latest.
const LAST: usize = 0x3fe;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Reads an Ethernet frame with IPv6 in it.
///
/// # Errors
/// See [`crate::datapath::Family::parse`].
#[inline(always)]
pub fn parse6<P: Packet>(packet: &P) -> Result<Parsed<Ipv6>, Reason> {
    const L3: usize = ETHERNET_LENGTH;
    if packet.read::<2>(field::ETHERTYPE) != Some(ETHERTYPE_IPV6) {
        return Err(Reason::NotIp);
    }
    let [version, _, _, _, length_high, length_low, next_header, ttl] =
        packet.read::<8>(L3).ok_or(Reason::Malformed)?;
    let payload_length = usize::from(u16::from_be_bytes([length_high, length_low]));
    // (No payload length at all is a jumbogram, RFC 2675.)
    if version >> 4 != 6
        || payload_length == 0
        || payload_length + IPV6_LENGTH > packet.length().wrapping_sub(L3)
        || payload_length + IPV6_LENGTH > usize::from(u16::MAX)
    {
        return Err(Reason::Malformed);
    }
    let source = packet.read(L3 + field::IPV6_SOURCE).map(Ipv6::from_octets).ok_or(Reason::Malformed)?;
    let destination =
        packet.read(L3 + field::IPV6_DESTINATION).map(Ipv6::from_octets).ok_or(Reason::Malformed)?;
    if is_martian(source, destination) {
        return Err(Reason::Martian);
    }
    let walk = walk(packet, next_header, L3 + IPV6_LENGTH)?;
    if walk.later_fragment {
        return Err(Reason::Fragment);
    }
    let proto = Proto(walk.proto);
    if proto == Proto::ICMPV6 {
        let kind = packet.read::<2>(walk.l4).ok_or(Reason::Malformed)?[0];
        return Err(if is_error(kind) { Reason::IcmpError } else { Reason::OtherProtocol });
    }
    let end = L3 + IPV6_LENGTH + payload_length;
    let rest = end.checked_sub(walk.l4).ok_or(Reason::Malformed)?;
    let Transport { source_port, destination_port, flags, segment } =
        transport(packet, walk.l4, proto, rest, walk.first_fragment)?;
    Ok(Parsed {
        tuple: Tuple { source, destination, source_port, destination_port, proto },
        l4: walk.l4,
        l3_length: (payload_length + IPV6_LENGTH) as u16,
        ttl,
        flags,
        segment,
        first_fragment: walk.first_fragment,
        identification: walk.identification,
    })
}

/// What lies behind the extension headers.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    pub proto: u8,
    pub l4: usize,
    pub first_fragment: bool,
    pub later_fragment: bool,
    pub identification: u32,
}

/// Goes through the extension headers that start at `l4`.
#[inline(always)]
pub(super) fn walk<P: Packet>(packet: &P, next_header: u8, l4: usize) -> Result<Walk, Reason> {
    let mut walk =
        Walk { proto: next_header, l4, first_fragment: false, later_fragment: false, identification: 0 };
    for _ in 0..EXTENSIONS {
        if !is_extension(walk.proto) || walk.later_fragment {
            return Ok(walk);
        }
        let [next, length, third, fourth, rest @ ..] = packet.read::<8>(walk.l4).ok_or(Reason::Malformed)?;
        match walk.proto {
            FRAGMENT => {
                walk.identification = u32::from_ne_bytes(rest);
                walk.first_fragment = fourth & 1 != 0;
                walk.later_fragment = third != 0 || fourth & 0xf8 != 0;
                walk.l4 += 8;
            }
            AUTHENTICATION => walk.l4 += (usize::from(length) + 2) * 4,
            // On its way to somewhere else first.
            ROUTING if fourth != 0 => return Err(Reason::OtherProtocol),
            _ => walk.l4 += (usize::from(length) + 1) * 8,
        }
        walk.proto = next;
        if walk.l4 > LAST {
            return Err(Reason::Malformed);
        }
        walk.l4 = packet.forget_history(walk.l4) & 0x3fe;
    }
    if is_extension(walk.proto) && !walk.later_fragment { Err(Reason::Malformed) } else { Ok(walk) }
}

const fn is_extension(next_header: u8) -> bool {
    matches!(next_header, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

/// See [`crate::datapath::Family::headers`]. Of extension headers, 128 bytes are looked at.
#[inline(always)]
pub fn headers6<P: Packet>(packet: &P) -> usize {
    const PLAIN: usize = ETHERNET_LENGTH + IPV6_LENGTH;
    match packet.read::<2>(ETHERNET_LENGTH + field::IPV6_NEXT_HEADER) {
        Some([next_header, _]) if !is_extension(next_header) => PLAIN + looked_at(Proto(next_header)),
        _ => PLAIN + 128 + TCP_LENGTH,
    }
}

/// Destination unreachable, too big, time exceeded and parameter problem (RFC 4443): they quote a packet.
const fn is_error(kind: u8) -> bool {
    matches!(kind, 1..=4)
}
