//! Where flows are kept: the algorithm over the memory that [`FlowSets`] describes.
//!
//! - A flow lives in the set of its client. Packets of either direction name the client, so every
//!   search looks at one set: one cache line of words, then the record whose tag fits.
//! - Searching takes no lock: the record counts only if its word is the same before and after.
//! - Making a flow takes the set's lock (a bit of word 0), so that two CPUs with the first packet of
//!   the same flow end up with one record. The lock is held for a bounded number of instructions.
//! - A full set gives up expired flows first, then ended ones, then its oldest half-open one, and never
//!   a flow whose client has spoken after the backend did.
//! - Of eight ways one is the flow's favourite, which is looked at first. A new flow goes there if there is
//!   nothing, or if no way is free and what is there may be given up and has been silent for a second.
//! - A masqueraded flow also owns a slot of the NAT index, named by backend and masquerading port.
//!   Taking that slot by compare-and-swap is the only way to get a port. Slots of ended flows are not
//!   cleared: a slot names the generation of its record, and is free if the way holds another by now.
//! - Neighbouring ports towards a backend share a cache line of the index, so that one look finds a free one.

mod insert;
mod nat;

pub use insert::{InsertError, NewFlow, insert, until_won};
pub use nat::{by_masqueraded, by_nat_port, is_port_taken, owns_port};

use super::Family;
use super::flow::{self, Side};
use super::parse::{TcpFlags, Tuple};
use super::select::client_hash;
use super::tables::{FlowSets, Tables};
use crate::abi::{Flow, FlowReference, FlowState, FlowWord, Moment, WAYS};
use crate::addr::{Port, Proto};

/// How often a state change is tried against other CPUs that change the same word.
const ADVANCE_ATTEMPTS: usize = 3;
/// Time a flow's last-seen stamp may lag: one write a second for a busy flow, not one a packet.
const STAMP_STEPS: u32 = Moment::steps(1);

/// A flow in the table.
#[derive(Clone, Copy, Debug)]
pub struct Found<F, S> {
    /// Its set.
    pub set: S,
    /// Its way.
    pub way: usize,
    /// Its word when it was read.
    pub word: FlowWord,
    /// Its record.
    pub flow: F,
    /// What its NAT slot holds.
    pub reference: FlowReference,
}

/// A search in a client's set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Query<A> {
    /// Whose flow.
    pub client: A,
    /// From which port.
    pub client_port: Port,
    /// Of which protocol.
    pub proto: Proto,
    /// What else must hold: bits of [`Query`].
    pub conditions: u8,
    /// Port that goes with `address`.
    pub port: Port,
    /// The other end: frontend or backend.
    pub address: A,
    /// A frontend that does not count.
    pub except: (A, Port),
    /// The client's set and tag.
    place: (u32, u16),
}

impl<A: Family> Query<A> {
    /// The other end is the backend, not the frontend.
    const BACKEND: u8 = 1;
    /// The other end is either of them.
    const EITHER: u8 = 8;
    /// The flow carries its client's own port through the kernel.
    const OWN_PORT: u8 = 2;
    /// The flow is masqueraded.
    const MASQUERADED: u8 = 4;

    #[inline(always)]
    fn new<T: Tables<A>>(
        client: (A, Port),
        proto: Proto,
        other: (A, Port),
        conditions: u8,
        tables: &T,
    ) -> Self {
        Self {
            place: place(tables, client.0, client.1, proto),
            client: client.0,
            client_port: client.1,
            proto,
            conditions,
            port: other.1,
            address: other.0,
            except: (A::UNSPECIFIED, Port::default()),
        }
    }

    #[inline(always)]
    const fn asks(&self, condition: u8) -> bool {
        self.conditions & condition != 0
    }

    #[inline(always)]
    fn fits(&self, flow: &Flow<A>) -> bool {
        let backend = || flow.backend == self.address && flow.backend_port == self.port;
        let frontend = || flow.frontend == self.address && flow.frontend_port == self.port;
        flow.is_of(self.client, self.client_port, self.proto)
            && (if self.asks(Self::BACKEND) {
                backend()
            } else {
                frontend() || self.asks(Self::EITHER) && backend()
            })
            && !(self.asks(Self::OWN_PORT) && flow.shares_port())
            && !(self.asks(Self::MASQUERADED) && flow.nat == A::UNSPECIFIED)
            && !(flow.frontend == self.except.0 && flow.frontend_port == self.except.1)
    }
}

