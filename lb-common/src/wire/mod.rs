//! Reading and writing frames, without knowing where their bytes live.
//!
//! Header layouts are network-types'; an offset here is always `offset_of!` one of its fields.

mod checksum;
mod slice;

pub use checksum::{Checksum, Delta};
pub use slice::SlicePacket;

use core::mem::offset_of;

use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

/// A frame that can be read. Offsets count from its first byte.
pub trait Packet {
    /// `N` bytes at `offset`, or nothing when the frame ends before.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// `W` words at `offset`, as they lie in memory: a header in words stays in registers, one in bytes does
    /// not.
    #[inline(always)]
    fn words<const W: usize>(&self, offset: usize) -> Option<[u32; W]> {
        let mut words = [0; W];
        for (number, word) in words.iter_mut().enumerate() {
            *word = u32::from_ne_bytes(self.read(offset + 4 * number)?);
        }
        Some(words)
    }

    /// `offset`, without its history: the BPF verifier follows every offset a loop may end with through the
    /// rest of the program, one by one; this makes them one. Elsewhere it does nothing.
    #[inline(always)]
    fn forget_history(&self, offset: usize) -> usize {
        offset
    }

    /// Length of the whole frame, the parts that are not in memory included.
    fn length(&self) -> usize;
}

/// A frame that can be changed in place.
pub trait PacketMut: Packet {
    /// Puts `bytes` at `offset`; nothing is changed when the frame ends before.
    #[must_use]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;
}

/// EtherType of IPv4, as it stands in the header.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// EtherType of IPv6, as it stands in the header.
pub const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// Length of an untagged Ethernet header.
pub const ETHERNET_LENGTH: usize = EthHdr::LEN;
/// Length of an Ethernet address.
pub const MAC_LENGTH: usize = 6;
/// Length of an IPv4 header without options.
pub const IPV4_LENGTH: usize = Ipv4Hdr::LEN;
/// Length of an IPv6 header without extension headers.
pub const IPV6_LENGTH: usize = Ipv6Hdr::LEN;
/// Length of the ICMP and ICMPv6 header in front of what an error quotes.
pub const ICMP_LENGTH: usize = 8;
/// Length of the common header of SCTP (RFC 9260, 3.1).
pub const SCTP_LENGTH: usize = 12;
/// Length of a TCP header without options.
pub const TCP_LENGTH: usize = TcpHdr::LEN;
/// Length of a UDP header.
pub const UDP_LENGTH: usize = UdpHdr::LEN;

/// Offsets of the fields we change, inside their header.
pub mod field {
    use super::{EthHdr, Ipv4Hdr, Ipv6Hdr, TcpHdr, UdpHdr, offset_of};

    /// EtherType in the Ethernet header.
    pub const ETHERTYPE: usize = offset_of!(EthHdr, ether_type);
    /// Length of the packet, in the IPv4 header.
    pub const IPV4_TOTAL_LENGTH: usize = offset_of!(Ipv4Hdr, tot_len);
    /// TTL in the IPv4 header; the protocol follows in the same checksum word.
    pub const IPV4_TTL: usize = offset_of!(Ipv4Hdr, ttl);
    /// Header checksum in the IPv4 header.
    pub const IPV4_CHECKSUM: usize = offset_of!(Ipv4Hdr, check);
    /// Source address in the IPv4 header.
    pub const IPV4_SOURCE: usize = offset_of!(Ipv4Hdr, src_addr);
    /// Destination address in the IPv4 header.
    pub const IPV4_DESTINATION: usize = offset_of!(Ipv4Hdr, dst_addr);
    /// Length of what follows the header, in the IPv6 header.
    pub const IPV6_PAYLOAD_LENGTH: usize = offset_of!(Ipv6Hdr, payload_len);
    /// Next header in the IPv6 header; the hop limit follows.
    pub const IPV6_NEXT_HEADER: usize = offset_of!(Ipv6Hdr, next_hdr);
    /// Hop limit in the IPv6 header.
    pub const IPV6_HOP_LIMIT: usize = offset_of!(Ipv6Hdr, hop_limit);
    /// Source address in the IPv6 header.
    pub const IPV6_SOURCE: usize = offset_of!(Ipv6Hdr, src_addr);
    /// Destination address in the IPv6 header.
    pub const IPV6_DESTINATION: usize = offset_of!(Ipv6Hdr, dst_addr);
    /// Checksum in the ICMP and ICMPv6 header.
    pub const ICMP_CHECKSUM: usize = 2;
    /// Source port in the TCP and the UDP header.
    pub const SOURCE_PORT: usize = offset_of!(TcpHdr, source);
    /// Destination port in the TCP and the UDP header.
    pub const DESTINATION_PORT: usize = offset_of!(TcpHdr, dest);
    /// Sequence number in the TCP header.
    pub const TCP_SEQUENCE: usize = offset_of!(TcpHdr, seq);
    /// Acknowledgement number in the TCP header.
    pub const TCP_ACKNOWLEDGEMENT: usize = offset_of!(TcpHdr, ack_seq);
    /// Data offset and flags in the TCP header.
    pub const TCP_OFFSET_FLAGS: usize = offset_of!(TcpHdr, _bitfield_1);
    /// Checksum in the TCP header.
    pub const TCP_CHECKSUM: usize = offset_of!(TcpHdr, check);
    /// Checksum in the UDP header.
    pub const UDP_CHECKSUM: usize = offset_of!(UdpHdr, check);

    const _: () = assert!(SOURCE_PORT == offset_of!(UdpHdr, src));
    const _: () = assert!(DESTINATION_PORT == offset_of!(UdpHdr, dst));
}

/// The IPv4 header out of its five words.
#[inline(always)]
pub const fn ipv4([first, second, third, source, destination]: [u32; IPV4_LENGTH / 4]) -> Ipv4Hdr {
    let (vihl, tos, length) = (octet(first, 0), octet(first, 1), half(first, 1));
    let (ttl, proto, check) = (octet(third, 0), octet(third, 1), half(third, 1));
    Ipv4Hdr {
        vihl,
        tos,
        tot_len: length,
        id: half(second, 0),
        frags: half(second, 1),
        ttl,
        proto,
        check,
        src_addr: source.to_ne_bytes(),
        dst_addr: destination.to_ne_bytes(),
    }
}

/// An octet of a word as it lies in memory.
#[inline(always)]
pub const fn octet(word: u32, number: u32) -> u8 {
    (u32::from_be(word) >> (24 - 8 * number)) as u8
}

/// The first or second half of a word as it lies in memory.
#[inline(always)]
pub const fn half(word: u32, number: u32) -> [u8; 2] {
    ((u32::from_be(word) >> (16 - 16 * number)) as u16).to_be_bytes()
}
