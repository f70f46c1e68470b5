//! The fixture list: what must happen to which packet. Every executor runs it.

use std::string::String;
use std::vec;
use std::vec::Vec;

use super::Numbered;
use super::execute::Action;
use super::frame::{Frame, fragments, icmp_error};
use lb_common::abi::{Hook, Reason};
use lb_common::addr::{Ipv4, Ipv6, Proto};
use lb_common::datapath::{Family, Parsed};
use lb_common::wire::{ETHERTYPE_IPV6, SlicePacket};

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
    /// The ICMP error that this address (IPv4-mapped) sends about what step `.0` put out.
    ErrorAbout(usize, Ipv6),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// A name and its packets, in order, on a fresh [`super::World::example`].
#[derive(Clone, Debug)]
pub struct Fixture {
    /// What it shows.
    pub name: String,
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
            Input::AnswerTo(step, flags) => answer(&outputs[*step], *flags),
            Input::ErrorAbout(step, reporter) => icmp_error(*reporter, &outputs[*step]),
            Input::Bytes(bytes) => bytes.clone(),
        }
    }
}

/// What whoever receives `frame` answers.
fn answer(frame: &[u8], flags: u8) -> Vec<u8> {
    if frame.get(12..14) == Some(&ETHERTYPE_IPV6) {
        answer_of::<Ipv6>(frame, flags)
    } else {
        answer_of::<Ipv4>(frame, flags)
    }
}

fn answer_of<A: Family>(frame: &[u8], flags: u8) -> Vec<u8> {
    let Ok(Parsed { tuple, .. }) = A::parse(&SlicePacket(&mut frame.to_vec())) else {
        panic!("no TCP, UDP or SCTP to answer: {frame:02x?}")
    };
    let source = (tuple.destination, tuple.destination_port.get());
    let destination = (tuple.source, tuple.source_port.get());
    match tuple.proto {
        Proto::TCP => Frame::tcp(source, destination).flags(flags).build(),
        // The type of the first chunk.
        Proto::SCTP => Frame::sctp(source, destination, flags).build(),
        _ => Frame::udp(source, destination).build(),
    }
}

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const FIN_ACK: u8 = 0x11;
const RST: u8 = 0x04;

/// The list, for both families.
pub fn fixtures() -> Vec<Fixture> {
    let mut all = of_family::<Ipv4>("IPv4");
    all.append(&mut of_family::<Ipv6>("IPv6"));
    all.append(&mut of_ipv4());
    all
}

/// What IPv4 alone has.
fn of_ipv4() -> Vec<Fixture> {
    let udp = |port| Frame::udp((Ipv4::pod(9), port), (Ipv4::vip(2), 53));
    let step = |frame| Step {
        hook: Hook::PodIngress,
        input: Input::Frame(frame),
        action: Action::Pass,
        reason: Reason::NewFlow,
    };
    vec![Fixture {
        name: String::from("IPv4: UDP without checksum, ten words of options"),
        steps: vec![
            step(udp(1).without_checksum()),
            step(udp(2).ip_options(10)),
            step(udp(3).without_checksum().ip_options(10)),
        ],
    }]
}

