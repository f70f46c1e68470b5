//! Carries verdicts out on a frame in memory: the reference for what lb-ebpf does in the kernel.

use std::vec::Vec;

use super::{MemoryTables, STATION};
use crate::abi::{Hook, Reason};
use crate::addr::{Ipv4, Proto};
use crate::datapath::{Origin, Parsed, Verdict, egress, ingress, parse4, refuse, rewrite, xdp};
use crate::wire::{ETHERNET_LENGTH, Packet, PacketMut, SlicePacket};

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
    let parsed = match parse4(&SlicePacket(frame)) {
        Ok(parsed) => parsed,
        Err(reason) => return (Action::Pass, reason),
    };
    let for_us = match hook {
        Hook::UplinkXdp => frame[0] & 1 == 0,
        Hook::UplinkIngress => frame[..6] == STATION,
        _ => true,
    };
    if !for_us {
        return (Action::Pass, Reason::NotForUs);
    }
    let verdict = match hook {
        Hook::UplinkXdp => xdp::ingress(&parsed, tables),
        Hook::UplinkIngress => ingress::ingress(&parsed, Origin::Wire, tables),
        Hook::PodIngress => ingress::ingress(&parsed, Origin::Pod, tables),
        Hook::UplinkEgress | Hook::PodEgress => egress::egress(&parsed, tables),
        Hook::Connect | Hook::Sendmsg | Hook::Recvmsg | Hook::Getpeername => {
            return (Action::Pass, Reason::NoService);
        }
    };
    let reason = verdict.reason();
    match verdict {
        Verdict::Pass(_) => (Action::Pass, reason),
        Verdict::Drop(_) => (Action::Drop, reason),
        Verdict::Refuse(_) => match answer(frame, &parsed) {
            Some(()) => (Action::Send, reason),
            None => (Action::Drop, Reason::NoEndpointSilent),
        },
        Verdict::Translate(translation, _) => {
            let done = rewrite::translate4(&mut SlicePacket(frame), &parsed, &translation);
            done.map_or((Action::Drop, Reason::RewriteFailed), |()| (Action::Pass, reason))
        }
        Verdict::Forward(translation, route, _) => {
            let mut packet = SlicePacket(frame);
            let done = rewrite::translate4(&mut packet, &parsed, &translation)
                .and_then(|()| rewrite::decrement_ttl4(&mut packet, &parsed))
                .and_then(|()| packet.write(0, route.destination_mac))
                .and_then(|()| packet.write(6, route.source_mac));
            done.map_or((Action::Drop, Reason::RewriteFailed), |()| (Action::Send, reason))
        }
    }
}

fn answer(frame: &mut Vec<u8>, parsed: &Parsed<Ipv4>) -> Option<()> {
    let mut packet = SlicePacket(frame);
    let macs: [u8; 12] = packet.read(0)?;
    let (destination, source) = macs.split_at(6);
    let turned = [source, destination].concat();
    if parsed.tuple.proto == Proto::TCP {
        let reset = refuse::reset(&packet, parsed)?;
        rewrite::reset4(&mut packet, parsed, &reset)?;
    } else {
        let mut answer = [0; refuse::UNREACHABLE_LENGTH];
        refuse::unreachable4(&packet, parsed, &mut answer)?;
        frame.truncate(ETHERNET_LENGTH);
        frame.extend_from_slice(&answer);
    }
    frame[..12].copy_from_slice(&turned);
    Some(())
}
