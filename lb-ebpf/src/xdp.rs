//! Carries out verdicts in XDP.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Hook, Reason, tail};
use lb_common::addr::{Ipv4, Proto};
use lb_common::datapath::{Parsed, Route, Tables, Verdict, refuse as answers, rewrite, xdp};
use lb_common::wire::{ETHERNET_LENGTH, ETHERTYPE_IPV6, MAC_LENGTH, Packet, PacketMut, UDP_LENGTH, field};

use crate::apart::{Outcome, judge, put};
use crate::counters::{count, count_service};
use crate::desk::{self, DeskNumber};
use crate::family::KernelFamily;
use crate::functions::{DONE, UNDONE};
use crate::log;
use crate::maps::TAILS_XDP;
use crate::packet::XdpPacket;
use crate::tables::{Context, KernelTables};

/// Runs the program and counts its one reason; IPv6 goes on in a program of its own.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    if XdpPacket(ctx).read::<2>(field::ETHERTYPE) == Some(ETHERTYPE_IPV6) {
        // SAFETY: the context is this program's. Only an array without the program comes back.
        unsafe { TAILS_XDP.tail_call(ctx, tail::UPLINK_IPV6) };
        count(Hook::UplinkXdp, Reason::LeftToStack as u32);
        return XDP_PASS;
    }
    run_family::<Ipv4>(ctx)
}

/// The same for packets of one family.
#[inline(always)]
pub fn run_family<A: KernelFamily>(ctx: &XdpContext) -> u32 {
    let Some(desk) = desk::take() else {
        count(Hook::UplinkXdp, Reason::LeftToStack as u32);
        return XDP_PASS;
    };
    let (action, reason) = act::<A>(ctx, desk);
    desk::give_back(desk);
    count(Hook::UplinkXdp, reason as u32);
    action
}

