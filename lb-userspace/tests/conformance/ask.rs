//! Asks a node as its clients do: one packet, or one call of a process, and what becomes of it and of the answer.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{Hook, Reason};
use lb_common::addr::{Ipv4, Ipv6, Port, Proto};
use lb_common::datapath::socket::{self, Answer, Call};
use lb_common::datapath::{Family as AddressFamily, Parsed};
use lb_common::wire::SlicePacket;
use lb_control::model::Family;
use lb_testkit::{Action, Frame, Kept, run};

use crate::names::{self, PROCESS};
use crate::stage::Node;

/// Client ports that ask, so that every endpoint of a list has its turn.
const ASKERS: u16 = 32;
/// [`lb_testkit::World`]'s own namespace.
const HOST: u64 = 1;

const ACK: u8 = 0x10;
const SYN_ACK: u8 = 0x12;

/// What became of one packet or call.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fate {
    /// An endpoint got it, from this address.
    Reached {
        backend: SocketAddr,
        from: Option<SocketAddr>,
    },
    /// The endpoint's answer does not come from whom the client has asked.
    Unanswered,
    Refused,
    Dropped,
    /// Left as it was.
    Passed,
}

/// Whom a packet goes to and from whom.
type Ends = (SocketAddr, SocketAddr);

impl Node {
    /// What `from` (a client outside, a pod, or [`PROCESS`]) gets at `to`, such as `vip1:80` or `vip1:53/UDP`: the
    /// endpoints that serve, each with whom it takes for the client where that is not the client itself; or
    /// `refused`, `dropped`, `passed`.
    pub fn ask(&self, from: &str, to: &str) -> String {
        let fates: BTreeSet<Fate> = (0..ASKERS).map(|_| self.ask_once(from, to)).collect();
        let texts: Vec<String> = fates.iter().map(|fate| self.text(fate, from)).collect();
        let texts: BTreeSet<String> = texts.into_iter().collect();
        texts.into_iter().collect::<Vec<_>>().join(", ")
    }

    /// The endpoint that one question from one client port gets.
    pub fn ask_port(&self, from: &str, port: u16, to: &str) -> String {
        let (to, proto) = self.target(to);
        let client = SocketAddr::new(names::address(self.family, from), port);
        self.text(&self.packet(client, from.starts_with("here"), to, proto, None), from)
    }

    /// The endpoint that the next packet of a client port's connection gets.
    pub fn go_on(&self, from: &str, port: u16, to: &str) -> String {
        let (to, proto) = self.target(to);
        let client = SocketAddr::new(names::address(self.family, from), port);
        self.text(&self.packet(client, from.starts_with("here"), to, proto, Some(ACK)), from)
    }

    fn ask_once(&self, from: &str, to: &str) -> Fate {
        let (to, proto) = self.target(to);
        let number = self.asked.get() + 1;
        self.asked.set(number);
        if let Some(bound) = from.strip_prefix(PROCESS) {
            let bound = bound.strip_prefix('@').map(|name| names::address(self.family, name));
            return match self.family {
                Family::V4 => self.call::<Ipv4>(bound, to, proto),
                Family::V6 => self.call::<Ipv6>(bound, to, proto),
            };
        }
        let client = SocketAddr::new(names::address(self.family, from), 20_000 + number);
        self.packet(client, from.starts_with("here"), to, proto, None)
    }

    fn target(&self, text: &str) -> (SocketAddr, Proto) {
        let (text, proto) = match text.split_once('/') {
            None => (text, Proto::TCP),
            Some((text, "UDP")) => (text, Proto::UDP),
            Some((text, "SCTP")) => (text, Proto::SCTP),
            Some((_, other)) => panic!("no protocol {other:?}"),
        };
        let Some((name, port)) = text.split_once(':') else { panic!("{text:?} has no port") };
        let port = port.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"));
        (SocketAddr::new(names::address(self.family, name), port), proto)
    }

    fn text(&self, fate: &Fate, asker: &str) -> String {
        let Fate::Reached { backend, from } = fate else { return format!("{fate:?}").to_lowercase() };
        let mut text = names::name(backend.ip());
        if backend.port() != 8080 && backend.port() != 8053 {
            text.push_str(&format!(":{}", backend.port()));
        }
        match from.map(|from| names::name(from.ip())) {
            Some(seen) if seen != asker => format!("{text} (sees {seen})"),
            _ => text,
        }
    }

