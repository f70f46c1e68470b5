//! The packet paths of the design, as tables that are checked in each family.
use lb_lab::pod::{BIG, HTTP_PORT, UDP_PORT};
use lb_lab::{Family, Netns, NodeId, at};

use super::{
    ALL, BEYOND, Checks, ECHO, ELSEWHERE, EMPTY, FAMILIES, FAR, INNER, LOCAL, NEAR, Numbered, SELF, Scene,
    Target, WEB, cluster_ip, node_port,
};
use Asker::{Node, Outside, Pod};
use Frontend::{Balancer, ClusterIp, ExternalIp, Loopback, NodePort, UnknownPort};
use NodeId::{A, B};

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum Asker {
    Outside,
    Pod(&'static str),
    Node(NodeId),
}

/// At which address of a Service.
#[derive(Clone, Copy, Debug)]
pub enum Frontend {
    ClusterIp(Numbered),
    NodePort(Numbered, NodeId),
    /// 127.0.0.1 or ::1 with the nodePort.
    Loopback(Numbered),
    ExternalIp(Numbered),
    Balancer(Numbered),
    /// A ClusterIP with ports that the Service does not have.
    UnknownPort(Numbered),
}

/// Whom the pod must see as its client.
#[derive(Clone, Copy, Debug)]
pub enum Seen {
    Asker,
    Node(NodeId),
    /// What the layout makes of it.
    Anybody,
}

/// What must come of it.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// One of these pods answers.
    Answer(&'static [&'static str], Seen),
    Refusal,
    Silence,
}

/// One row: its name, every asker at every address, and what must come of it.
pub type Path = (&'static str, &'static [Asker], &'static [Frontend], Outcome);

impl Asker {
    pub fn netns(self, scene: &Scene) -> &Netns {
        match self {
            Outside => scene.lab.client(),
            Pod(name) => scene.pod(name),
            Node(node) => scene.lab.node(node),
        }
    }
}

impl Frontend {
    pub fn target(self, scene: &Scene, family: Family) -> Target {
        match self {
            ClusterIp(service) => cluster_ip(service, family),
            NodePort(service, node) => node_port(service, scene.lab.node_ip(node, family)),
            Loopback(service) => node_port(service, family.loopback()),
            ExternalIp(service) => (service.external_ip_of(family), WEB, ECHO),
            Balancer(service) => (service.balancer_of(family), WEB, ECHO),
            UnknownPort(service) => (service.cluster_ip_of(family), 9, 9),
        }
    }
}

/// Checks every row in every family.
pub fn check(scene: &Scene, checks: &mut Checks, paths: &[Path]) {
    for family in FAMILIES {
        for (name, askers, frontends, outcome) in paths {
            for (asker, frontend) in
                askers.iter().flat_map(|asker| frontends.iter().map(move |it| (asker, it)))
            {
                let (from, target) = (asker.netns(scene), frontend.target(scene, *family));
                match outcome {
                    Outcome::Answer(pods, seen) => {
                        let client = match (seen, asker) {
                            (Seen::Asker, Outside) => Some(scene.lab.plan().client_ip(*family)),
                            (Seen::Asker, Pod(pod)) => Some(scene.lab.pod(pod).ip(*family)),
                            (Seen::Node(node), _) | (Seen::Asker, Node(node)) => {
                                Some(scene.lab.node_ip(*node, *family))
                            }
                            (Seen::Anybody, _) => None,
                        };
                        checks.answered(name, from, target, pods, client);
                    }
                    Outcome::Refusal => checks.refused(name, from, target),
                    Outcome::Silence => checks.silent(name, from, target),
                }
            }
        }
    }
}

const fn answer(pods: &'static [&'static str], seen: Seen) -> Outcome {
    Outcome::Answer(pods, seen)
}

const FROM_OUTSIDE: &[Path] = &[
    ("NS1", &[Outside], &[NodePort(NEAR, A), ExternalIp(NEAR), Balancer(NEAR)], answer(&["a1"], Seen::Asker)),
    ("NS1", &[Outside], &[NodePort(FAR, B)], answer(&["b1"], Seen::Asker)),
    ("NS2", &[Outside], &[NodePort(FAR, A), ExternalIp(FAR), Balancer(FAR)], answer(&["b1"], Seen::Node(A))),
    ("NS2", &[Outside], &[NodePort(NEAR, B)], answer(&["a1"], Seen::Node(B))),
    ("NS2 to an endpoint outside", &[Outside], &[NodePort(BEYOND, A)], answer(&["outsider"], Seen::Node(A))),
    (
        "NS3",
        &[Outside],
        &[NodePort(LOCAL, A), ExternalIp(LOCAL), Balancer(LOCAL)],
        answer(&["a1"], Seen::Asker),
    ),
    ("NS3", &[Outside], &[NodePort(LOCAL, B), NodePort(ELSEWHERE, B)], answer(&["b1"], Seen::Asker)),
    ("NS3 without a local endpoint", &[Outside], &[NodePort(ELSEWHERE, A)], Outcome::Silence),
    ("NS4", &[Outside], &[ClusterIp(NEAR)], answer(&["a1"], Seen::Asker)),
    ("NS4", &[Outside], &[ClusterIp(FAR)], answer(&["b1"], Seen::Node(A))),
    (
        "R1",
        &[Outside],
        &[NodePort(EMPTY, A), ExternalIp(EMPTY), Balancer(EMPTY), ClusterIp(EMPTY)],
        Outcome::Refusal,
    ),
    ("R1, unknown port", &[Outside], &[UnknownPort(NEAR)], Outcome::Refusal),
];

