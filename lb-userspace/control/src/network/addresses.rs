//! Which of the node's addresses serve what (`--nodeport-addresses`). Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

use super::Network;
use super::classify::{self, Classified, Selection};
use crate::model::Family;
use lb_common::abi::Role;

/// The node's addresses as Services see them, each list sorted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeAddresses {
    /// Where nodePorts are served, loopback left out.
    pub node_ports: Vec<IpAddr>,
    /// Loopback addresses on which the socket hooks serve nodePorts: never from the wire.
    pub loopback: Vec<IpAddr>,
    /// Every address other machines may reach this node at.
    pub own: Vec<IpAddr>,
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
        .or_else(|| classify::node_address(network, selection, family))
}

/// The node's addresses, sorted out.
pub fn node_addresses(network: &Network, selection: &Selection) -> NodeAddresses {
    let classified = classify::classify(network, selection);
    let is_pod = |index| matches!(classified.get(&index), Some(Classified { role: Role::Pod, .. }));
    let is_own = |a: &&super::Address| a.is_lasting() && !is_pod(a.interface);
    let mut own: Vec<IpAddr> = network.addresses.iter().filter(is_own).map(|a| a.address).collect();
    own.extend(&selection.node_ips);
    own.sort_unstable();
    own.dedup();
    let primary: Vec<IpAddr> =
        Family::ALL.iter().filter_map(|family| primary(network, selection, *family, &own)).collect();
    let wanted = &selection.node_port_addresses;
    let takes = |address: &IpAddr| wanted.takes(*address, &primary);
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let loopback: Vec<IpAddr> = loopback.into_iter().filter(takes).collect();
    let node_ports: Vec<IpAddr> = own.iter().copied().filter(takes).collect();
    let health_checks = Family::ALL
        .into_iter()
        .flat_map(|family| {
            if wanted.takes_all(family) {
                return vec![family.unspecified()];
            }
            let served = node_ports.iter().chain(&loopback).copied();
            served.filter(|address| Family::of(*address) == family).collect()
        })
        .collect();
    NodeAddresses {
        node_ports,
        loopback,
        own,
        health_checks,
        from_node_object: selection.node_object_ips.clone(),
    }
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
        let text = |list: Vec<IpAddr>| list.iter().map(IpAddr::to_string).collect();
        (text(addresses.node_ports), text(addresses.loopback))
    }

    #[test]
    fn node_ports_are_served_where_the_flag_says() {
        let all = ["10.1.0.1", "192.0.2.10", "192.0.2.11", "198.51.100.7", "2001:db8:1::1", "2001:db8::10"];
        let v4 = &all[..4];
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
            expected.sort_unstable();
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
        assert_eq!(node_addresses(&node(), &selection).node_ports, expected, "the first that is here");
        selection.node_ips = vec![ip("192.0.2.11")];
        assert_eq!(node_addresses(&node(), &selection).node_ports, [ip("192.0.2.11"), ip("2001:db8::10")]);
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
        assert_eq!(listen(&["198.51.100.0/24", "127.0.0.0/8"]), ["198.51.100.7", "127.0.0.1", "::"]);
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
    fn what_is_no_network_is_refused() {
        for word in ["", "192.0.2.1", "eth0", "10.0.0.0/33"] {
            assert!(word.parse::<NodePortAddresses>().is_err(), "{word}");
        }
    }
}
