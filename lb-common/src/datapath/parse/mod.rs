//! From frame to addresses and ports. Whatever is not plainly TCP, UDP or SCTP has a reason.

mod fragment;
mod ipv4;
mod ipv6;
mod quote;

pub use fragment::{Fragments, LaterFragment};
pub use ipv4::{headers4, parse4};
pub use ipv6::{headers6, parse6};
pub use quote::{Quote, Quoted, quote};

use crate::abi::Reason;
use crate::addr::{Address, Port, Proto};
use crate::datapath::Family;
use crate::wire::{ETHERNET_LENGTH, Packet, SCTP_LENGTH, TCP_LENGTH, UDP_LENGTH, half, octet};

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
    /// TCP, UDP or SCTP.
    pub proto: Proto,
}

impl<A: Copy> Tuple<A> {
    /// The same, seen from the other end.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            proto: self.proto,
        }
    }
}

/// The flags byte of a TCP header; 0 for UDP; for SCTP what the first chunk would be in TCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// What the first chunk of an SCTP packet does to an association, in TCP's words (RFC 9260, 3.2).
    #[inline(always)]
    const fn of_chunk(kind: u8) -> Self {
        const INIT: u8 = 1;
        const INIT_ACK: u8 = 2;
        const ABORT: u8 = 6;
        const SHUTDOWN: u8 = 7;
        const SHUTDOWN_ACK: u8 = 8;
        Self(match kind {
            INIT => Self::SYN,
            INIT_ACK => Self::SYN | Self::ACK,
            ABORT => Self::RST,
            SHUTDOWN | SHUTDOWN_ACK => Self::FIN | Self::ACK,
            _ => Self::ACK,
        })
    }

    /// FIN, SYN, RST and ACK: all that moves a flow's state. Less than [`TcpFlags::TRANSITIONS`].
    ///
    /// Where they stand: the verifier of Linux before 6.10 knows no bounds of an OR of two numbers, so a smaller number put
    /// together from them could be no index.
    #[inline(always)]
    pub const fn transition_bits(self) -> u8 {
        self.0 & (Self::FIN | Self::SYN | Self::RST | Self::ACK)
    }

    /// How many numbers [`TcpFlags::transition_bits`] may be, and then some.
    pub const TRANSITIONS: usize = 32;

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

    /// The same, as if the sender had more to say.
    #[inline(always)]
    #[must_use]
    pub const fn without_fin(self) -> Self {
        Self(self.0 & !Self::FIN)
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

/// What a TCP segment is in sequence numbers; zeros for other protocols.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// The number of its first byte.
    pub sequence: u32,
    /// The number after its last; SYN and FIN count one each.
    pub next: u32,
    /// The number its sender expects next. It counts with [`TcpFlags::ack`].
    pub acknowledgement: u32,
}

/// A datagram that may concern us, or the first fragment of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed<A> {
    /// Who speaks to whom.
    pub tuple: Tuple<A>,
    l4: usize,
    /// Length of the network header and all it carries, in bytes.
    pub l3_length: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags.
    pub flags: TcpFlags,
    /// TCP sequence numbers.
    pub segment: Segment,
    /// More fragments of the datagram follow, which have no ports.
    pub first_fragment: bool,
    /// What they share: the identification as it stands in the header. Only for a first fragment.
    pub identification: u32,
}

impl<A: Address> Parsed<A> {
    /// No datagram: what memory for one holds before there is one.
    pub const NOTHING: Self = Self {
        tuple: Tuple {
            source: A::UNSPECIFIED,
            destination: A::UNSPECIFIED,
            source_port: Port::new(0),
            destination_port: Port::new(0),
            proto: Proto(0),
        },
        l4: 0,
        l3_length: 0,
        ttl: 0,
        flags: TcpFlags(0),
        segment: Segment { sequence: 0, next: 0, acknowledgement: 0 },
        first_fragment: false,
        identification: 0,
    };
}

impl<A: Family> Parsed<A> {
    /// Offset of the network header in the frame.
    #[inline(always)]
    pub const fn l3(&self) -> usize {
        ETHERNET_LENGTH
    }

    /// Offset of the transport header in the frame.
    #[inline(always)]
    pub const fn l4(&self) -> usize {
        self.l4 & A::OFFSETS
    }
}

/// What a transport header says.
struct Transport {
    source_port: Port,
    destination_port: Port,
    flags: TcpFlags,
    segment: Segment,
}

/// How many bytes of a transport header are looked at.
#[inline(always)]
const fn looked_at(proto: Proto) -> usize {
    match proto {
        Proto::TCP => TCP_LENGTH,
        Proto::SCTP => SCTP_LENGTH + 4,
        // For others, what kind of ICMP message it is.
        _ => UDP_LENGTH,
    }
}

/// Reads the transport header at `l4`, of a datagram that has `length` bytes from there on.
#[inline(always)]
fn transport<P: Packet>(
    packet: &P,
    l4: usize,
    proto: Proto,
    length: usize,
    first_fragment: bool,
) -> Result<Transport, Reason> {
    // All three begin with the two ports.
    let mut segment = Segment::default();
    let (ports, flags) = match proto {
        Proto::TCP => {
            let [ports, sequence, acknowledgement, rest, _]: [_; TCP_LENGTH / 4] =
                packet.words(l4).ok_or(Reason::Malformed)?;
            let header_length = usize::from(octet(rest, 0) >> 4) * 4;
            if header_length < TCP_LENGTH || header_length > length {
                return Err(Reason::Malformed);
            }
            let flags = TcpFlags(octet(rest, 1));
            let sequence = u32::from_be(sequence);
            let length = (length - header_length) as u32 + u32::from(flags.syn()) + u32::from(flags.fin());
            segment = Segment {
                sequence,
                next: sequence.wrapping_add(length),
                acknowledgement: u32::from_be(acknowledgement),
            };
            (ports, flags)
        }
        Proto::UDP => {
            let [ports, rest]: [_; UDP_LENGTH / 4] = packet.words(l4).ok_or(Reason::Malformed)?;
            let claimed = usize::from(u16::from_be_bytes(half(rest, 0)));
            if length < UDP_LENGTH || claimed < UDP_LENGTH || claimed > length && !first_fragment {
                return Err(Reason::Malformed);
            }
            (ports, TcpFlags::default())
        }
        Proto::SCTP => {
            let [ports, _, _, chunk]: [_; SCTP_LENGTH / 4 + 1] = packet.words(l4).ok_or(Reason::Malformed)?;
            if length < SCTP_LENGTH + 4 {
                return Err(Reason::Malformed);
            }
            (ports, TcpFlags::of_chunk(octet(chunk, 0)))
        }
        _ => return Err(Reason::OtherProtocol),
    };
    Ok(Transport {
        source_port: Port::from_octets(half(ports, 0)),
        destination_port: Port::from_octets(half(ports, 1)),
        flags,
        segment,
    })
}

/// Addresses that never come over a device: the kernel drops such packets. NodePorts on loopback
/// addresses belong to the socket hooks alone (CVE-2020-8558).
#[inline(always)]
fn is_martian<A: Address>(source: A, destination: A) -> bool {
    source.is_martian_source() || destination.is_loopback()
}
