//! Backends: the endpoints of Service ports.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ipv4, Port};

/// Number of one endpoint of one Service port, `0..capacity::BACKENDS`.
pub type BackendId = u32;

/// The value of the backend array, 24 bytes.
///
/// An id belongs to one endpoint of one Service port, so that a pod which leaves one Service and stays
/// in another is gone for the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Backend4 {
    /// The pod's address.
    pub address: Ipv4,
    /// The pod's port.
    pub port: Port,
    /// Bits [`Backend4::ACTIVE`] and [`Backend4::LOCAL`].
    pub flags: u16,
    /// Raised each time the id gets another endpoint; a flow remembers the one it was made with.
    pub generation: u32,
    /// The Service port it belongs to.
    pub service: u32,
    /// Flows sent here since the id was given out. Counted by the programs.
    pub flows: u64,
}

impl Backend4 {
    /// The endpoint serves (ready, or terminating and still serving).
    pub const ACTIVE: u16 = 1;
    /// The endpoint is on this node.
    pub const LOCAL: u16 = 2;

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

const _: () = assert!(size_of::<Backend4>() == 24);
