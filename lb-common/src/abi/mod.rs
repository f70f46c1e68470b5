//! The whole contract between kernel and userspace: map names, key and value types, counters.
//!
//! Everything here is plain data without hidden padding. A change of any layout raises
//! [`ABI_VERSION`], which is part of the pin path: two agents with different versions never share a map.

mod addresses;
mod backend;
mod client;
mod config;
mod flow;
mod name;
mod reason;
mod service;
mod socket;
mod station;

pub use addresses::{ADDRESS_WORDS, NODE_PORT_WORDS, address_bit, endpoint_bit, port_bit};
pub use backend::{Backend, BackendId};
pub use client::{Affinity, AffinityKey, Fragment, FragmentKey, SourceRange};
pub use config::{Clock, Config, Config4, Config6, ConfigFlags, Interface, Role, SourceToward, XdpForward};
pub use flow::{
    Flow, FlowReference, FlowSet, FlowState, FlowWord, Moment, NAT_LINE, NatLine, Progress, WAYS,
};
pub use name::{BackendName, ServiceName, Text};
pub use reason::{HOOKS, Hook, REASONS, Reason, Traffic, counter_index};
pub use service::{Frontend4, Frontend6, Ring, Service, ServiceFlags, ServiceId};
pub use socket::{SocketFrontend, SocketPeer, TcpPeer};
pub use station::{STATION_SLOTS, STATION_TRIES, Station};

use crate::addr::{Ipv4, Ipv6};

/// Version of every layout in this module.
pub const ABI_VERSION: u32 = 6;

/// One flow of an IPv4 client.
pub type Flow4 = Flow<Ipv4>;
/// One set of the IPv4 flow table.
pub type FlowSet4 = FlowSet<Ipv4>;
/// One flow of an IPv6 client.
pub type Flow6 = Flow<Ipv6>;
/// One set of the IPv6 flow table.
pub type FlowSet6 = FlowSet<Ipv6>;

/// Ring slots to an entry of the arena: an array entry takes at least eight bytes, so that one slot to
/// an entry would waste half of it.
pub const RING_BLOCK: u32 = 16;

