//! Carries out verdicts in tc, with the helpers that know about checksum offload.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_tail, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use lb_common::abi::{Hook, Reason};
use lb_common::addr::{Ipv4, Ipv6, Port, Proto};
use lb_common::datapath::fragment::Way;
use lb_common::datapath::refuse::Reset;
use lb_common::datapath::{
    Family as _, Origin, Parsed, Tables, Translation, Tuple, Verdict, egress, ingress, refuse as answers,
    rewrite,
};
use lb_common::wire::{ETHERNET_LENGTH, ETHERTYPE_IPV6, MAC_LENGTH, Packet, field};

use crate::apart::{Outcome, judge, put};
use crate::counters::{count, count_service};
use crate::desk::{self, DeskNumber};
use crate::family::KernelFamily;
use crate::functions::{DONE, DROP as DROP_BIT};
use crate::log;
use crate::maps::{TAILS_EGRESS, TAILS_INGRESS};
use crate::packet::SkbPacket;
use crate::tables::{Context, KernelTables};

/// Next program in line: TCX_NEXT, which is also clsact's TC_ACT_UNSPEC.
const NEXT: i32 = -1;
const DROP: i32 = TC_ACT_SHOT;
/// Addressed to this interface.
const PACKET_HOST: u32 = 0;

/// Which way a packet goes through the interface.
#[derive(Clone, Copy)]
pub enum Direction {
    /// Into the node.
    Ingress(Origin),
    /// Out of it.
    Egress,
}

impl Direction {
    /// The inverse of [`Direction::number`].
    #[inline(always)]
    const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Ingress(Origin::Uplink),
            1 => Self::Ingress(Origin::Pod),
            _ => Self::Egress,
        }
    }

    /// For a function's argument.
    #[inline(always)]
    const fn number(self) -> u32 {
        match self {
            Self::Ingress(Origin::Pod) => 1,
            Self::Ingress(Origin::Uplink | Origin::Wire) => 0,
            Self::Egress => 2,
        }
    }

    #[inline(always)]
    const fn way(self) -> Way {
        match self {
            Self::Ingress(_) => Way::In,
            Self::Egress => Way::Out,
        }
    }
}

/// Runs the program and counts its one reason; IPv6 goes on in a program of its own, the one at `tail`.
#[inline(always)]
pub fn run(ctx: &TcContext, hook: Hook, direction: Direction, tail: u32) -> i32 {
    let packet = SkbPacket(ctx);
    if packet.read::<2>(field::ETHERTYPE) == Some(ETHERTYPE_IPV6) {
        // SAFETY: the context is this program's. Only an array without the program comes back.
        unsafe {
            match direction {
                Direction::Ingress(_) => TAILS_INGRESS.tail_call(ctx, tail),
                Direction::Egress => TAILS_EGRESS.tail_call(ctx, tail),
            }
        }
        count(hook, Reason::NotIp as u32);
        return NEXT;
    }
    SkbPacket::with_headers(ctx, Ipv4::headers(&packet));
    let Some(desk) = desk::take() else { return without_desk(hook) };
    let (action, reason) = act::<Ipv4>(ctx, hook, direction, desk);
    desk::give_back(desk);
    count(hook, reason);
    action
}

/// The program IPv6 goes on in.
#[inline(always)]
pub fn run6(ctx: &TcContext, hook: Hook, direction: Direction) -> i32 {
    SkbPacket::with_headers(ctx, Ipv6::headers(&SkbPacket(ctx)));
    let Some(desk) = desk::take() else { return without_desk(hook) };
    let (action, reason) = act_apart::<Ipv6>(ctx, direction, desk);
    desk::give_back(desk);
    count(hook, reason);
    action
}

/// The sender repeats what cannot be looked at now.
#[inline(always)]
fn without_desk(hook: Hook) -> i32 {
    count(hook, Reason::FlowTableContended as u32);
    DROP
}

