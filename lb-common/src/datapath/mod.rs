//! A packet's way: `frame → parse → service → flow → ring → rewrite → verdict`.
//!
//! | file | decides |
//! |---|---|
//! | [`parse`] | what a frame is, and whether it can concern us |
//! | [`family`] | what differs between IPv4 and IPv6 |
//! | [`ingress`] | packets that enter the node: known flow, new flow, or nobody's |
//! | [`opening`] | the first packet of a flow: which list, which backend, whose address it sees |
//! | [`egress`] | packets that leave towards a pod or the wire: which address to show |
//! | [`fragment`] | the later pieces of a datagram |
//! | [`icmp_error`] | ICMP errors about translated flows |
//! | [`flow`] | how a flow's state moves |
//! | [`flow_table`] | where a flow is kept, who may be evicted, which port masquerades it |
//! | [`select`] | the hash that picks the ring slot |
//! | [`xdp`] | whether XDP forwards by itself |
//! | [`rewrite`] | the bytes that change |
//! | [`refuse`] | what a client gets when nobody serves |
//! | [`socket`] | the same choice for connect(2) and sendmsg(2) |
//! | [`tables`] | the only door to state |
//!
//! Everything is a pure function of the packet and what [`tables::Tables`] says. lb-ebpf carries the
//! verdicts out; tests run the same code on memory.

pub mod clients;
pub mod egress;
pub mod family;
pub mod flow;
pub mod flow_table;
pub mod fragment;
pub mod icmp_error;
pub mod ingress;
pub mod opening;
pub mod parse;
pub mod refuse;
pub mod rewrite;
pub mod select;
pub mod socket;
pub mod tables;
pub mod xdp;

pub use family::{Family, FamilyConfig};
pub use ingress::Origin;
pub use parse::{Parsed, TcpFlags, Tuple, parse4, parse6};
pub use rewrite::Translation;
pub use tables::{Backend, FlowSets, Route, Tables};

use crate::abi::{BackendId, Flow, Reason, ServiceId};

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict<A> {
    /// Goes on untouched.
    Pass(Reason),
    /// Ends here.
    Drop(Reason),
    /// Nobody serves: tell the client at once.
    Refuse(Reason),
    /// Is judged again once its flow is made ([`Tables::open`]).
    Postponed,
    /// Goes on to the kernel's own forwarding with other addresses.
    Translate(Translation<A>, Tally),
    /// Is sent out by XDP itself with other addresses.
    Forward(Translation<A>, Route, Tally),
}

/// What to count for a translated packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tally {
    /// The packet's reason.
    pub reason: Reason,
    /// The Service port it belongs to.
    pub service: ServiceId,
    /// The endpoint it belongs to.
    pub backend: BackendId,
}

impl Tally {
    /// A packet of `flow`.
    #[inline(always)]
    pub const fn new<A>(flow: &Flow<A>, reason: Reason) -> Self {
        Self { reason, service: flow.service, backend: flow.backend_id }
    }
}

impl<A> Verdict<A> {
    /// The one counter this verdict moves. Refusals may end as [`Reason::NoEndpointSilent`] when no
    /// answer can be made.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Pass(reason) | Self::Drop(reason) | Self::Refuse(reason) => *reason,
            Self::Postponed => Reason::NewFlow,
            Self::Translate(_, tally) | Self::Forward(_, _, tally) => tally.reason,
        }
    }
}
