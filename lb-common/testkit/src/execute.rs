//! Drives frames in memory: the reference for what lb-ebpf does in the kernel.

use std::vec;
use std::vec::Vec;

use super::desk::blank_desk;
use super::{Kept, MemoryTables, STATION};
use lb_common::abi::{Hook, Reason};
use lb_common::addr::{Ipv4, Ipv6, Proto};
use lb_common::datapath::flow_table::InsertError;
use lb_common::datapath::opening::{self, Opened, OpeningKind, Steps};
use lb_common::datapath::parse::{Fragments, Parsed, Quoted, quote};
use lb_common::datapath::refuse::{self, Options, Reset, Unreachable};
use lb_common::datapath::xdp::{self, Forwarding};
use lb_common::datapath::{
    Desk, Origin, Outcome, Point, Program, Step, Tally, drive, flow_table, fragment, icmp_error, look,
    rewrite,
};
use lb_common::datapath::{of_node, own};
use lb_common::wire::{
    Checksum, Delta, ETHERNET_LENGTH, ETHERTYPE_IPV6, Packet, PacketMut, SlicePacket, TCP_LENGTH, field,
};

/// The interface that frames are at.
const INTERFACE: u32 = 1;

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

fn run_family<A: Kept + Quoted + Fragments + Unreachable>(
    hook: Hook,
    frame: &mut Vec<u8>,
    tables: &MemoryTables,
) -> (Action, Reason) {
    let point = match hook {
        Hook::UplinkXdp => Point::Ingress(Origin::Wire),
        Hook::UplinkIngress => Point::Ingress(Origin::Uplink),
        Hook::PodIngress => Point::Ingress(Origin::Pod),
        Hook::UplinkEgress | Hook::PodEgress => Point::Egress,
        Hook::Connect | Hook::Sendmsg | Hook::Recvmsg | Hook::Getpeername => {
            return (Action::Pass, Reason::NoService);
        }
    };
    let mut desk = blank_desk::<A>();
    let (action, number) = drive(&mut OnFrame { frame, point, tables, parsed: Parsed::NOTHING }, &mut desk);
    let reason = Reason::ALL.iter().copied().find(|reason| *reason as u32 == number);
    (action, reason.expect("a driver counts under a reason that there is"))
}

/// A program on a frame in memory. What the steps tell each other lies on the desk, as where they are functions in the kernel.
struct OnFrame<'a, A> {
    frame: &'a mut Vec<u8>,
    point: Point,
    tables: &'a MemoryTables,
    parsed: Parsed<A>,
}

impl<A> OnFrame<'_, A> {
    fn is_for_us(&self) -> bool {
        self.frame.get(..6) == Some(&STATION)
    }
}

/// The steps of making a flow, in memory.
struct Opener<'a, A> {
    tables: &'a MemoryTables,
    desk: &'a mut Desk<A>,
}

impl<A: Kept> Steps for Opener<'_, A> {
    fn answers(&mut self) -> Opened {
        own::answers(self.tables, self.desk)
    }

    fn prepare_own(&mut self) -> Opened {
        opening::prepare_own(self.tables, self.desk)
    }

    fn prepare(&mut self) -> Opened {
        opening::prepare(self.tables, self.desk)
    }

    fn is_port_taken(&mut self) -> bool {
        flow_table::is_port_taken(self.tables, self.desk)
    }

    fn compose(&mut self, shares_port: bool) -> Opened {
        opening::compose(shares_port, self.tables, self.desk)
    }

    fn compose_of_node(&mut self) -> Opened {
        of_node::compose(self.tables, self.desk)
    }

    fn choose_port(&mut self) -> Opened {
        flow_table::choose_port(self.tables, self.desk).into()
    }

    fn insert(&mut self) -> Opened {
        flow_table::insert(self.tables, self.desk).into()
    }
}

