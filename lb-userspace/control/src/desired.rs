//! What the maps should hold, as a pure function of the model.
//!
//! | step | says |
//! |---|---|
//! | [`service`] | where one Service wants to be reached |
//! | [`Claims`] | which Service gets an address that several want |
//! | [`DesiredService::choose_endpoints`] | which endpoints serve there, with all claims known |
//!
//! None depends on the order in which objects became known.

mod claimants;
mod claims;
mod endpoints;
mod external_ips;
mod frontends;
mod health_checks;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::abi::ServiceFlags;
use lb_common::addr::Proto;

pub use claims::{Changed, Claims, Owner, Rank};
pub use endpoints::{DesiredEndpoint, Lists, is_api_service};
pub use external_ips::{ExternalIps, NetworkError};
pub use health_checks::{HealthCheck, health_check};

use crate::model::{Family, Frontend, Problem, Protocol, Service, ServiceKey, Severity, Slice};

/// Problems of a Service's endpoints that are told one by one; more are only counted.
const PROBLEMS: usize = 10;

/// What of this node matters to every Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeView {
    /// Whether nodePorts are served anywhere, by family.
    pub serves_node_ports: [bool; 2],
    /// Every address of this node, sorted.
    pub own: Vec<IpAddr>,
    /// Addresses of other nodes, as far as known.
    pub others: BTreeSet<IpAddr>,
    /// ClusterIPs and ports at which programs of this node listen: what comes there is theirs.
    pub listeners: Arc<BTreeSet<Frontend>>,
    /// Which `externalIPs` are served.
    pub external_ips: ExternalIps,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// The ranges ClusterIPs are taken from, as far as known.
    pub service_ranges: BTreeSet<IpNet>,
    /// The ranges pods' addresses are taken from, as far as known.
    pub pod_ranges: BTreeSet<IpNet>,
    /// Where the API server listens, as far as known.
    pub api_servers: BTreeSet<SocketAddr>,
}

impl NodeView {
    fn is_own(&self, address: IpAddr) -> bool {
        self.own.binary_search(&address).is_ok()
    }

    /// Whether a program of this node listens at this very address, whatever the port.
    fn has_listener_at(&self, address: IpAddr) -> bool {
        let first = Frontend { address, port: 0, proto: Proto(0) };
        self.listeners.range(first..).next().is_some_and(|it| it.address == address)
    }

    fn is_of_a_node(&self, address: IpAddr) -> bool {
        self.is_own(address) || self.others.contains(&address)
    }
}

/// What one Service wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredService {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `metadata.creationTimestamp`, in seconds.
    pub created: Option<i64>,
    /// Its ClusterIPs: whatever port of them no Service has is refused. (Not where the node has programs.)
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<DesiredPort>,
}

/// What one port of a Service wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredPort {
    /// Name; empty when it has none.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Seconds of session affinity; 0: none.
    pub affinity_seconds: u32,
    /// Every endpoint that serves, by address and port.
    pub endpoints: Vec<DesiredEndpoint>,
    /// Those that take new connections, by family.
    pub lists: [Lists; 2],
    /// The frontends it wants.
    pub frontends: Vec<DesiredFrontend>,
    /// Who may come to its frontends that have [`ServiceFlags::CHECK_SOURCES`].
    pub source_ranges: BTreeSet<IpNet>,
}

/// Which endpoints a client may be sent to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum List {
    /// Those anywhere.
    Cluster,
    /// Those of this node.
    Local,
}

/// What sort of address a frontend has; also who goes first within one Service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// The ClusterIP. Given out by the API server, so it goes before all others.
    ClusterIp,
    /// Address of a load balancer.
    LoadBalancer,
    /// One of `externalIPs`.
    ExternalIp,
    /// nodePort on an address of this node.
    NodePort,
}

/// One address and port a Service wants to be reached at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesiredFrontend {
    /// Address, port and protocol.
    pub frontend: Frontend,
    /// What sort of address it is.
    pub class: Class,
    /// Endpoints for clients from outside this node.
    pub outside: List,
    /// Endpoints for pods and processes of this node.
    pub inside: List,
    /// All flags but those that depend on the lists.
    pub flags: ServiceFlags,
    /// Some endpoint has another port and the protocol is SCTP, whose packets keep theirs: not served.
    pub port_would_change: bool,
}

/// Where `service` wants to be reached on a node. Endpoints are chosen when all claims are known.
pub fn service(service: &Service, node: &NodeView) -> (DesiredService, Vec<Problem>) {
    let mut problems = Vec::new();
    let ports = service.ports.iter().map(|port| {
        let frontends = frontends::of_port(service, port, node, &mut problems);
        DesiredPort {
            name: port.name.clone(),
            protocol: port.protocol,
            affinity_seconds: service.affinity_seconds.map_or(0, |seconds| seconds.get()),
            endpoints: Vec::new(),
            lists: Default::default(),
            source_ranges: sources::ranges(service, &frontends, &node.own),
            frontends,
        }
    });
    let ports = ports.collect();
    problems.sort();
    problems.dedup();
    let holds = |address: &&IpAddr| !node.has_listener_at(**address);
    let cluster_ips = service.cluster_ips.iter().filter(holds).copied().collect();
    (DesiredService { key: service.key.clone(), created: service.created, cluster_ips, ports }, problems)
}

impl DesiredService {
    /// Chooses endpoints from `slices`, those of this Service in the order of their names. `claims` knows what
    /// every Service wants.
    pub fn choose_endpoints<'a>(
        &mut self,
        service: &Service,
        slices: impl Iterator<Item = &'a Slice> + Clone,
        node: &NodeView,
        claims: &Claims,
    ) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (desired, port) in self.ports.iter_mut().zip(&service.ports) {
            desired.endpoints =
                endpoints::of_port(service, port, slices.clone(), node, claims, &mut problems);
            desired.lists = endpoints::lists(&desired.endpoints, node);
            if port.protocol == Protocol::Sctp {
                desired.leave_out_changed_ports(&self.key, &mut problems);
            }
        }
        problems.sort();
        problems.dedup();
        let more = problems.len().saturating_sub(PROBLEMS);
        if more > 0 {
            problems.truncate(PROBLEMS);
            let message = format!("{more} more problems of its endpoints are not shown");
            problems.push(Problem::of(&self.key.object(), Severity::Warning, "", message));
        }
        problems
    }
}

impl DesiredPort {
    /// SCTP's checksum covers ports, not addresses, and is not made anew on the way: the port must be the pod's own.
    fn leave_out_changed_ports(&mut self, key: &ServiceKey, problems: &mut Vec<Problem>) {
        let mut reported = HashSet::new();
        for wanted in &mut self.frontends {
            let family = Family::of(wanted.frontend.address);
            let other = self.endpoints.iter().find(|endpoint| {
                Family::of(endpoint.address) == family && endpoint.port.get() != wanted.frontend.port
            });
            wanted.port_would_change = other.is_some();
            if let Some(other) = other.filter(|other| reported.insert((wanted.frontend.port, other.port))) {
                let message = format!(
                    "SCTP port {} is not served, because endpoints listen on {}: SCTP keeps its port on the way; \
                     make port and targetPort equal",
                    wanted.frontend.port, other.port
                );
                problems.push(Problem::of(&key.object(), Severity::Warning, "spec.ports", message));
            }
        }
    }
}