/// What to do, and the number of the [`Reason`].
#[inline(always)]
fn act_apart<A: KernelFamily>(ctx: &TcContext, direction: Direction, number: DeskNumber) -> (i32, u32) {
    let context = Context::Skb(ctx.skb.skb);
    let way = direction.way() as u32;
    let outcome = judge::<A>(context, direction.number(), number);
    let Some(desk) = desk::at::<A>(number) else { return (NEXT, Reason::NoService as u32) };
    match outcome.what() {
        Outcome::DROP => (DROP, outcome.reason()),
        Outcome::REFUSE if A::refuse(context, number) == DONE => {
            // SAFETY: the helper takes two numbers.
            (unsafe { bpf_redirect(context.interface(), 0) } as i32, outcome.reason())
        }
        Outcome::REFUSE => (DROP, Reason::NoEndpointSilent as u32),
        Outcome::TRANSLATE => {
            // SAFETY: this program's own desk; judging has filled it in.
            let (parsed, _, tally) = unsafe { &(*desk).translated };
            if parsed.first_piece {
                A::note_first_piece(way, number);
            }
            count_service(tally, ctx.len() as usize);
            match A::translate(context, 0, number) {
                DONE => (NEXT, outcome.reason()),
                _ => (DROP, Reason::RewriteFailed as u32),
            }
        }
        _ if outcome.reason() == Reason::Fragment as u32 => {
            verdict_of(A::treat_piece(ctx.skb.skb, way, number))
        }
        _ if outcome.reason() == Reason::IcmpError as u32 => {
            verdict_of(A::treat_error(ctx.skb.skb, way, number))
        }
        _ => (NEXT, outcome.reason()),
    }
}

#[inline(always)]
const fn verdict_of(result: u32) -> (i32, u32) {
    (if result & DROP_BIT != 0 { DROP } else { NEXT }, result & !DROP_BIT)
}

/// Judges a packet. Later pieces and ICMP errors pass under their reasons.
#[inline(always)]
pub fn look<A: KernelFamily>(ctx: &TcContext, direction: u32, desk: DeskNumber) -> Outcome {
    let direction = Direction::from_number(direction);
    // SAFETY: the context is valid while the program runs.
    let packet_type = unsafe { (*ctx.skb.skb).pkt_type };
    let elsewhere = matches!(direction, Direction::Ingress(Origin::Uplink)) && packet_type != PACKET_HOST;
    let parsed: Parsed<A> = match A::parse(&SkbPacket(ctx)) {
        Ok(_) | Err(Reason::Fragment | Reason::IcmpError) if elsewhere => {
            return Outcome::new(Outcome::PASS, Reason::NotForUs);
        }
        Err(reason) => return Outcome::new(Outcome::PASS, reason),
        Ok(parsed) => parsed,
    };
    let Some(tables) = KernelTables::<A>::new(Context::Skb(ctx.skb.skb), desk) else {
        return Outcome::new(Outcome::PASS, Reason::NoService);
    };
    let verdict = match direction {
        Direction::Ingress(origin) => ingress::ingress(&parsed, origin, &tables),
        Direction::Egress => egress::egress(&parsed, &tables),
    };
    put(&parsed, verdict, &tables)
}

