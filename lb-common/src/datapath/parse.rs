//! From frame to addresses and ports. Whatever is not plainly TCP or UDP over IPv4 has a reason.

use crate::abi::Reason;
use crate::addr::{Ipv4, Port, Proto};
use crate::wire::{
    self, ETHERNET_LENGTH, ETHERTYPE_IPV4, IPV4_LENGTH, Packet, TCP_LENGTH, UDP_LENGTH, field,
};

/// Who speaks to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    /// TCP or UDP.
    pub proto: Proto,
}

/// The flags byte of a TCP header; 0 for UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// FIN, SYN, RST and ACK: all that moves a flow's state, in four bits.
    #[inline(always)]
    pub const fn transition_bits(self) -> u8 {
        self.0 & (Self::FIN | Self::SYN | Self::RST) | (self.0 & Self::ACK) >> 1
    }

    /// The inverse of [`TcpFlags::transition_bits`].
    pub const fn from_transition_bits(bits: u8) -> Self {
        Self(bits & (Self::FIN | Self::SYN | Self::RST) | (bits & 0x08) << 1)
    }

    /// A segment in the middle of a connection.
    #[inline(always)]
    pub const fn is_plain(self) -> bool {
        self.0 & (Self::FIN | Self::SYN | Self::RST | Self::ACK) == Self::ACK
    }

    /// The sender has nothing more to say.
    #[inline(always)]
    pub const fn fin(self) -> bool {
        self.0 & Self::FIN != 0
    }

    /// The sender gives up.
    #[inline(always)]
    pub const fn rst(self) -> bool {
        self.0 & Self::RST != 0
    }

    /// The acknowledgement number counts.
    #[inline(always)]
    pub const fn ack(self) -> bool {
        self.0 & Self::ACK != 0
    }

    /// The first packet of a connection.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN
    }

    /// SYN, with or without ACK: takes one sequence number.
    #[inline(always)]
    pub const fn syn(self) -> bool {
        self.0 & Self::SYN != 0
    }
}

/// A frame that may concern us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed<A> {
    /// Who speaks to whom.
    pub tuple: Tuple<A>,
    /// Offset of the network header in the frame.
    pub l3: usize,
    /// Offset of the transport header in the frame; at most `l3 + 60`.
    pub l4: usize,
    /// Length of the network header and all it carries, in bytes.
    pub l3_length: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags.
    pub flags: TcpFlags,
}

/// Reads an Ethernet frame with IPv4 in it.
///
/// # Errors
/// The reason to pass the frame untouched. Options are skipped; nothing is rejected for having them.
#[inline(always)]
pub fn parse4<P: Packet>(packet: &P) -> Result<Parsed<Ipv4>, Reason> {
    const L3: usize = ETHERNET_LENGTH;
    if packet.read::<2>(field::ETHERTYPE) != Some(ETHERTYPE_IPV4) {
        return Err(Reason::NotIpv4);
    }
    let header = wire::ipv4(packet.read::<IPV4_LENGTH>(L3).ok_or(Reason::Malformed)?);
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
    // More fragments, or an offset: ports are in the first piece only.
    if header.frags[0] & 0x3f != 0 || header.frags[1] != 0 {
        return Err(Reason::Fragment);
    }
    let l4 = L3 + header_length;
    let proto = Proto(header.proto);
    let (source_port, destination_port, flags) = match proto {
        Proto::TCP => {
            let tcp = packet.read::<TCP_LENGTH>(l4).ok_or(Reason::Malformed)?;
            let header_length = usize::from(tcp[field::TCP_OFFSET_FLAGS] >> 4) * 4;
            if header_length < TCP_LENGTH || header_length > payload_length {
                return Err(Reason::Malformed);
            }
            ([tcp[0], tcp[1]], [tcp[2], tcp[3]], TcpFlags(tcp[field::TCP_OFFSET_FLAGS + 1]))
        }
        Proto::UDP => {
            let udp = packet.read::<UDP_LENGTH>(l4).ok_or(Reason::Malformed)?;
            let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
            if length < UDP_LENGTH || length > payload_length {
                return Err(Reason::Malformed);
            }
            ([udp[0], udp[1]], [udp[2], udp[3]], TcpFlags::default())
        }
        _ => return Err(Reason::OtherProtocol),
    };
    let source = Ipv4::from_octets(header.src_addr);
    let destination = Ipv4::from_octets(header.dst_addr);
    // Addresses that never come over a device: the kernel drops such packets. NodePorts on 127.0.0.1
    // belong to the socket hooks alone (CVE-2020-8558).
    if source.is_martian_source() || destination.is_loopback() {
        return Err(Reason::Martian);
    }
    Ok(Parsed {
        tuple: Tuple {
            source,
            destination,
            source_port: Port::from_octets(source_port),
            destination_port: Port::from_octets(destination_port),
            proto,
        },
        l3: L3,
        l4,
        l3_length,
        ttl: header.ttl,
        flags,
    })
}
