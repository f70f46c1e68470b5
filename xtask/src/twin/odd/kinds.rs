//! The kinds of packets that cannot be true, or that nobody sends in earnest.

use std::net::IpAddr;

use super::super::cases::{Case, HELD_ADDRESS, Kind as ServiceKind, Member, Port, Protocol, State};
use super::packet::{ACK, FIN, Lie, Packet, Piece, RST, SYN, Station, Transport};
use lb_lab::pod::{TCP_PORT, UDP_PORT};
use lb_lab::{AddressPlan, Family, NodeId};

/// A port of no Service.
const UNKNOWN_PORT: u16 = 9;
/// The Services' port.
const PORT: u16 = 80;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sender {
    /// Somebody outside.
    Outside,
    /// The idle pod of the first node.
    Pod,
}

/// Packets of a kind that are sent to one frontend.
#[derive(Clone, Debug)]
pub struct Kind {
    /// What is odd.
    pub name: String,
    /// Where it goes.
    pub at: String,
    /// Who sends it.
    pub sender: Sender,
    /// The packets, sent in this order. All have the same ports.
    pub packets: Vec<Packet>,
}

/// Services: what they are called, the number of their addresses, and who serves.
const SERVICES: [(&str, u32, &[&str]); 4] =
    [("near", 1, &["a1"]), ("far", 2, &["b1"]), ("empty", 3, &[]), ("held", HELD_ADDRESS, &["a1"])];

/// The Services that are asked.
pub fn services() -> Vec<Case> {
    let case = |(name, number, pods): &(&str, u32, &[&'static str])| Case {
        name: format!("odd-{name}"),
        kind: ServiceKind::NodePort,
        external_local: false,
        cluster_ip: 300 + number,
        external_ip: Some(*number),
        balancer: None,
        sources: &[],
        affinity: false,
        ports: [(Protocol::Tcp, TCP_PORT), (Protocol::Udp, UDP_PORT)]
            .map(|(protocol, target)| Port {
                protocol,
                port: PORT,
                target,
                node_port: Some(node_port(*number, protocol)),
            })
            .to_vec(),
        members: pods.iter().map(|pod| Member { pod, state: State::Ready }).collect(),
        label: None,
        health_port: None,
        gone: false,
    };
    SERVICES.iter().map(case).collect()
}

fn node_port(number: u32, protocol: Protocol) -> u16 {
    30000 + number as u16 * 2 + u16::from(protocol == Protocol::Udp)
}

/// What is known of the labs.
pub struct Scene<'a> {
    /// Of which family the packets are.
    pub family: Family,
    /// A pod's address.
    pub pod: &'a dyn Fn(&str) -> IpAddr,
}

