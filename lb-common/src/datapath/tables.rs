//! The only door to state. lb-ebpf opens it onto BPF maps, the testkit onto memory.

use super::Family;
use super::desk::Desk;
use super::flow::Side;
use super::flow_table::{self, Survey};
use super::of_node::Hop;
use crate::abi::{
    self, Affinity, BackendId, Config, Flow, FlowReference, FlowWord, Fragment, FragmentKey, Moment,
    Progress, SourceRange,
};
use crate::abi::{Service, ServiceId};
use crate::addr::{Address, Port, Proto};

/// A backend of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backend<A> {
    /// The pod's address.
    pub address: A,
    /// The pod's port.
    pub port: Port,
    /// See [`abi::Backend`].
    pub flags: u16,
    /// Which of the endpoints that had this id.
    pub generation: u32,
    /// Whose endpoint.
    pub service: ServiceId,
}

impl<A> Backend<A> {
    /// Whether the endpoint serves.
    #[inline(always)]
    pub const fn is_active(&self) -> bool {
        self.has(abi::Backend::ACTIVE)
    }

    /// Whether the endpoint is on this node.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.has(abi::Backend::LOCAL)
    }

    /// Whether every bit of `flags` is set.
    #[inline(always)]
    pub const fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }
}

impl<A: Address> From<&abi::Backend> for Backend<A> {
    #[inline(always)]
    fn from(backend: &abi::Backend) -> Self {
        Self {
            address: A::from_mapped(backend.address),
            port: backend.port,
            flags: backend.flags,
            generation: backend.generation,
            service: backend.service,
        }
    }
}

/// Where XDP may send a frame by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Interface index to send out of.
    pub interface: u32,
    /// The interface is the one the frame came from.
    pub same_interface: bool,
    /// Ethernet destination.
    pub destination_mac: [u8; 6],
    /// Ethernet source.
    pub source_mac: [u8; 6],
}

impl Route {
    /// No route: what memory for one holds before there is one.
    pub const NOWHERE: Self =
        Self { interface: 0, same_interface: false, destination_mac: [0; 6], source_mac: [0; 6] };
}

/// The memory of the flow table: sets of [`crate::abi::WAYS`] words and records.
///
/// `way` is always below `WAYS`.
pub trait FlowSets<A> {
    /// A set, found once and then used without further checks.
    type Set: Copy;

    /// The set of this index.
    fn set(&self, index: u32) -> Option<Self::Set>;

    /// The word as it is now.
    fn word(&self, set: Self::Set, way: usize) -> FlowWord;

    /// Replaces the word if it is still `old`.
    fn swap_word(&self, set: Self::Set, way: usize, old: FlowWord, new: FlowWord) -> bool;

    /// Clears the lock bit of way 0's word and nothing else, in one atomic step.
    fn clear_lock(&self, set: Self::Set);

    /// Sets the mark of a way's word and nothing else, in one atomic step.
    fn mark(&self, set: Self::Set, way: usize);

    /// Whether words and records are read in the order in which they are asked for, and not only as
    /// [`Self::copy_flow`] demands.
    const READS_IN_ORDER: bool;

    /// Whether the record fits. Others may be writing it: the answer is a guess until a copy settles it.
    fn fits(&self, set: Self::Set, way: usize, test: impl Fn(&Flow<A>) -> bool) -> bool;

    /// Copies a record, all but its progress, after its word was read, which was `before`. The result is the word as it is after
    /// all of it was read: what the copy says is only worth something if that is the same. (Most processors read in any order
    /// they like.)
    fn copy_flow(&self, set: Self::Set, way: usize, before: FlowWord, copy: &mut Flow<A>) -> FlowWord;

    /// Writes the record of a way whose word is [`crate::abi::FlowState::BUSY`].
    fn put_flow(&self, set: Self::Set, way: usize, flow: &Flow<A>);

    /// Has the record brought into the cache of this CPU, which is about to write it; nothing waits for that.
    fn fetch_flow(&self, set: Self::Set, way: usize);

    /// How far the sides of a TCP flow have come, each number as it is now.
    fn progress(&self, set: Self::Set, way: usize) -> Progress;

    /// Notes how far a side has come: what it has sent, and what it has acknowledged.
    fn note_progress(&self, set: Self::Set, way: usize, side: Side, sent_and_acknowledged: [u32; 2]);

    /// Notes when a SYN went by in the middle of a connection; 0: that it is answered.
    fn note_unanswered_syn(&self, set: Self::Set, way: usize, moment: u32);

    /// A line of the NAT index, found once and then used without further checks.
    type NatLine: Copy;

    /// The line of this index.
    fn nat_line(&self, index: u32) -> Option<Self::NatLine>;

    /// Who holds a port of the line: a [`crate::abi::FlowReference`]. `place` is below [`crate::abi::NAT_LINE`].
    fn nat_slot(&self, line: Self::NatLine, place: usize) -> FlowReference;

