//! Random traffic: packets of Services, answers, errors, fragments, strangers, and damaged ones of each.

use core::ops::Range;
use std::vec;
use std::vec::Vec;

use super::{Dice, PACKET_HOOKS, damage};
use crate::{Action, Frame, Frontend, Input, Numbered, Step, World, fragments, icmp_error};
use lb_common::abi::{Hook, Reason};
use lb_common::addr::{Ipv4, Ipv6, Proto};
use lb_common::datapath::{Tuple, parse4, parse6};
use lb_common::wire::{ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV6_LENGTH, SlicePacket};

/// Frames that came out and may be answered.
const REMEMBERED: usize = 512;

/// A conversation of many ends with the Services of a world.
#[derive(Clone, Debug)]
pub struct Traffic {
    dice: Dice,
    outputs: Vec<Vec<u8>>,
    /// Fragments whose first has gone by the hook.
    later_fragments: Vec<(Hook, Vec<u8>)>,
}

impl Traffic {
    /// The same seed and the same outputs give the same traffic.
    pub const fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed), outputs: Vec::new(), later_fragments: Vec::new() }
    }

    /// The dice, for choices that belong to the traffic.
    pub fn dice(&mut self) -> &mut Dice {
        &mut self.dice
    }

    /// A frame came out of a program: somebody may answer.
    pub fn came_out(&mut self, frame: Vec<u8>) {
        if self.outputs.len() < REMEMBERED {
            self.outputs.push(frame);
        } else {
            let at = self.dice.below(REMEMBERED);
            self.outputs[at] = frame;
        }
    }

    /// A packet to a Service, the answer to a packet that came out earlier, an error about one, fragments of
    /// one, a stranger, or any of them damaged; and where it comes by.
    pub fn packet(&mut self, world: &World) -> (Hook, Vec<u8>) {
        if self.dice.once_in(2)
            && let Some(fragment) = self.later_fragments.pop()
        {
            return fragment;
        }
        let anywhere = self.dice.one_of(&PACKET_HOOKS);
        let (hook, mut frame) = match self.dice.below(30) {
            0..3 => return (anywhere, self.garbage()),
            3..6 => return (anywhere, self.stranger()),
            6 => self.large_answer(anywhere),
            7..16 if !self.outputs.is_empty() => self.answer(anywhere),
            16..22 if !self.outputs.is_empty() => {
                (anywhere, self.outputs[self.dice.below(self.outputs.len())].clone())
            }
            _ => self.opening(world, anywhere),
        };
        if self.dice.once_in(4) {
            damage(&mut self.dice, &mut frame);
        }
        frame.truncate(1400);
        (hook, frame)
    }

    /// Sends the first fragment now and two more later, in order or not.
    fn in_fragments(&mut self, hook: Hook, whole: &[u8]) -> Vec<u8> {
        let mut all = fragments(whole, 72);
        all.truncate(3);
        if self.dice.once_in(4) {
            all.rotate_left(1);
        }
        let first = all.swap_remove(0);
        self.later_fragments.extend(all.into_iter().map(|fragment| (hook, fragment)));
        first
    }

    fn opening(&mut self, world: &World, hook: Hook) -> (Hook, Vec<u8>) {
        let port = self.dice.below(60);
        let aims = world.aims();
        let (frontend, _) = aims[(port + self.dice.below(3)) % aims.len()];
        let frame = if frontend.0.unmapped().is_some() {
            self.opening_of::<Ipv4>(hook, frontend, port)
        } else {
            self.opening_of::<Ipv6>(hook, frontend, port)
        };
        (hook, frame)
    }

    fn opening_of<A: Numbered>(&mut self, hook: Hook, frontend: Frontend, port: usize) -> Vec<u8> {
        let flags = self.flags();
        let dice = &mut self.dice;
        let sources = [A::client(1), A::client(2), A::pod(1), A::pod(4), A::pod(9)];
        let source = (dice.one_of(&sources), 1000 + port as u16);
        let destination = (A::from_mapped(frontend.0), frontend.1.get());
        let frame = match frontend.2 {
            Proto::TCP => Frame::tcp(source, destination).flags(flags),
            Proto::SCTP => {
                return Frame::sctp(source, destination, dice.one_of(&[1, 2, 6, 7, 8, 10])).build();
            }
            _ => Frame::udp(source, destination),
        };
        if dice.once_in(10) {
            let whole = frame.payload(&[dice.byte(); 200]).build();
            return self.in_fragments(hook, &whole);
        }
        let payload = vec![dice.byte(); dice.below(40)];
        let frame = frame.payload(&payload).ttl(dice.one_of(&[64, 64, 64, 1, 0]));
        let frame = if dice.once_in(20) && A::ICMP == Proto::ICMP { frame.without_checksum() } else { frame };
        frame.ip_options(dice.below(20).saturating_sub(16)).build()
    }

    /// An answer to something that came out, or an error about it; on its way out, more often than not.
    fn answer(&mut self, anywhere: Hook) -> (Hook, Vec<u8>) {
        let out = self.dice.one_of(&[Hook::UplinkEgress, Hook::PodEgress]);
        let hook = self.dice.one_of(&[anywhere, out, out]);
        let flags = self.flags();
        let earlier = &self.outputs[self.dice.below(self.outputs.len())];
        let answer =
            if self.dice.once_in(4) { error(&mut self.dice, earlier) } else { answer_to(earlier, flags) };
        (hook, answer.unwrap_or_else(|| earlier.clone()))
    }

    /// An answer in fragments, to something in UDP that came out.
    fn large_answer(&mut self, anywhere: Hook) -> (Hook, Vec<u8>) {
        let udp = |frame: &&Vec<u8>| {
            let mut copy = (*frame).clone();
            let packet = SlicePacket(&mut copy);
            let proto = |parsed: Result<Proto, Reason>| parsed == Ok(Proto::UDP);
            proto(parse4(&packet).map(|parsed| parsed.tuple.proto))
                || proto(parse6(&packet).map(|parsed| parsed.tuple.proto))
        };
        let from = self.dice.below(self.outputs.len().max(1));
        let Some(earlier) = self.outputs[from.min(self.outputs.len())..].iter().find(udp) else {
            return (anywhere, self.garbage());
        };
        let mut copy = earlier.clone();
        let packet = SlicePacket(&mut copy);
        let whole = match (parse4(&packet), parse6(&packet)) {
            (Ok(parsed), _) => large(&parsed.tuple.reversed()),
            (_, Ok(parsed)) => large(&parsed.tuple.reversed()),
            _ => return (anywhere, self.garbage()),
        };
        let hook = self.dice.one_of(&[Hook::UplinkEgress, Hook::PodEgress, anywhere]);
        (hook, self.in_fragments(hook, &whole))
    }

    fn flags(&mut self) -> u8 {
        let any = self.dice.byte();
        self.dice.one_of(&[0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, any])
    }

    /// Random bytes behind an EtherType that is IPv4 or IPv6 most of the time.
    pub fn garbage(&mut self) -> Vec<u8> {
        let dice = &mut self.dice;
        let length = 54 + dice.below(100);
        let mut frame = dice.bytes(length);
        match dice.below(3) {
            0 => frame[12..14].copy_from_slice(&ETHERTYPE_IPV4),
            1 => {
                frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
                // Half of them with extension headers to walk through.
                let any = dice.byte();
                frame[20] = dice.one_of(&[0, 43, 44, 51, 60, 6, 17, 58, any]);
                let payload = (length.saturating_sub(54)) as u16;
                frame[18..20].copy_from_slice(&payload.to_be_bytes());
            }
            _ => {}
        }
        frame
    }

    /// A good frame between addresses that are no frontends, with up to three bytes changed.
    pub fn stranger(&mut self) -> Vec<u8> {
        if self.dice.once_in(2) {
            stranger::<Ipv4>(&mut self.dice, 30..34)
        } else {
            stranger::<Ipv6>(&mut self.dice, 38..54)
        }
    }
}