/// Where packets go: its name, the address, and the ports for TCP and UDP.
type Target = (&'static str, IpAddr, [u16; 2]);

impl Scene<'_> {
    fn node(&self, node: NodeId) -> IpAddr {
        AddressPlan::default().node_ip(node, self.family)
    }

    fn client(&self) -> IpAddr {
        AddressPlan::default().client_ip(self.family)
    }

    fn cluster_ip(&self, number: u32) -> IpAddr {
        AddressPlan::default().of(self.family).services.host(300 + number)
    }

    fn external(&self, number: u32) -> IpAddr {
        AddressPlan::default().of(self.family).external.host(number)
    }

    fn wire(&self, number: u32) -> IpAddr {
        AddressPlan::default().of(self.family).wire.host(number)
    }

    fn node_ports(number: u32) -> [u16; 2] {
        [Protocol::Tcp, Protocol::Udp].map(|protocol| node_port(number, protocol))
    }

    /// Every frontend.
    fn targets(&self) -> Vec<Target> {
        let node = self.node(NodeId::A);
        vec![
            ("ClusterIP, pod here", self.cluster_ip(1), [PORT; 2]),
            ("ClusterIP, pod there", self.cluster_ip(2), [PORT; 2]),
            ("nodePort, pod here", node, Self::node_ports(1)),
            ("nodePort, pod there", node, Self::node_ports(2)),
            ("VIP, pod here", self.external(1), [PORT; 2]),
            ("VIP, pod there", self.external(2), [PORT; 2]),
            ("VIP of the node's own", self.external(HELD_ADDRESS), [PORT; 2]),
            ("ClusterIP, nobody", self.cluster_ip(3), [PORT; 2]),
            ("nodePort, nobody", node, Self::node_ports(3)),
        ]
    }

    /// Sources that are another's, or nobody's.
    fn sources(&self) -> Vec<(&'static str, IpAddr)> {
        let named = |name: &'static str| (name, name.parse().expect("an address"));
        let mut sources: Vec<(&'static str, IpAddr)> = match self.family {
            Family::V4 => [
                "0.0.0.0",
                "0.0.0.1",
                "127.0.0.1",
                "127.8.8.8",
                "169.254.7.7",
                "224.0.0.1",
                "239.1.2.3",
                "240.0.0.1",
                "255.255.255.255",
                "100.64.0.1",
                "198.51.100.7",
            ]
            .map(named)
            .to_vec(),
            Family::V6 => [
                "::",
                "::1",
                "::ffff:198.51.100.7",
                "::198.51.100.7",
                "64:ff9b::c633:6407",
                "fe80::77",
                "fec0::77",
                "ff02::1",
                "ff0e::101",
                "100::7",
                "2001:db8:7::7",
            ]
            .map(named)
            .to_vec(),
        };
        sources.extend([
            ("the node's own", self.node(NodeId::A)),
            ("an external IP of the node's own", self.external(HELD_ADDRESS)),
            ("the other node's", self.node(NodeId::B)),
            ("a ClusterIP", self.cluster_ip(2)),
            ("a ClusterIP of none", AddressPlan::default().of(self.family).services.host(999)),
            ("a VIP", self.external(2)),
            ("a pod's of this node", (self.pod)("a2")),
            ("a pod's of the other node", (self.pod)("b1")),
            ("nobody's on the wire", self.wire(99)),
            ("the client's own", self.client()),
        ]);
        if self.family == Family::V4 {
            sources.push(("broadcast of the wire", self.wire(255)));
            sources.push(("the wire's network", self.wire(0)));
        }
        sources
    }

    /// Every kind. The first port is the first one's, the next the next one's.
    pub fn kinds(&self, first_port: u16) -> Vec<Kind> {
        let mut list = List { kinds: Vec::new(), next_port: first_port };
        self.of_sources(&mut list);
        self.of_destinations(&mut list);
        self.of_ttl(&mut list);
        self.of_options(&mut list);
        self.of_flags(&mut list);
        self.of_lies(&mut list);
        self.of_pieces(&mut list);
        list.kinds
    }

    fn of_sources(&self, list: &mut List) {
        for target in self.targets() {
            for (name, source) in self.sources() {
                list.both(&format!("source {name}"), Sender::Outside, source, target, |_| {});
            }
            list.both("source the destination itself", Sender::Outside, target.1, target, |_| {});
        }
        let visitor = (self.pod)("visitor");
        for target in self.targets().into_iter().take(6) {
            list.both("an honest pod", Sender::Pod, visitor, target, |_| {});
            for (name, source) in self.sources().into_iter().filter(|(name, _)| *name != "ff0e::101") {
                list.both(&format!("from a pod: source {name}"), Sender::Pod, source, target, |_| {});
            }
        }
    }

    fn of_destinations(&self, list: &mut List) {
        let node = self.node(NodeId::A);
        let plan = AddressPlan::default().of(self.family);
        let [tcp, udp] = Self::node_ports(1);
        let mut targets: Vec<(&str, Target)> = vec![
            ("a port of no Service", ("VIP", self.external(1), [UNKNOWN_PORT; 2])),
            (
                "a port of no Service",
                ("VIP of the node's own", self.external(HELD_ADDRESS), [UNKNOWN_PORT; 2]),
            ),
            ("a port of no Service", ("ClusterIP", self.cluster_ip(1), [UNKNOWN_PORT; 2])),
            ("a port of no Service", ("the node", node, [UNKNOWN_PORT; 2])),
            ("an address of no Service", ("the range of ClusterIPs", plan.services.host(999), [PORT; 2])),
            ("an address of no Service", ("the range of VIPs", plan.external.host(99), [PORT; 2])),
            ("port 0", ("ClusterIP", self.cluster_ip(1), [0; 2])),
            ("port 0", ("VIP", self.external(1), [0; 2])),
            ("port 0", ("the node", node, [0; 2])),
            ("nodePort of somebody else", ("the client", self.client(), [tcp, udp])),
            ("nodePort of somebody else", ("a pod here", (self.pod)("a1"), [tcp, udp])),
        ];
        let odd: &[(&str, &str)] = match self.family {
            Family::V4 => &[
                ("nodePort of loopback", "127.0.0.1"),
                ("nodePort of everybody", "255.255.255.255"),
                ("nodePort of the wire's broadcast", "192.168.240.255"),
                ("nodePort of a group", "224.0.0.1"),
                ("nodePort of 0.0.0.0", "0.0.0.0"),
                ("nodePort of class E", "240.0.0.1"),
            ],
            Family::V6 => &[
                ("nodePort of loopback", "::1"),
                ("nodePort of a group", "ff02::1"),
                ("nodePort of ::", "::"),
                ("nodePort of a mapped address", "::ffff:192.168.240.11"),
            ],
        };
        for (name, address) in odd {
            targets.push((name, ("", address.parse().expect("an address"), [tcp, udp])));
        }
        for (name, target) in &targets {
            list.both(name, Sender::Outside, self.client(), *target, |_| {});
        }
        for (name, target) in &targets[..6] {
            let name = format!("from a pod: {name}");
            list.both(&name, Sender::Pod, (self.pod)("visitor"), *target, |_| {});
        }
        for target in self.targets() {
            for (name, station) in
                [("frame for all", Station::Broadcast), ("frame for a group", Station::Group)]
            {
                list.both(name, Sender::Outside, self.client(), target, |packet| packet.station = station);
            }
        }
        // One of each protocol: their answers cannot be told apart.
        let near = self.targets()[2];
        list.both("source port 0", Sender::Outside, self.client(), near, |packet| packet.ports.0 = 0);
    }

    fn of_ttl(&self, list: &mut List) {
        let unknown = ("VIP, a port of no Service", self.external(1), [UNKNOWN_PORT; 2]);
        for target in self.targets().into_iter().chain([unknown]) {
            for ttl in [0, 1, 2, 3, 255] {
                let name = format!("TTL {ttl}");
                list.both(&name, Sender::Outside, self.client(), target, |packet| packet.ttl = ttl);
                if ttl < 3 {
                    let (name, visitor) = (format!("from a pod: TTL {ttl}"), (self.pod)("visitor"));
                    list.both(&name, Sender::Pod, visitor, target, |packet| packet.ttl = ttl);
                }
            }
        }
    }

    fn of_options(&self, list: &mut List) {
        let pad = |number: u8| (number, vec![0, 1, 4, 0, 0, 0, 0]);
        let IpAddr::V4(hop) = AddressPlan::default().node_ip(NodeId::B, Family::V4) else { return };
        let [a, b, c, d] = hop.octets();
        let options: &[(&str, &[u8])] = &[
            ("loose source route", &[131, 7, 4, a, b, c, d, 0]),
            ("loose source route, used up", &[131, 7, 8, a, b, c, d, 0]),
            ("strict source route", &[137, 7, 4, a, b, c, d, 0]),
            ("record route", &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("record route that is full", &[7, 7, 8, 1, 2, 3, 4, 0]),
            ("router alert", &[148, 4, 0, 0]),
            ("timestamps", &[68, 8, 5, 0, 0, 0, 0, 0]),
            ("no operation", &[1, 1, 1, 1]),
            ("an unknown option", &[0x9e, 4, 0, 0]),
            ("an option that is too long", &[7, 40, 4, 0]),
        ];
        let route = |kind: u8, left: u8| (43, [&[2, kind, left, 0, 0, 0, 0][..], &[0x20; 16]].concat());
        type Extensions = Vec<(u8, Vec<u8>)>;
        let extensions: Vec<(&str, Extensions)> = vec![
            ("hop-by-hop options", vec![pad(0)]),
            ("destination options", vec![pad(60)]),
            ("all kinds of options", vec![pad(0), pad(60), pad(60)]),
            ("hop-by-hop options behind others", vec![pad(60), pad(0)]),
            ("router alert", vec![(0, vec![0, 5, 2, 0, 0, 1, 0])]),
            ("an option to be refused", vec![(0, vec![0, 0xbe, 4, 0, 0, 0, 0])]),
            ("an option to be dropped for", vec![(60, vec![0, 0x7e, 4, 0, 0, 0, 0])]),
            ("routing header of type 0", vec![route(0, 1)]),
            ("routing header of type 0, used up", vec![route(0, 0)]),
            ("routing header of type 2", vec![route(2, 1)]),
            ("routing header of an unknown type", vec![route(200, 1)]),
        ];
        for target in self.targets() {
            if self.family == Family::V4 {
                for (name, options) in options {
                    list.both(name, Sender::Outside, self.client(), target, |packet| {
                        packet.options = options.to_vec();
                    });
                }
            } else {
                for (name, extensions) in &extensions {
                    list.both(name, Sender::Outside, self.client(), target, |packet| {
                        packet.extensions.clone_from(extensions);
                    });
                }
            }
        }
    }

    fn of_flags(&self, list: &mut List) {
        for (name, flags) in [
            ("SYN+FIN", SYN | FIN),
            ("SYN+RST", SYN | RST),
            ("SYN+ACK", SYN | ACK),
            ("no flags", 0),
            ("FIN alone", FIN),
            ("RST alone", RST),
            ("ACK alone", ACK),
            ("FIN, PSH and URG", FIN | 8 | 32),
            ("all flags", 0x3f),
        ] {
            for target in self.targets() {
                list.push(name, Sender::Outside, self.client(), target, Transport::Tcp(flags), |_| {});
            }
        }
    }

    fn of_lies(&self, list: &mut List) {
        let mut lies = vec![
            ("a length beyond the frame", Lie::Length(40)),
            ("a length before the end", Lie::Length(-4)),
            ("a wrong checksum", Lie::Checksum),
            ("a UDP length beyond the packet", Lie::UdpLength(100)),
            ("a UDP length before its end", Lie::UdpLength(-8)),
            ("a UDP length below its header", Lie::UdpLength(-52)),
        ];
        if self.family == Family::V4 {
            lies.push(("a wrong checksum of the header", Lie::HeaderChecksum));
        }
        for (name, lie) in lies {
            for target in self.targets() {
                if matches!(lie, Lie::UdpLength(_)) {
                    let change = |packet: &mut Packet| packet.lie = lie;
                    list.push(name, Sender::Outside, self.client(), target, Transport::Udp, change);
                } else {
                    list.both(name, Sender::Outside, self.client(), target, |packet| packet.lie = lie);
                }
            }
        }
    }

    fn of_pieces(&self, list: &mut List) {
        let piece = |bytes: std::ops::Range<usize>, more| Piece { bytes, more };
        let all = [
            ("one piece that is all", vec![piece(0..56, false)]),
            ("two pieces", vec![piece(0..32, true), piece(32..56, false)]),
            ("pieces of eight bytes", (0..7).map(|at| piece(at * 8..at * 8 + 8, at < 6)).collect()),
            ("pieces that overlap", vec![piece(0..32, true), piece(24..56, false)]),
            ("the first piece twice", vec![piece(0..32, true), piece(0..32, true), piece(32..56, false)]),
            ("a first piece alone", vec![piece(0..32, true)]),
            ("a later piece alone", vec![piece(32..56, false)]),
        ];
        for (name, pieces) in all {
            for target in self.targets() {
                list.push(name, Sender::Outside, self.client(), target, Transport::Udp, |_| {});
                let Some(kind) = list.kinds.last_mut() else { continue };
                let whole = kind.packets.remove(0);
                let piece = |piece: &Piece| Packet { piece: Some(piece.clone()), ..whole.clone() };
                kind.packets = pieces.iter().map(piece).collect();
            }
        }
    }
}

struct List {
    kinds: Vec<Kind>,
    next_port: u16,
}

impl List {
    /// As TCP and as UDP.
    fn both(
        &mut self,
        name: &str,
        sender: Sender,
        source: IpAddr,
        target: Target,
        change: impl Fn(&mut Packet),
    ) {
        for transport in [Transport::Tcp(SYN), Transport::Udp] {
            self.push(name, sender, source, target, transport, &change);
        }
    }

    fn push(
        &mut self,
        name: &str,
        sender: Sender,
        source: IpAddr,
        (at, address, ports): Target,
        transport: Transport,
        change: impl Fn(&mut Packet),
    ) {
        let (port, word) = match transport {
            Transport::Tcp(_) => (ports[0], "TCP"),
            Transport::Udp => (ports[1], "UDP"),
        };
        let mut packet = Packet::honest(source, address, (self.next_port, port), transport);
        change(&mut packet);
        self.next_port += 1;
        let at = if at.is_empty() { word.to_owned() } else { format!("{at}, {word}") };
        self.kinds.push(Kind { name: name.to_owned(), at, sender, packets: vec![packet] });
    }
}
