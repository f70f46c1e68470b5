//! What a client gets when nobody serves: a TCP RST, or an ICMP port unreachable for UDP.
//!
//! TCP is answered with a RST and not with ICMP: an ICMP error that arrives while connect() still
//! holds the socket, as over veth, is dropped by Linux (`LockDroppedIcmps`) until the next SYN.

use super::parse::Parsed;
use crate::addr::{Ipv4, Proto};
use crate::wire::{Checksum, Delta, IPV4_LENGTH, Packet, TCP_LENGTH, UDP_LENGTH, field};

/// TTL of what we send ourselves.
pub const TTL: u8 = 64;

/// Length of [`unreachable4`]: IPv4 and ICMP header, and the start of the packet it answers.
pub const UNREACHABLE_LENGTH: usize = IPV4_LENGTH + ICMP_LENGTH + QUOTE_LENGTH;

const ICMP_LENGTH: usize = 8;
const QUOTE_LENGTH: usize = IPV4_LENGTH + UDP_LENGTH;
const PORT_UNREACHABLE: [u8; 2] = [3, 3];

/// The three TCP words that make a RST out of the segment it answers (RFC 9293, 3.10.7.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reset {
    /// Words of the segment: sequence, acknowledgement, offset + flags + window.
    pub old: [[u8; 4]; 3],
    /// The same words in the answer. The header's length stays, so options and payload may stay too.
    pub new: [[u8; 4]; 3],
}

/// The answer to a segment; nothing for a RST, which is never answered.
#[inline(always)]
pub fn reset<P: Packet>(packet: &P, parsed: &Parsed<Ipv4>) -> Option<Reset> {
    const RST: u8 = 0x04;
    const RST_ACK: u8 = 0x14;
    if parsed.flags.rst() {
        return None;
    }
    let tcp: [u8; TCP_LENGTH] = packet.read(parsed.l4)?;
    let sequence = [tcp[4], tcp[5], tcp[6], tcp[7]];
    let acknowledgement = [tcp[8], tcp[9], tcp[10], tcp[11]];
    let old = [sequence, acknowledgement, [tcp[12], tcp[13], tcp[14], tcp[15]]];
    let offset = tcp[field::TCP_OFFSET_FLAGS] & 0xf0;
    let new = if parsed.flags.ack() {
        [acknowledgement, [0; 4], [offset, RST, 0, 0]]
    } else {
        let header = (parsed.l4 - parsed.l3) as u32 + u32::from(offset >> 4) * 4;
        let length = (parsed.l3_length as u32)
            .wrapping_sub(header)
            .wrapping_add(parsed.flags.syn() as u32)
            .wrapping_add(parsed.flags.fin() as u32);
        let next = u32::from_be_bytes(sequence).wrapping_add(length);
        [[0; 4], next.to_be_bytes(), [offset, RST_ACK, 0, 0]]
    };
    Some(Reset { old, new })
}

/// Writes a whole IPv4 packet that tells the sender of a UDP datagram that its port is unreachable
/// (RFC 792).
///
/// Nothing when the packet has IP options: then eight bytes of UDP are not where we quote from.
#[inline(always)]
pub fn unreachable4<P: Packet>(
    packet: &P,
    parsed: &Parsed<Ipv4>,
    answer: &mut [u8; UNREACHABLE_LENGTH],
) -> Option<()> {
    const ICMP: usize = IPV4_LENGTH;
    const QUOTE: usize = ICMP + ICMP_LENGTH;
    if parsed.l4 != parsed.l3 + IPV4_LENGTH {
        return None;
    }
    let quote: [u8; QUOTE_LENGTH] = packet.read(parsed.l3)?;
    *answer = [0; UNREACHABLE_LENGTH];
    answer[QUOTE..].copy_from_slice(&quote);
    answer[ICMP..ICMP + 2].copy_from_slice(&PORT_UNREACHABLE);
    let checksum = Checksum::of(&answer[ICMP..], Delta::default());
    answer[ICMP + 2..ICMP + 4].copy_from_slice(&checksum.0);

    answer[0] = 0x45;
    answer[2..4].copy_from_slice(&(UNREACHABLE_LENGTH as u16).to_be_bytes());
    answer[field::IPV4_TTL] = TTL;
    answer[field::IPV4_TTL + 1] = Proto::ICMP.0;
    // Source and destination change places: the refused address itself answers.
    answer[12..16].copy_from_slice(&quote[16..20]);
    answer[16..20].copy_from_slice(&quote[12..16]);
    let checksum = Checksum::of(&answer[..IPV4_LENGTH], Delta::default());
    answer[field::IPV4_CHECKSUM..field::IPV4_CHECKSUM + 2].copy_from_slice(&checksum.0);
    Some(())
}
