//! The Services of a set-up: two that are asked, and those that are only there.

use std::net::{Ipv4Addr, SocketAddr};

use lb_bench::kube_proxy::ServicePort;

use lb_lab::{Endpoint, NodeId, Service};

/// The port of the servers, and of the Services that are asked.
pub const PORT: u16 = 7100;
/// The port of all other Services.
const OTHER_PORT: u16 = 80;
/// How many Services of a manifest file.
const IN_A_FILE: usize = 500;

/// A Service with one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its ClusterIP.
    pub cluster_ip: Ipv4Addr,
    /// Its port, and the endpoint's.
    pub port: u16,
    /// Its nodePort.
    pub node_port: Option<u16>,
    /// Where it leads.
    pub endpoint: Ipv4Addr,
    /// Answers UDP as well.
    pub udp: bool,
    /// The endpoint's node.
    pub node: NodeId,
}

impl Entry {
    /// A Service that is asked: its pod is `endpoint`.
    pub fn asked(name: &str, node: NodeId, endpoint: Ipv4Addr) -> Self {
        let (number, node_port) = match node {
            NodeId::A => (10, 30_080),
            NodeId::B => (11, 30_081),
        };
        let cluster_ip = Ipv4Addr::new(10, 96, 255, number);
        Self {
            name: name.into(),
            cluster_ip,
            port: PORT,
            node_port: Some(node_port),
            endpoint,
            udp: true,
            node,
        }
    }

    /// `ADDRESS:PORT` of the ClusterIP.
    pub fn at_cluster_ip(&self) -> SocketAddr {
        (self.cluster_ip, self.port).into()
    }

    /// The Service and its endpoint as the lab's.
    pub fn described(&self) -> (Service, Endpoint) {
        let service = Service::new(&self.name, self.cluster_ip);
        let service = match self.node_port {
            Some(node_port) => service.tcp_node_port(self.port, self.port, node_port),
            None => service.tcp(self.port, self.port),
        };
        let service = if self.udp { service.udp(self.port, self.port) } else { service };
        let endpoint = Endpoint { node: Some(self.node), ..Endpoint::outside(self.endpoint) };
        (service, endpoint)
    }

    /// Protocols as rules name them.
    pub fn protocols(&self) -> &'static [&'static str] {
        if self.udp { &["tcp", "udp"] } else { &["tcp"] }
    }
}

/// `count` Services: those that are asked come last.
pub fn all(asked: &[Entry], count: usize) -> Vec<Entry> {
    let others = (0..count.saturating_sub(asked.len())).map(other);
    others.chain(asked.iter().cloned()).collect()
}

fn other(number: usize) -> Entry {
    // 250 addresses of each /24. The first of all is the API server's own.
    let (high, low) = ((number / 250 % 250) as u8, (number % 250) as u8 + 2);
    Entry {
        name: format!("other-{number}"),
        cluster_ip: Ipv4Addr::new(10, 96, high, low),
        port: OTHER_PORT,
        node_port: None,
        endpoint: Ipv4Addr::new(10, 244, 128 + high % 100, low),
        udp: false,
        node: NodeId::B,
    }
}

/// All ports, as rules are made for.
pub fn ports(entries: &[Entry]) -> Vec<ServicePort> {
    let port = |entry: &Entry, protocol| ServicePort {
        name: entry.name.clone(),
        protocol,
        cluster_ip: entry.cluster_ip,
        port: entry.port,
        external_ip: None,
        node_port: entry.node_port,
        endpoints: vec![entry.endpoint],
        target_port: entry.port,
    };
    let of =
        |entry: &Entry| entry.protocols().iter().map(|protocol| port(entry, protocol)).collect::<Vec<_>>();
    entries.iter().flat_map(of).collect()
}

/// Manifest files: name and text.
pub fn manifests(entries: &[Entry]) -> Vec<(String, String)> {
    let text = |entry: &Entry| {
        let (service, endpoint) = entry.described();
        service.manifest(&[endpoint])
    };
    let files = entries.chunks(IN_A_FILE).enumerate();
    files.map(|(at, part)| (format!("services-{at}"), part.iter().map(text).collect())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_address_is_given_twice_and_what_is_asked_comes_last() {
        let asked = [Entry::asked("near", NodeId::A, Ipv4Addr::new(10, 244, 1, 3))];
        let entries = all(&asked, 10_000);
        assert_eq!(entries.len(), 10_000);
        assert_eq!(entries.iter().map(|entry| entry.cluster_ip).collect::<BTreeSet<_>>().len(), 10_000);
        assert_eq!(entries.last(), Some(&asked[0]));
        assert_eq!(manifests(&entries).len(), 20);
        // One answers UDP as well.
        let ports = ports(&entries);
        assert_eq!(
            (ports.len(), ports[10_000].protocol, ports[10_000].node_port),
            (10_001, "udp", Some(30_080))
        );
    }
}
