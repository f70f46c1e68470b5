//! What the agent tells the programs about this node.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::Ipv4;

/// The one entry of the config map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Seed of the flow hash: the same on every node of a cluster.
    pub hash_seed: u64,
    /// Network namespace the agent runs in (`SO_NETNS_COOKIE`).
    pub host_netns_cookie: u64,
    /// This node's address; the source of masqueraded flows when the interface has none.
    pub node_address4: Ipv4,
    /// Clients inside this range are not masqueraded on their way to a ClusterIP; see `cluster_mask4`.
    pub cluster_network4: Ipv4,
    /// Netmask of `cluster_network4`; 0 with network 0: no range is known, masquerade nobody.
    pub cluster_mask4: Ipv4,
    /// See [`ConfigFlags`].
    pub flags: ConfigFlags,
    /// Number of sets in the flow table less one (a power of two less one).
    pub flow_set_mask: u32,
    /// Number of slots in the NAT index less one (a power of two less one).
    pub nat_slot_mask: u32,
    /// First port for masqueraded flows, host order.
    pub nat_port_first: u16,
    /// Number of ports for masqueraded flows.
    pub nat_port_count: u16,
    /// Zero.
    pub reserved: u32,
}

impl Config {
    /// Whether `source` is in the cluster's range; `None` when none is known.
    #[inline(always)]
    pub fn in_cluster_range4(&self, source: Ipv4) -> Option<bool> {
        if !self.flags.has(ConfigFlags::CLUSTER_RANGE4) {
            return None;
        }
        Some(source.to_be32() & self.cluster_mask4.to_be32() == self.cluster_network4.to_be32())
    }
}

/// Bits of [`Config::flags`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ConfigFlags(pub u32);

impl ConfigFlags {
    /// The socket hooks serve processes in every network namespace, not the node's alone.
    pub const SOCKETS_EVERYWHERE: Self = Self(1);
    /// `cluster_network4` and `cluster_mask4` are set.
    pub const CLUSTER_RANGE4: Self = Self(2);

    /// Whether every bit of `other` is set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What an interface is to us.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Role {
    /// Leads to the outside or to other nodes: uplink or overlay device.
    Uplink = 1,
    /// Host side of a pod's veth.
    Pod = 2,
}

/// The value of the interface map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Interface {
    /// A [`Role`] as a number.
    pub role: u32,
    /// Source for flows that are masqueraded out of this interface.
    pub masquerade4: Ipv4,
    /// Bit 0: an XDP program of ours is attached, so it may forward out of here by itself.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

impl Interface {
    /// Bit of [`Interface::flags`]: XDP may transmit or redirect to this interface.
    pub const XDP: u32 = 1;
}

const _: () = assert!(size_of::<Config>() == 48);
const _: () = assert!(size_of::<Interface>() == 16);