/// A router's error, or the receiver's own; seldom an error about the error, which nobody should send.
fn error(dice: &mut Dice, earlier: &[u8]) -> Option<Vec<u8>> {
    let frame = error_about(earlier, dice.once_in(2))?;
    if dice.once_in(6) { error_about(&frame, true) } else { Some(frame) }
}

/// The error of a router far away, or of a pod, about a frame.
pub(super) fn error_about(earlier: &[u8], far: bool) -> Option<Vec<u8>> {
    if earlier.len() < ETHERNET_LENGTH + IPV6_LENGTH {
        return None;
    }
    match [earlier[12], earlier[13]] {
        ETHERTYPE_IPV4 => Some(icmp_error(if far { Ipv4::client(9) } else { Ipv4::pod(4) }, earlier)),
        ETHERTYPE_IPV6 => Some(icmp_error(if far { Ipv6::client(9) } else { Ipv6::pod(4) }, earlier)),
        _ => None,
    }
}

/// What whoever receives a frame answers, if it reads.
pub(super) fn answer_to(earlier: &[u8], flags: u8) -> Option<Vec<u8>> {
    let mut copy = earlier.to_vec();
    let packet = SlicePacket(&mut copy);
    if parse4(&packet).is_err() && parse6(&packet).is_err() {
        return None;
    }
    let input = Input::AnswerTo(0, flags);
    let step = Step { hook: Hook::PodIngress, input, action: Action::Pass, reason: Reason::Reply };
    Some(step.bytes(&[copy]))
}

fn large<A: Numbered>(tuple: &Tuple<A>) -> Vec<u8> {
    let source = (tuple.source, tuple.source_port.get());
    let destination = (tuple.destination, tuple.destination_port.get());
    Frame::udp(source, destination).payload(&[7; 200]).build()
}

/// Changes stay clear of the destination, so that it cannot become a Service's.
fn stranger<A: Numbered>(dice: &mut Dice, destination: Range<usize>) -> Vec<u8> {
    let source = (A::client(dice.byte()), dice.number() as u16);
    let to = (A::remote_pod(dice.byte()), 1 + (dice.number() as u16 >> 1));
    let payload = vec![dice.byte(); dice.below(64)];
    let frame = match dice.below(5) {
        0 | 1 => Frame::tcp(source, to).flags(dice.byte()),
        2 | 3 => Frame::udp(source, to),
        _ => Frame::sctp(source, to, dice.byte()),
    };
    let mut bytes = frame.clone().ip_options(dice.below(3)).payload(&payload).build();
    match dice.below(8) {
        0 if bytes.len() > 80 => bytes = fragments(&frame.payload(&[7; 64]).build(), 24).swap_remove(1),
        1 => bytes = icmp_error(A::client(3), &bytes),
        _ => {}
    }
    for _ in 0..dice.below(4) {
        let at = dice.below(bytes.len());
        if !destination.contains(&at) {
            bytes[at] ^= dice.byte();
        }
    }
    bytes
}
