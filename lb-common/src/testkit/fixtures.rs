//! The fixture list: what must happen to which packet. Every executor runs it.

use std::vec;
use std::vec::Vec;

use super::execute::Action;
use super::frame::Frame;
use super::{client, node, pod, vip};
use crate::abi::{Hook, Reason};
use crate::datapath::parse4;
use crate::wire::SlicePacket;

/// One packet of a fixture.
#[derive(Clone, Debug)]
pub struct Step {
    /// Where it comes by.
    pub hook: Hook,
    /// What it is.
    pub input: Input,
    /// What must become of it.
    pub action: Action,
    /// Under which reason.
    pub reason: Reason,
}

/// A packet, or how to make it from what earlier steps put out.
#[derive(Clone, Debug)]
pub enum Input {
    /// A frame of its own.
    Frame(Frame),
    /// What step `0` put out, at the next hook.
    OutputOf(usize),
    /// The answer of whoever received what step `.0` put out, with these TCP flags.
    AnswerTo(usize, u8),
}

/// A name and its packets, in order, on a fresh [`super::World::example`].
#[derive(Clone, Debug)]
pub struct Fixture {
    /// What it shows.
    pub name: &'static str,
    /// Packets.
    pub steps: Vec<Step>,
}

impl Step {
    /// The bytes that go in, given what came out of the steps before.
    ///
    /// # Panics
    /// When the fixture refers to a step that does not exist or put out no TCP or UDP.
    pub fn bytes(&self, outputs: &[Vec<u8>]) -> Vec<u8> {
        match &self.input {
            Input::Frame(frame) => frame.build(),
            Input::OutputOf(step) => outputs[*step].clone(),
            Input::AnswerTo(step, flags) => {
                let mut received = outputs[*step].clone();
                let Ok(parsed) = parse4(&SlicePacket(&mut received)) else {
                    panic!("step {step} put out no TCP or UDP")
                };
                let tuple = parsed.tuple;
                let source = (tuple.destination, tuple.destination_port.get());
                let destination = (tuple.source, tuple.source_port.get());
                if tuple.proto == crate::addr::Proto::TCP {
                    Frame::tcp(source, destination).flags(*flags).build()
                } else {
                    Frame::udp(source, destination).build()
                }
            }
        }
    }
}

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const FIN_ACK: u8 = 0x11;
const RST: u8 = 0x04;

