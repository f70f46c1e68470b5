//! Which of the node's addresses serve what (`--nodeport-addresses`). Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

use super::Network;
use super::classify::{self, Classified, Selection};
use super::masquerade;
use crate::model::{Family, NodePortPlaces, sorted};
use lb_common::abi::Role;

/// The node's addresses as Services see them, each list sorted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeAddresses {
    /// Where nodePorts are served.
    pub node_ports: NodePortPlaces,
    /// Every address other machines may reach this node at.
    pub own: Vec<IpAddr>,
    /// What is everybody's on networks of this node.
    pub broadcasts: BTreeSet<IpAddr>,
    /// Where the `healthCheckNodePort`s of Services answer; unspecified: everywhere, of its family.
    pub health_checks: Vec<IpAddr>,
    /// What our Node object had said when this was sorted out.
    pub from_node_object: Vec<IpAddr>,
}

/// Which addresses nodePorts are served on (`--nodeport-addresses`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodePortAddresses {
    networks: Vec<IpNet>,
    primary: bool,
    not_on_localhost: bool,
}

/// What `--nodeport-addresses` does not take.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("write networks such as 192.0.2.0/24, or primary, localhost or all")]
pub struct NodePortAddressError;

impl FromStr for NodePortAddresses {
    type Err = NodePortAddressError;

    /// One word: a network, `primary`, `localhost` or `all`.
    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let net = |text: &str| text.parse::<IpNet>().map_err(|_| NodePortAddressError);
        let networks = |networks| Self { networks, ..Self::default() };
        Ok(match word {
            "primary" => Self { primary: true, ..Self::default() },
            "localhost" => networks(vec![net("127.0.0.0/8")?, net("::1/128")?]),
            "all" => networks(vec![net("0.0.0.0/0")?, net("::/0")?]),
            word => networks(vec![net(word)?]),
        })
    }
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let primary = self.primary.then(|| "primary".to_owned());
        let words: Vec<String> =
            primary.into_iter().chain(self.networks.iter().map(IpNet::to_string)).collect();
        f.write_str(&words.join(","))
    }
}

impl NodePortAddresses {
    /// What several words ask for together; none: every address.
    pub fn all_of(words: impl IntoIterator<Item = Self>) -> Self {
        words.into_iter().fold(Self::default(), |mut sum, word| {
            sum.networks.extend(word.networks);
            sum.primary |= word.primary;
            sum
        })
    }

    /// The same, on loopback addresses only if `serve` (`--localhost-nodeports`).
    #[must_use]
    pub fn with_localhost(mut self, serve: bool) -> Self {
        self.not_on_localhost = !serve;
        self
    }

    /// Whether nothing of `family` is excluded: no network of that family was named. Networks of one
    /// family say nothing about the other, as with kube-proxy.
    pub fn takes_all(&self, family: Family) -> bool {
        let mut own = self.networks.iter().filter(|net| Family::of(net.network()) == family).peekable();
        if own.peek().is_none() {
            return !self.primary;
        }
        own.any(|net| net.prefix_len() == 0)
    }

    /// The part of a network that nodePorts are served in.
    fn part_of(&self, network: IpNet) -> Vec<IpNet> {
        if self.takes_all(Family::of(network.addr())) {
            return vec![network];
        }
        let meet = |wanted: &IpNet| {
            if wanted.contains(&network) {
                Some(network)
            } else {
                network.contains(wanted).then_some(*wanted)
            }
        };
        self.networks.iter().filter_map(meet).collect()
    }

    /// Whether a nodePort is served on `address`; `primary` are the node's own, one for each family.
    fn takes(&self, address: IpAddr, primary: &[IpAddr]) -> bool {
        if self.not_on_localhost && address.is_loopback() {
            return false;
        }
        self.takes_all(Family::of(address))
            || self.networks.iter().any(|net| net.contains(&address))
            || (self.primary && primary.contains(&address))
    }
}

/// The address that `primary` means: the one given, else the first that the Node object has of those that are
/// here, else the node's own.
fn primary(network: &Network, selection: &Selection, family: Family, own: &[IpAddr]) -> Option<IpAddr> {
    let of_node_object = || {
        let here = |address: &&IpAddr| Family::of(**address) == family && own.contains(address);
        selection.node_object_ips.iter().find(here).copied()
    };
    selection
        .node_ip(family)
        .or_else(of_node_object)
        .or_else(|| masquerade::node_address(network, selection, family))
}