#[inline(always)]
fn act<A: KernelFamily>(ctx: &XdpContext, desk: DeskNumber) -> (u32, Reason) {
    let mut packet = XdpPacket(ctx);
    let parsed = match A::parse(&packet) {
        Ok(parsed) => parsed,
        Err(reason) => return (XDP_PASS, xdp::unparsed(reason)),
    };
    // The group bit of the destination: broadcast and multicast frames are nobody's to answer.
    if packet.read::<2>(0).is_none_or(|start| start[0] & 1 != 0) {
        return (XDP_PASS, Reason::NotForUs);
    }
    let context = Context::Xdp(ctx.ctx);
    let Some(tables) = KernelTables::<A>::new(context, desk) else {
        return (XDP_PASS, Reason::NoService);
    };
    let length = packet.length();
    let verdict = xdp::ingress(&parsed, &tables);
    log::packet(ctx, Hook::UplinkXdp, verdict.reason(), &parsed.tuple);
    match verdict {
        // Flows of this family are made at once.
        Verdict::Postponed => (XDP_DROP, Reason::FlowTableContended),
        Verdict::Pass(reason) => (XDP_PASS, reason),
        Verdict::Drop(reason) => (XDP_DROP, reason),
        Verdict::Refuse(reason) => {
            if !tables.may_refuse() {
                (XDP_DROP, Reason::RefusalLimited)
            } else if A::refuse(context, desk::number(tables.desk())) == DONE {
                (XDP_TX, reason)
            } else {
                (XDP_DROP, Reason::NoEndpointSilent)
            }
        }
        Verdict::Translate(translation, tally) => {
            count_service(&tally, length);
            match rewrite::translate(&mut packet, &parsed, &translation) {
                Some(()) => (XDP_PASS, tally.reason),
                None => (XDP_DROP, Reason::RewriteFailed),
            }
        }
        Verdict::Forward(translation, route, tally) => {
            count_service(&tally, length);
            let sent = rewrite::translate(&mut packet, &parsed, &translation)
                .and_then(|()| rewrite::decrement_ttl(&mut packet, &parsed))
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

/// The same for packets whose steps are functions of their own.
#[inline(always)]
pub fn run_apart<A: KernelFamily>(ctx: &XdpContext) -> u32 {
    let Some(desk) = desk::take() else {
        count(Hook::UplinkXdp, Reason::LeftToStack as u32);
        return XDP_PASS;
    };
    let (action, reason) = act_apart::<A>(ctx, desk);
    desk::give_back(desk);
    count(Hook::UplinkXdp, reason);
    action
}

/// What to do, and the number of the [`Reason`].
#[inline(always)]
fn act_apart<A: KernelFamily>(ctx: &XdpContext, number: DeskNumber) -> (u32, u32) {
    let context = Context::Xdp(ctx.ctx);
    let outcome = judge::<A>(context, 0, number);
    let Some(desk) = desk::at::<A>(number) else { return (XDP_PASS, Reason::NoService as u32) };
    match outcome.what() {
        Outcome::DROP => (XDP_DROP, outcome.reason()),
        Outcome::REFUSE if A::refuse(context, number) == DONE => (XDP_TX, outcome.reason()),
        Outcome::REFUSE => (XDP_DROP, Reason::NoEndpointSilent as u32),
        what @ (Outcome::TRANSLATE | Outcome::FORWARD) => {
            // SAFETY: this program's own desk; judging has filled both in.
            let (tally, route) = unsafe { (&(*desk).translated.2, &(*desk).target) };
            count_service(tally, XdpPacket(ctx).length());
            let forward = what == Outcome::FORWARD;
            if A::translate(context, u32::from(forward), number) != DONE {
                return (XDP_DROP, Reason::RewriteFailed as u32);
            }
            (if forward { transmit(route) } else { XDP_PASS }, outcome.reason())
        }
        _ => (XDP_PASS, outcome.reason()),
    }
}

/// Judges a frame.
#[inline(always)]
pub fn look<A: KernelFamily>(ctx: &XdpContext, desk: DeskNumber) -> Outcome {
    let packet = XdpPacket(ctx);
    let parsed = match A::parse(&packet) {
        Ok(parsed) => parsed,
        Err(reason) => return Outcome::new(Outcome::PASS, xdp::unparsed(reason)),
    };
    if packet.read::<2>(0).is_none_or(|start| start[0] & 1 != 0) {
        return Outcome::new(Outcome::PASS, Reason::NotForUs);
    }
    let Some(tables) = KernelTables::<A>::new(Context::Xdp(ctx.ctx), desk) else {
        return Outcome::new(Outcome::PASS, Reason::NoService);
    };
    let verdict = xdp::ingress(&parsed, &tables);
    log::packet(ctx, Hook::UplinkXdp, verdict.reason(), &parsed.tuple);
    put(&parsed, verdict, &tables)
}

/// Rewrites a datagram as the desk says.
#[inline(always)]
pub fn translate_from_desk<A: KernelFamily>(ctx: &XdpContext, forward: u32, desk: DeskNumber) -> u32 {
    let mut packet = XdpPacket(ctx);
    let Some(desk) = desk::at::<A>(desk) else { return UNDONE };
    // SAFETY: this program's own desk; judging has filled both in.
    let ((parsed, translation, _), route) = unsafe { (&(*desk).translated, &(*desk).target) };
    let parsed = &parsed.bounded();
    let mut done = rewrite::translate(&mut packet, parsed, translation);
    if forward != 0 && done.is_some() {
        done = rewrite::decrement_ttl(&mut packet, parsed).and_then(|()| address_frame(&mut packet, route));
    }
    if done.is_some() { DONE } else { UNDONE }
}

/// Turns the packet into the answer its sender gets.
#[inline(always)]
pub fn refuse<A: KernelFamily>(ctx: &XdpContext, desk: DeskNumber) -> Option<()> {
    let mut packet = XdpPacket(ctx);
    let parsed: Parsed<A> = A::parse(&packet).ok()?;
    if parsed.tuple.proto == Proto::TCP {
        let reset = answers::reset(&packet, &parsed)?;
        turn_around(&mut packet)?;
        return rewrite::reset(&mut packet, &parsed, &reset);
    }
    let desk = desk::at::<A>(desk)?;
    // SAFETY: this program's own desk.
    let answer = unsafe { &mut (*desk).answer };
    A::unreachable(&packet, &parsed, answer)?;
    let macs: [u8; 2 * MAC_LENGTH] = packet.read(0)?;
    resize(ctx, A::HEADER_LENGTH, ETHERNET_LENGTH + size_of::<A::Answer>())?;
    packet.write(0, macs)?;
    packet.write(field::ETHERTYPE, A::ETHERTYPE)?;
    turn_around(&mut packet)?;
    A::write_answer(answer, &mut packet, ETHERNET_LENGTH)
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
fn resize(ctx: &XdpContext, header: usize, length: usize) -> Option<()> {
    let shortest = ETHERNET_LENGTH + header + UDP_LENGTH;
    let grow = length as i32 - shortest as i32;
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
