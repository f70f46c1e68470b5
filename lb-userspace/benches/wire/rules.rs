//! The Services that there are rules for, and the node that has them.
//!
//! No range of pods is told, so what aims at a ClusterIP keeps its address; what aims at an external address is masqueraded.

use std::net::Ipv4Addr;

use lb_bench::kube_proxy::{Node, ServicePort};

use crate::case::Aim;

/// Backends of the Service that packets aim at.
pub const BACKENDS: u8 = 100;
/// The port of all backends.
pub const BACKEND_PORT: u16 = 8080;
/// The node's own address.
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The port of all frontends.
pub const PORT: u16 = 80;

/// What kube-proxy knows of the node.
pub fn node() -> Node {
    Node { cluster_cidr: None, addresses: vec![NODE] }
}

/// So many Services, those that packets aim at last: one, when there is but one.
pub fn services(count: u32) -> Vec<ServicePort> {
    let mut measured = vec![measured(Aim::Here, "tcp"), measured(Aim::Here, "udp")];
    if count == 1 {
        measured.remove(0);
    }
    (measured.len() as u32..count).map(filler).chain(measured).collect()
}

/// The Service with a hundred pods behind an external address.
pub fn measured(aim: Aim, proto: &'static str) -> ServicePort {
    let number = aim.destination().0.octets()[3];
    let address = match (aim, proto) {
        (Aim::Here, "udp") => Aim::Inside.destination().0,
        (_, "udp") => Ipv4Addr::new(10, 96, 0, number),
        _ => Ipv4Addr::new(10, 96, 0, 100 + number),
    };
    ServicePort {
        name: format!("measured-{number}-{proto}"),
        protocol: proto,
        cluster_ip: address,
        port: PORT,
        external_ip: Some(aim.destination().0),
        node_port: None,
        endpoints: backends(aim),
        target_port: BACKEND_PORT,
    }
}

/// The pods behind it.
pub fn backends(aim: Aim) -> Vec<Ipv4Addr> {
    let [a, b, c, _] = aim.backends().octets();
    (0..BACKENDS).map(|n| Ipv4Addr::new(a, b, c, 101 + n)).collect()
}

/// One of those that no packet aims at: TCP, with one pod.
pub fn filler(number: u32) -> ServicePort {
    let [high, low] = [(number / 250) as u8, (number % 250) as u8];
    ServicePort {
        name: format!("filler-{number}"),
        protocol: "tcp",
        cluster_ip: Ipv4Addr::new(10, 96, 1 + high, 1 + low),
        port: PORT,
        external_ip: None,
        node_port: None,
        endpoints: vec![Ipv4Addr::new(10, 245, high, 1 + low)],
        target_port: BACKEND_PORT,
    }
}
