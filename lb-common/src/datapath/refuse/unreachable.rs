//! Port unreachable: a whole packet of our own, which quotes the start of the one it answers.

use crate::addr::{Ipv4, Ipv6, Proto};
use crate::datapath::{Family, Parsed};
use crate::wire::{
    Checksum, Delta, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP_LENGTH, IPV4_LENGTH, IPV6_LENGTH, Packet,
    PacketMut, UDP_LENGTH, field,
};

/// Length of the IPv4 answer: IPv4 and ICMP header, and the start of the packet it answers.
pub const UNREACHABLE4_LENGTH: usize = 2 * IPV4_LENGTH + ICMP_LENGTH + UDP_LENGTH;
/// Length of the IPv6 answer, likewise.
pub const UNREACHABLE6_LENGTH: usize = 2 * IPV6_LENGTH + ICMP_LENGTH + UDP_LENGTH;

/// Type 3, code 3 (RFC 792).
const PORT_UNREACHABLE4: [u8; 2] = [3, 3];
/// Type 1, code 4 (RFC 4443, 3.1).
const PORT_UNREACHABLE6: [u8; 2] = [1, 4];

/// The answer of one family.
pub trait Unreachable: Family {
    /// Room for it: the network header and all behind it.
    type Answer: AsRef<[u8]>;
    /// The room before anything is written to it.
    const EMPTY: Self::Answer;
    /// Its EtherType.
    const ETHERTYPE: [u8; 2];

    /// Writes the answer to `packet`.
    ///
    /// Nothing when it has options or extension headers: then eight bytes of the transport header are
    /// not where we quote from.
    fn unreachable<P: Packet>(packet: &P, parsed: &Parsed<Self>, answer: &mut Self::Answer) -> Option<()>;

    /// Puts the answer into a frame of its length.
    #[must_use]
    fn write_answer<P: PacketMut>(answer: &Self::Answer, packet: &mut P, offset: usize) -> Option<()>;
}

impl Unreachable for Ipv4 {
    type Answer = [u8; UNREACHABLE4_LENGTH];
    const EMPTY: Self::Answer = [0; UNREACHABLE4_LENGTH];
    const ETHERTYPE: [u8; 2] = ETHERTYPE_IPV4;

    #[inline(always)]
    fn unreachable<P: Packet>(packet: &P, parsed: &Parsed<Self>, answer: &mut Self::Answer) -> Option<()> {
        const ICMP: usize = IPV4_LENGTH;
        const QUOTE: usize = ICMP + ICMP_LENGTH;
        if parsed.l4() != parsed.l3() + IPV4_LENGTH {
            return None;
        }
        let quote: [u8; IPV4_LENGTH + UDP_LENGTH] = packet.read(parsed.l3())?;
        *answer = Self::EMPTY;
        answer[QUOTE..].copy_from_slice(&quote);
        answer[ICMP..ICMP + 2].copy_from_slice(&PORT_UNREACHABLE4);
        let checksum = Checksum::of(&answer[ICMP..], Delta::default());
        answer[ICMP + 2..ICMP + 4].copy_from_slice(&checksum.0);

        answer[0] = 0x45;
        answer[2..4].copy_from_slice(&(UNREACHABLE4_LENGTH as u16).to_be_bytes());
        answer[field::IPV4_TTL] = super::TTL;
        answer[field::IPV4_TTL + 1] = Proto::ICMP.0;
        // Source and destination change places: the refused address itself answers.
        answer[12..16].copy_from_slice(&quote[16..20]);
        answer[16..20].copy_from_slice(&quote[12..16]);
        let checksum = Checksum::of(&answer[..IPV4_LENGTH], Delta::default());
        answer[field::IPV4_CHECKSUM..field::IPV4_CHECKSUM + 2].copy_from_slice(&checksum.0);
        Some(())
    }

    #[inline(always)]
    fn write_answer<P: PacketMut>(answer: &Self::Answer, packet: &mut P, offset: usize) -> Option<()> {
        packet.write(offset, *answer)
    }
}

impl Unreachable for Ipv6 {
    type Answer = [u8; UNREACHABLE6_LENGTH];
    const EMPTY: Self::Answer = [0; UNREACHABLE6_LENGTH];
    const ETHERTYPE: [u8; 2] = ETHERTYPE_IPV6;

    #[inline(always)]
    fn unreachable<P: Packet>(packet: &P, parsed: &Parsed<Self>, answer: &mut Self::Answer) -> Option<()> {
        const ICMP: usize = IPV6_LENGTH;
        const QUOTE: usize = ICMP + ICMP_LENGTH;
        const LENGTH: u16 = (UNREACHABLE6_LENGTH - IPV6_LENGTH) as u16;
        if parsed.l4() != parsed.l3() + IPV6_LENGTH {
            return None;
        }
        let quote: [u8; IPV6_LENGTH + UDP_LENGTH] = packet.read(parsed.l3())?;
        *answer = Self::EMPTY;
        answer[QUOTE..].copy_from_slice(&quote);
        answer[0] = 0x60;
        answer[4..6].copy_from_slice(&LENGTH.to_be_bytes());
        answer[field::IPV6_NEXT_HEADER] = Proto::ICMPV6.0;
        answer[field::IPV6_HOP_LIMIT] = super::TTL;
        // Source and destination change places: the refused address itself answers.
        answer[8..24].copy_from_slice(&quote[24..40]);
        answer[24..40].copy_from_slice(&quote[8..24]);
        answer[ICMP..ICMP + 2].copy_from_slice(&PORT_UNREACHABLE6);
        // The pseudo header of RFC 8200, 8.1, ends with length and protocol.
        let pseudo = Delta::default().with_word(LENGTH.to_be_bytes()).with_word([0, Proto::ICMPV6.0]);
        let checksum = Checksum::of(&answer[field::IPV6_SOURCE..], pseudo);
        answer[ICMP + 2..ICMP + 4].copy_from_slice(&checksum.0);
        Some(())
    }

    #[inline(always)]
    fn write_answer<P: PacketMut>(answer: &Self::Answer, packet: &mut P, offset: usize) -> Option<()> {
        packet.write(offset, *answer)
    }
}
