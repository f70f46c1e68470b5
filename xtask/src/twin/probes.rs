//! Who asks where: every asker at every frontend of every Service.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::ask::{How, Question};
use super::cases::{Case, HELD_ADDRESS, OTHER_CLIENT, Port, Protocol, Sources, VISITOR};
use lb_lab::{AddressPlan, Family, NodeId};

/// A port that no Service has.
const UNKNOWN_PORT: u16 = 9;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asker {
    /// The client outside.
    Client,
    /// The client outside, from its second address.
    OtherClient,
    /// A pod, by its name.
    Pod(&'static str, NodeId),
    /// A process of a node.
    Host(NodeId),
}

impl Asker {
    /// All of them.
    pub const ALL: [Asker; 7] = [
        Asker::Client,
        Asker::OtherClient,
        Asker::Pod("a1", NodeId::A),
        Asker::Pod(VISITOR, NodeId::A),
        Asker::Pod("b1", NodeId::B),
        Asker::Host(NodeId::A),
        Asker::Host(NodeId::B),
    ];

    /// The node it is on.
    pub fn node(self) -> Option<NodeId> {
        match self {
            Asker::Client | Asker::OtherClient => None,
            Asker::Pod(_, node) | Asker::Host(node) => Some(node),
        }
    }

    /// Whether it is a pod.
    pub fn is_pod(self) -> bool {
        matches!(self, Asker::Pod(..))
    }

    /// Whether the load balancer of a Service serves it.
    pub fn may_ask_balancer(self, case: &Case) -> bool {
        case.sources.is_empty()
            || case.sources.iter().any(|sources| match sources {
                Sources::Client => self == Asker::Client,
                Sources::OtherClient => self == Asker::OtherClient,
                Sources::Pods => self.is_pod(),
                Sources::FarPods => self.is_pod() && self.node() == Some(NodeId::B),
                Sources::Nodes => self.is_host(),
            })
    }

    /// Whether it is a process of a node.
    pub fn is_host(self) -> bool {
        matches!(self, Asker::Host(_))
    }
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Asker::Client => f.pad("client"),
            Asker::OtherClient => f.pad("client's second address"),
            Asker::Pod(name, node) => f.pad(&format!("pod {name} ({node})")),
            Asker::Host(node) => f.pad(node.name()),
        }
    }
}

/// Which kind of address of a Service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frontend {
    /// The ClusterIP.
    ClusterIp,
    /// A port of the ClusterIP that the Service does not have.
    UnknownPort,
    /// The nodePort at a node's address.
    NodePort(NodeId),
    /// The nodePort at another address that the first node holds.
    HeldNodePort,
    /// The nodePort at 127.0.0.1 or ::1.
    LoopbackNodePort,
    /// An external IP.
    ExternalIp,
    /// An external IP that the first node holds itself.
    HeldExternalIp,
    /// The address of the load balancer.
    Balancer,
    /// The ClusterIP, by a client port that has just spoken to the nodePort of another node.
    ClusterIpAfter(NodeId),
    /// The healthCheckNodePort of a node.
    HealthCheck(NodeId),
}

impl Frontend {
    /// Whether externalTrafficPolicy applies.
    pub fn is_external(self) -> bool {
        use Frontend::{ClusterIp, ClusterIpAfter, HealthCheck, UnknownPort};
        !matches!(self, ClusterIp | ClusterIpAfter(_) | UnknownPort | HealthCheck(_))
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frontend::ClusterIp => f.pad("ClusterIP"),
            Frontend::UnknownPort => f.pad("unknown port of the ClusterIP"),
            Frontend::NodePort(node) => f.pad(&format!("nodePort of {node}")),
            Frontend::HeldNodePort => f.pad("nodePort of another address of node-a"),
            Frontend::LoopbackNodePort => f.pad("nodePort of loopback"),
            Frontend::ExternalIp => f.pad("external IP"),
            Frontend::HeldExternalIp => f.pad("external IP that node-a holds"),
            Frontend::Balancer => f.pad("load balancer's address"),
            Frontend::ClusterIpAfter(node) => f.pad(&format!("ClusterIP right after nodePort of {node}")),
            Frontend::HealthCheck(node) => f.pad(&format!("healthCheckNodePort of {node}")),
        }
    }
}

