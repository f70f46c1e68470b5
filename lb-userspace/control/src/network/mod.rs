//! What is known of the node's network: its links and addresses, and what each is to us. Pure: lb-kernel asks for the facts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub mod addresses;
pub mod classify;
pub mod connection;
pub mod forward;
pub mod host_rules;
pub mod keeping;
pub mod masquerade;
pub mod netfilter;
pub mod node_packets;
pub mod stations;
#[cfg(test)]
mod tests;

pub use addresses::NodeAddresses;

use crate::model::Family;
use ipnet::IpNet;

/// How an XDP program hangs on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpAttached {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
    /// In the network card.
    Offloaded,
}

impl XdpAttached {
    /// Lower-case word for people and JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offloaded => "offloaded",
        }
    }
}

/// One interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `IFLA_INFO_KIND`: veth, vxlan, bridge …; none for hardware.
    pub kind: Option<String>,
    /// Frames have an Ethernet header.
    pub ethernet: bool,
    /// `lo`.
    pub loopback: bool,
    /// The other end is in another network namespace.
    pub peer_elsewhere: bool,
    /// Index of the bridge or bond it is a port of.
    pub controller: Option<u32>,
    /// Index of the device it lies on (`IFLA_LINK`), or of its peer.
    pub lower: Option<u32>,
    /// Its Ethernet address.
    pub address: Option<[u8; 6]>,
    /// How an XDP program hangs here, and its id.
    pub xdp: Option<(XdpAttached, u32)>,
}

impl Link {
    /// Whether it is one end of a veth whose other end is in another network namespace.
    pub fn is_cable(&self) -> bool {
        self.peer_elsewhere && self.is_of(&["veth"])
    }

    /// Whether it is of one of these kinds.
    pub fn is_of(&self, kinds: &[&str]) -> bool {
        self.kind.as_deref().is_some_and(|kind| kinds.contains(&kind))
    }
}

/// One address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Address {
    /// Index of the interface.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of the prefix that is on the link with it.
    pub prefix: u8,
    /// Reachable from other machines (scope global or site).
    pub global: bool,
    /// Not a secondary address of its network; for IPv6, not a temporary one.
    pub primary: bool,
    /// Not usable, or not usable yet: duplicate address detection has not ended well.
    pub tentative: bool,
    /// On its way out: not to be used for anything new.
    pub deprecated: bool,
}

impl Address {
    /// Other machines may reach the node here: nodePorts are served, the node's own programs may listen.
    pub const fn is_lasting(&self) -> bool {
        self.global && !self.tentative
    }

    /// Nobody else is on the link by it (/32, /128).
    pub const fn is_alone(&self) -> bool {
        self.prefix == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// Flows may be masqueraded as this address: it will be there for as long as they last.
    pub fn speaks_for_the_node(&self) -> bool {
        self.is_lasting() && !self.deprecated && (self.primary || self.address.is_ipv4())
    }
}

/// One way that a default route leads: a route with several next hops is several ways.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DefaultRoute {
    /// Of which family.
    pub family: Family,
    /// In another table than the main one, which rules of routing send packets to.
    pub by_rule: bool,
    /// Its metric: the lowest one counts.
    pub metric: u32,
    /// Index of the interface it leads out of.
    pub interface: u32,
    /// The source address it prefers.
    pub source: Option<IpAddr>,
}

/// The network of this namespace at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Network {
    /// Interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses, in the kernel's order: the first primary one of an interface is its own.
    pub addresses: Vec<Address>,
    /// Default routes of all tables, of the main one first, best first within a family.
    pub default_routes: Vec<DefaultRoute>,
    /// Indices of the interfaces that some route leads over, to a gateway: to other nodes, their pods, or further.
    pub gateways: BTreeSet<u32>,
    /// Routes of type `local`, of whatever table, sorted: what the kernel takes for this node, addresses of interfaces among it.
    pub local: Vec<IpNet>,
    /// Addresses of everybody's on networks of this node (routes of type `broadcast`), sorted.
    pub broadcasts: BTreeSet<IpAddr>,
    /// There are rules of routing (`ip rule`) by marks, ports, protocols or classes of traffic.
    pub routes_by_more: bool,
}

impl Network {
    /// The address of `family` that an interface speaks from, when it has a global one: of IPv4 addresses the first,
    /// of IPv6 addresses, which the kernel lists in no lasting order, the lowest.
    pub fn primary_address(&self, interface: u32, family: Family) -> Option<IpAddr> {
        let own = || {
            let fits = move |a: &&Address| {
                a.interface == interface && Family::of(a.address) == family && a.speaks_for_the_node()
            };
            self.addresses.iter().filter(fits)
        };
        match family {
            Family::V4 => own().find(|a| a.primary).or_else(|| own().next()).map(|a| a.address),
            Family::V6 => own().map(|a| a.address).min(),
        }
    }

    /// The best default route of `family` in the main table.
    pub fn default_route(&self, family: Family) -> Option<&DefaultRoute> {
        self.default_routes.iter().find(|route| route.family == family && !route.by_rule)
    }

    /// Whether some default route leads over an interface, in whatever table.
    pub fn has_default_route(&self, interface: u32) -> bool {
        self.default_routes.iter().any(|route| route.interface == interface)
    }

    /// Addresses that some route says are local, other than loopback and link-local ones.
    pub fn local_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let single = |network: &&IpNet| network.prefix_len() == network.max_prefix_len();
        self.elsewhere().filter(single).map(IpNet::addr)
    }

    /// Networks that some route says are local as a whole, other than loopback and link-local ones.
    pub fn local_networks(&self) -> impl Iterator<Item = IpNet> {
        self.elsewhere().filter(|network| network.prefix_len() < network.max_prefix_len()).copied()
    }

    /// The local routes that other machines may aim at.
    fn elsewhere(&self) -> impl Iterator<Item = &IpNet> {
        self.local.iter().filter(|network| match network.network() {
            IpAddr::V4(address) => !address.is_loopback(),
            IpAddr::V6(address) => {
                !address.is_loopback() && !address.is_unicast_link_local() && !address.is_multicast()
            }
        })
    }

    /// Takes in a local route.
    pub fn add_local(&mut self, network: IpNet) {
        if let Err(at) = self.local.binary_search(&network) {
            self.local.insert(at, network);
        }
    }

    /// Indices of the interfaces that hold one of `addresses`.
    pub fn holders(&self, addresses: &[IpAddr]) -> BTreeSet<u32> {
        self.addresses.iter().filter(|a| addresses.contains(&a.address)).map(|a| a.interface).collect()
    }
}
