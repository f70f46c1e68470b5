//! What an interface is to us, and which addresses are the node's. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::abi::Role;
use wildmatch::WildMatch;

use super::addresses::NodePortAddresses;
use super::masquerade::{self, Masquerade};
use super::{Link, Network, stations};
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
    /// Where that depends on where they go: networks of next hops (IPv4) or destinations (IPv6), sorted, and the source toward each.
    pub sources: Vec<(IpNet, IpAddr)>,
    /// Whom frames that come in by it may be for.
    pub stations: BTreeSet<[u8; 6]>,
}

/// Kinds that carry traffic between nodes.
const OVERLAYS: [&str; 4] = ["vxlan", "geneve", "wireguard", "gretap"];

/// The interfaces that get programs, by index.
pub fn classify(network: &Network, selection: &Selection) -> BTreeMap<u32, Classified> {
    let own = masquerade::of_node(network, selection);
    let node_ips: Vec<IpAddr> = own.v4.map(IpAddr::V4).into_iter().chain(own.v6.map(IpAddr::V6)).collect();
    let served =
        network.links.values().filter_map(|link| Some((link, role(network, selection, &node_ips, link)?)));
    served
        .map(|(link, role)| {
            let (masquerade, sources) = masquerade::of_interface(network, selection, link.index);
            let masquerade = Masquerade { v4: masquerade.v4.or(own.v4), v6: masquerade.v6.or(own.v6) };
            let stations = stations::addresses(network, link.index);
            (link.index, Classified { link: link.clone(), role, masquerade, sources, stations })
        })
        .collect()
}

/// Whom frames may be for on the only interface that XDP may run on; none where there are several, or several addresses.
pub fn only_station(interfaces: &BTreeMap<u32, Classified>) -> Option<[u8; 6]> {
    let takes_xdp = |it: &&Classified| {
        it.role == Role::Uplink && !it.link.is_of(&OVERLAYS) && !it.link.is_of(&["bridge", "macvlan", "vlan"])
    };
    let mut stations = interfaces.values().filter(takes_xdp).map(|it| &it.stations);
    let (only, None) = (stations.next()?, stations.next()) else { return None };
    (only.len() == 1).then(|| only.first().copied()).flatten()
}

/// Kinds of which nothing ever comes in.
const SILENT: [&str; 4] = ["dummy", "ifb", "nlmon", "vcan"];

fn role(network: &Network, selection: &Selection, node_ips: &[IpAddr], link: &Link) -> Option<Role> {
    // Frames without an Ethernet header cannot be read.
    if link.loopback || !link.ethernet {
        return None;
    }
    if is_uplink(network, selection, node_ips, link) {
        return Some(Role::Uplink);
    }
    if link.is_of(&["bridge"]) {
        return None;
    }
    if is_pod(network, selection, link) {
        return Some(Role::Pod);
    }
    link.is_of(&OVERLAYS).then_some(Role::Uplink)
}

/// Interfaces that packets for Services may come in by, but where they cannot be read: by name, sorted.
pub fn left_out(network: &Network) -> Vec<String> {
    let carries = |link: &&Link| {
        let index = link.index;
        let has_address = network.addresses.iter().any(|a| a.interface == index && a.is_lasting());
        has_address || network.gateways.contains(&index) || network.has_default_route(index)
    };
    let unread = network.links.values().filter(|link| !link.loopback && !link.ethernet);
    let mut names: Vec<String> = unread.filter(carries).map(|link| link.name.clone()).collect();
    names.sort();
    names
}

/// Whether a port of the bridge that leads out of the node is its card: a bridge made for a card bears the card's address. (Then a pod's
/// host end may bear the bridge's by chance of numbers, but not where that leads out.)
fn is_card_of_a_bridge(network: &Network, link: &Link) -> bool {
    let controller = link.controller.and_then(|index| network.links.get(&index));
    controller.is_some_and(|bridge| {
        let leads_out = network.has_default_route(bridge.index) || network.gateways.contains(&bridge.index);
        leads_out && link.address.is_some() && bridge.address == link.address
    })
}

