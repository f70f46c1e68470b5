//! A packet's way: `frame → parse → flow → service → ring → rewrite`.
//!
//! | file | decides |
//! |---|---|
//! | [`driver`] | the order of the steps, the same for both families and in every hook |
//! | [`look`] | the first step: what a packet is, and which flow it belongs to |
//! | [`parse`] | what a frame is, and whether it can concern us |
//! | [`family`] | what differs between IPv4 and IPv6 |
//! | [`ingress`] | packets that enter the node: known flow, new flow, or nobody's |
//! | [`egress`] | packets that leave towards a pod or the wire: which address to show |
//! | [`of_node`] | what this node itself sends to Services, where no socket hook has served it |
//! | [`opening`] | the first packet of a flow: which list, which backend, whose address it sees |
//! | [`conntrack`] | which flows netfilter translates, where the host has rules that they have to meet |
//! | [`flow`] | how a flow's state moves |
//! | [`flow_table`] | where a flow is kept, who may be evicted, which port masquerades it |
//! | [`select`] | the hash that picks the ring slot |
//! | [`outcome`] | what one step tells the next, and which addresses each packet of a flow gets |
//! | [`xdp`] | whether XDP forwards by itself |
//! | [`rewrite`] | the bytes that change |
//! | [`fragment`] | the later fragments of a datagram |
//! | [`icmp_error`] | ICMP errors about translated flows |
//! | [`refuse`] | what a client gets when nobody serves |
//! | [`socket`] | the same choice for connect(2) and sendmsg(2) |
//! | [`desk`] | what the steps hand on that is larger than a number |
//! | [`tables`] | the only door to state |
//!
//! Everything is a pure function of the packet and what [`tables`] say. lb-ebpf carries the steps out; tests run the same code on
//! memory.

pub mod clients;
pub mod conntrack;
pub mod desk;
pub mod driver;
pub mod egress;
pub mod family;
pub mod flow;
pub mod flow_table;
pub mod fragment;
pub mod frontends;
pub mod icmp_error;
pub mod ingress;
pub mod look;
pub mod of_node;
pub mod opening;
pub mod outcome;
pub mod own;
pub mod parse;
pub mod refuse;
pub mod rewrite;
pub mod select;
pub mod socket;
pub mod tables;
pub mod xdp;

pub use desk::Desk;
pub use driver::{Program, drive};
pub use family::{Family, FamilyConfig};
pub use ingress::Origin;
pub use look::Point;
pub use of_node::Hop;
pub use outcome::{Leg, Outcome, Step};
pub use parse::{Parsed, TcpFlags, Tuple, parse4, parse6};
pub use rewrite::Translation;
pub use tables::{Backend, FlowSets, PacketTables, Route, Tables};

use crate::abi::{BackendId, Flow, ServiceId};

/// Whom to count a translated packet for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tally {
    /// The Service port it belongs to.
    pub service: ServiceId,
    /// The endpoint it belongs to.
    pub backend: BackendId,
}

impl Tally {
    /// A packet of `flow`.
    #[inline(always)]
    pub const fn new<A>(flow: &Flow<A>) -> Self {
        Self { service: flow.service, backend: flow.backend_id }
    }
}
