//! With which address the node speaks for others: flows that are masqueraded. Pure.
//!
//! netfilter's MASQUERADE takes the address of the interface that a packet leaves by: of IPv4 the first whose network the next hop is
//! in, else the first; of IPv6 what [RFC 6724] chooses for the destination. So does this, but for one thing: an address given with
//! `--node-ip` comes before others that do as well.
//!
//! [RFC 6724]: https://www.rfc-editor.org/rfc/rfc6724

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::classify::{Selection, is_named_for_pods};
use super::{Link, Network};
use crate::model::Family;

/// One source address for each family; none: no address known at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Masquerade {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Masquerade {
    pub(super) fn new(v4: Option<IpAddr>, v6: Option<IpAddr>) -> Self {
        let v4 = v4.and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
        let v6 = v6.and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None });
        Self { v4, v6 }
    }
}

/// The node's own addresses: sources where an interface has none.
pub fn of_node(network: &Network, selection: &Selection) -> Masquerade {
    let own = |family| node_address(network, selection, family);
    Masquerade::new(own(Family::V4), own(Family::V6))
}

/// What an interface speaks from by its own addresses, and, if that depends on where to, the source toward each network.
pub(super) fn of_interface(
    network: &Network,
    selection: &Selection,
    interface: u32,
) -> (Masquerade, Vec<(IpNet, IpAddr)>) {
    let mut sources = Vec::new();
    let mut of = |family| {
        let candidates = candidates(network, selection, interface, family);
        let (first, ..) = *candidates.first()?;
        let toward = toward(&candidates, family);
        if toward.iter().any(|(_, source)| *source != first) {
            sources.extend(toward);
        }
        Some(first)
    };
    let masquerade = Masquerade::new(of(Family::V4), of(Family::V6));
    sources.sort();
    (masquerade, sources)
}

/// The addresses that an interface may speak from, and the network of each, best first.
fn candidates(
    network: &Network,
    selection: &Selection,
    interface: u32,
    family: Family,
) -> Vec<(IpAddr, IpNet)> {
    let own = network
        .addresses
        .iter()
        .filter(|a| a.interface == interface && Family::of(a.address) == family && a.speaks_for_the_node());
    let own = own.filter_map(|a| Some((a.primary, a.address, IpNet::new(a.address, a.prefix).ok()?.trunc())));
    let mut own: Vec<(bool, IpAddr, IpNet)> = own.collect();
    let given = selection.node_ip(family);
    // IPv4's stand in the kernel's order; IPv6's, which the kernel lists in no lasting one, by number.
    own.sort_by_key(|(primary, address, _)| {
        let number = (family == Family::V6).then_some(*address);
        (Some(*address) != given, !primary, number)
    });
    own.into_iter().map(|(_, address, network)| (address, network)).collect()
}

/// The source toward each network that one of the candidates is made for.
fn toward(candidates: &[(IpAddr, IpNet)], family: Family) -> Vec<(IpNet, IpAddr)> {
    let mut sources: Vec<(IpNet, IpAddr)> = Vec::new();
    let mut note = |network: IpNet, source| {
        if sources.iter().all(|(known, _)| *known != network) {
            sources.push((network, source));
        }
    };
    for (address, network) in candidates {
        if network.prefix_len() < network.max_prefix_len() {
            note(*network, *address);
        }
    }
    if family == Family::V6 {
        // Unique local addresses go with each other (RFC 6724, rule 6: labels).
        let is_local = |address: &IpAddr| matches!(address, IpAddr::V6(it) if it.is_unique_local());
        let local = candidates.iter().find(|(address, _)| is_local(address));
        let global = candidates.iter().find(|(address, _)| !is_local(address));
        if let (Some((local, _)), Some((global, _))) = (local, global) {
            let whole = |address: Ipv6Addr, bits| IpNet::new(address.into(), bits).ok();
            [(whole(UNIQUE_LOCAL, 7), local), (whole(Ipv6Addr::UNSPECIFIED, 0), global)]
                .into_iter()
                .for_each(|(network, source)| network.into_iter().for_each(|it| note(it, *source)));
        }
    }
    sources
}