/// Map names, as they stand in the object file and in the pin directory.
pub mod maps {
    /// HASH [`super::Frontend4`] → [`super::Service`].
    pub const SERVICES4: &str = "SERVICES4";
    /// HASH [`super::Frontend6`] → [`super::Service`].
    pub const SERVICES6: &str = "SERVICES6";
    /// ARRAY [`super::BackendId`] → [`super::Backend`].
    pub const BACKENDS: &str = "BACKENDS";
    /// ARRAY [`super::BackendId`] → u64, flows sent there since the id was given out.
    pub const BACKEND_FLOWS: &str = "BACKEND_FLOWS";
    /// ARRAY (mmapable) ring slot / [`super::RING_BLOCK`] → that many [`super::BackendId`]s.
    pub const RINGS: &str = "RINGS";
    /// ARRAY (mmapable) set → [`super::FlowSet4`].
    pub const FLOWS4: &str = "FLOWS4";
    /// ARRAY (mmapable) set → [`super::FlowSet6`].
    pub const FLOWS6: &str = "FLOWS6";
    /// ARRAY (mmapable) of u64, see [`super::address_bit`].
    pub const ADDRESSES: &str = "ADDRESSES";
    /// ARRAY (mmapable) of u64, see [`super::address_bit`].
    pub const CLIENTS: &str = "CLIENTS";
    /// ARRAY (mmapable) of u64, see [`super::endpoint_bit`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// ARRAY (mmapable) of u64, see [`super::port_bit`].
    pub const NODE_PORTS: &str = "NODE_PORTS";
    /// ARRAY hash of (backend, NAT port / [`super::NAT_LINE`]) → [`super::NatLine`].
    pub const NAT4: &str = "NAT4";
    /// ARRAY hash of (backend, NAT port / [`super::NAT_LINE`]) → [`super::NatLine`].
    pub const NAT6: &str = "NAT6";
    /// LRU_HASH [`super::AffinityKey`] → [`super::Affinity`].
    pub const AFFINITY: &str = "AFFINITY";
    /// LPM_TRIE [`super::SourceRange`] → u32, which is 1.
    pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
    /// LRU_HASH [`super::FragmentKey`] → [`super::Fragment`].
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// LRU_HASH [`super::SocketPeer`] → [`super::SocketFrontend`].
    pub const SOCKET_PEERS: &str = "SOCKET_PEERS";
    /// ARRAY [`super::TcpPeer::place`] → [`super::TcpPeer`].
    pub const TCP_PEERS: &str = "TCP_PEERS";
    /// HASH interface index → [`super::Interface`].
    pub const INTERFACES: &str = "INTERFACES";
    /// LPM_TRIE [`super::SourceToward`] → [`crate::addr::Ipv6`], the source; IPv4 as an IPv4-mapped address.
    pub const SOURCES: &str = "SOURCES";
    /// ARRAY [`super::Station::slot`] → u64, a [`super::Station`].
    pub const STATIONS: &str = "STATIONS";
    /// ARRAY with the one [`super::Config`].
    pub const CONFIG: &str = "CONFIG";
    /// PROG_ARRAY [`super::tail`] index → the XDP program that goes on with the packet.
    pub const TAILS_XDP: &str = "TAILS_XDP";
    /// PROG_ARRAY [`super::tail`] index → the tc ingress program that goes on with the packet.
    pub const TAILS_INGRESS: &str = "TAILS_INGRESS";
    /// PROG_ARRAY [`super::tail`] index → the tc egress program that goes on with the packet.
    pub const TAILS_EGRESS: &str = "TAILS_EGRESS";
    /// PROG_ARRAY [`super::tail`] family → the tc ingress program that asks netfilter; empty where there is none.
    pub const TAILS_CONNTRACK: &str = "TAILS_CONNTRACK";
    /// PERCPU_ARRAY [`super::counter_index`] → u64.
    pub const COUNTERS: &str = "COUNTERS";
    /// PERCPU_ARRAY [`super::ServiceId`] → [`super::Traffic`].
    pub const SERVICE_TRAFFIC: &str = "SERVICE_TRAFFIC";
    /// HASH [`super::ServiceId`] → [`super::ServiceName`]; read by people, never by programs.
    pub const SERVICE_NAMES: &str = "SERVICE_NAMES";
    /// HASH [`super::BackendId`] → [`super::BackendName`]; read by people, never by programs.
    pub const BACKEND_NAMES: &str = "BACKEND_NAMES";
    /// What lies on the desks of the IPv4 programs; not pinned.
    pub const DESK4: &str = "DESK4";
    /// The same for IPv6.
    pub const DESK6: &str = "DESK6";
}

/// Programs that are never attached: others hand packets on to them, so that each family has the stack
/// and the verifier's patience for itself. There is an array for each place, since the kernel lets a
/// program call only those loaded for the same one.
pub mod tail {
    /// IPv6 on an uplink, in each of the three arrays.
    pub const UPLINK_IPV6: u32 = 0;
    /// IPv6 on a pod's interface, in the two arrays of tc.
    pub const POD_IPV6: u32 = 1;
    /// Entries of an array.
    pub const COUNT: u32 = 2;

    /// IPv4 in `TAILS_CONNTRACK`.
    pub const CONNTRACK_IPV4: u32 = 0;
    /// IPv6 in `TAILS_CONNTRACK`.
    pub const CONNTRACK_IPV6: u32 = 1;

    /// The programs that ask netfilter, which are loaded only where they are wanted: index in `TAILS_CONNTRACK`, program.
    pub const CONNTRACK: [(u32, &str); 2] = [(CONNTRACK_IPV4, "conntrack4"), (CONNTRACK_IPV6, "conntrack6")];

    /// Which program stands where: array, index, program.
    pub const PROGRAMS: [(&str, u32, &str); 5] = [
        (super::maps::TAILS_XDP, UPLINK_IPV6, "uplink_xdp6"),
        (super::maps::TAILS_INGRESS, UPLINK_IPV6, "uplink_ingress6"),
        (super::maps::TAILS_INGRESS, POD_IPV6, "pod_ingress6"),
        (super::maps::TAILS_EGRESS, UPLINK_IPV6, "uplink_egress6"),
        (super::maps::TAILS_EGRESS, POD_IPV6, "pod_egress6"),
    ];
}