fn is_pod(network: &Network, selection: &Selection, link: &Link) -> bool {
    let by_default = || link.is_cable() && !is_card_of_a_bridge(network, link);
    let bridged = |bridge: &String| {
        let controller = link.controller.and_then(|index| network.links.get(&index));
        controller.is_some_and(|controller| controller.name == *bridge)
    };
    selection.pod_bridge.as_ref().is_some_and(bridged)
        || selection.pod_prefix.as_ref().is_some_and(|prefix| link.name.starts_with(prefix.as_str()))
        || selection.pod_interface.as_ref().map_or_else(by_default, |pattern| pattern.matches(&link.name))
}

/// Whether traffic of Services may come in by the interface, and it is no pod's: the node is reached by an address there, or others
/// by a route over it.
fn is_uplink(network: &Network, selection: &Selection, node_ips: &[IpAddr], link: &Link) -> bool {
    if !selection.uplinks.is_empty() {
        return selection.uplinks.contains(&link.name);
    }
    let index = link.index;
    if network.has_default_route(index) || network.holders(node_ips).contains(&index) {
        return true;
    }
    if link.is_of(&SILENT) || link.is_of(&["bridge"]) && is_among_pods(network, selection, index) {
        return false;
    }
    let lasting = |a: &&super::Address| a.interface == index && a.is_lasting();
    let mut own = network.addresses.iter().filter(lasting);
    // A pod's host end may hold the pods' gateway, by itself; a network of theirs only where the user says that it is a pod's.
    let speaks = if link.is_cable() { own.any(|a| !a.is_alone()) } else { own.next().is_some() };
    if is_pod(network, selection, link) {
        return speaks && !is_named_for_pods(selection, link);
    }
    speaks || network.gateways.contains(&index)
}

/// Whether all of a bridge's ports are pods': then they are served there.
fn is_among_pods(network: &Network, selection: &Selection, bridge: u32) -> bool {
    let mut ports = network.links.values().filter(|link| link.controller == Some(bridge));
    ports.all(|port| is_pod(network, selection, port))
}