/// fc00::/7 (RFC 4193).
const UNIQUE_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0);

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
                && link.is_none_or(|link| !link.loopback && !is_named_for_pods(selection, link))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::classify::{Classified, classify};
    use crate::network::tests::{address, node};
    use crate::network::{Address, DefaultRoute};

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn masquerade_uses_the_interface_or_the_node() {
        let mut network = node();
        let of = |network: &Network, index| classify(network, &Selection::default())[&index].masquerade;
        let own = Masquerade::new(Some(ip("192.0.2.10")), Some(ip("2001:db8::10")));
        assert_eq!(of(&network, 2), own);
        assert_eq!(of(&network, 6), own, "an overlay without address");
        network.addresses.push(address(6, "2001:db8:6::1"));
        assert_eq!(
            of(&network, 6),
            Masquerade { v6: Some("2001:db8:6::1".parse().expect("address")), ..own }
        );
    }

    /// What the uplink is given: address, prefix, whether it is the first of its network.
    fn sources(own: &[(&str, u8, bool)], given: &[&str]) -> (Masquerade, Vec<(String, String)>) {
        let mut network = node();
        network.addresses.retain(|a| a.interface != 2);
        let held = |(text, prefix, primary): &(&str, u8, bool)| Address {
            prefix: *prefix,
            primary: *primary,
            ..address(2, text)
        };
        network.addresses.extend(own.iter().map(held));
        let selection =
            Selection { node_ips: given.iter().map(|it| ip(it)).collect(), ..Selection::default() };
        let Classified { masquerade, sources, .. } = classify(&network, &selection)[&2].clone();
        let in_words = |(network, source): (IpNet, IpAddr)| (network.to_string(), source.to_string());
        (masquerade, sources.into_iter().map(in_words).collect())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(network, source)| ((*network).to_owned(), (*source).to_owned())).collect()
    }

    #[test]
    fn ipv4_speaks_from_the_network_of_the_next_hop() {
        let v4 = |own: &[(&str, u8, bool)], given: &[&str]| {
            let (masquerade, sources) = sources(own, given);
            (masquerade.v4.expect("a source").to_string(), sources)
        };
        let one = [("192.0.2.10", 24, true)];
        assert_eq!(v4(&one, &[]), ("192.0.2.10".to_owned(), vec![]));
        // An address alone stands first, as those of a virtual router do.
        let vip = [("203.0.113.5", 32, true), one[0]];
        let expected = pairs(&[("192.0.2.0/24", "192.0.2.10")]);
        assert_eq!(v4(&vip, &[]), ("203.0.113.5".to_owned(), expected), "toward the network the right one");
        assert_eq!(v4(&vip, &["192.0.2.10"]), ("192.0.2.10".to_owned(), vec![]), "the one given");
        let two = [one[0], ("198.51.100.4", 24, true)];
        let expected = pairs(&[("192.0.2.0/24", "192.0.2.10"), ("198.51.100.0/24", "198.51.100.4")]);
        assert_eq!(v4(&two, &[]), ("192.0.2.10".to_owned(), expected.clone()));
        assert_eq!(v4(&two, &["198.51.100.4"]), ("198.51.100.4".to_owned(), expected));
        let second = [one[0], ("192.0.2.31", 24, false)];
        assert_eq!(v4(&second, &[]), ("192.0.2.10".to_owned(), vec![]));
        assert_eq!(v4(&second, &["192.0.2.31"]), ("192.0.2.31".to_owned(), vec![]), "the one given");
        assert_eq!(v4(&one, &["192.0.2.99"]), ("192.0.2.10".to_owned(), vec![]), "not held here");
    }

    #[test]
    fn ipv6_speaks_as_the_destination_does() {
        let v6 = |own: &[(&str, u8, bool)], given: &[&str]| {
            let (masquerade, sources) = sources(own, given);
            (masquerade.v6.expect("a source").to_string(), sources)
        };
        let both = [("fd00:1::10", 64, true), ("2001:db8:1::10", 64, true)];
        let expected = pairs(&[
            ("::/0", "2001:db8:1::10"),
            ("2001:db8:1::/64", "2001:db8:1::10"),
            ("fc00::/7", "fd00:1::10"),
            ("fd00:1::/64", "fd00:1::10"),
        ]);
        assert_eq!(v6(&both, &[]), ("2001:db8:1::10".to_owned(), expected.clone()));
        assert_eq!(v6(&both, &["fd00:1::10"]), ("fd00:1::10".to_owned(), expected));
        let alike = [("2001:db8:1::10", 64, true), ("2001:db8:1::1", 64, true)];
        assert_eq!(v6(&alike, &[]), ("2001:db8:1::1".to_owned(), vec![]));
        assert_eq!(v6(&alike, &["2001:db8:1::10"]), ("2001:db8:1::10".to_owned(), vec![]), "the one given");
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
            by_rule: false,
            metric: 1,
            interface: 3,
            source: Some(ip("2001:db8:1::1")),
        }];
        assert_eq!(node_address(&network, &Selection::default(), Family::V6), Some(ip("2001:db8:1::1")));
    }
}