impl<A: Kept + Quoted + Fragments + Unreachable> Program<A> for OnFrame<'_, A> {
    type Action = Action;
    type Desk = Desk<A>;

    const PASS: Action = Action::Pass;
    const DROP: Action = Action::Drop;

    fn look(&mut self, desk: &mut Desk<A>) -> Outcome {
        let is_for_us = self.is_for_us();
        match look::read(&SlicePacket(self.frame), self.point, || is_for_us) {
            Ok(parsed) => {
                self.parsed = parsed;
                look::find(&parsed, self.point, self.tables, desk)
            }
            Err(outcome) => outcome,
        }
    }

    fn judge_own(&mut self, desk: &mut Desk<A>) -> Outcome {
        if desk.opening.kind == OpeningKind::OF_NODE {
            let mut judged = of_node::find(self.tables, desk);
            if judged.step() == Step::SERVE {
                judged = of_node::serve(self.tables, desk);
            }
            if judged.step() != Step::JUDGE_OWN {
                return judged;
            }
        }
        own::judge(self.tables, desk)
    }

    fn open(&mut self, desk: &mut Desk<A>) -> Result<(), InsertError> {
        opening::open(desk.opening.kind, &mut Opener { tables: self.tables, desk }).result()
    }

    fn opening_proto(&self, desk: &Desk<A>) -> Proto {
        desk.opening.tuple.proto
    }

    fn unmake(&mut self, desk: &mut Desk<A>) {
        flow_table::unmake::<A, _>(desk.new.made, self.tables);
    }

    fn may_refuse(&mut self) -> bool {
        self.tables.may_refuse()
    }

    fn may_answer(&mut self, _: &mut Desk<A>) -> bool {
        self.point != Point::Ingress(Origin::Wire) || self.tables.sends()
    }

    fn refuse(&mut self, _: &mut Desk<A>) -> Option<Action> {
        let in_xdp = self.point == Point::Ingress(Origin::Wire);
        answer(self.frame, &self.parsed, in_xdp).map(|()| Action::Send)
    }

    fn translate(&mut self, outcome: Outcome, desk: &mut Desk<A>) -> Outcome {
        let parsed = self.parsed;
        let (translation, route) = if self.point == Point::Ingress(Origin::Wire) {
            match xdp::forward(outcome.leg(), &parsed, self.tables, desk) {
                Forwarding::Deliver(translation) => (translation, None),
                Forwarding::Transmit(translation, route) => (translation, Some(route)),
                Forwarding::Leave => return Outcome::pass(Reason::LeftToStack),
            }
        } else {
            (outcome.leg().translation(&desk.found), None)
        };
        if parsed.first_fragment {
            let (direction, tally) = (self.point.direction(), Tally::new(&desk.found));
            fragment::note(&parsed, direction, &translation, &tally, self.tables, &mut desk.fragment);
        }
        let mut packet = SlicePacket(self.frame);
        let mut done = rewrite::translate(&mut packet, &parsed, &translation);
        if let Some(route) = route {
            done = done
                .and_then(|()| rewrite::decrement_ttl(&mut packet, &parsed))
                .and_then(|()| packet.write(0, route.destination_mac))
                .and_then(|()| packet.write(6, route.source_mac));
        }
        let step = if route.is_some() {
            Step::TRANSMIT
        } else if outcome.leg().turns_off() {
            let addresses = (translation.source.0, translation.destination.0);
            of_node::onward(outcome.leg(), self.point, INTERFACE, addresses, self.tables, &mut desk.hop)
        } else {
            Step::DELIVER
        };
        done.map_or(Outcome::drop(Reason::RewriteFailed), |()| outcome.then(step))
    }

    fn transmit(&mut self, _: &mut Desk<A>) -> Action {
        Action::Send
    }

    fn count(&mut self, _: Outcome, _: &mut Desk<A>) {}

    fn later_fragment(&mut self, desk: &mut Desk<A>) -> Outcome {
        let Some(later) = A::later_fragment(&SlicePacket(self.frame)) else {
            return Outcome::pass(Reason::Malformed);
        };
        desk.later = later;
        let outcome = fragment::later(self.point.direction(), self.tables, desk);
        if outcome.step() != Step::TRANSLATE {
            return outcome;
        }
        let (source, destination, _) = desk.later_addresses;
        let done = rewrite::translate_fragment(&mut SlicePacket(self.frame), source, destination);
        done.map_or(Outcome::drop(Reason::RewriteFailed), |()| outcome.then(Step::PASS))
    }

    fn icmp_error(&mut self, desk: &mut Desk<A>) -> Outcome {
        desk.quote = match quote::<A, _>(&SlicePacket(self.frame)) {
            Ok(quote) => quote,
            Err(reason) => return Outcome::pass(reason),
        };
        let translation = match self.point {
            Point::Ingress(_) => icmp_error::ingress(self.tables, desk),
            Point::Egress => icmp_error::egress(self.tables, desk),
        };
        let Some((translation, _)) = translation else { return Outcome::pass(Reason::OtherProtocol) };
        let done = rewrite::translate_error(&mut SlicePacket(self.frame), &desk.quote, &translation);
        done.map_or(Outcome::drop(Reason::RewriteFailed), |()| Outcome::pass(Reason::IcmpError))
    }

    fn log(&self, _: u32, _: &Desk<A>) {}
}

