//! The whole contract between kernel and userspace: map names, key and value types, counters.
//!
//! Everything here is plain data without hidden padding. A change of any layout raises
//! [`ABI_VERSION`], which is part of the pin path: two agents with different versions never share a map.

mod backend;
mod config;
mod flow;
mod name;
mod reason;
mod service;
mod socket;

pub use backend::{Backend4, BackendId};
pub use config::{Config, ConfigFlags, Interface, Role};
pub use flow::{Flow, FlowSet, FlowState, FlowWord, Moment, WAYS};
pub use name::{BackendName, ServiceName, Text};
pub use reason::{HOOKS, Hook, REASONS, Reason, Traffic, counter_index};
pub use service::{Frontend4, Ring, Service, ServiceFlags, ServiceId};
pub use socket::SocketPeer4;

use crate::addr::Ipv4;

/// Version of every layout in this module.
pub const ABI_VERSION: u32 = 1;

/// One flow of an IPv4 client.
pub type Flow4 = Flow<Ipv4>;
/// One set of the IPv4 flow table.
pub type FlowSet4 = FlowSet<Ipv4>;

/// Ring slots to an entry of the arena: an array entry takes at least eight bytes, so that one slot to
/// an entry would waste half of it.
pub const RING_BLOCK: u32 = 16;

/// Map names, as they stand in the object file and in the pin directory.
pub mod maps {
    /// HASH [`super::Frontend4`] → [`super::Service`].
    pub const SERVICES4: &str = "SERVICES4";
    /// ARRAY [`super::BackendId`] → [`super::Backend4`].
    pub const BACKENDS4: &str = "BACKENDS4";
    /// ARRAY (mmapable) ring slot / [`super::RING_BLOCK`] → that many [`super::BackendId`]s.
    pub const RINGS: &str = "RINGS";
    /// ARRAY (mmapable) set → [`super::FlowSet4`].
    pub const FLOWS4: &str = "FLOWS4";
    /// ARRAY hash of (backend, NAT port) → flow index + 1.
    pub const NAT4: &str = "NAT4";
    /// LRU_HASH [`super::SocketPeer4`] → [`super::Frontend4`].
    pub const SOCKET_PEERS4: &str = "SOCKET_PEERS4";
    /// HASH interface index → [`super::Interface`].
    pub const INTERFACES: &str = "INTERFACES";
    /// ARRAY with the one [`super::Config`].
    pub const CONFIG: &str = "CONFIG";
    /// PERCPU_ARRAY [`super::counter_index`] → u64.
    pub const COUNTERS: &str = "COUNTERS";
    /// PERCPU_ARRAY [`super::ServiceId`] → [`super::Traffic`].
    pub const SERVICE_TRAFFIC: &str = "SERVICE_TRAFFIC";
    /// HASH [`super::ServiceId`] → [`super::ServiceName`]; read by people, never by programs.
    pub const SERVICE_NAMES: &str = "SERVICE_NAMES";
    /// HASH [`super::BackendId`] → [`super::BackendName`]; read by people, never by programs.
    pub const BACKEND_NAMES: &str = "BACKEND_NAMES";
}

/// Sizes the object file carries; the agent may raise or lower them at load time.
pub mod capacity {
    /// Frontends: every (address, port, protocol) of every Service.
    pub const SERVICES: u32 = 131_072;
    /// Service ids: one for each port of each Service.
    pub const SERVICE_IDS: u32 = 65_536;
    /// Backends: one for each endpoint of each Service port.
    pub const BACKENDS: u32 = 262_144;
    /// Ring slots, four bytes each.
    pub const RING_SLOTS: u32 = RING_BLOCKS * super::RING_BLOCK;
    /// Entries of the ring arena.
    pub const RING_BLOCKS: u32 = 1024 * 1024;
    /// Sets of the flow table, 576 bytes and eight flows each; a power of two.
    pub const FLOW_SETS: u32 = 32_768;
    /// Slots of the NAT port index; a power of two.
    pub const NAT_SLOTS: u32 = 524_288;
    /// Sockets with a translated peer.
    pub const SOCKET_PEERS: u32 = 65_536;
    /// Interfaces with a program of ours.
    pub const INTERFACES: u32 = 4_096;
}