/// The flow of a packet from a client: to the frontend, or to the backend itself.
#[inline(always)]
pub fn by_destination<A: Family, T: Tables<A>>(
    tuple: &Tuple<A>,
    tables: &T,
) -> Option<Found<T::Copied, T::Set>> {
    let (client, other) = ((tuple.source, tuple.source_port), (tuple.destination, tuple.destination_port));
    tables.find(&Query::new(client, tuple.proto, other, Query::<A>::EITHER, tables))
}

/// The flow of a packet from client to frontend.
#[inline(always)]
pub fn by_frontend<A: Family, T: Tables<A>>(
    tuple: &Tuple<A>,
    tables: &T,
) -> Option<Found<T::Copied, T::Set>> {
    let (client, other) = ((tuple.source, tuple.source_port), (tuple.destination, tuple.destination_port));
    tables.find(&Query::new(client, tuple.proto, other, 0, tables))
}

/// The flow of a packet from backend to client.
#[inline(always)]
pub fn by_reply<A: Family, T: Tables<A>>(tuple: &Tuple<A>, tables: &T) -> Option<Found<T::Copied, T::Set>> {
    let (client, other) = ((tuple.destination, tuple.destination_port), (tuple.source, tuple.source_port));
    let conditions = Query::<A>::BACKEND | Query::<A>::OWN_PORT;
    tables.find(&Query::new(client, tuple.proto, other, conditions, tables))
}

/// The masqueraded flow of a packet from client to backend, which ingress has translated.
#[inline(always)]
pub fn by_translated<A: Family, T: Tables<A>>(
    tuple: &Tuple<A>,
    tables: &T,
) -> Option<Found<T::Copied, T::Set>> {
    let (client, other) = ((tuple.source, tuple.source_port), (tuple.destination, tuple.destination_port));
    let conditions = Query::<A>::BACKEND | Query::<A>::OWN_PORT | Query::<A>::MASQUERADED;
    tables.find(&Query::new(client, tuple.proto, other, conditions, tables))
}

/// Whether a flow's last-seen stamp lags too far.
#[inline(always)]
fn is_stamp_due(word: FlowWord, now: Moment) -> bool {
    now.since(word.seen()) >= STAMP_STEPS
}

/// Moves a flow on by one packet: its state, and its stamp at most once a second.
#[inline(always)]
pub fn advance<A: Family, T: Tables<A>>(
    found: &Found<T::Copied, T::Set>,
    side: Side,
    flags: TcpFlags,
    tables: &T,
) {
    let now = tables.now();
    let mut word = found.word;
    for _ in 0..ADVANCE_ATTEMPTS {
        let mut state = flow::next(word.state(), side, flags);
        if state == word.state() {
            if !is_stamp_due(word, now) {
                return;
            }
            if state == FlowState::TCP_CLOSED {
                if !flags.is_plain() {
                    return;
                }
                // Data long after the end: the RST or FIN was not the connection's own (RFC 5961).
                state = FlowState::TCP_ESTABLISHED;
            }
        }
        if tables.swap_word(found.set, found.way, word, word.moved_to(state, now)) {
            return;
        }
        word = tables.word(found.set, found.way);
        if !word.settles(found.word) || !word.is_live(now) {
            return;
        }
    }
}

/// A client speaks to a backend itself, from a port it has used towards it through a Service. The answers
/// would be taken for that flow's, so it is forgotten: with TCP if the client begins a connection and the
/// flow is over or was never confirmed; with UDP, where nothing else tells, at once.
#[inline(always)]
pub fn forget_for_direct<A: Family, T: Tables<A>>(
    found: &Found<T::Copied, T::Set>,
    flags: TcpFlags,
    tables: &T,
) {
    let state = found.word.state();
    let over = state.is_half_open() || state.0 >= FlowState::TCP_CLIENT_FIN.0;
    if found.flow.proto == Proto::UDP || flags.opens() && over {
        let freed = found.word.moved_to(FlowState::FREE, tables.now());
        tables.swap_word(found.set, found.way, found.word, freed);
    }
}

/// What a search finds in some tables.
type Search<A, T> = Option<Found<<T as FlowSets<A>>::Copied, <T as FlowSets<A>>::Set>>;