/// The list.
pub fn fixtures() -> Vec<Fixture> {
    use Action::{Drop, Pass, Send};
    use Hook::{PodEgress, PodIngress, UplinkEgress, UplinkIngress, UplinkXdp};
    use Input::{AnswerTo, OutputOf};
    use Reason::{
        Forward, Masquerade, MasqueradeReply, NewFlow, NoEndpointSilent, NoLocalEndpoint, NoService,
        RefusedReset, RefusedUnreachable, Reply,
    };
    let frame = |frame: Frame| Input::Frame(frame);
    let step = |hook, input, action, reason| Step { hook, input, action, reason };
    let mut all = Vec::new();
    let mut fixture = |name, steps| all.push(Fixture { name, steps });

    let cluster = || Frame::tcp((pod(9), 40_000), (vip(1), 80));
    fixture(
        "EW1 TCP: a whole connection of a pod to a ClusterIP",
        vec![
            step(PodIngress, frame(cluster().flags(SYN).tcp_options(5)), Pass, NewFlow),
            step(PodEgress, OutputOf(0), Pass, NoService),
            step(PodIngress, AnswerTo(0, SYN_ACK), Pass, NoService),
            step(PodEgress, AnswerTo(0, SYN_ACK), Pass, Reply),
            step(PodIngress, frame(cluster().flags(ACK)), Pass, Forward),
            step(PodIngress, frame(cluster().flags(0x18).payload(b"GET / HTTP/1.1\r\n\r\n")), Pass, Forward),
            step(PodEgress, AnswerTo(0, ACK), Pass, Reply),
            step(PodIngress, frame(cluster().flags(FIN_ACK)), Pass, Forward),
            step(PodEgress, AnswerTo(0, FIN_ACK), Pass, Reply),
            step(PodIngress, frame(cluster().flags(SYN)), Pass, NewFlow),
        ],
    );
    fixture(
        "EW1 UDP: question and answer",
        vec![
            step(PodIngress, frame(Frame::udp((pod(9), 40_000), (vip(2), 53))), Pass, NewFlow),
            step(PodEgress, AnswerTo(0, 0), Pass, Reply),
            step(PodIngress, frame(Frame::udp((pod(9), 40_000), (vip(2), 53))), Pass, Forward),
        ],
    );
    fixture(
        "UDP without checksum, odd length, IP options",
        vec![
            step(PodIngress, frame(Frame::udp((pod(9), 1), (vip(2), 53)).without_checksum()), Pass, NewFlow),
            step(PodIngress, frame(Frame::udp((pod(9), 2), (vip(2), 53)).payload(b"odd")), Pass, NewFlow),
            step(PodIngress, frame(Frame::udp((pod(9), 3), (vip(2), 53)).ip_options(10)), Pass, NewFlow),
            step(PodIngress, frame(cluster().ip_options(3).tcp_options(10)), Pass, NewFlow),
        ],
    );
    let outside = |port| Frame::tcp((client(1), port), (node(), 30_082));
    fixture(
        "NS1, NS3: outside to a nodePort, backend here, client's address kept",
        vec![
            step(UplinkXdp, frame(outside(2000)), Pass, NewFlow),
            step(UplinkIngress, OutputOf(0), Pass, NoService),
            step(UplinkEgress, AnswerTo(0, SYN_ACK), Pass, Reply),
            step(UplinkXdp, frame(outside(2000).flags(ACK)), Pass, Forward),
        ],
    );
    let remote = |port| Frame::tcp((client(1), port), (node(), 30_081));
    fixture(
        "NS2: outside to a nodePort, backend elsewhere, through tc",
        vec![
            step(UplinkIngress, frame(remote(2000)), Pass, NewFlow),
            step(UplinkEgress, OutputOf(0), Pass, Masquerade),
            step(UplinkIngress, AnswerTo(1, SYN_ACK), Pass, MasqueradeReply),
            step(UplinkEgress, OutputOf(2), Pass, Reply),
            step(UplinkIngress, frame(remote(2000).flags(ACK)), Pass, Forward),
            step(UplinkEgress, OutputOf(4), Pass, Masquerade),
            step(UplinkXdp, frame(remote(2000).flags(ACK)), Pass, Reason::LeftToStack),
        ],
    );
    let shared = |n, flags| frame(Frame::tcp((pod(9), 7000), (vip(n), 80)).flags(flags));
    fixture(
        "one client port, two frontends, one backend",
        vec![
            step(PodIngress, shared(5, SYN), Pass, NewFlow),
            step(PodIngress, shared(6, SYN), Pass, NewFlow),
            step(PodEgress, OutputOf(0), Pass, NoService),
            step(PodEgress, OutputOf(1), Pass, NoService),
            step(PodIngress, AnswerTo(0, SYN_ACK), Pass, NoService),
            step(PodIngress, AnswerTo(1, SYN_ACK), Pass, NoService),
            step(PodEgress, AnswerTo(0, SYN_ACK), Pass, Reply),
            step(PodEgress, AnswerTo(1, SYN_ACK), Pass, Reply),
            step(PodIngress, shared(5, ACK), Pass, Forward),
            step(PodIngress, shared(6, ACK), Pass, Forward),
        ],
    );
    fixture(
        "R1: no endpoint, TCP",
        vec![
            step(UplinkXdp, frame(Frame::tcp((client(1), 1), (vip(3), 80))), Send, RefusedReset),
            step(UplinkIngress, frame(Frame::tcp((client(1), 1), (vip(3), 80))), Send, RefusedReset),
            step(
                PodIngress,
                frame(Frame::tcp((pod(9), 1), (vip(3), 80)).tcp_options(5).payload(b"fast open")),
                Send,
                RefusedReset,
            ),
            step(PodIngress, frame(Frame::tcp((pod(9), 1), (vip(3), 80)).flags(ACK)), Send, RefusedReset),
            step(PodIngress, frame(Frame::tcp((pod(9), 1), (vip(3), 80)).flags(RST)), Drop, Reason::Stray),
        ],
    );
    fixture(
        "R1: no endpoint, UDP",
        vec![
            step(UplinkXdp, frame(Frame::udp((client(1), 1), (vip(3), 80))), Send, RefusedUnreachable),
            step(
                UplinkXdp,
                frame(Frame::udp((client(1), 1), (vip(3), 80)).payload(&[7; 900])),
                Send,
                RefusedUnreachable,
            ),
            step(
                PodIngress,
                frame(Frame::udp((pod(9), 1), (vip(3), 80)).payload(b"")),
                Send,
                RefusedUnreachable,
            ),
            step(
                UplinkIngress,
                frame(Frame::udp((client(1), 1), (vip(3), 80)).payload(&[7; 900])),
                Send,
                RefusedUnreachable,
            ),
            step(
                UplinkXdp,
                frame(Frame::udp((client(1), 1), (vip(3), 80)).ip_options(1)),
                Drop,
                NoEndpointSilent,
            ),
        ],
    );
    fixture(
        "policy Local, none here",
        vec![step(UplinkXdp, frame(Frame::tcp((client(1), 1), (vip(4), 80))), Drop, NoLocalEndpoint)],
    );
    fixture(
        "P: what is not ours",
        [UplinkXdp, UplinkIngress, UplinkEgress, PodIngress, PodEgress]
            .into_iter()
            .flat_map(|hook| {
                [
                    step(hook, frame(Frame::tcp((pod(9), 1), (pod(8), 80))), Pass, NoService),
                    step(hook, frame(Frame::udp((client(1), 1), (node(), 61_001))), Pass, NoService),
                    step(hook, frame(Frame::tcp((client(1), 1), (vip(1), 81))), Pass, NoService),
                ]
            })
            .collect(),
    );
    all
}
