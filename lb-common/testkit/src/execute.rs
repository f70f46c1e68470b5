//! Carries verdicts out on a frame in memory: the reference for what lb-ebpf does in the kernel.

use super::{Kept, MemoryTables, STATION};
use lb_common::abi::{Hook, Reason};
use lb_common::addr::{Ipv4, Ipv6, Proto};
use lb_common::datapath::fragment::{self, Piece, Way};
use lb_common::datapath::parse::{Pieces, Quoted, quote};
use lb_common::datapath::refuse::{self, Unreachable};
use lb_common::datapath::{Origin, Parsed, Tables, Verdict, egress, icmp_error, ingress, rewrite, xdp};
use lb_common::wire::{ETHERNET_LENGTH, ETHERTYPE_IPV6, Packet, PacketMut, SlicePacket};

/// What becomes of the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// On to the next program or the kernel.
    Pass,
    /// Gone.
    Drop,
    /// Sent back out of the interface it came from, or out of another.
    Send,
}

/// Runs one hook over a frame, which may change.
pub fn run(hook: Hook, frame: &mut Vec<u8>, tables: &MemoryTables) -> (Action, Reason) {
    if frame.get(12..14) == Some(&ETHERTYPE_IPV6) {
        run_family::<Ipv6>(hook, frame, tables)
    } else {
        run_family::<Ipv4>(hook, frame, tables)
    }
}

fn run_family<A: Kept + Quoted + Pieces + Unreachable>(
    hook: Hook,
    frame: &mut Vec<u8>,
    tables: &MemoryTables,
) -> (Action, Reason) {
    let parsed = A::parse(&SlicePacket(frame));
    let judged = !matches!(parsed, Err(reason) if !matches!(reason, Reason::Fragment | Reason::IcmpError));
    let for_us = match hook {
        Hook::UplinkXdp => frame.first().is_none_or(|first| first & 1 == 0) || parsed.is_err(),
        Hook::UplinkIngress => !judged || frame[..6] == STATION,
        _ => true,
    };
    if !for_us {
        return (Action::Pass, Reason::NotForUs);
    }
    let way = match hook {
        Hook::UplinkEgress | Hook::PodEgress => Way::Out,
        _ => Way::In,
    };
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(reason) if hook == Hook::UplinkXdp => return (Action::Pass, xdp::unparsed(reason)),
        Err(Reason::Fragment) => return later_piece::<A>(frame, way, tables),
        Err(Reason::IcmpError) => return error::<A>(frame, way, tables),
        Err(reason) => return (Action::Pass, reason),
    };
    let verdict = match hook {
        Hook::UplinkXdp => xdp::ingress(&parsed, tables),
        Hook::UplinkIngress => ingress::ingress(&parsed, Origin::Uplink, tables),
        Hook::PodIngress => ingress::ingress(&parsed, Origin::Pod, tables),
        Hook::UplinkEgress | Hook::PodEgress => egress::egress(&parsed, tables),
        Hook::Connect | Hook::Sendmsg | Hook::Recvmsg | Hook::Getpeername => {
            return (Action::Pass, Reason::NoService);
        }
    };
    let reason = verdict.reason();
    match verdict {
        // Memory makes flows at once.
        Verdict::Postponed => (Action::Drop, Reason::FlowTableContended),
        Verdict::Pass(_) => (Action::Pass, reason),
        Verdict::Drop(_) => (Action::Drop, reason),
        Verdict::Refuse(_) if !Tables::<A>::may_refuse(tables) => (Action::Drop, Reason::RefusalLimited),
        Verdict::Refuse(_) => match answer(frame, &parsed) {
            Some(()) => (Action::Send, reason),
            None => (Action::Drop, Reason::NoEndpointSilent),
        },
        Verdict::Translate(translation, tally) => {
            if parsed.first_piece {
                fragment::note(&parsed, way, &translation, &tally, tables);
            }
            let done = rewrite::translate(&mut SlicePacket(frame), &parsed, &translation);
            done.map_or((Action::Drop, Reason::RewriteFailed), |()| (Action::Pass, reason))
        }
        Verdict::Forward(translation, route, _) => {
            let mut packet = SlicePacket(frame);
            let done = rewrite::translate(&mut packet, &parsed, &translation)
                .and_then(|()| rewrite::decrement_ttl(&mut packet, &parsed))
                .and_then(|()| packet.write(0, route.destination_mac))
                .and_then(|()| packet.write(6, route.source_mac));
            done.map_or((Action::Drop, Reason::RewriteFailed), |()| (Action::Send, reason))
        }
    }
}

fn later_piece<A: Kept + Pieces>(frame: &mut [u8], way: Way, tables: &MemoryTables) -> (Action, Reason) {
    let Some(piece) = A::later_piece(&SlicePacket(frame)) else { return (Action::Pass, Reason::Malformed) };
    match fragment::later(&piece, way, tables) {
        Piece::Pass(reason) => (Action::Pass, reason),
        Piece::Drop(reason) => (Action::Drop, reason),
        Piece::Translate(source, destination, tally) => {
            let done = rewrite::translate_piece(&mut SlicePacket(frame), source, destination);
            done.map_or((Action::Drop, Reason::RewriteFailed), |()| (Action::Pass, tally.reason))
        }
    }
}

fn error<A: Kept + Quoted>(frame: &mut [u8], way: Way, tables: &MemoryTables) -> (Action, Reason) {
    let quote = match quote::<A, _>(&SlicePacket(frame)) {
        Ok(quote) => quote,
        Err(reason) => return (Action::Pass, reason),
    };
    let translation = match way {
        Way::In => icmp_error::ingress(&quote, tables),
        Way::Out => icmp_error::egress(&quote, tables),
    };
    let Some((translation, tally)) = translation else { return (Action::Pass, Reason::OtherProtocol) };
    let done = rewrite::translate_error(&mut SlicePacket(frame), &quote, &translation);
    done.map_or((Action::Drop, Reason::RewriteFailed), |()| (Action::Pass, tally.reason))
}

fn answer<A: Unreachable>(frame: &mut Vec<u8>, parsed: &Parsed<A>) -> Option<()> {
    let mut packet = SlicePacket(frame);
    let macs: [u8; 12] = packet.read(0)?;
    let (destination, source) = macs.split_at(6);
    let turned = [source, destination].concat();
    if parsed.tuple.proto == Proto::TCP {
        let reset = refuse::reset(&packet, parsed)?;
        rewrite::reset(&mut packet, parsed, &reset)?;
    } else {
        let mut answer = A::EMPTY;
        A::unreachable(&packet, parsed, &mut answer)?;
        *frame = [vec![0; ETHERNET_LENGTH - 2], A::ETHERTYPE.to_vec(), answer.as_ref().to_vec()].concat();
    }
    frame[..12].copy_from_slice(&turned);
    Some(())
}
