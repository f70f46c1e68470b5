//! Where nodePorts are served.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Family;

/// Where nodePorts are served.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodePortPlaces {
    /// Addresses, sorted; the loopback ones among them for the socket hooks alone, never from the wire. (There may be thousands, which
    /// are looked through at each change.)
    addresses: Vec<IpAddr>,
    /// Networks that are the node's own as a whole: routes of type `local`.
    pub networks: BTreeSet<IpNet>,
}

impl NodePortPlaces {
    /// Addresses, sorted.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whether there is any of `family`.
    pub fn has(&self, family: Family) -> bool {
        self.addresses.iter().any(|address| Family::of(*address) == family)
            || self.networks.iter().any(|network| Family::of(network.addr()) == family)
    }
}

impl FromIterator<IpAddr> for NodePortPlaces {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut addresses: Vec<IpAddr> = addresses.into_iter().collect();
        addresses.sort();
        addresses.dedup();
        Self { addresses, networks: BTreeSet::new() }
    }
}