/// Whether the user has said so.
pub(super) fn is_named_for_pods(selection: &Selection, link: &Link) -> bool {
    selection.pod_interface.as_ref().is_some_and(|pattern| pattern.matches(&link.name))
        || selection.pod_prefix.as_ref().is_some_and(|prefix| link.name.starts_with(prefix.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::tests::{address, link, node};
    use crate::network::{Address, DefaultRoute};

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
        let uplinks = [("eth0", Role::Uplink), ("eth1", Role::Uplink)];
        let cases = [
            ("default", Selection::default(), vec![uplinks[0], pods[0], pods[1], overlay, uplinks[1]]),
            (
                "a node IP on a bridge of pods adds that one",
                Selection { node_ips: vec![ip("10.1.0.1")], ..Selection::default() },
                vec![uplinks[0], ("cni0", Role::Uplink), pods[0], pods[1], overlay, uplinks[1]],
            ),
            (
                "--uplink names them all",
                Selection { uplinks: vec!["eth1".to_owned()], ..Selection::default() },
                vec![pods[0], pods[1], overlay, ("eth1", Role::Uplink)],
            ),
            (
                "--pod-interface replaces the rule for veths",
                Selection { pod_interface: Some(WildMatch::new("veth?b")), ..Selection::default() },
                vec![uplinks[0], pods[1], overlay, uplinks[1]],
            ),
            (
                "the ports of a pod bridge are pods'",
                Selection {
                    pod_interface: Some(WildMatch::new("none")),
                    pod_bridge: Some("cni0".to_owned()),
                    ..Selection::default()
                },
                vec![uplinks[0], pods[1], overlay, uplinks[1]],
            ),
            (
                "names with the pods' prefix are pods'",
                Selection { pod_prefix: Some("veth-".to_owned()), ..Selection::default() },
                vec![uplinks[0], pods[0], pods[1], overlay, ("veth-local", Role::Pod), uplinks[1]],
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

    /// What of a few more interfaces the network has is served as what, the node's own left out.
    fn roles_of(more: &[Link], change: impl Fn(&mut Network)) -> Vec<(String, Role)> {
        let mut network = node();
        network.addresses.retain(|a| a.interface != 9);
        network.links.extend(more.iter().map(|link| (link.index, link.clone())));
        change(&mut network);
        let own: Vec<String> = node().links.values().map(|link| link.name.clone()).collect();
        let is_new = |(name, _): &(String, Role)| name == "eth1" || !own.contains(name);
        roles(&network, &Selection::default()).into_iter().filter(is_new).collect()
    }

    #[test]
    fn an_uplink_is_found_by_its_addresses_and_by_the_routes_over_it() {
        let eth1 = named(&[("eth1", Role::Uplink)]);
        assert_eq!(roles_of(&[], |_| ()), [], "nothing leads there");
        assert_eq!(roles_of(&[], |network| network.default_routes[1].interface = 9), eth1);
        let by_rule =
            DefaultRoute { family: Family::V4, by_rule: true, metric: 0, interface: 9, source: None };
        assert_eq!(roles_of(&[], |network| network.default_routes.push(by_rule)), eth1, "a table of rules");
        assert_eq!(roles_of(&[], |network| network.gateways.extend([9])), eth1, "the way to another node");
        assert_eq!(roles_of(&[], |network| network.addresses.push(address(9, "198.51.100.7"))), eth1);
        let alone = Address { prefix: 32, ..address(9, "203.0.113.5") };
        assert_eq!(roles_of(&[], |network| network.addresses.push(alone)), eth1, "an address alone");
    }

    #[test]
    fn what_holds_an_address_may_be_anything_but_a_pods() {
        for kind in ["bond", "vlan", "macvlan", "tun", "bridge", "dummy"] {
            let link = link(20, "more", kind);
            let ports = [Link { controller: Some(20), ..super::super::tests::link(21, "port", "") }];
            let more: Vec<Link> = ports.into_iter().filter(|_| kind == "bridge").chain([link]).collect();
            let served = roles_of(&more, |network| network.addresses.push(address(20, "203.0.113.1")));
            let expected = if kind == "dummy" { vec![] } else { named(&[("more", Role::Uplink)]) };
            assert_eq!(served, expected, "{kind}");
        }
        // The node lives in a container: its cards are veths. A pod's host end holds an address for itself alone.
        let veth = [Link { peer_elsewhere: true, ..link(20, "net1", "veth") }];
        let with = |prefix| {
            let held = Address { prefix, ..address(20, "10.9.0.1") };
            roles_of(&veth, move |network| network.addresses.push(held))
        };
        assert_eq!(with(24), named(&[("net1", Role::Uplink)]));
        assert_eq!(with(32), named(&[("net1", Role::Pod)]));
    }

    #[test]
    fn the_card_of_a_bridge_is_no_pods() {
        let of = |number| Some([2, 0, 0, 0, 0, number]);
        let port = |index, name, number| Link {
            peer_elsewhere: true,
            controller: Some(20),
            address: of(number),
            ..link(index, name, "veth")
        };
        let bridge = Link { address: of(1), ..link(20, "br0", "bridge") };
        let more = [bridge, port(21, "card", 1), port(22, "pod", 2)];
        let ports = |change: fn(&mut Network)| roles_of(&more, change);
        assert_eq!(ports(|_| ()), named(&[("card", Role::Pod), ("pod", Role::Pod)]), "it leads nowhere");
        assert_eq!(
            ports(|network| network.default_routes[0].interface = 20),
            named(&[("br0", Role::Uplink), ("pod", Role::Pod)])
        );
    }

    #[test]
    fn one_station_is_the_only_one() {
        let mut network = node();
        let stations = |network: &Network| only_station(&classify(network, &Selection::default()));
        let of = |number| Some([2, 0, 0, 0, 0, number]);
        network.links.get_mut(&2).unwrap().address = of(1);
        network.links.get_mut(&9).unwrap().address = of(2);
        assert_eq!(stations(&network), None, "two cards");
        network.addresses.retain(|a| a.interface != 9);
        assert_eq!(stations(&network), of(1), "the overlay takes no XDP");
        let vip = Link { lower: Some(2), address: of(3), ..link(20, "vip", "macvlan") };
        network.links.insert(20, vip);
        assert_eq!(stations(&network), None, "two addresses");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let mut network = node();
        assert!(left_out(&network).is_empty(), "nothing leads over the tunnel");
        network.gateways.insert(8);
        assert_eq!(left_out(&network), ["tun0"]);
    }
}