/// What to do, and the number of the [`Reason`].
#[inline(always)]
fn act<A: KernelFamily>(ctx: &TcContext, hook: Hook, direction: Direction, desk: DeskNumber) -> (i32, u32) {
    let packet = SkbPacket(ctx);
    let context = Context::Skb(ctx.skb.skb);
    // On an uplink, frames for other stations turn up when a switch floods. A bridge's port sees the
    // bridge's address as another's, so pods' interfaces do not ask.
    // SAFETY: the context is valid while the program runs.
    let packet_type = || unsafe { (*ctx.skb.skb).pkt_type };
    // (Asked for again where it matters: the answer would take room on the stack.)
    let elsewhere =
        || matches!(direction, Direction::Ingress(Origin::Uplink)) && packet_type() != PACKET_HOST;
    let parsed: Parsed<A> = match A::parse(&packet) {
        Err(Reason::Fragment | Reason::IcmpError) if elsewhere() => return (NEXT, Reason::NotForUs as u32),
        Err(reason @ (Reason::Fragment | Reason::IcmpError)) => {
            let way = direction.way() as u32;
            let result = if reason == Reason::Fragment {
                A::treat_piece(ctx.skb.skb, way, desk)
            } else {
                A::treat_error(ctx.skb.skb, way, desk)
            };
            return verdict_of(result);
        }
        Err(reason) => return (NEXT, reason as u32),
        Ok(_) if elsewhere() => return (NEXT, Reason::NotForUs as u32),
        Ok(parsed) => parsed,
    };
    let Some(tables) = KernelTables::<A>::new(context, desk) else { return (NEXT, Reason::NoService as u32) };
    let verdict = match direction {
        Direction::Ingress(origin) => ingress::ingress(&parsed, origin, &tables),
        Direction::Egress => egress::egress(&parsed, &tables),
    };
    log::packet(ctx, hook, verdict.reason(), &parsed.tuple);
    let (action, reason) = match verdict {
        // Flows of this family are made at once.
        Verdict::Postponed => (DROP, Reason::FlowTableContended),
        Verdict::Pass(reason) => (NEXT, reason),
        Verdict::Drop(reason) => (DROP, reason),
        Verdict::Refuse(reason) => {
            if !tables.may_refuse() {
                (DROP, Reason::RefusalLimited)
            } else if A::refuse(context, desk::number(tables.desk())) == DONE {
                // SAFETY: the helper takes two numbers.
                (unsafe { bpf_redirect(context.interface(), 0) } as i32, reason)
            } else {
                (DROP, Reason::NoEndpointSilent)
            }
        }
        // XDP alone forwards; here the kernel does.
        Verdict::Translate(translation, tally) | Verdict::Forward(translation, _, tally) => {
            if parsed.first_piece {
                // SAFETY: this program's own desk.
                unsafe { (*tables.desk()).translated = (parsed, translation, tally) };
                A::note_first_piece(direction.way() as u32, desk::number(tables.desk()));
            }
            count_service(&tally, packet.length());
            match translate(ctx, &parsed, &translation) {
                Some(()) => (NEXT, tally.reason),
                None => (DROP, Reason::RewriteFailed),
            }
        }
    };
    (action, reason as u32)
}

/// Rewrites a datagram.
#[inline(always)]
pub fn translate<A: KernelFamily>(
    ctx: &TcContext,
    parsed: &Parsed<A>,
    translation: &Translation<A>,
) -> Option<()> {
    let Tuple { source, source_port, destination, destination_port, .. } = parsed.tuple;
    if let Some((address, port)) = translation.new_source() {
        replace_in_transport(ctx, parsed, (source, address), field::SOURCE_PORT, (source_port, port))?;
    }
    if let Some((address, port)) = translation.new_destination() {
        let ports = (destination_port, port);
        replace_in_transport(ctx, parsed, (destination, address), field::DESTINATION_PORT, ports)?;
    }
    A::replace_in_network(ctx, parsed, translation)
}