/// One question: an asker, and where it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The Service's place in the list of cases.
    pub case: usize,
    /// Who asks.
    pub asker: Asker,
    /// What kind of address.
    pub frontend: Frontend,
    /// How.
    pub how: How,
    /// The address.
    pub to: SocketAddr,
    /// The address that the same client port asks before.
    pub before: Option<SocketAddr>,
}

/// A client and a Service port at one node: what must lead to one pod with session affinity.
pub type Bond = (usize, How, Family, Asker, NodeId);

impl Probe {
    /// What the asker is to do.
    pub fn question(&self) -> Question {
        Question { how: self.how, to: self.to, before: self.before }
    }

    /// The address family.
    pub fn family(&self) -> Family {
        Family::of(self.to.ip())
    }

    /// What the probe would be bound by, were its Service sticky. 127.0.0.1 is another client to kube-proxy.
    pub fn bond(&self) -> Option<Bond> {
        let node = match self.frontend {
            Frontend::ClusterIpAfter(_) => return None,
            Frontend::UnknownPort | Frontend::LoopbackNodePort | Frontend::HealthCheck(_) => return None,
            // It is served where it is asked for.
            Frontend::HeldExternalIp if self.asker.is_host() && self.asker.node() != Some(NodeId::A) => {
                return None;
            }
            Frontend::NodePort(node) => node,
            Frontend::HeldNodePort | Frontend::HeldExternalIp => NodeId::A,
            _ => self.asker.node().unwrap_or(NodeId::A),
        };
        Some((self.case, self.how, self.family(), self.asker, node))
    }
}

/// Every probe of these cases.
pub fn of(cases: &[Case]) -> Vec<Probe> {
    let mut probes = Vec::new();
    for (case, of, family) in with_families(cases) {
        let of_ports = of.ports.iter().flat_map(|port| {
            let how = match port.protocol {
                Protocol::Tcp => How::Tcp,
                Protocol::Udp => How::Udp,
            };
            let asked = |(frontend, to)| (frontend, how, to, before(of, port, frontend, family));
            frontends(of, port, family).into_iter().map(asked).collect::<Vec<_>>()
        });
        let once =
            once_a_service(of, family).into_iter().map(|(frontend, how, to)| (frontend, how, to, None));
        for (frontend, how, to, before) in of_ports.chain(once) {
            let askers = Asker::ALL.into_iter().filter(|asker| asks(*asker, frontend, of));
            probes.extend(askers.map(|asker| Probe { case, asker, frontend, how, to, before }));
        }
    }
    probes
}

/// Where the client port of a probe asks before.
fn before(case: &Case, port: &Port, frontend: Frontend, family: Family) -> Option<SocketAddr> {
    let Frontend::ClusterIpAfter(node) = frontend else { return None };
    let node_port = port.node_port.filter(|_| case.is_ours())?;
    Some(SocketAddr::new(AddressPlan::default().node_ip(node, family), node_port))
}

/// What does not depend on the Service's ports.
fn once_a_service(case: &Case, family: Family) -> Vec<(Frontend, How, SocketAddr)> {
    let mut all = Vec::new();
    // Half of the Services are enough, and one protocol.
    if case.cluster_ip.is_multiple_of(2) {
        let how = if case.cluster_ip.is_multiple_of(4) { How::Tcp } else { How::Udp };
        all.push((Frontend::UnknownPort, how, SocketAddr::new(case.cluster_ip(family), UNKNOWN_PORT)));
    }
    if let Some(port) = case.health_port {
        let at = |node| SocketAddr::new(AddressPlan::default().node_ip(node, family), port);
        all.extend(NodeId::ALL.map(|node| (Frontend::HealthCheck(node), How::Health, at(node))));
    }
    all
}

fn with_families(cases: &[Case]) -> impl Iterator<Item = (usize, &Case, Family)> {
    let of_both = |(index, case)| Family::ALL.into_iter().map(move |family| (index, case, family));
    cases.iter().enumerate().flat_map(of_both)
}

