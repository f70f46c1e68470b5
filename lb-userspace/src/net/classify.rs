//! What an interface is to us, and which addresses are the node's. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use lb_common::abi::Role;
use wildmatch::WildMatch;

use super::{Link, Network};

/// What the user said about interfaces.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Names given with `--uplink`; none: found by address and route.
    pub uplinks: Vec<String>,
    /// Pattern given with `--pod-interface`; none: every veth whose peer is in another namespace.
    pub pod_interface: Option<WildMatch>,
    /// Addresses given with `--node-ip`.
    pub node_ips: Vec<Ipv4Addr>,
}

/// An interface that gets programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Classified {
    /// The interface.
    pub link: Link,
    /// What it is to us.
    pub role: Role,
    /// Source of flows that are masqueraded out of it; none: no address known at all.
    pub masquerade: Option<Ipv4Addr>,
}

/// Kinds that carry traffic between nodes.
const OVERLAYS: [&str; 4] = ["vxlan", "geneve", "wireguard", "gretap"];

/// The interfaces that get programs, by index.
pub fn classify(network: &Network, selection: &Selection) -> BTreeMap<u32, Classified> {
    let node_address = node_address(network, selection);
    let role_of = |link: &Link| role(network, selection, node_address, link);
    let served = network.links.values().filter_map(|link| Some((link, role_of(link)?)));
    served
        .map(|(link, role)| {
            let masquerade = network.primary_address(link.index).or(node_address);
            (link.index, Classified { link: link.clone(), role, masquerade })
        })
        .collect()
}

fn role(
    network: &Network,
    selection: &Selection,
    node_address: Option<Ipv4Addr>,
    link: &Link,
) -> Option<Role> {
    let kind = link.kind.as_deref().unwrap_or("");
    // Frames without an Ethernet header cannot be read; bridges are served at their ports.
    if link.loopback || !link.ethernet {
        return None;
    }
    if is_uplink(network, selection, node_address, link) {
        return Some(Role::Uplink);
    }
    if kind == "bridge" {
        return None;
    }
    let pod = match &selection.pod_interface {
        Some(pattern) => pattern.matches(&link.name),
        None => kind == "veth" && link.peer_elsewhere,
    };
    if pod {
        return Some(Role::Pod);
    }
    (OVERLAYS.contains(&kind)).then_some(Role::Uplink)
}

fn is_uplink(network: &Network, selection: &Selection, node_address: Option<Ipv4Addr>, link: &Link) -> bool {
    if !selection.uplinks.is_empty() {
        return selection.uplinks.contains(&link.name);
    }
    let routed = network.default_routes.iter().any(|route| route.interface == link.index);
    let ips = if selection.node_ips.is_empty() { node_address.as_slice() } else { &selection.node_ips };
    routed || network.holders(ips).contains(&link.index)
}

/// The node's own address: the one given, else the source of the best default route, else the first
/// global address of that route's interface, of an interface given with `--uplink`, or of any.
pub fn node_address(network: &Network, selection: &Selection) -> Option<Ipv4Addr> {
    let route = network.default_routes.first();
    let named = |link: &&Link| selection.uplinks.contains(&link.name);
    let any = || {
        let first = network.addresses.iter().find(|a| {
            let link = network.links.get(&a.interface);
            a.global && link.is_none_or(|link| !link.loopback && !is_pod_like(selection, link))
        });
        first.map(|a| a.address)
    };
    selection
        .node_ips
        .first()
        .copied()
        .or_else(|| route?.source)
        .or_else(|| network.primary_address(route?.interface))
        .or_else(|| network.links.values().filter(named).find_map(|link| network.primary_address(link.index)))
        .or_else(any)
}

fn is_pod_like(selection: &Selection, link: &Link) -> bool {
    match &selection.pod_interface {
        Some(pattern) => pattern.matches(&link.name),
        None => false,
    }
}

