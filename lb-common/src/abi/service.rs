//! Frontends and the Services behind them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ipv4, Ipv6, Port, Proto};

/// Number of one port of one Service, `0..capacity::SERVICE_IDS`.
pub type ServiceId = u32;

/// Declares the key of one family's service map.
macro_rules! frontend {
    ($(#[$meta:meta])* $name:ident, $address:ty, $size:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name {
            /// ClusterIP or external address; unspecified for a nodePort, which is served at every address of the node.
            pub address: $address,
            /// Service port or nodePort; 0 in the entries that stand for an address itself.
            pub port: Port,
            /// TCP, UDP or SCTP; 0, [`Proto::NODE`] or [`Proto::EXTERNAL`] in the entries that stand for an address itself.
            pub proto: Proto,
            pad: u8,
        }

        impl $name {
            /// The key with its padding zeroed.
            #[inline(always)]
            pub const fn new(address: $address, port: Port, proto: Proto) -> Self {
                Self { address, port, proto, pad: 0 }
            }

            /// The entry that stands for the address itself: see [`ServiceFlags::WHOLE_ADDRESS`].
            #[inline(always)]
            pub const fn whole(address: $address) -> Self {
                Self::new(address, Port::new(0), Proto(0))
            }

            /// The entry that says that an address is the node's own: see [`ServiceFlags::NODE_ADDRESS`].
            #[inline(always)]
            pub const fn node(address: $address) -> Self {
                Self::new(address, Port::new(0), Proto::NODE)
            }

            /// The entry that says that Services have an external address: see [`ServiceFlags::EXTERNAL_ADDRESS`].
            #[inline(always)]
            pub const fn external(address: $address) -> Self {
                Self::new(address, Port::new(0), Proto::EXTERNAL)
            }
        }

        const _: () = assert!(size_of::<$name>() == $size);
    };
}

frontend! {
    /// What an IPv4 client aims at: the key of the service map, eight bytes.
    Frontend4, Ipv4, 8
}

frontend! {
    /// What an IPv6 client aims at: the key of the service map, twenty bytes.
    Frontend6, Ipv6, 20
}

/// Where a Maglev ring lies in the arena. `length` 0: no endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ring {
    /// First slot.
    pub offset: u32,
    /// Number of slots: one of [`crate::maglev::LENGTHS`], or 0.
    pub length: u32,
}

/// The value of the service map, 32 bytes. Replaced as a whole: a packet sees the old or the new one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Service {
    /// Which port of which Service.
    pub id: ServiceId,
    /// See [`ServiceFlags`].
    pub flags: ServiceFlags,
    /// Ring for clients that come from outside this node.
    pub outside: Ring,
    /// Ring for the pods and processes of this node.
    pub inside: Ring,
    /// `sessionAffinity: ClientIP` time-out; 0: none.
    pub affinity_seconds: u32,
    /// Zero.
    pub reserved: u32,
}

/// Bits of [`Service::flags`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ServiceFlags(pub u32);

impl ServiceFlags {
    /// nodePort, external address or load-balancer address; not set for a ClusterIP.
    pub const EXTERNAL: Self = Self(1);
    /// `externalTrafficPolicy: Local` on an [`ServiceFlags::EXTERNAL`] frontend: never masquerade.
    pub const LOCAL_POLICY: Self = Self(2);
    /// An empty `outside` ring means drop (some endpoint lives elsewhere), not refuse.
    pub const DROP_OUTSIDE: Self = Self(4);
    /// An empty `inside` ring means drop, not refuse.
    pub const DROP_INSIDE: Self = Self(8);
    /// The `outside` ring is made of the Local list: affinity holds while [`super::Backend::IN_LOCAL`]
    /// does, else while [`super::Backend::IN_CLUSTER`] does.
    pub const OUTSIDE_IS_LOCAL: Self = Self(16);
    /// The same for the `inside` ring.
    pub const INSIDE_IS_LOCAL: Self = Self(32);
    /// Only sources found in the source-range map may come (`loadBalancerSourceRanges`).
    pub const CHECK_SOURCES: Self = Self(64);
    /// Not a frontend but the mark of an address whose ports are all ours ([`Frontend4::whole`]): a
    /// ClusterIP, where a port that no Service has is refused.
    pub const WHOLE_ADDRESS: Self = Self(128);
    /// Masquerade every flow to this [`ServiceFlags::EXTERNAL`] frontend, those to a backend of this node too.
    pub const MASQUERADE: Self = Self(256);
    /// Not a frontend but an address of this node ([`Frontend4::node`]).
    pub const NODE_ADDRESS: Self = Self(512);
    /// NodePorts are served at this [`ServiceFlags::NODE_ADDRESS`]. (At a loopback address the socket hooks alone get to see them.)
    pub const NODE_PORTS: Self = Self(1024);
    /// A [`ServiceFlags::NODE_ADDRESS`] that is everybody's: the broadcast address of a network of this node.
    pub const BROADCAST: Self = Self(4096);
    /// Not a frontend but an external address that Services have ports of ([`Frontend4::external`]). Others may have others.
    pub const EXTERNAL_ADDRESS: Self = Self(2048);

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

const _: () = assert!(size_of::<Service>() == 32);