    /// A call of a process of this node.
    fn call<A: Kept>(&self, bound: Option<IpAddr>, to: SocketAddr, proto: Proto) -> Fate {
        let of = |address: IpAddr| A::from_mapped(Ipv6::from(address));
        let call = Call {
            address: of(to.ip()),
            port: Port::new(to.port()),
            proto,
            source: bound.map_or(A::UNSPECIFIED, of),
            cookie: u64::from(self.asked.get()),
            connects: true,
            netns_cookie: HOST,
        };
        match socket::resolve(&call, &self.tables) {
            Answer::Pass(_) => Fate::Passed,
            Answer::Refuse(_) => Fate::Refused,
            Answer::Drop(_) => Fate::Dropped,
            Answer::To { backend, .. } => {
                let address = IpAddr::from(backend.address.to_mapped());
                Fate::Reached { backend: SocketAddr::new(address, backend.port.get()), from: None }
            }
        }
    }

    /// A packet of a client, the first of its connection when it has no flags, then the endpoint's answer.
    fn packet(
        &self,
        client: SocketAddr,
        of_this_node: bool,
        to: SocketAddr,
        proto: Proto,
        flags: Option<u8>,
    ) -> Fate {
        let mut frame = frame(proto, client, to, flags);
        let before = frame.clone();
        match self.enter(&mut frame, of_this_node) {
            (Action::Drop, _) => return Fate::Dropped,
            (Action::Send, reason) => return self.refusal(&frame, reason, client, to, proto),
            (Action::Pass, _) => {}
        }
        if frame == before {
            return Fate::Passed;
        }
        self.leave(&mut frame);
        let Some((from, backend)) = ends(&frame) else { panic!("no packet any more: {frame:02x?}") };
        let mut answer = self::frame(proto, backend, from, Some(SYN_ACK));
        self.enter(&mut answer, self.is_here(backend.ip()));
        self.leave(&mut answer);
        if ends(&answer) != Some((to, client)) {
            return Fate::Unanswered;
        }
        Fate::Reached { backend, from: Some(from) }
    }

    fn refusal(
        &self,
        frame: &[u8],
        reason: Reason,
        client: SocketAddr,
        to: SocketAddr,
        proto: Proto,
    ) -> Fate {
        let known = [Reason::RefusedReset, Reason::RefusedUnreachable, Reason::UnknownPort];
        assert!(known.contains(&reason), "sent for {reason:?}");
        // ICMP has no ports.
        assert!(proto != Proto::TCP || ends(frame) == Some((to, client)), "reset {:?}", ends(frame));
        Fate::Refused
    }

    /// Takes a frame in, from the wire or from a pod.
    fn enter(&self, frame: &mut Vec<u8>, of_this_node: bool) -> (Action, Reason) {
        if of_this_node {
            return run(Hook::PodIngress, frame, &self.tables);
        }
        match run(Hook::UplinkXdp, frame, &self.tables) {
            (Action::Pass, Reason::LeftToStack | Reason::NoService) => {
                run(Hook::UplinkIngress, frame, &self.tables)
            }
            other => other,
        }
    }

    /// Lets the kernel route a frame: to a pod of this node, or out.
    fn leave(&self, frame: &mut Vec<u8>) {
        let here = ends(frame).is_some_and(|(_, to)| self.is_here(to.ip()));
        let hook = if here { Hook::PodEgress } else { Hook::UplinkEgress };
        run(hook, frame, &self.tables);
    }

    fn is_here(&self, address: IpAddr) -> bool {
        names::name(address).starts_with("here")
    }
}

fn frame(proto: Proto, from: SocketAddr, to: SocketAddr, flags: Option<u8>) -> Vec<u8> {
    let of = |at: SocketAddr| (Ipv6::from(at.ip()), at.port());
    let (from, to) = (of(from), of(to));
    match proto {
        Proto::UDP => Frame::udp(from, to).build(),
        // INIT, or its answer.
        Proto::SCTP => Frame::sctp(from, to, if flags.is_some() { 2 } else { 1 }).build(),
        _ => flags.into_iter().fold(Frame::tcp(from, to), Frame::flags).build(),
    }
}

fn ends(frame: &[u8]) -> Option<Ends> {
    if frame.get(12..14) == Some(&[0x86, 0xdd]) { of_family::<Ipv6>(frame) } else { of_family::<Ipv4>(frame) }
}

fn of_family<A: AddressFamily>(frame: &[u8]) -> Option<Ends> {
    let Parsed { tuple, .. } = A::parse(&SlicePacket(&mut frame.to_vec())).ok()?;
    let at = |address: A, port: Port| SocketAddr::new(IpAddr::from(address.to_mapped()), port.get());
    Some((at(tuple.source, tuple.source_port), at(tuple.destination, tuple.destination_port)))
}
