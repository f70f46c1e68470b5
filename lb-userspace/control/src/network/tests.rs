use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Address, DefaultRoute, Link, Network};
use crate::model::Family;

pub(super) fn link(index: u32, name: &str, kind: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: Some(kind.to_owned()).filter(|kind| !kind.is_empty()),
        ethernet: true,
        ..Link::default()
    }
}

pub(super) fn address(interface: u32, address: &str) -> Address {
    let address: IpAddr = address.parse().expect("address");
    let prefix = if address.is_ipv4() { 24 } else { 64 };
    Address { interface, address, prefix, global: true, primary: true, tentative: false, deprecated: false }
}

/// A node with an uplink, a bridge, two pods (one on the bridge), a tunnel and a veth within the node.
pub(super) fn node() -> Network {
    let lo = Link { loopback: true, ..link(1, "lo", "") };
    let pod = |index, name| Link { peer_elsewhere: true, ..link(index, name, "veth") };
    let bridged = Link { controller: Some(3), ..pod(5, "veth2b") };
    let tunnel = Link { ethernet: false, ..link(8, "tun0", "tun") };
    let links = [
        lo,
        link(2, "eth0", ""),
        link(3, "cni0", "bridge"),
        pod(4, "veth1a"),
        bridged,
        link(6, "flannel.1", "vxlan"),
        link(7, "veth-local", "veth"),
        tunnel,
        link(9, "eth1", ""),
    ];
    Network {
        links: links.into_iter().map(|link| (link.index, link)).collect(),
        addresses: vec![
            Address { global: false, ..address(1, "127.0.0.1") },
            Address { global: false, ..address(1, "::1") },
            address(2, "192.0.2.10"),
            Address { primary: false, ..address(2, "192.0.2.11") },
            Address { global: false, ..address(2, "fe80::1") },
            address(2, "2001:db8::10"),
            address(3, "10.1.0.1"),
            address(3, "2001:db8:1::1"),
            Address { prefix: 32, ..address(4, "169.254.1.1") },
            address(9, "198.51.100.7"),
        ],
        default_routes: vec![
            DefaultRoute { family: Family::V4, by_rule: false, metric: 0, interface: 2, source: None },
            DefaultRoute { family: Family::V6, by_rule: false, metric: 1024, interface: 2, source: None },
        ],
        gateways: BTreeSet::from([2]),
        local: Vec::new(),
        broadcasts: BTreeSet::new(),
        routes_by_more: false,
    }
}

#[test]
fn an_interface_speaks_from_an_address_that_lasts() {
    let mut network = node();
    let speaks = |network: &Network| network.primary_address(2, Family::V6).map(|a| a.to_string());
    assert_eq!(speaks(&network).as_deref(), Some("2001:db8::10"));
    let ways: [fn(&mut Address); 4] =
        [|a| a.tentative = true, |a| a.deprecated = true, |a| a.primary = false, |a| a.global = false];
    for spoil in ways {
        let mut other = network.clone();
        other.addresses.iter_mut().filter(|a| a.address.is_ipv6()).for_each(spoil);
        assert_eq!(speaks(&other), None);
        other.addresses.push(address(2, "2001:db8::20"));
        assert_eq!(speaks(&other).as_deref(), Some("2001:db8::20"));
    }
    network.addresses.push(address(2, "2001:db8::9"));
    assert_eq!(speaks(&network).as_deref(), Some("2001:db8::9"), "whatever the order");
    network.addresses.retain(|a| a.address.to_string() != "192.0.2.10");
    let v4 = network.primary_address(2, Family::V4).map(|a| a.to_string());
    assert_eq!(v4.as_deref(), Some("192.0.2.11"), "a secondary IPv4 address is better than none");
}