/// A segment becomes a RST as in tc, where sums are kept in step and never made anew: what was wrong stays wrong. There is no sum of the
/// data, which could only be taken out with it: it stays, and options before it become zeros.
fn reset_in_tc<A: Unreachable>(frame: &mut Vec<u8>, parsed: &Parsed<A>, reset: &Reset) -> Option<()> {
    let options = Options::of(&SlicePacket(frame), parsed)?;
    let (l4, end) = (parsed.l4(), parsed.l4() + TCP_LENGTH);
    let [checksum, urgent]: [[u8; 2]; 2] =
        [field::TCP_CHECKSUM, field::TCP_CHECKSUM + 2].map(|at| [frame[l4 + at], frame[l4 + at + 1]]);
    let mut change = Delta::default();
    for (old, new) in reset.old.iter().zip(reset.new) {
        change = change.double_word(*old, new);
    }
    for word in frame[end..end + 4 * options.words].as_chunks_mut::<4>().0 {
        change = change.double_word(*word, [0; 4]);
        *word = [0; 4];
    }
    rewrite::reset(&mut SlicePacket(frame), parsed, reset)?;
    let length = |length: usize| (length as u16).to_be_bytes();
    if options.has_data || options.words == 0 {
        A::set_length(&mut SlicePacket(frame), parsed.l3(), parsed.l3_length)?;
    } else {
        change = change.word(length(TCP_LENGTH + 4 * options.words), length(TCP_LENGTH));
        frame.truncate(end);
    }
    let mut packet = SlicePacket(frame);
    packet.write(l4 + field::TCP_CHECKSUM, Checksum(checksum).updated(change).0)?;
    packet.write(l4 + field::TCP_CHECKSUM + 2, urgent)
}

fn answer<A: Unreachable>(frame: &mut Vec<u8>, parsed: &Parsed<A>, in_xdp: bool) -> Option<()> {
    let mut packet = SlicePacket(frame);
    let macs: [u8; 12] = packet.read(0)?;
    let (destination, source) = macs.split_at(6);
    let turned = [source, destination].concat();
    if parsed.tuple.proto == Proto::TCP {
        let reset = refuse::reset(&packet, parsed)?;
        if in_xdp {
            rewrite::reset(&mut packet, parsed, &reset)?;
            frame.truncate(refuse::reset_frame_length(parsed));
        } else {
            reset_in_tc(frame, parsed, &reset)?;
        }
    } else {
        let mut answer = A::EMPTY;
        A::unreachable(&packet, parsed, &mut answer)?;
        *frame = [vec![0; ETHERNET_LENGTH - 2], A::ETHERTYPE.to_vec(), answer.as_ref().to_vec()].concat();
    }
    frame[..12].copy_from_slice(&turned);
    Some(())
}
