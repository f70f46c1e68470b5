//! What an interface is to us, and which addresses are the node's. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::Role;
use wildmatch::WildMatch;

use super::addresses::NodePortAddresses;
use super::{Link, Network};
use crate::model::Family;

/// What the user said about interfaces and addresses.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Names given with `--uplink`; none: found by address and route.
    pub uplinks: Vec<String>,
    /// Pattern given with `--pod-interface`; none: every veth whose peer is in another namespace.
    pub pod_interface: Option<WildMatch>,
    /// Bridge given with `--pod-bridge-interface`: its ports are pods' as well.
    pub pod_bridge: Option<String>,
    /// Prefix given with `--pod-interface-name-prefix`: interfaces named so are pods' as well.
    pub pod_prefix: Option<String>,
    /// Addresses given with `--node-ip`, one for each family at most.
    pub node_ips: Vec<IpAddr>,
    /// Addresses our Node object names.
    pub node_object_ips: Vec<IpAddr>,
    /// Given with `--nodeport-addresses`.
    pub node_port_addresses: NodePortAddresses,
}

impl Selection {
    /// The address of `family` given with `--node-ip`.
    pub fn node_ip(&self, family: Family) -> Option<IpAddr> {
        self.node_ips.iter().copied().find(|ip| Family::of(*ip) == family)
    }
}

/// An interface that gets programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Classified {
    /// The interface.
    pub link: Link,
    /// What it is to us.
    pub role: Role,
    /// Sources of flows that are masqueraded out of it.
    pub masquerade: Masquerade,
}

/// One source address for each family; none: no address known at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Masquerade {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Masquerade {
    fn new(v4: Option<IpAddr>, v6: Option<IpAddr>) -> Self {
        let v4 = v4.and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
        let v6 = v6.and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None });
        Self { v4, v6 }
    }
}

/// Kinds that carry traffic between nodes.
const OVERLAYS: [&str; 4] = ["vxlan", "geneve", "wireguard", "gretap"];

/// The interfaces that get programs, by index.
pub fn classify(network: &Network, selection: &Selection) -> BTreeMap<u32, Classified> {
    let own = node_masquerade(network, selection);
    let node_ips: Vec<IpAddr> = own.v4.map(IpAddr::V4).into_iter().chain(own.v6.map(IpAddr::V6)).collect();
    let served =
        network.links.values().filter_map(|link| Some((link, role(network, selection, &node_ips, link)?)));
    served
        .map(|(link, role)| {
            let speaks = |family| network.primary_address(link.index, family);
            let of_link = Masquerade::new(speaks(Family::V4), speaks(Family::V6));
            let masquerade = Masquerade { v4: of_link.v4.or(own.v4), v6: of_link.v6.or(own.v6) };
            (link.index, Classified { link: link.clone(), role, masquerade })
        })
        .collect()
}

/// The node's own addresses: sources where an interface has none.
pub fn node_masquerade(network: &Network, selection: &Selection) -> Masquerade {
    let own = |family| node_address(network, selection, family);
    Masquerade::new(own(Family::V4), own(Family::V6))
}

fn role(network: &Network, selection: &Selection, node_ips: &[IpAddr], link: &Link) -> Option<Role> {
    let kind = link.kind.as_deref().unwrap_or("");
    // Frames without an Ethernet header cannot be read; bridges are served at their ports.
    if link.loopback || !link.ethernet {
        return None;
    }
    if is_uplink(network, selection, node_ips, link) {
        return Some(Role::Uplink);
    }
    if kind == "bridge" {
        return None;
    }
    if is_pod(network, selection, link) {
        return Some(Role::Pod);
    }
    OVERLAYS.contains(&kind).then_some(Role::Uplink)
}

fn is_pod(network: &Network, selection: &Selection, link: &Link) -> bool {
    let by_default = || link.kind.as_deref() == Some("veth") && link.peer_elsewhere;
    let bridged = |bridge: &String| {
        let controller = link.controller.and_then(|index| network.links.get(&index));
        controller.is_some_and(|controller| controller.name == *bridge)
    };
    selection.pod_bridge.as_ref().is_some_and(bridged)
        || selection.pod_prefix.as_ref().is_some_and(|prefix| link.name.starts_with(prefix.as_str()))
        || selection.pod_interface.as_ref().map_or_else(by_default, |pattern| pattern.matches(&link.name))
}