/// Looks at the first live way that carries the client's tag, which is nearly always the one. The second value:
/// it is not, and [`search`] has to look at the others.
#[inline(always)]
pub fn glance<A: Family, T: Tables<A>>(query: &Query<A>, tables: &T) -> (Search<A, T>, bool) {
    let (index, tag) = query.place;
    let Some(set) = tables.set(index) else { return (None, false) };
    let now = tables.now();
    let is_hit = |way| {
        let word = tables.word(set, way);
        word.tag() == tag && word.is_live(now)
    };
    let mut hit = favourite(tag);
    if !is_hit(hit) {
        hit = WAYS;
        for way in 0..WAYS {
            if is_hit(way) {
                hit = way;
                break;
            }
        }
        if hit >= WAYS {
            return (None, false);
        }
    }
    let found = settled(query, tables, (index, set), any_way(hit, tables), tag);
    let unsure = found.is_none();
    (found, unsure)
}

/// Searches a client's set: what [`Tables::find`] does. Where two flows fit, it is the one [`glance`] sees.
#[inline(always)]
pub fn search<A: Family, T: Tables<A>>(query: &Query<A>, tables: &T) -> Option<Found<T::Copied, T::Set>> {
    let (index, tag) = query.place;
    let set = tables.set(index)?;
    let now = tables.now();
    let (mut hit, mut hit_word) = (WAYS, FlowWord::default());
    for turn in 0..=WAYS {
        let way = if turn == 0 { favourite(tag) } else { turn - 1 };
        let word = tables.word(set, way);
        if word.tag() == tag && word.is_live(now) && tables.fits(set, way, |flow| query.fits(flow)) {
            (hit, hit_word) = (way, word);
            break;
        }
    }
    if hit >= WAYS {
        return None;
    }
    let way = any_way(hit, tables);
    let flow = tables.flow(set, way, hit_word);
    // Nobody has changed the record since the word was read, so what fitted is what was copied; if that was read in this order.
    let whole =
        tables.word_after(flow, set, way).settles(hit_word) && (T::READS_IN_ORDER || query.fits(&flow));
    whole.then_some(Found {
        set,
        way,
        word: hit_word,
        flow,
        reference: FlowReference::new(index, way, hit_word),
    })
}

/// Whether the client has flows from this port at all, or another client that its tag cannot be told from.
#[inline(always)]
fn has_flows<A: Family, T: Tables<A>>(query: &Query<A>, tables: &T) -> bool {
    any_live(query, tables, |_, _| true)
}

/// Whether there is such a flow, at a glance: the record may change hands meanwhile. (No call, for want of room on the stack.)
#[inline(always)]
fn seems_there<A: Family, T: Tables<A>>(query: &Query<A>, tables: &T) -> bool {
    any_live(query, tables, |set, way| tables.fits(set, way, |flow| query.fits(flow)))
}

/// Whether one of the live ways that carry the client's tag passes a test.
#[inline(always)]
fn any_live<A: Family, T: Tables<A>>(
    query: &Query<A>,
    tables: &T,
    test: impl Fn(T::Set, usize) -> bool,
) -> bool {
    let (index, tag) = query.place;
    let Some(set) = tables.set(index) else { return false };
    (0..WAYS).any(|way| {
        let word = tables.word(set, way);
        word.tag() == tag && word.is_live(tables.now()) && test(set, way)
    })
}

/// A copy of the record in a way, if it fits and nobody has changed it meanwhile.
#[inline(always)]
fn settled<A: Family, T: Tables<A>>(
    query: &Query<A>,
    tables: &T,
    (index, set): (u32, T::Set),
    way: usize,
    tag: u16,
) -> Option<Found<T::Copied, T::Set>> {
    let word = tables.word(set, way);
    let flow = tables.flow(set, way, word);
    let whole = word.tag() == tag
        && word.is_live(tables.now())
        && query.fits(&flow)
        && tables.word_after(flow, set, way).settles(word);
    whole.then_some(Found { set, way, word, flow, reference: FlowReference::new(index, way, word) })
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

/// Set index and tag of a client.
#[inline(always)]
fn place<A: Family, T: Tables<A>>(tables: &T, client: A, port: Port, proto: Proto) -> (u32, u16) {
    let config = tables.config();
    let hash = client_hash(client, port, proto, config.hash_seed);
    (hash as u32 & A::config(config).flow_set_mask, (hash >> 48) as u16)
}
