//! Whether what this node itself sends to ClusterIPs leaves it through a program of ours, so that sockets may be left to that. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::{Config, ConfigFlags, Role};

use super::classify::Classified;

/// How the kernel routes what this node sends to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exit {
    /// Index of the interface that it leaves by.
    pub interface: u32,
    /// The next station; none: the address itself would have to answer, which a ClusterIP never does.
    pub gateway: Option<Gateway>,
}

/// A station on the way to others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Gateway {
    /// Index of the interface that it is behind.
    pub interface: u32,
    /// Its address there.
    pub address: IpAddr,
}

/// The first and the last address of the range that holds every ClusterIP, of IPv4 and of IPv6; none: no ClusterIP is known.
pub fn ranges(config: &Config) -> [Option<[IpAddr; 2]>; 2] {
    let v4 = (Ipv4Addr::from(config.ipv4.service_network), Ipv4Addr::from(config.ipv4.service_mask));
    let v6 = (Ipv6Addr::from(config.ipv6.service_network), Ipv6Addr::from(config.ipv6.service_mask));
    let v4 = (!v4.0.is_unspecified()).then(|| [v4.0, v4.0 | !v4.1].map(IpAddr::V4));
    let v6 = (!v6.0.is_unspecified()).then(|| [v6.0, v6.0 | !v6.1].map(IpAddr::V6));
    [v4, v6]
}

/// Whether all that goes there leaves by an interface with programs of ours. `is_served`: whether they hang there. `answers`: whether a
/// gateway does; packets for one that is silent wait for its Ethernet address before they meet any program.
pub fn are_met(
    exits: &[Option<Exit>],
    wanted: &BTreeMap<u32, Classified>,
    is_served: impl Fn(&str) -> bool,
    answers: impl Fn(Gateway) -> bool,
) -> bool {
    exits.iter().all(|exit| {
        exit.is_some_and(|exit| {
            let uplink = wanted.get(&exit.interface).filter(|it| it.role == Role::Uplink);
            exit.gateway.is_some_and(&answers) && uplink.is_some_and(|it| is_served(&it.link.name))
        })
    })
}

/// What of it is known, for each family that has ClusterIPs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodePackets {
    /// IPv4: none without ClusterIPs.
    pub v4: Option<bool>,
    /// IPv6.
    pub v6: Option<bool>,
}

impl NodePackets {
    /// What the programs are told.
    pub fn flags(self) -> ConfigFlags {
        let flag = |met: Option<bool>, flag| if met == Some(true) { flag } else { ConfigFlags(0) };
        flag(self.v4, ConfigFlags::NODE_PACKETS4).with(flag(self.v6, ConfigFlags::NODE_PACKETS6))
    }

    /// What both say.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let both = |a: Option<bool>, b: Option<bool>| a.map(|a| a && b == Some(true));
        Self { v4: both(self.v4, other.v4), v6: both(self.v6, other.v6) }
    }

    /// Whether every ClusterIP's are; none: there are no ClusterIPs.
    pub fn all(self) -> Option<bool> {
        match (self.v4, self.v6) {
            (None, None) => None,
            (v4, v6) => Some(v4.unwrap_or(true) && v6.unwrap_or(true)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::Link;
    use super::super::masquerade::Masquerade;
    use super::*;

    fn interface(index: u32, name: &str, role: Role) -> (u32, Classified) {
        let link = Link { index, name: name.to_owned(), ..Link::default() };
        let (masquerade, sources, stations) = (Masquerade::default(), Vec::new(), BTreeSet::new());
        (index, Classified { link, role, masquerade, sources, stations })
    }

    #[test]
    fn packets_are_met_where_a_gateway_lies_behind_an_uplink_that_is_served() {
        let wanted = BTreeMap::from([interface(2, "eth0", Role::Uplink), interface(3, "veth", Role::Pod)]);
        let gateway = |interface| Gateway { interface, address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254)) };
        let over = |interface| Some(Exit { interface, gateway: Some(gateway(interface)) });
        let direct = |interface| Some(Exit { interface, gateway: None });
        let yes = |_: &str| true;
        let answers = |_| true;
        assert!(are_met(&[over(2), over(2)], &wanted, yes, answers));
        assert!(!are_met(&[over(2), direct(2)], &wanted, yes, answers), "nobody answers for a ClusterIP");
        assert!(!are_met(&[over(2), over(4)], &wanted, yes, answers), "half of them elsewhere");
        assert!(!are_met(&[over(3)], &wanted, yes, answers), "into a pod");
        assert!(!are_met(&[None], &wanted, yes, answers), "no route");
        assert!(!are_met(&[over(2)], &wanted, |name| name != "eth0", answers), "no program hangs there");
        assert!(!are_met(&[over(2)], &wanted, yes, |asked| asked != gateway(2)), "the gateway is silent");
    }

    #[test]
    fn a_family_without_clusterips_says_nothing() {
        let mut config = Config::default();
        assert_eq!(ranges(&config), [None, None]);
        config.ipv4.service_network = Ipv4Addr::new(10, 96, 0, 0).into();
        config.ipv4.service_mask = Ipv4Addr::new(255, 255, 0, 0).into();
        let ends = [Ipv4Addr::new(10, 96, 0, 0), Ipv4Addr::new(10, 96, 255, 255)].map(IpAddr::V4);
        assert_eq!(ranges(&config), [Some(ends), None]);
        let known = NodePackets { v4: Some(true), v6: None };
        assert_eq!((known.flags(), known.all()), (ConfigFlags::NODE_PACKETS4, Some(true)));
        assert_eq!(NodePackets { v6: Some(false), ..known }.all(), Some(false));
        assert_eq!(NodePackets::default().all(), None);
        assert_eq!(known.and(NodePackets::default()).v4, Some(false));
    }
}