fn is_uplink(network: &Network, selection: &Selection, node_ips: &[IpAddr], link: &Link) -> bool {
    if !selection.uplinks.is_empty() {
        return selection.uplinks.contains(&link.name);
    }
    let routed = network.default_routes.iter().any(|route| route.interface == link.index);
    routed || network.holders(node_ips).contains(&link.index)
}

/// The node's own address of one family: the one given, else the source of the best default route, else
/// the first lasting address of that route's interface, of an interface given with `--uplink`, or of any.
pub fn node_address(network: &Network, selection: &Selection, family: Family) -> Option<IpAddr> {
    let route = network.default_route(family);
    let named = |link: &&Link| selection.uplinks.contains(&link.name);
    let any = || {
        let first = network.addresses.iter().find(|a| {
            let link = network.links.get(&a.interface);
            Family::of(a.address) == family
                && a.speaks_for_the_node()
                && link.is_none_or(|link| !link.loopback && !is_pod_like(selection, link))
        });
        first.map(|a| a.address)
    };
    selection
        .node_ip(family)
        .or_else(|| route?.source)
        .or_else(|| network.primary_address(route?.interface, family))
        .or_else(|| {
            network.links.values().filter(named).find_map(|link| network.primary_address(link.index, family))
        })
        .or_else(any)
}

fn is_pod_like(selection: &Selection, link: &Link) -> bool {
    selection.pod_interface.as_ref().is_some_and(|pattern| pattern.matches(&link.name))
        || selection.pod_prefix.as_ref().is_some_and(|prefix| link.name.starts_with(prefix.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::DefaultRoute;
    use crate::network::tests::node;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
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
                Selection { node_ips: vec![ip("198.51.100.7")], ..Selection::default() },
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
                "the ports of a pod bridge are pods'",
                Selection {
                    pod_interface: Some(WildMatch::new("none")),
                    pod_bridge: Some("cni0".to_owned()),
                    ..Selection::default()
                },
                vec![("eth0", Role::Uplink), pods[1], overlay],
            ),
            (
                "names with the pods' prefix are pods'",
                Selection { pod_prefix: Some("veth-".to_owned()), ..Selection::default() },
                vec![("eth0", Role::Uplink), pods[0], pods[1], overlay, ("veth-local", Role::Pod)],
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
        let mut network = node();
        let of = |network: &Network, index| classify(network, &Selection::default())[&index].masquerade;
        let own = Masquerade::new(Some(ip("192.0.2.10")), Some(ip("2001:db8::10")));
        assert_eq!(of(&network, 2), own);
        assert_eq!(of(&network, 6), own, "an overlay without address");
        network.addresses.push(crate::network::tests::address(6, "2001:db8:6::1"));
        assert_eq!(
            of(&network, 6),
            Masquerade { v6: Some("2001:db8:6::1".parse().expect("address")), ..own }
        );
    }

    #[test]
    fn an_uplink_is_found_by_the_route_of_either_family() {
        let mut network = node();
        network.default_routes[1].interface = 9;
        let uplinks: Vec<_> = roles(&network, &Selection::default())
            .into_iter()
            .filter(|(name, role)| *role == Role::Uplink && name.starts_with("eth"))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(uplinks, ["eth0", "eth1"]);
    }

    #[test]
    fn the_node_address_by_what_is_known() {
        let mut network = node();
        let v4 = |network: &Network, selection: &Selection| node_address(network, selection, Family::V4);
        assert_eq!(v4(&network, &Selection::default()), Some(ip("192.0.2.10")));
        network.default_routes[0].source = Some(ip("192.0.2.11"));
        assert_eq!(v4(&network, &Selection::default()), Some(ip("192.0.2.11")));
        let given = Selection { node_ips: vec![ip("203.0.113.1")], ..Selection::default() };
        assert_eq!(v4(&network, &given), Some(ip("203.0.113.1")));
        assert_eq!(node_address(&network, &given, Family::V6), Some(ip("2001:db8::10")), "the other family");
        network.default_routes.clear();
        let uplink = Selection { uplinks: vec!["eth1".to_owned()], ..Selection::default() };
        assert_eq!(v4(&network, &uplink), Some(ip("198.51.100.7")));
        assert_eq!(v4(&network, &Selection::default()), Some(ip("192.0.2.10")));
        network.default_routes = vec![DefaultRoute {
            family: Family::V6,
            metric: 1,
            interface: 3,
            source: Some(ip("2001:db8:1::1")),
        }];
        assert_eq!(node_address(&network, &Selection::default(), Family::V6), Some(ip("2001:db8:1::1")));
    }
}
