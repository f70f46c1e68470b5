//! What the steps of a program hand on that is larger than a number. One packet at a time lies on a desk.
//!
//! Searches lay the record that they find on it, and lend it for as long as nobody searches again: the borrow checker sees to
//! that.

use super::flow_table::{Home, NewFlow, Query};
use super::opening::{Chosen, Opening};
use super::parse::{LaterFragment, Quote};
use super::rewrite::ErrorTranslation;
use super::{Hop, Route, Tally};
use crate::abi::{Flow, FlowReference, FlowWord, Fragment, FragmentKey, SourceRange};

/// A desk. Anything may lie on it when a packet comes, zeros at first.
#[derive(Clone, Copy, Debug)]
pub struct Desk<A> {
    /// The record found last, without its progress.
    pub found: Flow<A>,
    /// Its word.
    pub word: FlowWord,
    /// What is searched for.
    pub query: Query<A>,
    /// A flow that is to be made.
    pub opening: Opening<A>,
    /// Who gets it.
    pub chosen: Chosen<A>,
    /// The flow in the making.
    pub new: NewFlow<A>,
    /// How gladly the port found for it is given up.
    pub port_rank: u32,
    /// Where its client's flows are.
    pub home: Home,
    /// The same flow, if it is in the table.
    pub same: FlowReference,
    /// A connection that has ended, to the same backend: its replies would pass for those of the flow in the making.
    pub ended: FlowReference,
    /// A packet that XDP may send by itself: from where, to where, and its length from the IP header on.
    pub journey: (A, A, u16),
    /// Where XDP sends a packet.
    pub route: Route,
    /// A source that is asked about.
    pub source_range: SourceRange,
    /// Where a packet of this node's goes on.
    pub hop: Hop,
    /// A later fragment.
    pub later: LaterFragment<A>,
    /// Its new addresses.
    pub later_addresses: (A, A, Tally),
    /// Where the first fragment of a datagram is noted, and what.
    pub fragment: (FragmentKey, Fragment),
    /// An ICMP error.
    pub quote: Quote<A>,
    /// What becomes of it.
    pub error: (ErrorTranslation<A>, Tally),
}