const PODS: &[Asker] = &[Pod("visitor"), Pod("a2")];

const FROM_PODS: &[Path] = &[
    ("EW1", PODS, &[ClusterIp(NEAR)], answer(&["a1"], Seen::Asker)),
    ("EW1", &[Pod("b1")], &[ClusterIp(ALL)], answer(&["a1", "a2", "b1"], Seen::Anybody)),
    ("EW2", PODS, &[ClusterIp(FAR)], answer(&["b1"], Seen::Asker)),
    ("EW2 to an endpoint outside", PODS, &[ClusterIp(BEYOND)], answer(&["outsider"], Seen::Asker)),
    (
        "EW3",
        &[Pod("a2")],
        &[ClusterIp(SELF), NodePort(SELF, A), ExternalIp(SELF), Balancer(SELF)],
        answer(&["a2"], Seen::Anybody),
    ),
    ("EW4", PODS, &[NodePort(NEAR, A), ExternalIp(NEAR), Balancer(NEAR)], answer(&["a1"], Seen::Asker)),
    ("EW4", PODS, &[NodePort(FAR, A), ExternalIp(FAR), Balancer(FAR)], answer(&["b1"], Seen::Asker)),
    ("EW4 at the other node", PODS, &[NodePort(FAR, B)], answer(&["b1"], Seen::Node(B))),
    ("EW4 at the other node", PODS, &[NodePort(NEAR, B)], answer(&["a1"], Seen::Node(B))),
    ("EW4, Local, none here", PODS, &[NodePort(ELSEWHERE, A)], answer(&["b1"], Seen::Asker)),
    ("R1", PODS, &[ClusterIp(EMPTY), NodePort(EMPTY, A), Balancer(EMPTY)], Outcome::Refusal),
    ("R1, unknown port", PODS, &[UnknownPort(NEAR)], Outcome::Refusal),
];

const BY_PACKETS: &[Path] =
    &[("iTP Local, none here", &[Pod("visitor")], &[ClusterIp(INNER)], Outcome::Silence)];

/// Towards local pods the kernel chooses the source by the layout's device.
const FROM_HOSTS: &[Path] = &[
    (
        "H1",
        &[Node(A)],
        &[ClusterIp(NEAR), NodePort(NEAR, A), ExternalIp(NEAR), Balancer(NEAR)],
        answer(&["a1"], Seen::Anybody),
    ),
    (
        "H1",
        &[Node(A)],
        &[ClusterIp(FAR), NodePort(FAR, A), ExternalIp(FAR), Balancer(FAR)],
        answer(&["b1"], Seen::Asker),
    ),
    ("H1", &[Node(B)], &[ClusterIp(ALL)], answer(&["a1", "a2", "b1"], Seen::Anybody)),
    ("H1 at the other node", &[Node(A)], &[NodePort(FAR, B)], answer(&["b1"], Seen::Asker)),
    ("H1, Local, none here", &[Node(A)], &[NodePort(ELSEWHERE, A)], answer(&["b1"], Seen::Asker)),
    ("H1 to an endpoint outside", &[Node(A)], &[ClusterIp(BEYOND)], answer(&["outsider"], Seen::Asker)),
    ("H2", &[Node(A)], &[Loopback(NEAR)], answer(&["a1"], Seen::Anybody)),
    ("H2", &[Node(A)], &[Loopback(FAR)], answer(&["b1"], Seen::Asker)),
    ("R1", &[Node(A)], &[ClusterIp(EMPTY), NodePort(EMPTY, A), Loopback(EMPTY)], Outcome::Refusal),
    ("R1, unknown port", &[Node(A)], &[UnknownPort(NEAR)], Outcome::Refusal),
];

/// NS1 to NS4: from outside.
pub fn from_outside(scene: &Scene, checks: &mut Checks) {
    check(scene, checks, FROM_OUTSIDE);
}

/// EW1 to EW4, and H3 when the sockets of pods are served: from pods.
pub fn from_pods(scene: &Scene, checks: &mut Checks) {
    check(scene, checks, FROM_PODS);
}

