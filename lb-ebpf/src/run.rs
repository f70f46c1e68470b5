//! What a program does around a packet's way: it takes a desk, drives the packet, gives the desk back, and moves one counter.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::abi::{Hook, Reason, tail};
use lb_common::addr::{Ipv4, Ipv6};
use lb_common::datapath::{Family as _, Origin, Point, drive};
use lb_common::wire::{ETHERTYPE_IPV6, Packet, field};

use crate::conntrack::{AfterNetfilter, handover};
use crate::counters::count;
use crate::desk;
use crate::family::KernelFamily;
use crate::maps::{TAILS_EGRESS, TAILS_INGRESS, TAILS_XDP};
use crate::packet::{SkbPacket, XdpPacket};
use crate::tc::{self, OnSkb};
use crate::xdp::OnFrame;

/// An XDP program on an uplink; IPv6 goes on in a program of its own.
#[inline(always)]
pub fn xdp(ctx: &XdpContext) -> u32 {
    if XdpPacket(ctx).read::<2>(field::ETHERTYPE) == Some(ETHERTYPE_IPV6) {
        // SAFETY: the context is this program's. Only an array without the program comes back.
        unsafe { TAILS_XDP.tail_call(ctx, tail::UPLINK_IPV6) };
        count(Hook::UplinkXdp, Reason::LeftToStack as u32);
        return XDP_PASS;
    }
    xdp_of::<Ipv4>(ctx)
}

/// The same for packets of one family.
#[inline(always)]
pub fn xdp_of<A: KernelFamily>(ctx: &XdpContext) -> u32 {
    let Some(desk) = desk::take::<A>() else {
        count(Hook::UplinkXdp, Reason::LeftToStack as u32);
        return XDP_PASS;
    };
    let (action, reason) = drive(&mut OnFrame::new(ctx), desk);
    desk::give_back(desk);
    count(Hook::UplinkXdp, reason);
    action
}

/// A tc program; IPv6 goes on in a program of its own, the one at `tail`.
#[inline(always)]
pub fn tc(ctx: &TcContext, hook: Hook, point: Point, tail: u32) -> i32 {
    let packet = SkbPacket(ctx);
    if packet.read::<2>(field::ETHERTYPE) == Some(ETHERTYPE_IPV6) {
        // SAFETY: the context is this program's. Only an array without the program comes back.
        unsafe {
            match point {
                Point::Ingress(_) => TAILS_INGRESS.tail_call(ctx, tail),
                Point::Egress => TAILS_EGRESS.tail_call(ctx, tail),
            }
        }
        count(hook, Reason::NotIp as u32);
        return tc::NEXT;
    }
    SkbPacket::with_headers(ctx, Ipv4::headers(&packet));
    tc_of::<Ipv4>(ctx, hook, point)
}

/// The program IPv6 goes on in.
#[inline(always)]
pub fn tc6(ctx: &TcContext, hook: Hook, point: Point) -> i32 {
    SkbPacket::with_headers(ctx, Ipv6::headers(&SkbPacket(ctx)));
    tc_of::<Ipv6>(ctx, hook, point)
}

/// The program in which netfilter is asked.
#[inline(always)]
pub fn conntrack<A: KernelFamily>(ctx: &TcContext) -> i32 {
    let Some((origin, replaces)) = handover(ctx) else { return tc::NEXT };
    let hook = if origin == Origin::Pod { Hook::PodIngress } else { Hook::UplinkIngress };
    SkbPacket::with_headers(ctx, A::headers(&SkbPacket(ctx)));
    let Some(desk) = desk::take::<A>() else {
        count(hook, Reason::FlowTableContended as u32);
        return tc::DROP;
    };
    let (action, reason) = drive(&mut AfterNetfilter::new(ctx, hook, origin, replaces), desk);
    desk::give_back(desk);
    count(hook, reason);
    action
}

#[inline(always)]
fn tc_of<A: KernelFamily>(ctx: &TcContext, hook: Hook, point: Point) -> i32 {
    let Some(desk) = desk::take::<A>() else {
        // The sender repeats what cannot be looked at now.
        count(hook, Reason::FlowTableContended as u32);
        return tc::DROP;
    };
    let (action, reason) = drive(&mut OnSkb::new(ctx, hook, point), desk);
    desk::give_back(desk);
    count(hook, reason);
    action
}
