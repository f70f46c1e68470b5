//! What differs between IPv4 and IPv6: where header fields are, and which part of the config counts.

use super::parse::{self, Parsed};
use crate::abi::{Config, ConfigFlags, Reason};
use crate::addr::{Address, Ipv4, Ipv6, Proto};
use crate::wire::{Checksum, Delta, IPV4_LENGTH, IPV6_LENGTH, Packet, PacketMut, field};

/// What the config says about one family; see [`crate::abi::Config4`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FamilyConfig<A> {
    /// This node's address.
    pub node_address: A,
    /// Who counts as local: network.
    pub local_network: A,
    /// Who counts as local: netmask.
    pub local_mask: A,
    /// A range that holds every ClusterIP: network.
    pub service_network: A,
    /// A range that holds every ClusterIP: netmask.
    pub service_mask: A,
    /// Number of sets in the flow table less one.
    pub flow_set_mask: u32,
    /// Number of lines in the NAT index less one.
    pub nat_line_mask: u32,
}

/// One of the two families of addresses.
pub trait Family: Address {
    /// Number of the family's ICMP.
    const ICMP: Proto;
    /// Length of the network header without options or extension headers.
    const HEADER_LENGTH: usize;
    /// Offset of the source address in the network header.
    const SOURCE: usize;
    /// Offset of the destination address in the network header.
    const DESTINATION: usize;

    /// Flag of the config that the node's own packets to ClusterIPs of this family leave through a program of ours.
    const NODE_PACKETS: ConfigFlags;

    /// The bits of an offset in a frame. Where it lies in memory between two steps, the mask says to the verifier that it is small and
    /// even, for which a number out of memory could be any.
    const OFFSETS: usize;

    /// This family's part of the config.
    fn config(config: &Config) -> FamilyConfig<Self>;

    /// Reads an Ethernet frame.
    ///
    /// # Errors
    /// The reason why it is not to be treated as a whole datagram of TCP, UDP or SCTP:
    /// [`Reason::Fragment`] and [`Reason::IcmpError`] for those with a way of their own, else the reason
    /// to pass it untouched.
    fn parse<P: Packet>(packet: &P) -> Result<Parsed<Self>, Reason>;

    /// How many bytes from its start on of a frame of this family are looked at to parse it, as far as the first ones
    /// tell. Not more than necessary: to get bytes that lie elsewhere, the kernel copies the head of what TCP
    /// keeps to send again.
    fn headers<P: Packet>(packet: &P) -> usize;

    /// Reads the address at `offset`.
    fn read<P: Packet>(packet: &P, offset: usize) -> Option<Self>;

    /// Writes the address to `offset`.
    #[must_use]
    fn write<P: PacketMut>(self, packet: &mut P, offset: usize) -> Option<()>;

    /// What replacing this address by `to` adds to a sum.
    fn change(self, to: Self) -> Delta;

    /// Updates the checksum of the network header at `l3`, where the family has one.
    #[must_use]
    fn update_header<P: PacketMut>(packet: &mut P, l3: usize, change: Delta) -> Option<()>;

    /// Sets TTL or hop limit of the network header at `l3`.
    #[must_use]
    fn set_ttl<P: PacketMut>(packet: &mut P, l3: usize, ttl: u8) -> Option<()>;

    /// Where the network header says how long the packet is, and what it says there of one of `length` bytes, itself included.
    fn length_field(length: u16) -> (usize, [u8; 2]);

    /// Sets the length of the packet whose network header is at `l3`, itself included.
    #[must_use]
    #[inline(always)]
    fn set_length<P: PacketMut>(packet: &mut P, l3: usize, length: u16) -> Option<()> {
        let (offset, new) = Self::length_field(length);
        let old = packet.read(l3 + offset)?;
        packet.write(l3 + offset, new)?;
        Self::update_header(packet, l3, Delta::default().word(old, new))
    }
}

impl Family for Ipv4 {
    const ICMP: Proto = Proto::ICMP;
    const HEADER_LENGTH: usize = IPV4_LENGTH;
    const SOURCE: usize = field::IPV4_SOURCE;
    const DESTINATION: usize = field::IPV4_DESTINATION;
    const NODE_PACKETS: ConfigFlags = ConfigFlags::NODE_PACKETS4;
    const OFFSETS: usize = usize::MAX;

