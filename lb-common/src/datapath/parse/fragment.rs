//! Later fragments of a datagram: addresses, and what the fragments share.

use super::ipv6;
use crate::addr::{Ipv4, Ipv6, Proto};
use crate::datapath::Family;
use crate::wire::{ETHERNET_LENGTH, IPV6_LENGTH, Packet, field};

/// A later fragment of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaterFragment<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Identification as it stands in the header.
    pub identification: u32,
    /// Transport protocol.
    pub proto: Proto,
}

/// Where a family keeps what the fragments of a datagram share.
pub trait Fragments: Family {
    /// Reads a frame that [`Family::parse`] has said to be a later fragment.
    fn later_fragment<P: Packet>(packet: &P) -> Option<LaterFragment<Self>>;
}

impl Fragments for Ipv4 {
    #[inline(always)]
    fn later_fragment<P: Packet>(packet: &P) -> Option<LaterFragment<Self>> {
        let header = crate::wire::ipv4(packet.words(ETHERNET_LENGTH)?);
        Some(LaterFragment {
            source: Self::from_octets(header.src_addr),
            destination: Self::from_octets(header.dst_addr),
            identification: u32::from(u16::from_ne_bytes(header.id)),
            proto: Proto(header.proto),
        })
    }
}

impl Fragments for Ipv6 {
    #[inline(always)]
    fn later_fragment<P: Packet>(packet: &P) -> Option<LaterFragment<Self>> {
        let [next_header, _] = packet.read(ETHERNET_LENGTH + field::IPV6_NEXT_HEADER)?;
        let walk = ipv6::walk(packet, next_header, ETHERNET_LENGTH + IPV6_LENGTH).ok()?;
        Some(LaterFragment {
            source: <Self as Family>::read(packet, ETHERNET_LENGTH + Self::SOURCE)?,
            destination: <Self as Family>::read(packet, ETHERNET_LENGTH + Self::DESTINATION)?,
            identification: walk.identification,
            proto: Proto(walk.proto),
        })
    }
}
