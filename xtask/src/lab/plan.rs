//! The addresses of a lab. IPv6 is planned here; only IPv4 is configured so far.
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

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

    /// The address `index` above the base with the prefix length, as `ip addr` takes it.
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
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The ranges of one address family.
#[derive(Clone, Copy, Debug)]
pub struct Family<A> {
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
}

/// The addresses of a lab, the same in every lab: namespaces keep them apart.
#[derive(Clone, Copy, Debug)]
pub struct AddressPlan {
    /// IPv4 ranges.
    pub v4: Family<Ipv4Addr>,
    /// IPv6 ranges, reserved.
    pub v6: Family<Ipv6Addr>,
}

impl Default for AddressPlan {
    fn default() -> Self {
        AddressPlan {
            v4: Family {
                wire: Range { base: Ipv4Addr::new(192, 168, 240, 0), prefix: 24 },
                pods: [
                    Range { base: Ipv4Addr::new(10, 244, 1, 0), prefix: 24 },
                    Range { base: Ipv4Addr::new(10, 244, 2, 0), prefix: 24 },
                ],
                cluster: Range { base: Ipv4Addr::new(10, 244, 0, 0), prefix: 16 },
                services: Range { base: Ipv4Addr::new(10, 96, 0, 0), prefix: 16 },
                external: Range { base: Ipv4Addr::new(203, 0, 113, 0), prefix: 24 },
            },
            v6: Family {
                wire: Range { base: Ipv6Addr::new(0xfd00, 0xf0, 0, 0, 0, 0, 0, 0), prefix: 64 },
                pods: [
                    Range { base: Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 0), prefix: 64 },
                    Range { base: Ipv6Addr::new(0xfd00, 0x244, 2, 0, 0, 0, 0, 0), prefix: 64 },
                ],
                cluster: Range { base: Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0), prefix: 32 },
                services: Range { base: Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0), prefix: 112 },
                external: Range { base: Ipv6Addr::new(0x2001, 0xdb8, 0xe, 0, 0, 0, 0, 0), prefix: 64 },
            },
        }
    }
}

impl AddressPlan {
    /// The outside client's address on the wire, which is also the nodes' default gateway.
    pub fn client(&self) -> Ipv4Addr {
        self.v4.wire.host(1)
    }

    /// A node's address on the wire.
    pub fn node(&self, node: NodeId) -> Ipv4Addr {
        match node {
            NodeId::A => self.v4.wire.host(11),
            NodeId::B => self.v4.wire.host(12),
        }
    }

    /// The pod range of a node.
    pub fn pods(&self, node: NodeId) -> Range<Ipv4Addr> {
        match node {
            NodeId::A => self.v4.pods[0],
            NodeId::B => self.v4.pods[1],
        }
    }
}
