//! The addresses of a lab, in both families.
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// `IPv4` or `IPv6`, as Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    /// The address that is any of this machine's.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// 127.0.0.1 or ::1.
    pub fn loopback(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// The prefix length of a single address.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An address range: base address and prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<A> {
    /// First address of the range.
    pub base: A,
    /// Prefix length in bits.
    pub prefix: u8,
}

impl<A: fmt::Display> fmt::Display for Range<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl Range<Ipv4Addr> {
    /// The address `index` above the base.
    pub fn host(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + index)
    }

    /// The index of an address above the base.
    pub fn index(&self, address: Ipv4Addr) -> u32 {
        u32::from(address).wrapping_sub(u32::from(self.base))
    }
}

impl Range<Ipv6Addr> {
    /// The address whose end looks like `index` to people: index 53 of `fd00::/64` is `fd00::53`.
    pub fn host(&self, index: u32) -> Ipv6Addr {
        let (mut rest, mut digits, mut shift) = (index, 0_u128, 0);
        while rest > 0 {
            digits |= u128::from(rest % 10) << shift;
            rest /= 10;
            shift += 4;
        }
        Ipv6Addr::from(u128::from(self.base) + digits)
    }
}

impl<A: Copy + Into<IpAddr>> Range<A> {
    fn erased(&self) -> Range<IpAddr> {
        Range { base: self.base.into(), prefix: self.prefix }
    }
}

impl Range<IpAddr> {
    /// The address number `index`, in the way of its family.
    pub fn host(&self, index: u32) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => Range { base, prefix: self.prefix }.host(index).into(),
            IpAddr::V6(base) => Range { base, prefix: self.prefix }.host(index).into(),
        }
    }

    /// [`Range::host`] with the prefix length, as `ip addr` takes it.
    pub fn host_with_prefix(&self, index: u32) -> String {
        format!("{}/{}", self.host(index), self.prefix)
    }
}

/// One node of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeId {
    /// The first node; the client's routes to cluster and external addresses lead here.
    A,
    /// The second node.
    B,
}

impl NodeId {
    /// Both nodes.
    pub const ALL: [NodeId; 2] = [NodeId::A, NodeId::B];

    /// The node's name in Kubernetes and in the lab: `node-a` or `node-b`.
    pub fn name(self) -> &'static str {
        match self {
            NodeId::A => "node-a",
            NodeId::B => "node-b",
        }
    }

    fn index(self) -> usize {
        match self {
            NodeId::A => 0,
            NodeId::B => 1,
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The ranges of one address family.
#[derive(Clone, Copy, Debug)]
pub struct Ranges<A> {
    /// The segment that joins the client and the nodes.
    pub wire: Range<A>,
    /// Pods of the first and the second node.
    pub pods: [Range<A>; 2],
    /// All pods.
    pub cluster: Range<A>,
    /// ClusterIPs.
    pub services: Range<A>,
    /// External IPs and load balancer addresses.
    pub external: Range<A>,
    /// Networks behind the client: the near and the far side of a narrow link.
    pub beyond: [Range<A>; 2],
}

impl<A: Copy> Ranges<A> {
    /// The pods of a node.
    pub fn pods(&self, node: NodeId) -> Range<A> {
        self.pods[node.index()]
    }
}

impl<A: Copy + Into<IpAddr>> Ranges<A> {
    fn erased(&self) -> Ranges<IpAddr> {
        Ranges {
            wire: self.wire.erased(),
            pods: self.pods.map(|range| range.erased()),
            cluster: self.cluster.erased(),
            services: self.services.erased(),
            external: self.external.erased(),
            beyond: self.beyond.map(|range| range.erased()),
        }
    }
}

/// Number of the client in the wire's range.
const CLIENT: u32 = 1;
/// Number of the distant client in its network.
pub(super) const DISTANT: u32 = 7;
/// Number of the first node in the wire's range.
const FIRST_NODE: u32 = 11;

/// The addresses of a lab, the same in every lab: namespaces keep them apart.
#[derive(Clone, Copy, Debug)]
pub struct AddressPlan {
    /// IPv4 ranges.
    pub v4: Ranges<Ipv4Addr>,
    /// IPv6 ranges.
    pub v6: Ranges<Ipv6Addr>,
}

impl Default for AddressPlan {
    fn default() -> Self {
        let v4 = |a, b, c, prefix| Range { base: Ipv4Addr::new(a, b, c, 0), prefix };
        let v6 = |a, b, c, prefix| Range { base: Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix };
        AddressPlan {
            v4: Ranges {
                wire: v4(192, 168, 240, 24),
                pods: [v4(10, 244, 1, 24), v4(10, 244, 2, 24)],
                cluster: v4(10, 244, 0, 16),
                services: v4(10, 96, 0, 16),
                external: v4(203, 0, 113, 24),
                beyond: [v4(192, 168, 241, 24), v4(192, 168, 242, 24)],
            },
            v6: Ranges {
                wire: v6(0xfd00, 0xf0, 0, 64),
                pods: [v6(0xfd00, 0x244, 1, 64), v6(0xfd00, 0x244, 2, 64)],
                cluster: v6(0xfd00, 0x244, 0, 32),
                services: v6(0xfd00, 0x96, 0, 112),
                external: v6(0x2001, 0xdb8, 0xe, 64),
                beyond: [v6(0xfd00, 0xf1, 0, 64), v6(0xfd00, 0xf2, 0, 64)],
            },
        }
    }
}

impl AddressPlan {
    /// The ranges of a family.
    pub fn of(&self, family: Family) -> Ranges<IpAddr> {
        match family {
            Family::V4 => self.v4.erased(),
            Family::V6 => self.v6.erased(),
        }
    }

    /// The outside client's IPv4 address on the wire, which is also the nodes' default gateway.
    pub fn client(&self) -> Ipv4Addr {
        self.v4.wire.host(CLIENT)
    }

    /// The outside client's address in a family.
    pub fn client_ip(&self, family: Family) -> IpAddr {
        self.of(family).wire.host(CLIENT)
    }

    /// The address of the distant client, if the lab has one, in a family.
    pub fn distant_ip(&self, family: Family) -> IpAddr {
        self.of(family).beyond[1].host(DISTANT)
    }

    /// A node's IPv4 address on the wire.
    pub fn node(&self, node: NodeId) -> Ipv4Addr {
        self.v4.wire.host(FIRST_NODE + node.index() as u32)
    }

    /// A node's address in a family.
    pub fn node_ip(&self, node: NodeId, family: Family) -> IpAddr {
        self.of(family).wire.host(FIRST_NODE + node.index() as u32)
    }

    /// The IPv4 pod range of a node.
    pub fn pods(&self, node: NodeId) -> Range<Ipv4Addr> {
        self.v4.pods(node)
    }

    /// The pod range of a node in a family.
    pub fn pods_of(&self, node: NodeId, family: Family) -> Range<IpAddr> {
        self.of(family).pods(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_look_alike() {
        let plan = AddressPlan::default();
        assert_eq!(plan.node_ip(NodeId::B, Family::V4).to_string(), "192.168.240.12");
        assert_eq!(plan.node_ip(NodeId::B, Family::V6).to_string(), "fd00:f0::12");
        assert_eq!(plan.pods_of(NodeId::A, Family::V6).host_with_prefix(153), "fd00:244:1::153/64");
    }
}