    /// Replaces who holds a port of the line if it is still `old`.
    fn swap_nat_slot(
        &self,
        line: Self::NatLine,
        place: usize,
        old: FlowReference,
        new: FlowReference,
    ) -> bool;
}

/// Everything a decision about packets or calls may ask.
pub trait Tables<A: Family> {
    /// What the agent said about this node.
    fn config(&self) -> &Config;

    /// The time, coarse.
    fn now(&self) -> Moment;

    /// `value`, without its history. The BPF verifier follows every value a loop may end with through
    /// the rest of the program, one by one; this makes them one. Elsewhere it does nothing.
    #[inline(always)]
    fn forget_history(&self, value: u32) -> u32 {
        value
    }

    /// What stands in the map under a frontend.
    fn service(&self, address: A, port: Port, proto: Proto) -> Option<&Service>;

    /// Whether the port may be a nodePort, of whatever protocol: it surely is none, and never was, if not.
    fn is_node_port(&self, port: Port) -> bool;

    /// A copy of what [`Self::service`] found that is certainly whole: another CPU may replace the entry meanwhile.
    #[inline(always)]
    fn service_copy(&self, found: &Service, _: A, _: Port, _: Proto) -> Option<Service> {
        Some(*found)
    }

    /// The backend id in a ring slot of the arena.
    fn ring_slot(&self, slot: u32) -> Option<BackendId>;

    /// The backend of an id.
    fn backend(&self, id: BackendId) -> Option<Backend<A>>;

    /// Where a client went last. It may be what another client of another Service was told: memory of the map is used again at
    /// once.
    fn affinity(&self, client: A, service: ServiceId) -> Option<Affinity>;

    /// Notes where a client went.
    fn note_affinity(&self, client: A, service: ServiceId, affinity: Affinity);

    /// Whether an address is in one of the ranges that stand under a Service ([`abi::SourceRange`]).
    fn in_source_range(&self, address: &SourceRange) -> bool;
}

/// What decisions about packets ask beyond that: of flows, of this packet, of this node's interfaces.
pub trait PacketTables<A: Family>: Tables<A> + FlowSets<A> {
    /// Whether the address may be a frontend's, or one to masquerade with: it surely is neither, and never was, if not.
    fn may_concern(&self, address: A) -> bool;

    /// Whether the address and port may be an endpoint's: it surely is none, and never was, if not.
    fn may_be_endpoint(&self, address: A, port: Port) -> bool;

    /// Whether this local client has had a flow: it surely has none if not. What [`super::clients`] asks.
    fn is_noted(&self, client: A) -> bool;

    /// This local client is about to have a flow.
    fn note_client(&self, client: A);

    /// Whether an XDP program of ours saw this packet before.
    fn seen_by_xdp(&self) -> bool;

    /// Whether frames from this packet's interface to other pods of this node pass netfilter by: [`abi::Interface::SWITCHED`].
    fn is_switched(&self) -> bool;

    /// What became of a datagram's first fragment.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;

    /// Notes what became of a datagram's first fragment.
    fn note_fragment(&self, key: &FragmentKey, fragment: &Fragment);

    /// The address to masquerade with on the way to `destination`: that of the interface the kernel would route to, toward where it
    /// would, else the node's.
    fn masquerade_address(&self, source: A, destination: A) -> A;

    /// Whether this node itself sends the packet, which is met where it leaves.
    fn is_sent_by_node(&self) -> bool;

    /// Where the kernel routes what this node sends.
    fn next_hop(&self, source: A, destination: A) -> Hop;

    /// Whether the kernel would send a packet that comes in as this one back by the interface that it has come by.
    fn turns_back(&self, source: A, destination: A) -> bool;

    /// Whether the first look for a flow is made in place. What most packets need not do goes without: it would carry the weight
    /// many times.
    #[inline(always)]
    fn probes(&self) -> bool {
        true
    }

    // Steps that the kernel keeps in functions of their own, each with a stack of its own.

    /// [`flow_table::search_set`].
    #[inline(always)]
    fn search_set(&self, choice: u32, desk: &mut Desk<A>) -> FlowReference
    where
        Self: Sized,
    {
        flow_table::search_set(choice, self, desk)
    }

    /// [`flow_table::survey_set`].
    #[inline(always)]
    fn survey_set(&self, choice: u32, desk: &mut Desk<A>) -> Survey
    where
        Self: Sized,
    {
        flow_table::survey_set(choice, self, desk)
    }

    /// [`flow_table::look_in_line`].
    #[inline(always)]
    fn look_in_line(&self, attempt: u32, desk: &mut Desk<A>) -> u32
    where
        Self: Sized,
    {
        flow_table::look_in_line(attempt, self, desk)
    }
}
