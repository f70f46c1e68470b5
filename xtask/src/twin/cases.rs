//! The Services of a run, drawn from a seed: every type with every policy over every placement of endpoints, and on
//! each of them the other fields by chance.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_lab::pod::{HTTP_PORT, TCP_PORT, UDP_PORT};
use lb_lab::{AddressPlan, Family, NodeId, Range};

/// The pods with servers, and where they are.
pub const PODS: [(&str, NodeId); 3] = [("a1", NodeId::A), ("a2", NodeId::A), ("b1", NodeId::B)];
/// Servers at the outside client.
pub const OUTSIDER: &str = "outsider";
/// The pod without servers, on the first node.
pub const VISITOR: &str = "visitor";
/// Host number of a second address of the client on the wire, for source ranges that hold one of the two.
pub const OTHER_CLIENT: u32 = 2;
/// Host number in the external range of an address that the first node holds besides its own.
pub const HELD_ADDRESS: u32 = 200;

/// `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Inside only, but for external IPs.
    ClusterIp,
    /// And by a port of every node.
    NodePort,
    /// And by an address of its own.
    LoadBalancer,
}

impl Kind {
    /// As Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::ClusterIp => "ClusterIP",
            Kind::NodePort => "NodePort",
            Kind::LoadBalancer => "LoadBalancer",
        }
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Protocol {
    /// TCP.
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
}

impl Protocol {
    /// As Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        }
    }
}

/// What the EndpointSlice says of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Takes traffic.
    Ready,
    /// Does not.
    NotReady,
    /// Is being deleted, and serves what it has.
    Terminating,
}

/// An endpoint of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// One of [`PODS`], or [`OUTSIDER`].
    pub pod: &'static str,
    /// Its conditions.
    pub state: State,
}

impl Member {
    /// The node it is on; none for servers outside.
    pub fn node(&self) -> Option<NodeId> {
        PODS.iter().find(|(pod, _)| *pod == self.pod).map(|(_, node)| *node)
    }
}

/// A port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The Service's port.
    pub port: u16,
    /// The port in the pods.
    pub target: u16,
    /// The nodes' port, if the type has one.
    pub node_port: Option<u16>,
}

impl Port {
    /// `name` of the port.
    pub fn name(&self) -> String {
        format!("{}-{}", self.protocol.name().to_lowercase(), self.port)
    }
}

/// A label that hands a Service to somebody else.
pub const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// A label that takes its EndpointSlices from a Service.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// A Service of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its name, which tells what is special about it.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// externalTrafficPolicy Local.
    pub external_local: bool,
    /// Its ClusterIP, as a number in the range of ClusterIPs.
    pub cluster_ip: u32,
    /// Its external IP, as a number in the range of external addresses.
    pub external_ip: Option<u32>,
    /// Address of the load balancer, in the same way.
    pub balancer: Option<u32>,
    /// loadBalancerSourceRanges.
    pub sources: &'static [Sources],
    /// Session affinity.
    pub affinity: bool,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its endpoints.
    pub members: Vec<Member>,
    /// [`OTHER_PROXY`] or [`HEADLESS`].
    pub label: Option<&'static str>,
    /// healthCheckNodePort, which balancers with externalTrafficPolicy Local have.
    pub health_port: Option<u16>,
    /// Whether it has been deleted.
    pub gone: bool,
}

impl Case {
    /// Its ClusterIP of a family.
    pub fn cluster_ip(&self, family: Family) -> IpAddr {
        AddressPlan::default().of(family).services.host(self.cluster_ip)
    }

    /// Its external IP of a family.
    pub fn external_ip(&self, family: Family) -> Option<IpAddr> {
        self.external_ip.map(|number| AddressPlan::default().of(family).external.host(number))
    }

    /// The load balancer's address of a family.
    pub fn balancer(&self, family: Family) -> Option<IpAddr> {
        self.balancer.map(|number| AddressPlan::default().of(family).external.host(number))
    }

    /// loadBalancerSourceRanges of a family.
    pub fn source_ranges(&self, family: Family) -> impl Iterator<Item = String> {
        self.sources.iter().map(move |sources| sources.range(family).to_string())
    }

    /// One more Service, by which to tell that all before it are known.
    pub fn last(round: u32) -> Self {
        let port = Port { protocol: Protocol::Tcp, port: 80, target: TCP_PORT, node_port: None };
        Case {
            name: format!("last-{round}"),
            kind: Kind::ClusterIp,
            external_local: false,
            cluster_ip: 4000 + round,
            external_ip: None,
            balancer: None,
            sources: &[],
            affinity: false,
            ports: vec![port],
            members: vec![ready("a1")],
            label: None,
            health_port: None,
            gone: false,
        }
    }

    /// Whether the proxy has to do with it at all.
    pub fn is_ours(&self) -> bool {
        self.label != Some(OTHER_PROXY) && !self.gone
    }

