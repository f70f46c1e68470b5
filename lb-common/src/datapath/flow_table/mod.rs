//! Where flows are kept: the algorithm over the memory that [`FlowSets`] describes.
//!
//! - A flow lives in a set of its client. Packets of either direction name the client, so every
//!   search looks at one set: one cache line of words, then the record whose tag fits.
//! - A client has four sets. Its first is where its flows are, until that is crowded with flows that may not be given up; then they
//!   go to the emptiest of the four, and a mark in the first set says so: only where it is set, a search goes on. So a table
//!   that is less than 85 % full refuses nobody (one in 10 000), where sets of eight alone overflow at a half.
//! - Searching takes no lock: the record counts only if its word is the same before and after.
//! - Making a flow takes the set's lock (a bit of word 0), so that two CPUs with the first packet of
//!   the same flow end up with one record. The lock is held for a bounded number of instructions.
//! - A full set gives up expired flows first, then ended ones, then its oldest half-open one, and never
//!   a flow whose client has spoken after the backend did.
//! - Whatever belongs to one client is done under the lock of its first set. Ways of other sets are taken by compare-and-swap alone.
//! - Of eight ways one is the flow's favourite, which is looked at first. A new flow goes there if there is
//!   nothing, or if no way is free and what is there may be given up and has been silent for a second.
//! - A masqueraded flow also owns a slot of the NAT index, named by backend and masquerading port.
//!   Taking that slot by compare-and-swap is the only way to get a port. Slots of ended flows are not
//!   cleared: a slot names the generation of its record, and is free if the way holds another by now.
//! - Neighbouring ports towards a backend share a cache line of the index, so that one look finds a free one.

mod advance;
mod insert;
mod nat;
mod query;
mod search;

pub use advance::{advance, forget_for_direct};
pub use insert::{InsertError, NewFlow, Survey, give_up, insert, survey_set, unmake, until_won};
pub use nat::{
    by_masqueraded, by_nat_port, choose_port, is_masquerading, is_port_taken, look_in_line, may_share_port,
    owns_port,
};
pub use query::{Query, by_destination, by_frontend, by_reply, by_translated, of_own};
pub use search::{ELSEWHERE, find, search, search_set};

use super::Family;
use super::select::client_hash;
use super::tables::{FlowSets, Tables};
use crate::abi::{Flow, FlowReference, FlowWord, WAYS};
use crate::addr::{Port, Proto};

/// Sets that a client's flows may be in.
pub const CHOICES: u32 = 4;

/// Where a client's flows are: its sets, and the tag by which it is known there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Home {
    /// Its first set.
    first: u32,
    /// Hash bits that the set's number does not show.
    tag: u16,
}

impl Home {
    #[inline(always)]
    fn of<A: Family, T: Tables<A>>(client: A, port: Port, proto: Proto, tables: &T) -> Self {
        let hash = client_hash(client, port, proto, tables.config().hash_seed);
        Self { first: hash as u32 & mask::<A, T>(tables), tag: (hash >> 48) as u16 }
    }

    /// The set of this choice, below [`CHOICES`]. (An odd distance leads round the whole table.)
    #[inline(always)]
    fn set<A: Family, T: Tables<A>>(self, choice: u32, tables: &T) -> u32 {
        let distance = u32::from(self.tag) * 2 + 1;
        self.first.wrapping_add(choice * distance) & mask::<A, T>(tables)
    }
}

#[inline(always)]
fn mask<A: Family, T: Tables<A>>(tables: &T) -> u32 {
    A::config(tables.config()).flow_set_mask
}

/// Where a flow is in the table, and its word when it was read.
#[derive(Clone, Copy, Debug)]
pub struct Position<S> {
    /// Its set.
    pub set: S,
    /// Its way.
    pub way: usize,
    /// Its word.
    pub word: FlowWord,
    /// What its NAT slot holds.
    pub reference: FlowReference,
}

/// A flow in the table.
#[derive(Clone, Copy, Debug)]
pub struct Found<'d, A, S> {
    /// Where it is.
    pub position: Position<S>,
    /// Its record, on the desk.
    pub flow: &'d Flow<A>,
}

/// The way that a client's flow is in if that could be had. Its address is known before the words are read, so a
/// processor that expects it there fetches the record at the same time.
#[inline(always)]
const fn favourite(tag: u16) -> usize {
    tag as usize % WAYS
}

/// `way`, but the verifier knows only that it is one: see [`Tables::forget_history`].
#[inline(always)]
fn any_way<A: Family, T: Tables<A>>(way: usize, tables: &T) -> usize {
    tables.forget_history(way as u32) as usize % WAYS
}

/// The way that a reference names.
#[inline(always)]
pub fn locate<A, T: FlowSets<A>>(reference: FlowReference, tables: &T) -> Option<(T::Set, usize)> {
    let (index, way) = reference.place()?;
    Some((tables.set(index)?, way))
}