    #[inline(always)]
    fn config(config: &Config) -> FamilyConfig<Self> {
        let part = &config.ipv4;
        FamilyConfig {
            node_address: part.node_address,
            local_network: part.local_network,
            local_mask: part.local_mask,
            service_network: part.service_network,
            service_mask: part.service_mask,
            flow_set_mask: part.flow_set_mask,
            nat_line_mask: part.nat_line_mask,
        }
    }

    #[inline(always)]
    fn parse<P: Packet>(packet: &P) -> Result<Parsed<Self>, Reason> {
        parse::parse4(packet)
    }

    #[inline(always)]
    fn headers<P: Packet>(packet: &P) -> usize {
        parse::headers4(packet)
    }

    #[inline(always)]
    fn read<P: Packet>(packet: &P, offset: usize) -> Option<Self> {
        packet.read(offset).map(Self::from_octets)
    }

    #[inline(always)]
    fn write<P: PacketMut>(self, packet: &mut P, offset: usize) -> Option<()> {
        packet.write(offset, self.octets())
    }

    #[inline(always)]
    fn change(self, to: Self) -> Delta {
        Delta::default().double_word(self.octets(), to.octets())
    }

    #[inline(always)]
    fn update_header<P: PacketMut>(packet: &mut P, l3: usize, change: Delta) -> Option<()> {
        let checksum = Checksum(packet.read(l3 + field::IPV4_CHECKSUM)?);
        packet.write(l3 + field::IPV4_CHECKSUM, checksum.updated(change).0)
    }

    #[inline(always)]
    fn set_ttl<P: PacketMut>(packet: &mut P, l3: usize, ttl: u8) -> Option<()> {
        let old: [u8; 2] = packet.read(l3 + field::IPV4_TTL)?;
        let new = [ttl, old[1]];
        packet.write(l3 + field::IPV4_TTL, new)?;
        Self::update_header(packet, l3, Delta::default().word(old, new))
    }

    #[inline(always)]
    fn length_field(length: u16) -> (usize, [u8; 2]) {
        (field::IPV4_TOTAL_LENGTH, length.to_be_bytes())
    }
}

impl Family for Ipv6 {
    const ICMP: Proto = Proto::ICMPV6;
    const HEADER_LENGTH: usize = IPV6_LENGTH;
    const SOURCE: usize = field::IPV6_SOURCE;
    const DESTINATION: usize = field::IPV6_DESTINATION;
    const NODE_PACKETS: ConfigFlags = ConfigFlags::NODE_PACKETS6;
    const OFFSETS: usize = 0x3fe;

    #[inline(always)]
    fn config(config: &Config) -> FamilyConfig<Self> {
        let part = &config.ipv6;
        FamilyConfig {
            node_address: part.node_address,
            local_network: part.local_network,
            local_mask: part.local_mask,
            service_network: part.service_network,
            service_mask: part.service_mask,
            flow_set_mask: part.flow_set_mask,
            nat_line_mask: part.nat_line_mask,
        }
    }

    #[inline(always)]
    fn parse<P: Packet>(packet: &P) -> Result<Parsed<Self>, Reason> {
        parse::parse6(packet)
    }

    #[inline(always)]
    fn headers<P: Packet>(packet: &P) -> usize {
        parse::headers6(packet)
    }

    #[inline(always)]
    fn read<P: Packet>(packet: &P, offset: usize) -> Option<Self> {
        packet.read(offset).map(Self::from_octets)
    }

    #[inline(always)]
    fn write<P: PacketMut>(self, packet: &mut P, offset: usize) -> Option<()> {
        packet.write(offset, self.octets())
    }

    #[inline(always)]
    fn change(self, to: Self) -> Delta {
        Delta::default().address(self.words(), to.words())
    }

    #[inline(always)]
    fn update_header<P: PacketMut>(_packet: &mut P, _l3: usize, _change: Delta) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn set_ttl<P: PacketMut>(packet: &mut P, l3: usize, ttl: u8) -> Option<()> {
        // Two bytes at an even offset: next header and hop limit.
        let [next_header, _] = packet.read(l3 + field::IPV6_NEXT_HEADER)?;
        packet.write(l3 + field::IPV6_NEXT_HEADER, [next_header, ttl])
    }

    #[inline(always)]
    fn length_field(length: u16) -> (usize, [u8; 2]) {
        (field::IPV6_PAYLOAD_LENGTH, length.wrapping_sub(IPV6_LENGTH as u16).to_be_bytes())
    }
}
