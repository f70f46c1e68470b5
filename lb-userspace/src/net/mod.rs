//! The node's links and addresses: what is there, what each interface is to us.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

pub mod classify;
pub mod qdisc;
pub mod watch;

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
    /// How an XDP program hangs here, and its id.
    pub xdp: Option<(XdpAttached, u32)>,
}

/// One IPv4 address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Address {
    /// Index of the interface.
    pub interface: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// Reachable from other machines (scope global or site).
    pub global: bool,
    /// Not a secondary address of its network.
    pub primary: bool,
}

/// One IPv4 default route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DefaultRoute {
    /// Its metric: the lowest one counts.
    pub metric: u32,
    /// Index of the interface it leads out of.
    pub interface: u32,
    /// The source address it prefers.
    pub source: Option<Ipv4Addr>,
}

/// The network of this namespace at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Network {
    /// Interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// IPv4 addresses, in the kernel's order: the first primary one of an interface is its own.
    pub addresses: Vec<Address>,
    /// IPv4 default routes, best first.
    pub default_routes: Vec<DefaultRoute>,
}

impl Network {
    /// The address an interface speaks from, when it has a global one.
    pub fn primary_address(&self, interface: u32) -> Option<Ipv4Addr> {
        let own = || self.addresses.iter().filter(|a| a.interface == interface && a.global);
        own().find(|a| a.primary).or_else(|| own().next()).map(|a| a.address)
    }

    /// Indices of the interfaces that hold one of `addresses`.
    pub fn holders(&self, addresses: &[Ipv4Addr]) -> BTreeSet<u32> {
        self.addresses.iter().filter(|a| addresses.contains(&a.address)).map(|a| a.interface).collect()
    }
}