/// Puts another port at `offset` of the transport header, and tells the checksum of port and address. Both are
/// given as they were and as they become.
#[inline(always)]
fn replace_in_transport<A: KernelFamily>(
    ctx: &TcContext,
    parsed: &Parsed<A>,
    (old_address, address): (A, A),
    offset: usize,
    (old_port, port): (Port, Port),
) -> Option<()> {
    let proto = parsed.tuple.proto;
    if proto == Proto::SCTP {
        // Its checksum covers the ports and is not ours to compute.
        return (old_port == port).then_some(());
    }
    let checksum = parsed.l4 + rewrite::checksum_offset(proto);
    // A UDP checksum of zero means none, and must stay so.
    let flags = if proto == Proto::UDP { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
    old_address.replace_in_transport(address, ctx, checksum, flags | BPF_F_PSEUDO_HDR as u64)?;
    if old_port != port {
        l4_checksum(ctx, checksum, old_port.to_be16() as u64, port.to_be16() as u64, flags | 2)?;
        store(ctx, parsed.l4 + offset, &port.octets())?;
    }
    Some(())
}

/// Turns the packet into the answer its sender gets.
#[inline(always)]
pub fn refuse<A: KernelFamily>(ctx: &TcContext, desk: DeskNumber) -> Option<()> {
    // SAFETY: the context is valid while the program runs.
    if unsafe { (*ctx.skb.skb).gso_size } != 0 {
        // One skb that stands for many packets: no single answer fits, and no flow starts this way.
        return None;
    }
    let packet = SkbPacket::with_headers(ctx, A::headers(&SkbPacket(ctx)));
    let parsed: Parsed<A> = A::parse(&packet).ok()?;
    let macs: [u8; 2 * MAC_LENGTH] = packet.read(0)?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = macs;
    let turned = [s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5];
    if parsed.tuple.proto == Proto::TCP {
        let reset = answers::reset(&packet, &parsed)?;
        store(ctx, 0, &turned)?;
        return reset_segment(ctx, &parsed, &reset);
    }
    let desk = desk::at::<A>(desk)?;
    // SAFETY: this program's own desk.
    let answer = unsafe { &mut (*desk).answer };
    A::unreachable(&packet, &parsed, answer)?;
    let length = (ETHERNET_LENGTH + size_of::<A::Answer>()) as u32;
    // SAFETY: the context is valid; packet pointers are not used afterwards.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, length, 0) } != 0 {
        return None;
    }
    store(ctx, 0, &turned)?;
    store(ctx, ETHERNET_LENGTH, answer)
}

#[inline(always)]
fn reset_segment<A: KernelFamily>(ctx: &TcContext, parsed: &Parsed<A>, reset: &Reset) -> Option<()> {
    let tuple = &parsed.tuple;
    let checksum = parsed.l4 + field::TCP_CHECKSUM;
    for (old, new) in reset.old.iter().zip(reset.new) {
        let (old, new) = (u32::from_ne_bytes(*old) as u64, u32::from_ne_bytes(new) as u64);
        l4_checksum(ctx, checksum, old, new, 4)?;
    }
    let [first, second, third] = reset.new;
    store(ctx, parsed.l4 + field::TCP_SEQUENCE, &first)?;
    store(ctx, parsed.l4 + field::TCP_ACKNOWLEDGEMENT, &second)?;
    store(ctx, parsed.l4 + field::TCP_OFFSET_FLAGS, &third)?;
    // Swapping both addresses and both ports leaves every sum as it was.
    store(ctx, parsed.l3 + A::SOURCE, &tuple.destination)?;
    store(ctx, parsed.l3 + A::DESTINATION, &tuple.source)?;
    store(ctx, parsed.l4 + field::SOURCE_PORT, &tuple.destination_port.octets())?;
    store(ctx, parsed.l4 + field::DESTINATION_PORT, &tuple.source_port.octets())?;
    A::set_ttl_of(ctx, parsed, answers::TTL)
}

/// Writes the bytes of a plain value (no padding) without touching what the device has summed up.
#[inline(always)]
pub fn store<T>(ctx: &TcContext, offset: usize, value: &T) -> Option<()> {
    store_from::<T, 0>(ctx, offset, value)
}

/// The same without the first `SKIPPED` bytes of `value`.
#[inline(always)]
pub fn store_from<T, const SKIPPED: usize>(ctx: &TcContext, offset: usize, value: &T) -> Option<()> {
    const { assert!(SKIPPED < size_of::<T>()) };
    // SAFETY: `value` is readable for its size; the helper checks the offset against the skb.
    let code = unsafe {
        bpf_skb_store_bytes(
            ctx.skb.skb,
            offset as u32,
            core::ptr::from_ref(value).cast::<u8>().add(SKIPPED).cast(),
            (size_of::<T>() - SKIPPED) as u32,
            0,
        )
    };
    (code == 0).then_some(())
}

/// Tells the transport checksum about a change.
#[inline(always)]
pub fn l4_checksum(ctx: &TcContext, offset: usize, old: u64, new: u64, flags: u64) -> Option<()> {
    // SAFETY: the helper takes numbers and checks the offset.
    (unsafe { bpf_l4_csum_replace(ctx.skb.skb, offset as u32, old, new, flags) } == 0).then_some(())
}