/// Placeholders in the programs of [`tail::CONNTRACK`], which the agent replaces before it loads them: what they stand for differs from
/// kernel to kernel.
pub mod kfunc {
    /// Of a call: `bpf_skb_ct_lookup`.
    pub const LOOK_UP: i32 = 0x7f53_4801;
    /// Of a call: `bpf_ct_release`.
    pub const RELEASE: i32 = 0x7f53_4802;
    /// Of a call: `bpf_ct_change_timeout`.
    pub const CHANGE_TIMEOUT: i32 = 0x7f53_4803;
    /// Of a call: `bpf_skb_ct_alloc`.
    pub const ALLOCATE: i32 = 0x7f53_4804;
    /// Of a call: `bpf_ct_set_nat_info`.
    pub const SET_NAT: i32 = 0x7f53_4805;
    /// Of a call: `bpf_ct_insert_entry`.
    pub const INSERT: i32 = 0x7f53_4806;
    /// The functions that they stand for.
    pub const FUNCTIONS: [(i32, &str); 6] = [
        (LOOK_UP, "bpf_skb_ct_lookup"),
        (RELEASE, "bpf_ct_release"),
        (CHANGE_TIMEOUT, "bpf_ct_change_timeout"),
        (ALLOCATE, "bpf_skb_ct_alloc"),
        (SET_NAT, "bpf_ct_set_nat_info"),
        (INSERT, "bpf_ct_insert_entry"),
    ];
    /// Of a load: where the state of a TCP connection stands in `struct nf_conn`.
    pub const TCP_STATE: i16 = 0x7f48;
}

/// Sizes the object file carries; the agent may raise or lower them at load time.
pub mod capacity {
    /// Frontends of one family: every (address, port, protocol) of every Service, and the node's addresses.
    pub const SERVICES: u32 = 131_072;
    /// Service ids: one for each port of each Service.
    pub const SERVICE_IDS: u32 = 65_536;
    /// Backends: one for each endpoint of each Service port.
    pub const BACKENDS: u32 = 262_144;
    /// Ring slots, four bytes each.
    pub const RING_SLOTS: u32 = RING_BLOCKS * super::RING_BLOCK;
    /// Entries of the ring arena: 88 MiB, which 10 000 Services of 25 endpoints fit into.
    pub const RING_BLOCKS: u32 = 1408 * 1024;
    /// Sets of the IPv4 flow table, 576 bytes and eight flows each; a power of two.
    pub const FLOW_SETS: u32 = 32_768;
    /// Sets of the IPv6 flow table, 960 bytes and eight flows each; a power of two.
    pub const FLOW_SETS6: u32 = 16_384;
    /// Lines of the NAT index: one for each flow set.
    pub const NAT_LINES: u32 = FLOW_SETS;
    /// Lines of the IPv6 NAT index.
    pub const NAT_LINES6: u32 = FLOW_SETS6;
    /// Clients with an affinity.
    pub const AFFINITIES: u32 = 65_536;
    /// Ranges of permitted sources.
    pub const SOURCE_RANGES: u32 = 65_536;
    /// Datagrams in fragments.
    pub const FRAGMENTS: u32 = 8_192;
    /// UDP and SCTP sockets with a translated peer.
    pub const SOCKET_PEERS: u32 = 65_536;
    /// TCP sockets with a translated peer; a power of two.
    pub const TCP_PEERS: u32 = 65_536;
    /// Interfaces with a program of ours.
    pub const INTERFACES: u32 = 4_096;
    /// Networks that are reached from one of several addresses of an interface.
    pub const SOURCES: u32 = 4_096;
    /// Desks of a CPU whose programs can interrupt each other (PREEMPT_RT), and one that nobody uses there: more than tasks that
    /// are interrupted within the microsecond that a program takes.
    pub const DESKS: u32 = 33;
}