    /// The endpoints that the proxy knows of.
    fn known(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|_| self.label.is_none())
    }

    /// Whether an endpoint is in this state.
    pub fn has(&self, state: State) -> bool {
        self.known().any(|member| member.state == state)
    }

    /// The pods that should serve: those that are ready, or else those that terminate; only of one node, if one is given.
    pub fn serving(&self, node: Option<NodeId>) -> BTreeSet<&'static str> {
        let those = |state| {
            let here = self.known().filter(|member| node.is_none() || member.node() == node);
            here.filter(|member| member.state == state).map(|member| member.pod).collect()
        };
        let ready: BTreeSet<_> = those(State::Ready);
        if ready.is_empty() { those(State::Terminating) } else { ready }
    }

    /// Its fields in a few words.
    pub fn shown(&self) -> String {
        let mut words = vec![self.kind.name().to_owned()];
        if self.kind != Kind::ClusterIp {
            words.push(format!("external policy {}", if self.external_local { "Local" } else { "Cluster" }));
        }
        if self.affinity {
            words.push("affinity".into());
        }
        if !self.sources.is_empty() {
            words.push(format!("only from {:?}", self.sources));
        }
        words.extend(self.label.map(str::to_owned));
        words.extend(self.gone.then(|| "deleted".to_owned()));
        let members = self.members.iter().map(|member| match member.state {
            State::Ready => member.pod.to_owned(),
            State::NotReady => format!("{} (not ready)", member.pod),
            State::Terminating => format!("{} (terminating)", member.pod),
        });
        let members = members.collect::<Vec<_>>().join(", ");
        format!("{}; {}", words.join(", "), if members.is_empty() { "no endpoint" } else { &members })
    }
}

/// Numbers by chance, the same for the same seed: splitmix64.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Of this seed.
    pub fn new(seed: u64) -> Self {
        Dice(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.next().is_multiple_of(count)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[(self.next() % from.len() as u64) as usize]
    }
}

const fn ready(pod: &'static str) -> Member {
    Member { pod, state: State::Ready }
}

/// Where endpoints can be, seen from the first node.
const PLACEMENTS: &[(&str, &[Member])] = &[
    ("nowhere", &[]),
    ("here", &[ready("a1")]),
    ("there", &[ready("b1")]),
    ("both", &[ready("a2"), ready("b1")]),
    ("everywhere", &[ready("a1"), ready("a2"), ready("b1")]),
    ("unready", &[Member { pod: "a1", state: State::NotReady }]),
    (
        "terminating",
        &[Member { pod: "a1", state: State::Terminating }, Member { pod: "b1", state: State::Terminating }],
    ),
    ("leaving", &[Member { pod: "a1", state: State::Terminating }, ready("b1")]),
    ("outside", &[ready(OUTSIDER)]),
];

/// The Services of a seed.
pub fn draw(seed: u64) -> Vec<Case> {
    let mut dice = Dice::new(seed);
    let mut cases = Vec::new();
    for (placement, members) in PLACEMENTS {
        for (kind, external_local, word) in [
            (Kind::ClusterIp, false, "cluster"),
            (Kind::NodePort, false, "node"),
            (Kind::NodePort, true, "node-local"),
            (Kind::LoadBalancer, false, "balancer"),
            (Kind::LoadBalancer, true, "balancer-local"),
        ] {
            let name = format!("{word}-{placement}");
            cases.push(draw_case(&mut dice, cases.len(), name, kind, external_local, members));
        }
    }
    // What chance must not leave out.
    let everywhere = PLACEMENTS[4].1;
    let mut sure = |name: &str, kind, external_local, change: &dyn Fn(&mut Case)| {
        let mut case = draw_case(&mut dice, cases.len(), name.into(), kind, external_local, everywhere);
        (case.affinity, case.sources) = (false, &[]);
        change(&mut case);
        cases.push(case);
    };
    sure("affinity", Kind::LoadBalancer, false, &|case| case.affinity = true);
    sure("affinity-local", Kind::LoadBalancer, true, &|case| case.affinity = true);
    for (at, sources) in SOURCES.iter().enumerate() {
        let name = format!("ranges-{at}");
        sure(&name, Kind::LoadBalancer, at % 2 == 1, &|case| case.sources = sources);
    }
    sure("held-address", Kind::NodePort, false, &|case| case.external_ip = Some(HELD_ADDRESS));
    for (name, label) in [("other-proxy", OTHER_PROXY), ("headless-label", HEADLESS)] {
        sure(name, Kind::NodePort, false, &|case| case.label = Some(label));
    }
    cases
}

/// Clients that a load balancer can be told to serve alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sources {
    /// The client by its first address.
    Client,
    /// The client by its second.
    OtherClient,
    /// All pods.
    Pods,
    /// The pods of the second node.
    FarPods,
    /// Both nodes.
    Nodes,
}

