//! Random traffic: packets of Services, answers, errors, pieces, strangers, and damaged ones of each.

use core::ops::Range;
use std::vec;
use std::vec::Vec;

use super::{Dice, damage};
use crate::abi::{Hook, Reason};
use crate::addr::{Ipv4, Ipv6, Proto};
use crate::datapath::{parse4, parse6};
use crate::testkit::{Action, Frame, Frontend, Input, Numbered, Step, World, icmp_error, pieces};
use crate::wire::{ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV6_LENGTH, SlicePacket};

/// Frames that came out and may be answered.
const REMEMBERED: usize = 512;

/// A conversation of many ends with the Services of a world.
#[derive(Clone, Debug)]
pub struct Traffic {
    dice: Dice,
    outputs: Vec<Vec<u8>>,
}

impl Traffic {
    /// The same seed and the same outputs give the same traffic.
    pub const fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed), outputs: Vec::new() }
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

    /// A packet to a Service, the answer to a packet that came out earlier, an error about one, a piece of
    /// one, or any of them damaged.
    pub fn frame(&mut self, world: &World) -> Vec<u8> {
        let dice = &mut self.dice;
        let any = dice.byte();
        let flags = dice.one_of(&[0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, any]);
        let mut frame = if self.outputs.is_empty() || dice.once_in(3) {
            let port = dice.below(60);
            let (frontend, _) = world.services[(port + dice.below(3)) % world.services.len()];
            if frontend.0.unmapped().is_some() {
                opening::<Ipv4>(dice, frontend, port, flags)
            } else {
                opening::<Ipv6>(dice, frontend, port, flags)
            }
        } else {
            let earlier = &self.outputs[dice.below(self.outputs.len())];
            match dice.below(6) {
                0 => error(dice, earlier).unwrap_or_else(|| earlier.clone()),
                1 | 2 => earlier.clone(),
                _ => answer_to(earlier, flags).unwrap_or_else(|| earlier.clone()),
            }
        };
        if dice.once_in(4) {
            damage(dice, &mut frame);
        }
        frame.truncate(1400);
        frame
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

fn opening<A: Numbered>(dice: &mut Dice, frontend: Frontend, port: usize, flags: u8) -> Vec<u8> {
    let sources = [A::client(1), A::client(2), A::pod(1), A::pod(4), A::pod(9)];
    let source = (dice.one_of(&sources), 1000 + port as u16);
    let destination = (A::from_mapped(frontend.0), frontend.1.get());
    let frame = match frontend.2 {
        Proto::TCP => Frame::tcp(source, destination).flags(flags),
        Proto::SCTP => Frame::sctp(source, destination, dice.one_of(&[1, 2, 6, 7, 8, 10])),
        _ => Frame::udp(source, destination),
    };
    if frontend.2 == Proto::SCTP {
        return frame.build();
    }
    if dice.once_in(10) {
        let whole = frame.payload(&[dice.byte(); 200]).build();
        return pieces(&whole, 72).swap_remove(dice.below(3));
    }
    let payload = vec![dice.byte(); dice.below(40)];
    let frame = frame.payload(&payload).ttl(dice.one_of(&[64, 64, 64, 1, 0]));
    let frame = if dice.once_in(20) && A::ICMP == Proto::ICMP { frame.without_checksum() } else { frame };
    frame.ip_options(dice.below(20).saturating_sub(16)).build()
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
        0 if bytes.len() > 80 => bytes = pieces(&frame.payload(&[7; 64]).build(), 24).swap_remove(1),
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