/// The node's addresses, sorted out.
pub fn node_addresses(network: &Network, selection: &Selection) -> NodeAddresses {
    let classified = classify::classify(network, selection);
    let is_pod = |index| matches!(classified.get(&index), Some(Classified { role: Role::Pod, .. }));
    let is_own = |a: &&super::Address| a.is_lasting() && !is_pod(a.interface);
    let mut own: Vec<IpAddr> = network.addresses.iter().filter(is_own).map(|a| a.address).collect();
    own.extend(&selection.node_ips);
    // Of addresses that stand on an interface these say no more than the address itself.
    let mut known: Vec<IpAddr> = network.addresses.iter().map(|a| a.address).collect();
    known.sort();
    known.dedup();
    own.extend(sorted::changes(known, network.local_addresses()).1);
    own.sort();
    own.dedup();
    let primary: Vec<IpAddr> =
        Family::ALL.iter().filter_map(|family| primary(network, selection, *family, &own)).collect();
    let wanted = &selection.node_port_addresses;
    let takes = |address: &IpAddr| wanted.takes(*address, &primary);
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    // Whatever the kernel holds for its own, the gateways of pods among them, and IPv4 addresses of any scope.
    let held = network.addresses.iter().filter(|a| a.is_lasting() || a.address.is_ipv4()).map(|a| a.address);
    let served = own.iter().copied().chain(held.filter(|address| !address.is_loopback())).chain(loopback);
    let mut node_ports: NodePortPlaces = served.filter(takes).collect();
    node_ports.networks = network.local_networks().flat_map(|network| wanted.part_of(network)).collect();
    let health_checks = Family::ALL
        .into_iter()
        .flat_map(|family| {
            if wanted.takes_all(family) {
                return vec![family.unspecified()];
            }
            let served = node_ports.addresses().iter().copied();
            served.filter(|address| Family::of(*address) == family).collect()
        })
        .collect();
    let broadcasts = network.broadcasts.clone();
    let from_node_object = selection.node_object_ips.clone();
    NodeAddresses { node_ports, own, broadcasts, health_checks, from_node_object }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::tests::{address, node};

    fn wanted(words: &[&str]) -> NodePortAddresses {
        NodePortAddresses::all_of(words.iter().map(|word| word.parse().expect("valid")))
    }

    fn served(words: &[&str]) -> (Vec<String>, Vec<String>) {
        let selection = Selection { node_port_addresses: wanted(words), ..Selection::default() };
        let addresses = node_addresses(&node(), &selection);
        let places = addresses.node_ports.addresses().iter();
        let (loopback, others): (Vec<_>, Vec<_>) = places.partition(|address| address.is_loopback());
        let text = |list: Vec<&IpAddr>| list.into_iter().map(IpAddr::to_string).collect();
        (text(others), text(loopback))
    }

    #[test]
    fn node_ports_are_served_where_the_flag_says() {
        // The address of a pod's interface too, which pods know as their gateway's.
        let v4 = &["10.1.0.1", "169.254.1.1", "192.0.2.10", "192.0.2.11", "198.51.100.7"][..];
        let v6 = ["2001:db8::10", "2001:db8:1::1"];
        let both = ["127.0.0.1", "::1"];
        type Case<'a> = (&'a [&'a str], Vec<&'a str>, Vec<&'a str>);
        let cases: [Case<'_>; 7] = [
            (&[], [v4, &v6].concat(), both.to_vec()),
            (&["all"], [v4, &v6].concat(), both.to_vec()),
            (&["primary"], vec!["192.0.2.10", "2001:db8::10"], vec![]),
            (&["192.0.2.0/24"], [&["192.0.2.10", "192.0.2.11"][..], &v6].concat(), vec!["::1"]),
            (&["192.0.2.0/24", "2001:db8:1::/48"], vec!["192.0.2.10", "192.0.2.11", "2001:db8:1::1"], vec![]),
            (&["localhost"], vec![], both.to_vec()),
            (&["primary", "127.0.0.0/8"], vec!["192.0.2.10", "2001:db8::10"], vec!["127.0.0.1"]),
        ];
        for (words, node_ports, loopback) in cases {
            let (mut ports, local) = served(words);
            let mut expected = node_ports;
            ports.sort();
            expected.sort();
            assert_eq!(
                (ports, local),
                (
                    expected.iter().map(ToString::to_string).collect(),
                    loopback.iter().map(ToString::to_string).collect()
                ),
                "{words:?}"
            );
        }
    }

    #[test]
    fn primary_is_what_the_node_object_says() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        let mut selection = Selection { node_port_addresses: wanted(&["primary"]), ..Selection::default() };
        selection.node_object_ips = vec![ip("203.0.113.9"), ip("198.51.100.7")];
        let expected = [ip("198.51.100.7"), ip("2001:db8::10")];
        let served = |selection: &_| node_addresses(&node(), selection).node_ports;
        assert_eq!(served(&selection), expected.into_iter().collect(), "the first that is here");
        selection.node_ips = vec![ip("192.0.2.11")];
        let expected = [ip("192.0.2.11"), ip("2001:db8::10")];
        assert_eq!(served(&selection), expected.into_iter().collect());
    }

    #[test]
    fn health_checks_answer_where_node_ports_do() {
        let listen = |words: &[&str]| {
            let selection = Selection { node_port_addresses: wanted(words), ..Selection::default() };
            let addresses = node_addresses(&node(), &selection).health_checks;
            addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(listen(&[]), ["0.0.0.0", "::"]);
        assert_eq!(listen(&["primary"]), ["192.0.2.10", "2001:db8::10"]);
        assert_eq!(listen(&["198.51.100.0/24", "127.0.0.0/8"]), ["127.0.0.1", "198.51.100.7", "::"]);
    }

    #[test]
    fn what_does_not_last_and_what_is_a_pods_is_not_the_nodes() {
        let mut network = node();
        let lasting = node_addresses(&network, &Selection::default()).own;
        for (n, spoil) in [
            (1, (|a: &mut crate::network::Address| a.tentative = true) as fn(&mut crate::network::Address)),
            (2, |a| a.global = false),
        ] {
            let mut address = address(2, &format!("2001:db8::bad{n}"));
            spoil(&mut address);
            network.addresses.push(address);
        }
        network.addresses.push(crate::network::Address { prefix: 32, ..address(4, "10.9.9.9") });
        assert_eq!(node_addresses(&network, &Selection::default()).own, lasting);
    }

    #[test]
    fn what_a_route_says_is_local_is_served() {
        let mut network = node();
        let held = network.addresses.iter().filter(|a| a.global).map(|a| IpNet::from(a.address));
        let routes =
            ["127.0.0.0/8", "::1/128", "fe80::1/128", "203.0.113.7/32", "2001:db8:9::/64", "10.9.0.0/16"];
        let routes = routes.into_iter().map(|text| text.parse().expect("a network"));
        let routes: Vec<IpNet> = held.chain(routes).collect();
        routes.into_iter().for_each(|local| network.add_local(local));
        // Duplicate address detection has not ended: there is a route, and nobody may use it.
        let mut tentative = address(2, "2001:db8::bad");
        tentative.tentative = true;
        network.add_local(tentative.address.into());
        network.addresses.push(tentative);
        let places = |words: &[&str]| {
            let selection = Selection { node_port_addresses: wanted(words), ..Selection::default() };
            let all = node_addresses(&network, &selection);
            let before = node_addresses(&node(), &selection).node_ports;
            let new = |address: &&IpAddr| !before.addresses().contains(address);
            let more = all.node_ports.addresses().iter().filter(new).map(IpAddr::to_string);
            let networks = all.node_ports.networks.iter().map(IpNet::to_string);
            assert!(all.own.contains(&"203.0.113.7".parse().expect("address")), "the node's own in any case");
            more.chain(networks).collect::<Vec<_>>()
        };
        assert_eq!(places(&[]), ["203.0.113.7", "10.9.0.0/16", "2001:db8:9::/64"]);
        assert_eq!(places(&["10.9.3.0/24", "10.0.0.0/8"]), ["10.9.0.0/16", "10.9.3.0/24", "2001:db8:9::/64"]);
        assert_eq!(places(&["primary"]), [] as [&str; 0]);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for word in ["", "192.0.2.1", "eth0", "10.0.0.0/33"] {
            assert!(word.parse::<NodePortAddresses>().is_err(), "{word}");
        }
    }
}