/// What pods see only where packets are translated, not sockets.
pub fn from_pods_by_packets(scene: &Scene, checks: &mut Checks) {
    from_pods(scene, checks);
    check(scene, checks, BY_PACKETS);
    // The pod sees a node address, never itself; which one depends on the layout.
    for family in FAMILIES {
        let itself = scene.pod("a2").http(at(SELF.cluster_ip_of(*family), WEB), 1);
        let own = scene.lab.pod("a2").ip(*family);
        let masked =
            itself.as_ref().is_ok_and(|report| report.answered() == 1 && !report.clients.contains_key(&own));
        checks.holds("EW3", masked, || format!("the pod should not see itself as its client: {itself:?}"));
    }
}

/// H1 and H2: from the nodes' own processes.
pub fn from_hosts(scene: &Scene, checks: &mut Checks) {
    check(scene, checks, FROM_HOSTS);
}

/// P: what matches no Service is untouched.
pub fn passed(scene: &Scene, checks: &mut Checks) {
    let lab = &scene.lab;
    let askers = [lab.client(), scene.pod("visitor"), lab.node(A), lab.node(B)];
    for family in FAMILIES {
        for (asker, name) in askers.iter().flat_map(|asker| ["a1", "b1"].map(|name| (*asker, name))) {
            let pod = lab.pod(name).ip(*family);
            checks.answered("P", asker, (pod, HTTP_PORT, UDP_PORT), &[name], None);
            checks.refused("P, a closed port", asker, (pod, 81, 81));
            let url = format!("http://{}/big", at(pod, HTTP_PORT));
            let size = asker.http_get(&url).map(|big| big.len());
            let whole = size.as_ref().is_ok_and(|size| *size == BIG);
            checks.holds("P, one megabyte", whole, || format!("{name} from {}: {size:?}", asker.name()));
            let large = asker.udp_of_size(at(pod, UDP_PORT), 5, 4000);
            let whole = large.as_ref().is_ok_and(|report| report.answered() == 5);
            checks.holds("P, fragments", whole, || format!("{name} from {}: {large:?}", asker.name()));
        }
        let none = (lab.node_ip(A, *family), 29999, 29999);
        checks.refused("P, a port that is no nodePort", lab.client(), none);
    }
}

/// Spread: every pod of three gets a third, from everywhere.
pub fn spread(scene: &Scene, checks: &mut Checks) {
    let lab = &scene.lab;
    for family in FAMILIES {
        let inside = at(ALL.cluster_ip_of(*family), WEB);
        for (from, to) in [
            (lab.client(), at(lab.node_ip(A, *family), ALL.node_port(WEB))),
            (scene.pod("visitor"), inside),
            (lab.node(A), inside),
        ] {
            let report = from.http(to, 3000);
            let even = report.as_ref().is_ok_and(|report| {
                report.failures.is_empty()
                    && ["a1", "a2", "b1"].iter().all(|pod| (report.share(pod) - 1.0 / 3.0).abs() < 0.05)
            });
            checks
                .holds("spread", even, || format!("3000 requests from {} to {to}: {report:?}", from.name()));
        }
    }
}

/// The same client ports, to the same pod, by one address after the other.
pub fn ports_again(scene: &Scene, checks: &mut Checks) {
    for family in FAMILIES {
        for from in [scene.lab.client(), scene.pod("visitor")] {
            for frontend in [ClusterIp(NEAR), ExternalIp(NEAR), Balancer(NEAR), NodePort(NEAR, A)] {
                let (address, _, port) = frontend.target(scene, *family);
                let report = from.udp_from_ports(at(address, port), 20, 25000);
                let well = report.as_ref().is_ok_and(|report| report.answered() == 20);
                checks.holds("a port used again", well, || {
                    format!("{frontend:?} at {address} from {}: {report:?}", from.name())
                });
            }
        }
    }
}

/// Two nodes choose the same pod for the same client, port and address.
pub fn agreement(scene: &Scene, checks: &mut Checks) {
    const FLOWS: u32 = 300;
    let lab = &scene.lab;
    for family in FAMILIES {
        let to = at(ALL.external_ip_of(*family), ECHO);
        let lead_to = |node| {
            let range = lab.plan().of(*family).external;
            let via = format!("route replace {range} via {}", lab.node_ip(node, *family));
            lab.client().ip(&via).expect("a route");
        };
        let chosen = [B, A].map(|node| {
            lead_to(node);
            lab.client().udp_from_ports(to, FLOWS, 20000)
        });
        match &chosen {
            [Ok(one), Ok(two)] => {
                let differing =
                    one.by_port.iter().filter(|(port, pod)| two.by_port.get(port) != Some(pod)).count();
                let complete = one.by_port.len() == FLOWS as usize && two.by_port.len() == FLOWS as usize;
                checks.holds("agreement", complete && differing == 0, || {
                    format!(
                        "{differing} of {FLOWS} flows to {to} go elsewhere; failures {:?} {:?}",
                        one.failures, two.failures
                    )
                });
            }
            other => checks.holds("agreement", false, || format!("{other:?}")),
        }
    }
}
