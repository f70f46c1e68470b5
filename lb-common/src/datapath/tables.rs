//! The only door to state. lb-ebpf opens it onto BPF maps, the testkit onto memory.

use core::ops::Deref;

use super::Family;
use super::flow_table::{self, Found, InsertError, Query};
use super::opening::{self, Opening};
use crate::abi::{
    self, Affinity, BackendId, Config, Flow, FlowReference, FlowWord, Fragment, FragmentKey, Moment,
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

/// The memory of the flow table: sets of [`crate::abi::WAYS`] words and records.
///
/// `way` is always below `WAYS`.
pub trait FlowSets<A> {
    /// A set, found once and then used without further checks.
    type Set: Copy;

    /// A copy of a record. There is one place for it: it is good until the next one is made.
    type Copied: Copy + Deref<Target = Flow<A>>;

    /// The set of this index.
    fn set(&self, index: u32) -> Option<Self::Set>;

    /// The word as it is now.
    fn word(&self, set: Self::Set, way: usize) -> FlowWord;

    /// Replaces the word if it is still `old`.
    fn swap_word(&self, set: Self::Set, way: usize, old: FlowWord, new: FlowWord) -> bool;

    /// Clears the lock bit of way 0's word and nothing else, in one atomic step.
    fn clear_lock(&self, set: Self::Set);

    /// Whether words and records are read in the order in which they are asked for, and not only as
    /// [`Self::flow`] and [`Self::word_after`] demand.
    const READS_IN_ORDER: bool;

    /// Whether the record fits. Others may be writing it: the answer is a guess until a copy settles it.
    fn fits(&self, set: Self::Set, way: usize, test: impl Fn(&Flow<A>) -> bool) -> bool;

    /// A copy of the record, read after its word, which was `before`. What it says is only worth something if the
    /// word is the same after: see [`Self::word_after`].
    fn flow(&self, set: Self::Set, way: usize, before: FlowWord) -> Self::Copied;

    /// The word as it is after all of the copy was read. (Most processors read in any order they like.)
    fn word_after(&self, copied: Self::Copied, set: Self::Set, way: usize) -> FlowWord;

    /// A copy of a record that is not in the table yet.
    fn copy(&self, flow: &Flow<A>) -> Self::Copied;

    /// Writes the record of a way whose word is [`crate::abi::FlowState::Busy`].
    fn put_flow(&self, set: Self::Set, way: usize, flow: &Flow<A>);

    /// Has the record brought into the cache of this CPU, which is about to write it; nothing waits for that.
    fn fetch_flow(&self, set: Self::Set, way: usize);

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

/// Everything a decision may ask.
pub trait Tables<A: Family>: FlowSets<A> {
    /// What the agent said about this node.
    fn config(&self) -> &Config;

    /// Whether the address may be a frontend's, or one to masquerade with: it surely is neither, and never was, if not.
    fn may_concern(&self, address: A) -> bool;

    /// Whether this local client has had a flow: it surely has none if not. What [`super::clients`] asks.
    fn is_noted(&self, client: A) -> bool;

    /// This local client is about to have a flow.
    fn note_client(&self, client: A);

    /// The Service behind a frontend.
    fn service(&self, address: A, port: Port, proto: Proto) -> Option<&Service>;

    /// A copy of what [`Self::service`] found that is certainly whole: another CPU may replace the entry meanwhile.
    #[inline(always)]
    fn service_copy(&self, found: &Service, _: A, _: Port, _: Proto) -> Option<Service> {
        Some(*found)
    }

    /// The backend id in a ring slot of the arena.
    fn ring_slot(&self, slot: u32) -> Option<BackendId>;

    /// The backend of an id.
    fn backend(&self, id: BackendId) -> Option<Backend<A>>;

    /// The time, coarse.
    fn now(&self) -> Moment;

    /// `value`, without its history. The BPF verifier follows every value a loop may end with through
    /// the rest of the program, one by one; this makes them one. Elsewhere it does nothing.
    #[inline(always)]
    fn forget_history(&self, value: u32) -> u32 {
        value
    }

    /// Whether an XDP program of ours saw this packet before.
    fn seen_by_xdp(&self) -> bool;

    /// Where a client went last.
    fn affinity(&self, client: A, service: ServiceId) -> Option<Affinity>;

    /// Notes where a client went.
    fn note_affinity(&self, client: A, service: ServiceId, affinity: Affinity);

    /// Whether `source` is in one of the ranges that stand under `service`
    /// ([`abi::SourceRange`]).
    fn in_source_range(&self, service: ServiceId, source: A) -> bool;

    /// What became of a datagram's first piece.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;

    /// Notes what became of a datagram's first piece.
    fn note_fragment(&self, key: &FragmentKey, fragment: &Fragment);

    /// Whether one more refusal may be sent now.
    fn may_refuse(&self) -> bool;

    /// Searches a client's set.
    #[inline(always)]
    fn find(&self, query: &Query<A>) -> Option<Found<Self::Copied, Self::Set>>
    where
        Self: Sized,
    {
        flow_table::search(query, self)
    }

    /// Picks a backend and makes the flow: [`opening::prepare`] and [`flow_table::insert`], which the
    /// kernel keeps in functions of their own, so that packets of known flows do not carry their weight.
    ///
    /// # Errors
    /// Why there can be no flow; or that it is made elsewhere, and the packet is to be judged again.
    #[inline(always)]
    fn open(&self, opening: &Opening<A>) -> Result<Self::Copied, InsertError>
    where
        Self: Sized,
    {
        let mut new = opening::prepare(opening, self)?;
        flow_table::until_won(Err(InsertError::Contended), || flow_table::insert(&mut new, self))?;
        Ok(self.copy(&new.flow))
    }

    /// The address to masquerade with on the way to `destination`: that of the interface the kernel
    /// would route to, else the node's.
    fn masquerade_address(&self, source: A, destination: A) -> A;
}
