//! Carries out verdicts in XDP.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Hook, Reason};
use lb_common::addr::Ipv4;
use lb_common::datapath::refuse::{self, UNREACHABLE_LENGTH};
use lb_common::datapath::{Parsed, Route, Verdict, parse4, rewrite, xdp};
use lb_common::wire::{ETHERNET_LENGTH, MAC_LENGTH, Packet, PacketMut, field};

use crate::counters::{count, count_service};
use crate::log;
use crate::maps::desk_answer;
use crate::packet::XdpPacket;
use crate::tables::{Context, KernelTables};

/// Runs the program and counts its one reason.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    let (action, reason) = act(ctx);
    count(Hook::UplinkXdp, reason);
    action
}

#[inline(always)]
fn act(ctx: &XdpContext) -> (u32, Reason) {
    let mut packet = XdpPacket(ctx);
    let parsed = match parse4(&packet) {
        Ok(parsed) => parsed,
        Err(reason) => return (XDP_PASS, reason),
    };
    // The group bit of the destination: broadcast and multicast frames are nobody's to answer.
    if packet.read::<2>(0).is_none_or(|start| start[0] & 1 != 0) {
        return (XDP_PASS, Reason::NotForUs);
    }
    let Some(tables) = KernelTables::new(Context::Xdp(ctx.ctx)) else {
        return (XDP_PASS, Reason::NoService);
    };
    let length = packet.length();
    let verdict = xdp::ingress(&parsed, &tables);
    log::packet(ctx, Hook::UplinkXdp, verdict.reason(), &parsed.tuple);
    match verdict {
        Verdict::Pass(reason) => (XDP_PASS, reason),
        Verdict::Drop(reason) => (XDP_DROP, reason),
        Verdict::Refuse(reason) => match refuse_xdp(ctx.ctx) {
            ANSWERED => (XDP_TX, reason),
            _ => (XDP_DROP, Reason::NoEndpointSilent),
        },
        Verdict::Translate(translation, tally) => {
            count_service(&tally, length);
            match rewrite::translate4(&mut packet, &parsed, &translation) {
                Some(()) => (XDP_PASS, tally.reason),
                None => (XDP_DROP, Reason::RewriteFailed),
            }
        }
        Verdict::Forward(translation, route, tally) => {
            count_service(&tally, length);
            let sent = rewrite::translate4(&mut packet, &parsed, &translation)
                .and_then(|()| rewrite::decrement_ttl4(&mut packet, &parsed))
                .and_then(|()| address_frame(&mut packet, &route));
            match sent {
                Some(()) => (transmit(&route), tally.reason),
                None => (XDP_DROP, Reason::RewriteFailed),
            }
        }
    }
}

#[inline(always)]
fn address_frame(packet: &mut XdpPacket, route: &Route) -> Option<()> {
    packet.write(0, route.destination_mac)?;
    packet.write(MAC_LENGTH, route.source_mac)
}

#[inline(always)]
fn transmit(route: &Route) -> u32 {
    if route.same_interface {
        XDP_TX
    } else {
        // SAFETY: the helper takes two numbers.
        unsafe { bpf_redirect(route.interface, 0) as u32 }
    }
}

const ANSWERED: u32 = 1;

/// Turns the packet into the answer its sender gets. A global function, which brings its own stack: the
/// answer is too large for that of the program, and nobody waits for it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn refuse_xdp(context: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(context);
    match parse4(&XdpPacket(&ctx)) {
        Ok(parsed) if refuse(&ctx, &parsed).is_some() => ANSWERED,
        _ => 0,
    }
}

#[inline(always)]
fn refuse(ctx: &XdpContext, parsed: &Parsed<Ipv4>) -> Option<()> {
    let mut packet = XdpPacket(ctx);
    match parsed.tuple.proto {
        lb_common::addr::Proto::TCP => {
            let reset = refuse::reset(&packet, parsed)?;
            turn_around(&mut packet)?;
            rewrite::reset4(&mut packet, parsed, &reset)
        }
        _ => {
            let answer = desk_answer()?;
            refuse::unreachable4(&packet, parsed, answer)?;
            let macs: [u8; 2 * MAC_LENGTH] = packet.read(0)?;
            resize(ctx, ETHERNET_LENGTH + UNREACHABLE_LENGTH)?;
            packet.write(0, macs)?;
            packet.write(field::ETHERTYPE, lb_common::wire::ETHERTYPE_IPV4)?;
            turn_around(&mut packet)?;
            packet.write(ETHERNET_LENGTH, *answer)
        }
    }
}

#[inline(always)]
fn turn_around(packet: &mut XdpPacket) -> Option<()> {
    let destination: [u8; MAC_LENGTH] = packet.read(0)?;
    let source: [u8; MAC_LENGTH] = packet.read(MAC_LENGTH)?;
    packet.write(0, source)?;
    packet.write(MAC_LENGTH, destination)
}

/// Changes the frame's length. Room is made at the head, which every driver can; the tail is only cut.
#[inline(always)]
fn resize(ctx: &XdpContext, length: usize) -> Option<()> {
    const SHORTEST: usize = ETHERNET_LENGTH + 28;
    let grow = length as i32 - SHORTEST as i32;
    // SAFETY: the context is valid; packet pointers are read anew afterwards.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -grow) } != 0 {
        return None;
    }
    let cut = length as i32 - (ctx.data_end() - ctx.data()) as i32;
    // SAFETY: as above.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, cut) } != 0 {
        return None;
    }
    Some(())
}
