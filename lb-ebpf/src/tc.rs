//! Carries out verdicts in tc, with the helpers that know about checksum offload.

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{
    bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_tail, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use lb_common::abi::{Hook, Reason};
use lb_common::addr::{Ipv4, Port, Proto};
use lb_common::datapath::refuse::{self, UNREACHABLE_LENGTH};
use lb_common::datapath::{Origin, Parsed, Translation, Verdict, egress, ingress, parse4, rewrite};
use lb_common::wire::{ETHERNET_LENGTH, MAC_LENGTH, Packet, field};

use crate::counters::{count, count_service};
use crate::log;
use crate::maps::desk_answer;
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

/// Runs the program and counts its one reason.
#[inline(always)]
pub fn run(ctx: &TcContext, hook: Hook, direction: Direction) -> i32 {
    let (action, reason) = act(ctx, hook, direction);
    count(hook, reason);
    action
}

#[inline(always)]
fn act(ctx: &TcContext, hook: Hook, direction: Direction) -> (i32, Reason) {
    let packet = SkbPacket::new(ctx);
    let parsed = match parse4(&packet) {
        Ok(parsed) => parsed,
        Err(reason) => return (NEXT, reason),
    };
    // On an uplink, frames for other stations turn up when a switch floods. A bridge's port sees the
    // bridge's address as another's, so pods' interfaces do not ask.
    // SAFETY: the context is valid while the program runs.
    let packet_type = unsafe { (*ctx.skb.skb).pkt_type };
    if matches!(direction, Direction::Ingress(Origin::Wire)) && packet_type != PACKET_HOST {
        return (NEXT, Reason::NotForUs);
    }
    let context = Context::Skb(ctx.skb.skb);
    let Some(tables) = KernelTables::new(context) else { return (NEXT, Reason::NoService) };
    let verdict = match direction {
        Direction::Ingress(origin) => ingress::ingress(&parsed, origin, &tables),
        Direction::Egress => egress::egress(&parsed, &tables),
    };
    log::packet(ctx, hook, verdict.reason(), &parsed.tuple);
    match verdict {
        Verdict::Pass(reason) => (NEXT, reason),
        Verdict::Drop(reason) => (DROP, reason),
        Verdict::Refuse(reason) => match refuse_skb(ctx.skb.skb) {
            // SAFETY: the helper takes two numbers.
            ANSWERED => (unsafe { bpf_redirect(context.interface(), 0) } as i32, reason),
            _ => (DROP, Reason::NoEndpointSilent),
        },
        // XDP alone forwards; here the kernel does.
        Verdict::Translate(translation, tally) | Verdict::Forward(translation, _, tally) => {
            count_service(&tally, packet.length());
            match translate(ctx, &parsed, &translation) {
                Some(()) => (NEXT, tally.reason),
                None => (DROP, Reason::RewriteFailed),
            }
        }
    }
}

/// Which end of the packet changes, and where its fields are.
struct End {
    address_offset: usize,
    port_offset: usize,
    old_address: Ipv4,
    old_port: Port,
}

#[inline(always)]
fn translate(ctx: &TcContext, parsed: &Parsed<Ipv4>, translation: &Translation<Ipv4>) -> Option<()> {
    let tuple = &parsed.tuple;
    if let Some((address, port)) = translation.source {
        let end = End {
            address_offset: field::IPV4_SOURCE,
            port_offset: field::SOURCE_PORT,
            old_address: tuple.source,
            old_port: tuple.source_port,
        };
        replace(ctx, parsed, &end, address, port)?;
    }
    if let Some((address, port)) = translation.destination {
        let end = End {
            address_offset: field::IPV4_DESTINATION,
            port_offset: field::DESTINATION_PORT,
            old_address: tuple.destination,
            old_port: tuple.destination_port,
        };
        replace(ctx, parsed, &end, address, port)?;
    }
    Some(())
}

#[inline(always)]
fn replace(ctx: &TcContext, parsed: &Parsed<Ipv4>, end: &End, address: Ipv4, port: Port) -> Option<()> {
    let checksum = parsed.l4 + rewrite::checksum_offset(parsed.tuple.proto);
    // A UDP checksum of zero means none, and must stay so.
    let flags = if parsed.tuple.proto == Proto::UDP { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
    let (old, new) = (end.old_address.to_be32() as u64, address.to_be32() as u64);
    l4_checksum(ctx, checksum, old, new, flags | BPF_F_PSEUDO_HDR as u64 | 4)?;
    let (old_port, new_port) = (end.old_port.to_be16() as u64, port.to_be16() as u64);
    if old_port != new_port {
        l4_checksum(ctx, checksum, old_port, new_port, flags | 2)?;
        store(ctx, parsed.l4 + end.port_offset, &port.octets())?;
    }
    l3_checksum(ctx, parsed.l3 + field::IPV4_CHECKSUM, old, new, 4)?;
    store(ctx, parsed.l3 + end.address_offset, &address.octets())
}

const ANSWERED: u32 = 1;

/// Turns the packet into the answer its sender gets. A global function, which brings its own stack: the
/// answer is too large for that of the programs, and nobody waits for it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn refuse_skb(skb: *mut __sk_buff) -> u32 {
    let ctx = TcContext::new(skb);
    let packet = SkbPacket::new(&ctx);
    match parse4(&packet) {
        Ok(parsed) if refuse(&ctx, &packet, &parsed).is_some() => ANSWERED,
        _ => 0,
    }
}

#[inline(always)]
fn refuse(ctx: &TcContext, packet: &SkbPacket, parsed: &Parsed<Ipv4>) -> Option<()> {
    // SAFETY: the context is valid while the program runs.
    if unsafe { (*ctx.skb.skb).gso_size } != 0 {
        // One skb that stands for many packets: no single answer fits, and no flow starts this way.
        return None;
    }
    let macs: [u8; 2 * MAC_LENGTH] = packet.read(0)?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = macs;
    let turned = [s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5];
    match parsed.tuple.proto {
        Proto::TCP => {
            let reset = refuse::reset(packet, parsed)?;
            store(ctx, 0, &turned)?;
            reset_segment(ctx, parsed, &reset)
        }
        _ => {
            let answer = desk_answer()?;
            refuse::unreachable4(packet, parsed, answer)?;
            let length = (ETHERNET_LENGTH + UNREACHABLE_LENGTH) as u32;
            // SAFETY: the context is valid; packet pointers are not used afterwards.
            if unsafe { bpf_skb_change_tail(ctx.skb.skb, length, 0) } != 0 {
                return None;
            }
            store(ctx, 0, &turned)?;
            store(ctx, ETHERNET_LENGTH, answer)
        }
    }
}

#[inline(always)]
fn reset_segment(ctx: &TcContext, parsed: &Parsed<Ipv4>, reset: &refuse::Reset) -> Option<()> {
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
    store(ctx, parsed.l3 + field::IPV4_SOURCE, &tuple.destination.octets())?;
    store(ctx, parsed.l3 + field::IPV4_DESTINATION, &tuple.source.octets())?;
    store(ctx, parsed.l4 + field::SOURCE_PORT, &tuple.destination_port.octets())?;
    store(ctx, parsed.l4 + field::DESTINATION_PORT, &tuple.source_port.octets())?;
    let old = u16::from_ne_bytes([parsed.ttl, tuple.proto.0]) as u64;
    let new = u16::from_ne_bytes([refuse::TTL, tuple.proto.0]) as u64;
    l3_checksum(ctx, parsed.l3 + field::IPV4_CHECKSUM, old, new, 2)?;
    store(ctx, parsed.l3 + field::IPV4_TTL, &[refuse::TTL])
}

#[inline(always)]
fn store<const N: usize>(ctx: &TcContext, offset: usize, bytes: &[u8; N]) -> Option<()> {
    // SAFETY: `bytes` holds N readable bytes; the helper checks the offset against the skb.
    let code = unsafe { bpf_skb_store_bytes(ctx.skb.skb, offset as u32, bytes.as_ptr().cast(), N as u32, 0) };
    (code == 0).then_some(())
}

#[inline(always)]
fn l3_checksum(ctx: &TcContext, offset: usize, old: u64, new: u64, size: u64) -> Option<()> {
    // SAFETY: the helper takes numbers and checks the offset.
    (unsafe { bpf_l3_csum_replace(ctx.skb.skb, offset as u32, old, new, size) } == 0).then_some(())
}

#[inline(always)]
fn l4_checksum(ctx: &TcContext, offset: usize, old: u64, new: u64, flags: u64) -> Option<()> {
    // SAFETY: the helper takes numbers and checks the offset.
    (unsafe { bpf_l4_csum_replace(ctx.skb.skb, offset as u32, old, new, flags) } == 0).then_some(())
}