fn of_family<A: Numbered>(family: &str) -> Vec<Fixture> {
    use Action::{Drop, Pass, Send};
    use Hook::{PodEgress, PodIngress, UplinkEgress, UplinkIngress, UplinkXdp};
    use Input::{AnswerTo, OutputOf};
    use Reason::{
        Forward, Masquerade, MasqueradeReply, NewFlow, NoEndpointSilent, NoLocalEndpoint, NoService,
        RefusedReset, RefusedUnreachable, Reply, UnknownPort,
    };
    let frame = |frame: Frame| Input::Frame(frame);
    let step = |hook, input, action, reason| Step { hook, input, action, reason };
    let mut all = Vec::new();
    let mut fixture = |name, steps| all.push(Fixture { name: std::format!("{family}: {name}"), steps });

    let cluster = || Frame::tcp((A::pod(9), 40_000), (A::vip(1), 80));
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
            step(PodIngress, frame(Frame::udp((A::pod(9), 40_000), (A::vip(2), 53))), Pass, NewFlow),
            step(PodEgress, AnswerTo(0, 0), Pass, Reply),
            step(PodIngress, frame(Frame::udp((A::pod(9), 40_000), (A::vip(2), 53))), Pass, Forward),
        ],
    );
    fixture(
        "odd length, IP options or extension headers",
        vec![
            step(PodIngress, frame(Frame::udp((A::pod(9), 1), (A::vip(2), 53)).ip_options(1)), Pass, NewFlow),
            step(
                PodIngress,
                frame(Frame::udp((A::pod(9), 2), (A::vip(2), 53)).payload(b"odd")),
                Pass,
                NewFlow,
            ),
            step(PodIngress, frame(Frame::udp((A::pod(9), 3), (A::vip(2), 53)).ip_options(6)), Pass, NewFlow),
            step(PodIngress, frame(cluster().ip_options(3).tcp_options(10)), Pass, NewFlow),
        ],
    );
    let outside = |port| Frame::tcp((A::client(1), port), (A::node(), 30_082));
    fixture(
        "NS1, NS3: outside to a nodePort, backend here, client's address kept",
        vec![
            step(UplinkXdp, frame(outside(2000)), Pass, NewFlow),
            step(UplinkIngress, OutputOf(0), Pass, Reason::Translated),
            step(UplinkEgress, AnswerTo(0, SYN_ACK), Pass, Reply),
            step(UplinkXdp, frame(outside(2000).flags(ACK)), Pass, Forward),
        ],
    );
    let remote = |port| Frame::tcp((A::client(1), port), (A::node(), 30_081));
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
    let shared = |n, flags| frame(Frame::tcp((A::pod(9), 7000), (A::vip(n), 80)).flags(flags));
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
            step(UplinkXdp, frame(Frame::tcp((A::client(1), 1), (A::vip(3), 80))), Send, RefusedReset),
            step(UplinkIngress, frame(Frame::tcp((A::client(1), 1), (A::vip(3), 80))), Send, RefusedReset),
            step(
                PodIngress,
                frame(Frame::tcp((A::pod(9), 1), (A::vip(3), 80)).tcp_options(5).payload(b"fast open")),
                Send,
                RefusedReset,
            ),
            step(
                PodIngress,
                frame(Frame::tcp((A::pod(9), 1), (A::vip(3), 80)).flags(ACK)),
                Send,
                RefusedReset,
            ),
            step(
                PodIngress,
                frame(Frame::tcp((A::pod(9), 1), (A::vip(3), 80)).flags(RST)),
                Drop,
                Reason::Stray,
            ),
        ],
    );
    fixture(
        "R1: no endpoint, UDP",
        vec![
            step(UplinkXdp, frame(Frame::udp((A::client(1), 1), (A::vip(3), 80))), Send, RefusedUnreachable),
            step(
                UplinkXdp,
                frame(Frame::udp((A::client(1), 1), (A::vip(3), 80)).payload(&[7; 900])),
                Send,
                RefusedUnreachable,
            ),
            step(
                PodIngress,
                frame(Frame::udp((A::pod(9), 1), (A::vip(3), 80)).payload(b"")),
                Send,
                RefusedUnreachable,
            ),
            step(
                UplinkIngress,
                frame(Frame::udp((A::client(1), 1), (A::vip(3), 80)).payload(&[7; 900])),
                Send,
                RefusedUnreachable,
            ),
            step(
                UplinkXdp,
                frame(Frame::udp((A::client(1), 1), (A::vip(3), 80)).ip_options(1)),
                Drop,
                NoEndpointSilent,
            ),
        ],
    );
    fixture(
        "policy Local, none here",
        vec![step(UplinkXdp, frame(Frame::tcp((A::client(1), 1), (A::vip(4), 80))), Drop, NoLocalEndpoint)],
    );
    fixture(
        "P: what is not ours",
        [UplinkXdp, UplinkIngress, UplinkEgress, PodIngress, PodEgress]
            .into_iter()
            .flat_map(|hook| {
                [
                    step(hook, frame(Frame::tcp((A::pod(9), 1), (A::pod(8), 80))), Pass, NoService),
                    step(hook, frame(Frame::udp((A::client(1), 1), (A::node(), 61_001))), Pass, NoService),
                    step(hook, frame(Frame::tcp((A::client(1), 1), (A::vip(1), 81))), Pass, NoService),
                ]
            })
            .collect(),
    );
    fixture(
        "a port that no Service has, on a ClusterIP",
        vec![
            step(UplinkXdp, frame(Frame::tcp((A::client(1), 1), (A::vip(7), 81))), Send, UnknownPort),
            step(PodIngress, frame(Frame::udp((A::pod(9), 1), (A::vip(7), 81))), Send, UnknownPort),
            step(PodIngress, frame(Frame::udp((A::pod(9), 1), (A::vip(7), 80))), Pass, NewFlow),
        ],
    );
    let checked = |hook, source, action, reason| {
        step(hook, frame(Frame::tcp((source, 1), (A::vip(9), 80))), action, reason)
    };
    fixture(
        "loadBalancerSourceRanges",
        vec![
            checked(UplinkXdp, A::client(1), Pass, NewFlow),
            checked(UplinkXdp, A::client(2), Drop, Reason::SourceDenied),
            checked(UplinkIngress, A::client(2), Drop, Reason::SourceDenied),
            checked(PodIngress, A::pod(9), Pass, NewFlow),
        ],
    );
    let large = Frame::udp((A::pod(9), 1), (A::vip(2), 53)).payload(&[9; 3000]).build();
    let stray = Frame::udp((A::pod(9), 1), (A::vip(7), 80)).payload(&[9; 3000]).build();
    let fragment = |of: &[u8], index: usize| Input::Bytes(fragments(of, 1232)[index].clone());
    fixture(
        "R3: fragments of a datagram follow the first",
        vec![
            step(PodIngress, fragment(&large, 1), Pass, Reason::FragmentUnknown),
            step(PodIngress, fragment(&large, 0), Pass, NewFlow),
            step(PodIngress, fragment(&large, 1), Pass, Reason::Fragment),
            step(PodIngress, fragment(&large, 2), Pass, Reason::Fragment),
            step(PodEgress, fragment(&large, 2), Pass, Reason::FragmentUnknown),
            step(PodIngress, fragment(&stray, 2), Drop, Reason::FragmentLost),
            step(UplinkXdp, fragment(&large, 0), Pass, Reason::LeftToStack),
            step(UplinkXdp, fragment(&large, 2), Pass, Reason::LeftToStack),
        ],
    );
    fixture(
        "R2: a router's error about what a backend here sent to an outside client",
        vec![
            step(UplinkXdp, frame(outside(2000)), Pass, NewFlow),
            step(UplinkEgress, AnswerTo(0, SYN_ACK), Pass, Reply),
            step(UplinkXdp, Input::ErrorAbout(1, A::client(9).to_mapped()), Pass, Reason::LeftToStack),
            step(UplinkIngress, Input::ErrorAbout(1, A::client(9).to_mapped()), Pass, Reason::IcmpError),
            step(PodEgress, OutputOf(3), Pass, Reason::OtherProtocol),
        ],
    );
    fixture(
        "R2: errors about a masqueraded flow, from both sides",
        vec![
            step(UplinkIngress, frame(remote(2000)), Pass, NewFlow),
            step(UplinkEgress, OutputOf(0), Pass, Masquerade),
            step(UplinkIngress, Input::ErrorAbout(1, A::remote_pod(6).to_mapped()), Pass, Reason::IcmpError),
            step(UplinkEgress, OutputOf(2), Pass, Reason::IcmpError),
            step(UplinkIngress, AnswerTo(1, SYN_ACK), Pass, MasqueradeReply),
            step(UplinkEgress, OutputOf(4), Pass, Reply),
            step(UplinkIngress, Input::ErrorAbout(5, A::client(9).to_mapped()), Pass, Reason::IcmpError),
            step(UplinkEgress, OutputOf(6), Pass, Reason::IcmpError),
        ],
    );
    fixture(
        "R2: a backend's own error about a pod's datagram",
        vec![
            step(PodIngress, frame(Frame::udp((A::pod(9), 40_000), (A::vip(2), 53))), Pass, NewFlow),
            step(PodEgress, Input::ErrorAbout(0, A::pod(4).to_mapped()), Pass, Reason::IcmpError),
            step(PodIngress, Input::ErrorAbout(0, A::node().to_mapped()), Pass, Reason::OtherProtocol),
        ],
    );
    let sctp = |port, chunk| frame(Frame::sctp((A::pod(9), port), (A::vip(10), 80), chunk));
    fixture(
        "SCTP, addresses alone",
        vec![
            step(PodIngress, sctp(5000, 1), Pass, NewFlow),
            step(PodEgress, AnswerTo(0, 2), Pass, Reply),
            step(PodIngress, sctp(5000, 10), Pass, Forward),
            step(UplinkXdp, frame(Frame::sctp((A::client(1), 5000), (A::vip(10), 81), 1)), Pass, NoService),
        ],
    );
    all
}