/// Whether the question makes sense.
fn asks(asker: Asker, frontend: Frontend, case: &Case) -> bool {
    match (asker, frontend) {
        (_, Frontend::LoopbackNodePort) => asker.is_host(),
        // From elsewhere in the cluster: the nodes translate one after the other.
        (_, Frontend::ClusterIpAfter(node)) => {
            case.cluster_ip.is_multiple_of(2) && asker.node().is_some_and(|own| own != node)
        }
        (_, Frontend::HealthCheck(_)) => asker == Asker::Client,
        // Where the node does not matter, nobody of the second node asks; and one of the pods is enough.
        (_, Frontend::UnknownPort | Frontend::HeldNodePort)
            if !matches!(
                asker,
                Asker::Client | Asker::OtherClient | Asker::Pod(VISITOR, _) | Asker::Host(NodeId::A)
            ) =>
        {
            false
        }
        // Differs from the first address in what source ranges say alone.
        (Asker::OtherClient, _) => !case.sources.is_empty() && frontend == Frontend::Balancer,
        // Differs from the other pod of its node where it may meet itself.
        (Asker::Pod(pod, NodeId::A), _) if pod != VISITOR => {
            case.members.iter().any(|member| member.pod == pod)
        }
        _ => true,
    }
}

fn frontends(case: &Case, port: &Port, family: Family) -> Vec<(Frontend, SocketAddr)> {
    let plan = AddressPlan::default();
    let held = plan.of(family).external.host(HELD_ADDRESS);
    let mut frontends = vec![(Frontend::ClusterIp, SocketAddr::new(case.cluster_ip(family), port.port))];
    if let Some(node_port) = port.node_port {
        let cluster_ip = SocketAddr::new(case.cluster_ip(family), port.port);
        frontends.extend(NodeId::ALL.map(|node| (Frontend::ClusterIpAfter(node), cluster_ip)));
        let nodes = NodeId::ALL.map(|node| (Frontend::NodePort(node), plan.node_ip(node, family)));
        let more = [(Frontend::HeldNodePort, held), (Frontend::LoopbackNodePort, family.loopback())];
        let all = nodes.into_iter().chain(more);
        frontends.extend(all.map(|(frontend, address)| (frontend, SocketAddr::new(address, node_port))));
    }
    frontends.extend(case.external_ip(family).map(|address| {
        let frontend = if address == held { Frontend::HeldExternalIp } else { Frontend::ExternalIp };
        (frontend, SocketAddr::new(address, port.port))
    }));
    let balancer = case.balancer(family);
    frontends.extend(balancer.map(|address| (Frontend::Balancer, SocketAddr::new(address, port.port))));
    frontends
}

/// The address an asker speaks from, if nobody changes it.
pub fn address_of(asker: Asker, family: Family, pod_address: impl Fn(&str, Family) -> IpAddr) -> IpAddr {
    let plan = AddressPlan::default();
    match asker {
        Asker::Client => plan.client_ip(family),
        Asker::OtherClient => plan.of(family).wire.host(OTHER_CLIENT),
        Asker::Pod(name, _) => pod_address(name, family),
        Asker::Host(node) => plan.node_ip(node, family),
    }
}

#[cfg(test)]
mod tests {
    use super::super::cases::draw;
    use super::*;

    #[test]
    fn every_asker_asks_every_kind_of_frontend_that_it_can() {
        let cases = draw(1);
        let probes = of(&cases);
        for asker in Asker::ALL {
            let others = [Frontend::NodePort(NodeId::A), Frontend::ExternalIp];
            let others = others.into_iter().filter(|_| asker != Asker::OtherClient);
            for frontend in others.chain([Frontend::Balancer]) {
                assert!(
                    probes.iter().any(|probe| probe.asker == asker && probe.frontend == frontend),
                    "{asker} never asks at the {frontend}"
                );
            }
        }
        let loopback = probes.iter().filter(|probe| probe.to.ip().is_loopback());
        assert!(loopback.clone().count() > 0 && loopback.clone().all(|probe| probe.asker.is_host()));
    }
}