/// Addresses nodePorts are served on: every global one that is not on a pod's interface, sorted.
pub fn node_addresses(network: &Network, selection: &Selection) -> Vec<Ipv4Addr> {
    let classified = classify(network, selection);
    let is_pod = |index| matches!(classified.get(&index), Some(Classified { role: Role::Pod, .. }));
    let mut addresses: Vec<Ipv4Addr> =
        network.addresses.iter().filter(|a| a.global && !is_pod(a.interface)).map(|a| a.address).collect();
    addresses.extend(&selection.node_ips);
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Address, DefaultRoute};

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: Some(kind.to_owned()).filter(|kind| !kind.is_empty()),
            ethernet: true,
            ..Link::default()
        }
    }

    fn address(interface: u32, address: [u8; 4]) -> Address {
        Address { interface, address: address.into(), global: true, primary: true }
    }

    /// A node with an uplink, a bridge, two pods (one on the bridge), a tunnel and a veth within the node.
    fn node() -> Network {
        let lo = Link { loopback: true, ..link(1, "lo", "") };
        let pod = |index, name| Link { peer_elsewhere: true, ..link(index, name, "veth") };
        let tunnel = Link { ethernet: false, ..link(8, "tun0", "tun") };
        let links = [
            lo,
            link(2, "eth0", ""),
            link(3, "cni0", "bridge"),
            pod(4, "veth1a"),
            pod(5, "veth2b"),
            link(6, "flannel.1", "vxlan"),
            link(7, "veth-local", "veth"),
            tunnel,
            link(9, "eth1", ""),
        ];
        Network {
            links: links.into_iter().map(|link| (link.index, link)).collect(),
            addresses: vec![
                Address { global: false, ..address(1, [127, 0, 0, 1]) },
                address(2, [192, 0, 2, 10]),
                Address { primary: false, ..address(2, [192, 0, 2, 11]) },
                address(3, [10, 1, 0, 1]),
                address(4, [169, 254, 1, 1]),
                address(9, [198, 51, 100, 7]),
            ],
            default_routes: vec![DefaultRoute { metric: 0, interface: 2, source: None }],
        }
    }

    fn roles(network: &Network, selection: &Selection) -> Vec<(String, Role)> {
        classify(network, selection).into_values().map(|c| (c.link.name, c.role)).collect()
    }

    fn named(pairs: &[(&str, Role)]) -> Vec<(String, Role)> {
        pairs.iter().map(|(name, role)| ((*name).to_owned(), *role)).collect()
    }

    #[test]
    fn roles_by_selection() {
        let pods = [("veth1a", Role::Pod), ("veth2b", Role::Pod)];
        let overlay = ("flannel.1", Role::Uplink);
        let cases = [
            ("default", Selection::default(), vec![("eth0", Role::Uplink), pods[0], pods[1], overlay]),
            (
                "a node IP on another interface adds that one",
                Selection { node_ips: vec![[198, 51, 100, 7].into()], ..Selection::default() },
                vec![("eth0", Role::Uplink), pods[0], pods[1], overlay, ("eth1", Role::Uplink)],
            ),
            (
                "--uplink names them all",
                Selection { uplinks: vec!["eth1".to_owned()], ..Selection::default() },
                vec![pods[0], pods[1], overlay, ("eth1", Role::Uplink)],
            ),
            (
                "--pod-interface replaces the rule for veths",
                Selection { pod_interface: Some(WildMatch::new("veth?b")), ..Selection::default() },
                vec![("eth0", Role::Uplink), pods[1], overlay],
            ),
            (
                "an uplink that is a veth is no pod",
                Selection { uplinks: vec!["veth1a".to_owned()], ..Selection::default() },
                vec![("veth1a", Role::Uplink), pods[1], overlay],
            ),
            (
                "an uplink that is a bridge is served when asked for",
                Selection { uplinks: vec!["cni0".to_owned()], ..Selection::default() },
                vec![("cni0", Role::Uplink), pods[0], pods[1], overlay],
            ),
        ];
        for (case, selection, expected) in cases {
            assert_eq!(roles(&node(), &selection), named(&expected), "{case}");
        }
    }

    #[test]
    fn masquerade_uses_the_interface_or_the_node() {
        let classified = classify(&node(), &Selection::default());
        assert_eq!(classified[&2].masquerade, Some([192, 0, 2, 10].into()));
        assert_eq!(classified[&6].masquerade, Some([192, 0, 2, 10].into()), "an overlay without address");
    }

    #[test]
    fn the_node_address_by_what_is_known() {
        let mut network = node();
        assert_eq!(node_address(&network, &Selection::default()), Some([192, 0, 2, 10].into()));
        network.default_routes[0].source = Some([192, 0, 2, 11].into());
        assert_eq!(node_address(&network, &Selection::default()), Some([192, 0, 2, 11].into()));
        let given = Selection { node_ips: vec![[203, 0, 113, 1].into()], ..Selection::default() };
        assert_eq!(node_address(&network, &given), Some([203, 0, 113, 1].into()));
        network.default_routes.clear();
        let uplink = Selection { uplinks: vec!["eth1".to_owned()], ..Selection::default() };
        assert_eq!(node_address(&network, &uplink), Some([198, 51, 100, 7].into()));
        assert_eq!(node_address(&network, &Selection::default()), Some([192, 0, 2, 10].into()));
    }

    #[test]
    fn node_ports_are_served_on_global_addresses_but_not_on_pod_interfaces() {
        let addresses: Vec<Ipv4Addr> = node_addresses(&node(), &Selection::default());
        let expected: [[u8; 4]; 4] = [[10, 1, 0, 1], [192, 0, 2, 10], [192, 0, 2, 11], [198, 51, 100, 7]];
        assert_eq!(addresses, expected.map(Ipv4Addr::from));
    }
}
