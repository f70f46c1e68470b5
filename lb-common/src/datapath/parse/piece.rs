//! Later pieces of a datagram: addresses, and what the pieces share.

use super::ipv6;
use crate::addr::{Ipv4, Ipv6, Proto};
use crate::datapath::Family;
use crate::wire::{ETHERNET_LENGTH, IPV6_LENGTH, Packet, field};

/// A later piece of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaterPiece<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Identification as it stands in the header.
    pub identification: u32,
    /// Transport protocol.
    pub proto: Proto,
}

/// Where a family keeps what the pieces of a datagram share.
pub trait Pieces: Family {
    /// Reads a frame that [`Family::parse`] has said to be a later piece.
    fn later_piece<P: Packet>(packet: &P) -> Option<LaterPiece<Self>>;
}

impl Pieces for Ipv4 {
    #[inline(always)]
    fn later_piece<P: Packet>(packet: &P) -> Option<LaterPiece<Self>> {
        let header = crate::wire::ipv4(packet.words(ETHERNET_LENGTH)?);
        Some(LaterPiece {
            source: Self::from_octets(header.src_addr),
            destination: Self::from_octets(header.dst_addr),
            identification: u32::from(u16::from_ne_bytes(header.id)),
            proto: Proto(header.proto),
        })
    }
}

impl Pieces for Ipv6 {
    #[inline(always)]
    fn later_piece<P: Packet>(packet: &P) -> Option<LaterPiece<Self>> {
        let [next_header, _] = packet.read(ETHERNET_LENGTH + field::IPV6_NEXT_HEADER)?;
        let walk = ipv6::walk(packet, next_header, ETHERNET_LENGTH + IPV6_LENGTH).ok()?;
        Some(LaterPiece {
            source: <Self as Family>::read(packet, ETHERNET_LENGTH + Self::SOURCE)?,
            destination: <Self as Family>::read(packet, ETHERNET_LENGTH + Self::DESTINATION)?,
            identification: walk.identification,
            proto: Proto(walk.proto),
        })
    }
}
