//! Where a Service port wants to be reached.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_common::abi::ServiceFlags;

use super::{Class, DesiredFrontend, List, NodeView};
use crate::model::{
    Family, Frontend, Policy, Problem, Restricted, Service, ServicePort, Severity, SourceRanges,
};

pub(super) fn of_port(
    service: &Service,
    port: &ServicePort,
    node: &NodeView,
    problems: &mut Vec<Problem>,
) -> Vec<DesiredFrontend> {
    let internal = match service.internal_policy {
        Policy::Cluster => List::Cluster,
        Policy::Local => List::Local,
    };
    let (external, flags) = match service.external_policy {
        Policy::Cluster => (List::Cluster, ServiceFlags::EXTERNAL),
        Policy::Local => (List::Local, ServiceFlags::EXTERNAL.with(ServiceFlags::LOCAL_POLICY)),
    };
    let flags = if service.masquerade_external { flags.with(ServiceFlags::MASQUERADE) } else { flags };
    let checks = |class: Class, family: Family| {
        let holds = service.restricted >= least_for(class);
        let restricted = holds && service.source_ranges[family as usize] != SourceRanges::Any;
        if restricted { ServiceFlags::CHECK_SOURCES } else { ServiceFlags::default() }
    };
    let cluster = |address: &IpAddr| DesiredFrontend {
        frontend: Frontend::new(*address, port.port.get(), port.protocol),
        class: Class::ClusterIp,
        outside: internal,
        inside: internal,
        flags: checks(Class::ClusterIp, Family::of(*address)),
        port_would_change: false,
    };
    let (held, served): (Vec<_>, Vec<_>) =
        service.cluster_ips.iter().map(cluster).partition(|it| node.listeners.contains(&it.frontend));
    let mut frontends = served;
    problems.extend(held.iter().map(|it| held_by_a_program(service, it.frontend)));
    let outer = |address: IpAddr, number: u16, class| DesiredFrontend {
        frontend: Frontend::new(address, number, port.protocol),
        class,
        outside: external,
        // Clients of this node are sent anywhere: the short cut kube-proxy makes as well.
        inside: List::Cluster,
        flags: flags.with(checks(class, Family::of(address))),
        port_would_change: false,
    };
    for (address, class) in external_addresses(service, port, node, problems) {
        frontends.push(outer(address, port.port.get(), class));
    }
    if let Some(node_port) = port.node_port {
        let served = |family: &Family| {
            node.serves_node_ports[*family as usize] && service.cluster_ip(*family).is_some()
        };
        let families = Family::ALL.into_iter().filter(served);
        frontends
            .extend(families.map(|family| outer(family.unspecified(), node_port.get(), Class::NodePort)));
    }
    // Where a Service names an address twice, the class that comes first keeps it.
    let mut seen = HashSet::new();
    frontends.retain(|frontend| seen.insert(frontend.frontend));
    frontends
}

/// How far source ranges have to reach to hold at an address.
const fn least_for(class: Class) -> Restricted {
    match class {
        Class::LoadBalancer => Restricted::LoadBalancer,
        Class::ExternalIp | Class::NodePort => Restricted::External,
        Class::ClusterIp => Restricted::Everywhere,
    }
}

/// As kube-proxy's rules leave such packets alone where a cache like NodeLocal DNSCache has it so.
fn held_by_a_program(service: &Service, frontend: Frontend) -> Problem {
    let message = format!("a program of this node listens on {frontend} itself and gets what comes there");
    Problem::of(&service.key.object(), Severity::Notice, "spec.clusterIPs", message)
}

/// The external addresses of a Service port that may be served.
fn external_addresses(
    service: &Service,
    port: &ServicePort,
    node: &NodeView,
    problems: &mut Vec<Problem>,
) -> Vec<(IpAddr, Class)> {
    let balancers = service
        .load_balancer_ips
        .iter()
        .map(|address| (*address, Class::LoadBalancer, "status.loadBalancer.ingress", None));
    let named = service.external_ips.iter().map(|address| {
        (*address, Class::ExternalIp, "spec.externalIPs", node.external_ips.refusal(*address))
    });
    let mut addresses = Vec::new();
    for (address, class, field, refusal) in balancers.chain(named) {
        // Without a ClusterIP of the family the Service does not exist there, as with kube-proxy.
        if service.cluster_ip(Family::of(address)).is_none() {
            continue;
        }
        match refusal.or_else(|| never_external(address, port.port.get(), node)) {
            None => addresses.push((address, class)),
            Some(why) => problems.push(Problem::of(&service.key.object(), Severity::Warning, field, why)),
        }
    }
    addresses
}

/// Why nobody may serve `address` as an external one, whatever the flags, if so (CVE-2020-8554).
///
/// An API server on this node shares the node's address: there it keeps its port, not the address.
fn never_external(address: IpAddr, port: u16, node: &NodeView) -> Option<String> {
    let inside = |ranges: &BTreeSet<IpNet>| ranges.iter().any(|range| range.contains(&address));
    let own = node.is_own(address);
    let api = |server: &SocketAddr| server.ip() == address && (server.port() == port || !own);
    let what = if inside(&node.service_ranges) {
        "inside the range of the ClusterIPs"
    } else if inside(&node.pod_ranges) && !own {
        "inside the range of the pods"
    } else if node.api_servers.iter().any(api) {
        "the API server's"
    } else {
        return None;
    };
    Some(format!("{address} is {what} and is not served; take it out"))
}
