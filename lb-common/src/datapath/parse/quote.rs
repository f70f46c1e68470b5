//! ICMP errors: the packet they quote.

use super::{Parsed, Tuple, ipv6};
use crate::abi::Reason;
use crate::addr::{Address, Ipv4, Ipv6, Proto};
use crate::datapath::Family;
use crate::wire::{ETHERNET_LENGTH, ICMP_LENGTH, IPV4_LENGTH, IPV6_LENGTH, Packet, field};

/// An ICMP error, and what it quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quote<A> {
    /// Who reports.
    pub source: A,
    /// To whom.
    pub destination: A,
    icmp: u16,
    l3: u16,
    l4: u16,
    /// Who spoke to whom, as quoted.
    pub tuple: Tuple<A>,
}

impl<A: Address> Quote<A> {
    /// No error: what memory for one holds before there is one.
    pub const NOTHING: Self = Self {
        source: A::UNSPECIFIED,
        destination: A::UNSPECIFIED,
        icmp: 0,
        l3: 0,
        l4: 0,
        tuple: Parsed::<A>::NOTHING.tuple,
    };

    /// Offset of the ICMP header in the frame.
    #[inline(always)]
    pub const fn icmp(&self) -> usize {
        offset(self.icmp)
    }

    /// Offset of the quoted network header.
    #[inline(always)]
    pub const fn l3(&self) -> usize {
        offset(self.l3)
    }

    /// Offset of the quoted transport header, of which eight bytes may be all there is.
    #[inline(always)]
    pub const fn l4(&self) -> usize {
        offset(self.l4)
    }
}

/// Offsets lie within the headers that are looked at. The mask says so to the verifier, for which a
/// number out of memory could be any.
#[inline(always)]
const fn offset(number: u16) -> usize {
    (number & 0x1fe) as usize
}

/// Where a quoted packet's ports are.
pub trait Quoted: Family {
    /// Offset of the ICMP header of the frame, if it is an error.
    fn icmp<P: Packet>(packet: &P) -> Option<usize>;

    /// Protocol and transport offset of the packet quoted at `l3`.
    fn transport<P: Packet>(packet: &P, l3: usize) -> Option<(Proto, usize)>;
}

impl Quoted for Ipv4 {
    #[inline(always)]
    fn icmp<P: Packet>(packet: &P) -> Option<usize> {
        let [version, ..] = packet.read::<2>(ETHERNET_LENGTH)?;
        Some(ETHERNET_LENGTH + usize::from(version & 0xf) * 4)
    }

    #[inline(always)]
    fn transport<P: Packet>(packet: &P, l3: usize) -> Option<(Proto, usize)> {
        let header: [u8; IPV4_LENGTH] = packet.read(l3)?;
        let length = usize::from(header[0] & 0xf) * 4;
        // A later fragment has no ports.
        let whole = header[6] & 0x1f == 0 && header[7] == 0;
        (header[0] >> 4 == 4 && length >= IPV4_LENGTH && whole).then_some((Proto(header[9]), l3 + length))
    }
}

impl Quoted for Ipv6 {
    #[inline(always)]
    fn icmp<P: Packet>(packet: &P) -> Option<usize> {
        let [next_header, _] = packet.read(ETHERNET_LENGTH + field::IPV6_NEXT_HEADER)?;
        ipv6::walk(packet, next_header, ETHERNET_LENGTH + IPV6_LENGTH).ok().map(|walk| walk.l4)
    }

    #[inline(always)]
    fn transport<P: Packet>(packet: &P, l3: usize) -> Option<(Proto, usize)> {
        let [version, _] = packet.read(l3)?;
        let [next_header, _] = packet.read(l3 + field::IPV6_NEXT_HEADER)?;
        let walk = ipv6::walk(packet, next_header, l3 + IPV6_LENGTH).ok()?;
        (version >> 4 == 6 && !walk.later_fragment).then_some((Proto(walk.proto), walk.l4))
    }
}

/// Where a quoted transport header may start at the latest.
const LAST: usize = 256;

/// Reads an ICMP error, which [`Family::parse`] has said the frame to be.
///
/// # Errors
/// The reason to pass it untouched.
#[inline(always)]
pub fn quote<A: Quoted, P: Packet>(packet: &P) -> Result<Quote<A>, Reason> {
    const L3: usize = ETHERNET_LENGTH;
    let read = || {
        let icmp = A::icmp(packet)?;
        let l3 = icmp + ICMP_LENGTH;
        let (proto, l4) = A::transport(packet, l3)?;
        if l4 > LAST {
            return None;
        }
        let ports: [u8; 4] = packet.read(l4)?;
        let [s0, s1, d0, d1] = ports;
        Some(Quote {
            source: A::read(packet, L3 + A::SOURCE)?,
            destination: A::read(packet, L3 + A::DESTINATION)?,
            icmp: icmp as u16,
            l3: l3 as u16,
            l4: l4 as u16,
            tuple: Tuple {
                source: A::read(packet, l3 + A::SOURCE)?,
                destination: A::read(packet, l3 + A::DESTINATION)?,
                source_port: crate::addr::Port::from_octets([s0, s1]),
                destination_port: crate::addr::Port::from_octets([d0, d1]),
                proto,
            },
        })
    };
    let quote: Quote<A> = read().ok_or(Reason::OtherProtocol)?;
    let ours = matches!(quote.tuple.proto, Proto::TCP | Proto::UDP | Proto::SCTP);
    // Errors go to whoever sent what they quote.
    if ours && quote.tuple.source == quote.destination { Ok(quote) } else { Err(Reason::OtherProtocol) }
}
