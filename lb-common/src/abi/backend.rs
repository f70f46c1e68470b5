//! Backends: the endpoints of Service ports.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ipv6, Port};

/// Number of one endpoint of one Service port, `0..capacity::BACKENDS`.
pub type BackendId = u32;

/// The value of the backend array, 32 bytes.
///
/// An id belongs to one endpoint of one Service port, so that a pod which leaves one Service and stays
/// in another is gone for the first. Ids are shared by both families.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Backend {
    /// The pod's address; IPv4 as an IPv4-mapped address.
    pub address: Ipv6,
    /// The pod's port.
    pub port: Port,
    /// Bits [`Backend::ACTIVE`] and so on.
    pub flags: u16,
    /// Raised each time the id gets another endpoint; a flow remembers the one it was made with.
    pub generation: u32,
    /// The Service port it belongs to.
    pub service: u32,
    /// Zero.
    pub reserved: u32,
}

impl Backend {
    /// The endpoint serves (ready, or terminating and still serving).
    pub const ACTIVE: u16 = 1;
    /// The endpoint is on this node.
    pub const LOCAL: u16 = 2;
    /// The endpoint is in its family's Cluster list, and so in that ring.
    pub const IN_CLUSTER: u16 = 4;
    /// The endpoint is in its family's Local list, and so in that ring.
    pub const IN_LOCAL: u16 = 8;

    /// Whether the endpoint serves.
    #[inline(always)]
    pub const fn is_active(&self) -> bool {
        self.flags & Self::ACTIVE != 0
    }

    /// Whether the endpoint is on this node.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.flags & Self::LOCAL != 0
    }
}

const _: () = assert!(size_of::<Backend>() == 32);
