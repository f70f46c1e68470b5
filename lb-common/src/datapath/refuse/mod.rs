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
///
/// Without options: a client that waits on this port (TIME-WAIT) compares timestamps with those of its former connection, and
/// takes its own for an old one (PAWS, RFC 7323, 5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reset {
    /// Words of the segment: sequence, acknowledgement, offset + flags + window.
    pub old: [[u8; 4]; 3],
    /// The same words in the answer.
    pub new: [[u8; 4]; 3],
}

/// The options of a segment, which its answer goes without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// How many words of four bytes.
    pub words: usize,
    /// Whether data follows them.
    pub has_data: bool,
}

impl Options {
    /// The most words there are.
    pub const MOST: usize = 10;

    /// Of a segment.
    #[inline(always)]
    pub fn of<A: Family, P: Packet>(packet: &P, parsed: &Parsed<A>) -> Option<Self> {
        let [offset, _]: [u8; 2] = packet.read(parsed.l4() + field::TCP_OFFSET_FLAGS)?;
        let words = usize::from(offset >> 4).checked_sub(TCP_LENGTH / 4)?;
        let length = usize::from(parsed.l3_length).checked_sub(parsed.l4() - parsed.l3() + TCP_LENGTH)?;
        Some(Self { words, has_data: length > words * 4 })
    }
}

/// Offset and flags of a header without options: the first byte.
pub const NO_OPTIONS: u8 = (TCP_LENGTH as u8 / 4) << 4;

/// The answer to a segment; nothing for a RST, which is never answered, and for one in fragments, whose header would make the answer one.
#[inline(always)]
pub fn reset<A: Family, P: Packet>(packet: &P, parsed: &Parsed<A>) -> Option<Reset> {
    const RST: u8 = 0x04;
    const RST_ACK: u8 = 0x14;
    if parsed.flags.rst() || parsed.first_fragment {
        return None;
    }
    // (In words: in bytes each would be kept by itself.)
    let [_, sequence, acknowledgement, rest, _]: [u32; TCP_LENGTH / 4] = packet.words(parsed.l4())?;
    let old = [sequence.to_ne_bytes(), acknowledgement.to_ne_bytes(), rest.to_ne_bytes()];
    let [_, acknowledgement, _] = old;
    let new = if parsed.flags.ack() {
        [acknowledgement, [0; 4], [NO_OPTIONS, RST, 0, 0]]
    } else {
        [[0; 4], parsed.segment.next.to_be_bytes(), [NO_OPTIONS, RST_ACK, 0, 0]]
    };
    Some(Reset { old, new })
}

/// Length of the frame that answers a TCP segment: not less than Ethernet's shortest, which a segment with options may be longer than.
#[inline(always)]
pub fn reset_frame_length<A: Family>(parsed: &Parsed<A>) -> usize {
    const SHORTEST: usize = 60;
    (parsed.l4() + TCP_LENGTH).max(SHORTEST)
}

/// Length of the answer to a TCP segment, from the network header on.
#[inline(always)]
pub const fn reset_length<A: Family>(parsed: &Parsed<A>) -> u16 {
    (parsed.l4() - parsed.l3() + TCP_LENGTH) as u16
}
