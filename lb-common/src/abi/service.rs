//! Frontends and the Services behind them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ipv4, Port, Proto};

/// Number of one port of one Service, `0..capacity::SERVICE_IDS`.
pub type ServiceId = u32;

/// What a client aims at: the key of the service map, eight bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Frontend4 {
    /// ClusterIP, node address, external address, or `127.0.0.1` for the socket hooks alone.
    pub address: Ipv4,
    /// Service port or nodePort.
    pub port: Port,
    /// TCP or UDP.
    pub proto: Proto,
    pad: u8,
}

impl Frontend4 {
    /// The key with its padding zeroed.
    #[inline(always)]
    pub const fn new(address: Ipv4, port: Port, proto: Proto) -> Self {
        Self { address, port, proto, pad: 0 }
    }
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

const _: () = assert!(size_of::<Frontend4>() == 8);
const _: () = assert!(size_of::<Service>() == 32);
