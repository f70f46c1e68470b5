//! New addresses in an skb, whose checksums may be finished by the device, be summed up by it, or neither.

use aya_ebpf::bindings::BPF_F_RECOMPUTE_CSUM;
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_l3_csum_replace, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use lb_common::addr::{Ipv4, Ipv6};
use lb_common::datapath::{Family, Parsed, Translation};
use lb_common::wire::{Checksum, Packet as _, field};

use crate::packet::SkbPacket;
use crate::tc::{l4_checksum, store, store_from};

/// A family's addresses in an skb.
pub trait Summed: Family {
    /// Tells the transport checksum at `offset` that this address becomes `new`.
    fn replace_in_transport(self, new: Self, ctx: &TcContext, offset: usize, flags: u64) -> Option<()>;

    /// Puts the new addresses into the network header.
    fn replace_in_network(
        ctx: &TcContext,
        parsed: &Parsed<Self>,
        translation: &Translation<Self>,
    ) -> Option<()>;

    /// Sets TTL or hop limit.
    fn set_ttl_of(ctx: &TcContext, parsed: &Parsed<Self>, ttl: u8) -> Option<()>;

    /// Sets the length of the packet, from the network header on.
    fn set_length_of(ctx: &TcContext, parsed: &Parsed<Self>, length: u16) -> Option<()>;
}

impl Summed for Ipv4 {
    #[inline(always)]
    fn replace_in_transport(self, new: Self, ctx: &TcContext, offset: usize, flags: u64) -> Option<()> {
        l4_checksum(ctx, offset, self.to_be32() as u64, new.to_be32() as u64, flags | 4)
    }

    /// Checksum and both addresses stand side by side, so one call writes all three. (Together they leave the sum
    /// over the packet as it was.)
    #[inline(always)]
    fn replace_in_network(
        ctx: &TcContext,
        parsed: &Parsed<Self>,
        translation: &Translation<Self>,
    ) -> Option<()> {
        const { assert!(field::IPV4_SOURCE == field::IPV4_CHECKSUM + 2) };
        const { assert!(field::IPV4_DESTINATION == field::IPV4_SOURCE + 4) };
        let (old_source, old_destination) = (parsed.tuple.source, parsed.tuple.destination);
        let source = translation.new_source().map_or(old_source, |(address, _)| address);
        let destination = translation.new_destination().map_or(old_destination, |(address, _)| address);
        let offset = parsed.l3() + field::IPV4_CHECKSUM;
        let checksum = Checksum(SkbPacket(ctx).read(offset)?);
        let change = old_source.change(source).and(old_destination.change(destination));
        let [a, b] = checksum.updated(change).0;
        let bytes = [u32::from_ne_bytes([0, 0, a, b]), source.to_be32(), destination.to_be32()];
        store_from::<_, 2>(ctx, offset, &bytes)
    }

    #[inline(always)]
    fn set_ttl_of(ctx: &TcContext, parsed: &Parsed<Self>, ttl: u8) -> Option<()> {
        let old = u16::from_ne_bytes([parsed.ttl, parsed.tuple.proto.0]) as u64;
        let new = u16::from_ne_bytes([ttl, parsed.tuple.proto.0]) as u64;
        l3_checksum(ctx, parsed.l3() + field::IPV4_CHECKSUM, old, new, 2)?;
        store(ctx, parsed.l3() + field::IPV4_TTL, &ttl)
    }

    #[inline(always)]
    fn set_length_of(ctx: &TcContext, parsed: &Parsed<Self>, length: u16) -> Option<()> {
        let (offset, new) = Self::length_field(length);
        let (_, old) = Self::length_field(parsed.l3_length);
        let number = |bytes| u16::from_ne_bytes(bytes) as u64;
        l3_checksum(ctx, parsed.l3() + field::IPV4_CHECKSUM, number(old), number(new), 2)?;
        store(ctx, parsed.l3() + offset, &new)
    }
}

impl Summed for Ipv6 {
    #[inline(always)]
    fn replace_in_transport(self, new: Self, ctx: &TcContext, offset: usize, flags: u64) -> Option<()> {
        const SIZE: u32 = size_of::<Ipv6>() as u32;
        let (mut from, mut to) = (self.words(), new.words());
        // SAFETY: both point to sixteen readable bytes.
        let difference = unsafe { bpf_csum_diff(from.as_mut_ptr(), SIZE, to.as_mut_ptr(), SIZE, 0) };
        if difference < 0 {
            return None;
        }
        l4_checksum(ctx, offset, 0, difference as u64, flags)
    }

    /// IPv6 has no checksum of its own to make up for a new address. The sum of a device that sums up
    /// whole packets has been changed with the transport checksum, as if there were one (kernels before
    /// 6.16 know no better), so the address is written with its own change to that sum: both together are
    /// none.
    #[inline(always)]
    fn replace_in_network(
        ctx: &TcContext,
        parsed: &Parsed<Self>,
        translation: &Translation<Self>,
    ) -> Option<()> {
        let put = |offset: usize, address: Self| {
            // SAFETY: the address is readable for its size; the helper checks the offset against the skb.
            let code = unsafe {
                bpf_skb_store_bytes(
                    ctx.skb.skb,
                    (parsed.l3() + offset) as u32,
                    (&raw const address).cast(),
                    size_of::<Self>() as u32,
                    BPF_F_RECOMPUTE_CSUM as u64,
                )
            };
            (code == 0).then_some(())
        };
        if let Some((address, _)) = translation.new_source() {
            put(field::IPV6_SOURCE, address)?;
        }
        if let Some((address, _)) = translation.new_destination() {
            put(field::IPV6_DESTINATION, address)?;
        }
        Some(())
    }

    #[inline(always)]
    fn set_ttl_of(ctx: &TcContext, parsed: &Parsed<Self>, ttl: u8) -> Option<()> {
        store(ctx, parsed.l3() + field::IPV6_HOP_LIMIT, &ttl)
    }

    #[inline(always)]
    fn set_length_of(ctx: &TcContext, parsed: &Parsed<Self>, length: u16) -> Option<()> {
        let (offset, new) = Self::length_field(length);
        store(ctx, parsed.l3() + offset, &new)
    }
}

#[inline(always)]
fn l3_checksum(ctx: &TcContext, offset: usize, old: u64, new: u64, size: u64) -> Option<()> {
    // SAFETY: the helper takes numbers and checks the offset.
    (unsafe { bpf_l3_csum_replace(ctx.skb.skb, offset as u32, old, new, size) } == 0).then_some(())
}
