//! What a client gets when nobody serves: a TCP RST, or an ICMP port unreachable for UDP and SCTP.
//!
//! TCP is answered with a RST and not with ICMP: an ICMP error that arrives while connect() still
//! holds the socket, as over veth, is dropped by Linux (`LockDroppedIcmps`) until the next SYN.

mod unreachable;

pub use unreachable::{UNREACHABLE4_LENGTH, UNREACHABLE6_LENGTH, Unreachable};

use super::Family;
use super::parse::Parsed;
use crate::wire::{Packet, TCP_LENGTH, field};

/// TTL of what we send ourselves.
pub const TTL: u8 = 64;

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
pub fn reset<A: Family, P: Packet>(packet: &P, parsed: &Parsed<A>) -> Option<Reset> {
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