impl Sources {
    /// As a range of addresses.
    pub fn range(self, family: Family) -> Range<IpAddr> {
        let plan = AddressPlan::default();
        let single = |base: IpAddr| Range { base, prefix: family.bits() };
        match self {
            Sources::Client => single(plan.client_ip(family)),
            Sources::OtherClient => single(plan.of(family).wire.host(OTHER_CLIENT)),
            Sources::Pods => plan.of(family).cluster,
            Sources::FarPods => plan.pods_of(NodeId::B, family),
            // 8 to 15 and 10 to 1f: both hold the nodes' numbers 11 and 12, and no client's.
            Sources::Nodes => match family {
                Family::V4 => Range { base: plan.of(family).wire.host(8), prefix: 29 },
                Family::V6 => Range { base: plan.of(family).wire.host(10), prefix: 124 },
            },
        }
    }
}

const SOURCES: &[&[Sources]] =
    &[&[Sources::OtherClient], &[Sources::Client, Sources::FarPods], &[Sources::Pods], &[Sources::Nodes]];

/// A Service with these, and the rest by chance. `index` gives it addresses of its own.
fn draw_case(
    dice: &mut Dice,
    index: usize,
    name: String,
    kind: Kind,
    external_local: bool,
    members: &[Member],
) -> Case {
    let number = index as u32 + 1;
    let tcp = (Protocol::Tcp, *dice.pick(&[TCP_PORT, TCP_PORT, HTTP_PORT]));
    let udp = (Protocol::Udp, UDP_PORT);
    // The API server of that release takes no load balancer with two protocols.
    let ports: &[_] = match (kind, dice.one_in(2)) {
        (Kind::LoadBalancer, true) => &[tcp],
        (Kind::LoadBalancer, false) => &[udp],
        (_, true) => &[tcp, udp],
        (_, false) => &[udp, tcp],
    };
    let first = *dice.pick(&[53, 80, 443, 8080, TCP_PORT]);
    // Port 53 is both, as for DNS.
    let step = u16::from(first != 53);
    let ports = ports.iter().enumerate().map(|(at, (protocol, target))| Port {
        protocol: *protocol,
        port: first + at as u16 * step,
        target: *target,
        node_port: (kind != Kind::ClusterIp).then(|| 30000 + number as u16 * 2 + at as u16),
    });
    let sources = *dice.pick(SOURCES);
    let is_balancer = kind == Kind::LoadBalancer;
    let sources = if is_balancer && dice.one_in(4) { sources } else { &[] };
    Case {
        name,
        kind,
        external_local,
        cluster_ip: 256 + number,
        external_ip: dice.one_in(2).then_some(number),
        balancer: is_balancer.then_some(100 + number),
        sources,
        affinity: dice.one_in(6),
        ports: ports.collect(),
        members: members.to_vec(),
        label: None,
        health_port: (is_balancer && external_local).then_some(31000 + number as u16),
        gone: false,
    }
}

/// The second act: every third Service takes the endpoints of another, so that some lose all, some get their first, and
/// some move.
pub fn shift(cases: &[Case]) -> Vec<Case> {
    let shifted = |at: usize| {
        let mut case = cases[at].clone();
        case.members.clone_from(&cases[(at + 7) % cases.len()].members);
        case
    };
    (0..cases.len()).step_by(3).map(shifted).filter(Case::is_ours).collect()
}

/// The third act: some Services are deleted.
pub fn delete(cases: &[Case]) -> Vec<Case> {
    let ours = cases.iter().skip(1).step_by(8).filter(|case| case.is_ours());
    ours.map(|case| Case { gone: true, ..case.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same() {
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn no_two_services_share_an_address_a_name_or_a_node_port() {
        for seed in 0..50 {
            let cases = draw(seed);
            let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
            let addresses = cases.iter().flat_map(|case| {
                [Some(case.cluster_ip(Family::V4)), case.external_ip(Family::V4), case.balancer(Family::V4)]
            });
            let addresses: Vec<_> = addresses.flatten().collect();
            let node_ports: Vec<_> = cases
                .iter()
                .flat_map(|case| &case.ports)
                .filter_map(|port| Some((port.protocol, port.node_port?)))
                .collect();
            assert_eq!(names.len(), cases.len());
            assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len());
            assert_eq!(node_ports.iter().collect::<BTreeSet<_>>().len(), node_ports.len());
        }
    }

    #[test]
    fn the_second_act_takes_endpoints_away_and_brings_them() {
        let cases = draw(1);
        let before = |case: &Case| cases.iter().find(|other| other.name == case.name).cloned().unwrap();
        let after = shift(&cases);
        assert!(after.iter().any(|case| case.members.is_empty() && before(case).has(State::Ready)));
        assert!(after.iter().any(|case| case.has(State::Ready) && before(case).members.is_empty()));
    }
}
