//! What the maps should hold, as a pure function of the model.
//!
//! [`service`] says what one Service wants, [`Claims`] which Service gets an address that several want.
//! Neither depends on the order in which objects became known.

mod claims;
mod endpoints;
mod external_ips;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::sync::Arc;

use lb_common::abi::{Frontend4, ServiceFlags};
use lb_common::addr::Port;

pub use claims::{Claims, Owner, Rank};
pub use endpoints::DesiredEndpoint;
pub use external_ips::{ExternalIps, Network, NetworkError};

use crate::model::{Policy, Problem, Protocol, Service, ServiceKey, ServicePort, Severity, Slice};

/// What of this node matters to every Service.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// The addresses nodePorts are served on, without `127.0.0.1`.
    pub addresses: Vec<Ipv4Addr>,
    /// Which `externalIPs` are served.
    pub external_ips: ExternalIps,
}

/// What one Service wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredService {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `metadata.creationTimestamp`, in seconds.
    pub created: Option<i64>,
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
    /// Endpoints for [`List::Cluster`], as indices into `endpoints`, ascending.
    pub cluster: Vec<u32>,
    /// Endpoints for [`List::Local`], as indices into `endpoints`, ascending.
    pub local: Vec<u32>,
    /// The frontends it wants.
    pub frontends: Vec<DesiredFrontend>,
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
    pub frontend: Frontend4,
    /// What sort of address it is.
    pub class: Class,
    /// Endpoints for clients from outside this node.
    pub outside: List,
    /// Endpoints for pods and processes of this node.
    pub inside: List,
    /// All flags but those that depend on a list being empty.
    pub flags: ServiceFlags,
}

/// What `service` with the endpoints of `slices` wants on a node.
///
/// `slices` are those of this Service, in the order of their names.
pub fn service<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: &NodeView,
) -> (DesiredService, Vec<Problem>) {
    let mut problems = Vec::new();
    let addresses = external_addresses(service, node, &mut problems);
    let ports = service
        .ports
        .iter()
        .map(|port| {
            let endpoints = endpoints::of_port(service, port, slices.clone(), &mut problems);
            let frontends = frontends(service, port, &addresses, node);
            DesiredPort {
                name: port.name.clone(),
                protocol: port.protocol,
                affinity_seconds: service.affinity_seconds.map_or(0, |seconds| seconds.get()),
                cluster: endpoints::usable(&endpoints, |_| true),
                local: endpoints::usable(&endpoints, |endpoint| endpoint.local),
                endpoints,
                frontends,
            }
        })
        .collect();
    problems.sort();
    problems.dedup();
    (DesiredService { key: service.key.clone(), created: service.created, ports }, problems)
}

/// The external addresses of a Service that may be served.
fn external_addresses(
    service: &Service,
    node: &NodeView,
    problems: &mut Vec<Problem>,
) -> Vec<(Ipv4Addr, Class)> {
    let mut addresses: Vec<_> =
        service.load_balancer_ips.iter().map(|address| (*address, Class::LoadBalancer)).collect();
    for address in &service.external_ips {
        match node.external_ips.refusal(*address, &node.addresses) {
            None => addresses.push((*address, Class::ExternalIp)),
            Some(why) => {
                problems.push(Problem::of(&service.key.object(), Severity::Warning, "spec.externalIPs", why));
            }
        }
    }
    addresses
}

fn frontends(
    service: &Service,
    port: &ServicePort,
    addresses: &[(Ipv4Addr, Class)],
    node: &NodeView,
) -> Vec<DesiredFrontend> {
    let proto = port.protocol.proto();
    let at = |address: Ipv4Addr, number: u16| Frontend4::new(address.into(), Port::new(number), proto);
    let internal = match service.internal_policy {
        Policy::Cluster => List::Cluster,
        Policy::Local => List::Local,
    };
    let (external, flags) = match service.external_policy {
        Policy::Cluster => (List::Cluster, ServiceFlags::EXTERNAL),
        Policy::Local => (List::Local, ServiceFlags::EXTERNAL.with(ServiceFlags::LOCAL_POLICY)),
    };
    let mut frontends = vec![DesiredFrontend {
        frontend: at(service.cluster_ip, port.port.get()),
        class: Class::ClusterIp,
        outside: internal,
        inside: internal,
        flags: ServiceFlags::default(),
    }];
    let outer = |frontend, class| {
        // Clients of this node are sent anywhere: the short cut kube-proxy makes as well.
        DesiredFrontend { frontend, class, outside: external, inside: List::Cluster, flags }
    };
    frontends.extend(addresses.iter().map(|(address, class)| outer(at(*address, port.port.get()), *class)));
    if let Some(node_port) = port.node_port {
        let node_addresses = node.addresses.iter().copied().chain([Ipv4Addr::LOCALHOST]);
        frontends.extend(node_addresses.map(|address| outer(at(address, node_port.get()), Class::NodePort)));
    }
    // Where a Service names an address twice, the class that comes first keeps it.
    let mut seen = std::collections::HashSet::new();
    frontends.retain(|frontend| seen.insert(frontend.frontend));
    frontends
}
