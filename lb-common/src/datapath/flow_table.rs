//! Where flows are kept: the algorithm over the memory that [`FlowSets`] describes.
//!
//! - A flow lives in the set of its client. Packets of either direction name the client, so every
//!   search looks at one set: one cache line of words, then the record whose tag fits.
//! - Searching takes no lock: the record counts only if its word is the same before and after.
//! - Making a flow takes the set's lock (a bit of word 0), so that two CPUs with the first packet of
//!   the same flow end up with one record. The lock is held for a bounded number of instructions.
//! - A full set gives up expired flows first, then ended ones, then its oldest half-open one, and never
//!   a flow whose client has spoken after the backend did.
//! - A masqueraded flow also owns a slot of the NAT index, named by backend and masquerading port.
//!   Taking that slot by compare-and-swap is the only way to get a port. Slots of ended flows are not
//!   cleared: a slot whose flow does not know it is free.

use super::Family;
use super::flow::{self, Side};
use super::parse::{TcpFlags, Tuple};
use super::select::{client_hash, mix, nat_hash};
use super::tables::{Backend, FlowSets, Tables};
use crate::abi::{Flow, FlowState, FlowWord, Moment, WAYS};
use crate::addr::{Port, Proto};

/// How often the lock of a set is tried.
const LOCK_ATTEMPTS: usize = 32;
/// How many ports are tried for a masqueraded flow.
const NAT_ATTEMPTS: u64 = 16;
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
    pub reference: u32,
}

/// A flow to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow<A> {
    /// The record; `nat` and `nat_port` are filled in on the way.
    pub flow: Flow<A>,
    /// The address to masquerade with; `UNSPECIFIED`: none.
    pub masquerade: A,
    /// State to start with.
    pub state: FlowState,
    /// The same flow is in the table, with a backend it must leave.
    pub replaces: bool,
    /// The flow's hash: where the search for a port begins.
    pub hash: u32,
}

/// Why a flow cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum InsertError {
    /// Every way of the set holds a flow that may not be evicted.
    Full = 1,
    /// The set's lock could not be had.
    Contended,
    /// No free port for this backend.
    NatPortsExhausted,
    /// The ring or the backends are not what the Service says.
    NoBackend,
    /// The Service does not take clients from there.
    SourceDenied,
    /// None: the flow is being made, and the packet is to be judged again.
    Postponed,
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
    fn new(client: (A, Port), proto: Proto, other: (A, Port), conditions: u8) -> Self {
        Self {
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
    tables.find(&Query::new(client, tuple.proto, other, Query::<A>::EITHER))
}

/// The flow of a packet from client to frontend.
#[inline(always)]
pub fn by_frontend<A: Family, T: Tables<A>>(
    tuple: &Tuple<A>,
    tables: &T,
) -> Option<Found<T::Copied, T::Set>> {
    let (client, other) = ((tuple.source, tuple.source_port), (tuple.destination, tuple.destination_port));
    tables.find(&Query::new(client, tuple.proto, other, 0))
}

/// The flow of a packet from backend to client.
#[inline(always)]
pub fn by_reply<A: Family, T: Tables<A>>(tuple: &Tuple<A>, tables: &T) -> Option<Found<T::Copied, T::Set>> {
    let (client, other) = ((tuple.destination, tuple.destination_port), (tuple.source, tuple.source_port));
    let conditions = Query::<A>::BACKEND | Query::<A>::OWN_PORT;
    tables.find(&Query::new(client, tuple.proto, other, conditions))
}

/// The masqueraded flow of a packet from client to backend, which ingress has translated.
#[inline(always)]
pub fn by_translated<A: Family, T: Tables<A>>(
    tuple: &Tuple<A>,
    tables: &T,
) -> Option<Found<T::Copied, T::Set>> {
    let (client, other) = ((tuple.source, tuple.source_port), (tuple.destination, tuple.destination_port));
    let conditions = Query::<A>::BACKEND | Query::<A>::OWN_PORT | Query::<A>::MASQUERADED;
    tables.find(&Query::new(client, tuple.proto, other, conditions))
}

/// The flow that has taken `nat_port` towards this backend. Whether the packet's other address is the
/// one it should be is the caller's to ask.
#[inline(always)]
pub fn by_nat_port<A: Family, T: Tables<A>>(
    backend: A,
    backend_port: Port,
    nat_port: Port,
    proto: Proto,
    tables: &T,
) -> Option<Found<T::Copied, T::Set>> {
    let config = tables.config();
    // (SCTP keeps the client's port, whatever it is.)
    if proto != Proto::SCTP && nat_port.get().wrapping_sub(config.nat_port_first) >= config.nat_port_count {
        return None;
    }
    let slot = tables.nat_slot(nat_index(backend, backend_port, nat_port, proto, tables))?;
    let found = owner(slot, tables)?;
    let flow = &found.flow;
    let same = flow.nat_port == nat_port
        && flow.backend == backend
        && flow.backend_port == backend_port
        && flow.proto == proto;
    if same { Some(found) } else { None }
}

/// Whether this client port already speaks to `backend` under another frontend.
#[inline(always)]
pub fn is_port_taken<A: Family, T: Tables<A>>(tuple: &Tuple<A>, backend: &Backend<A>, tables: &T) -> bool {
    let (client, other) = ((tuple.source, tuple.source_port), (backend.address, backend.port));
    let conditions = Query::<A>::BACKEND | Query::<A>::OWN_PORT;
    let query = Query::new(client, tuple.proto, other, conditions);
    let other = tables.find(&Query { except: (tuple.destination, tuple.destination_port), ..query });
    // A connection that has ended gives way.
    other.is_some_and(|found| found.word.state() != FlowState::TCP_CLOSED)
        || is_shared_port_of(tuple.source, tuple.source_port, tuple.proto, backend, tables)
}

/// Whether a flow of this client carries `port` towards `backend` in place of its own.
#[inline(always)]
fn is_shared_port_of<A: Family, T: Tables<A>>(
    client: A,
    port: Port,
    proto: Proto,
    backend: &Backend<A>,
    tables: &T,
) -> bool {
    by_nat_port(backend.address, backend.port, port, proto, tables)
        .is_some_and(|found| found.flow.shares_port() && found.flow.client == client)
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
            if now.since(word.seen()) < STAMP_STEPS {
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

/// Makes a flow, unless another CPU has made it in the meantime: then `new.flow` becomes that one.
///
/// # Errors
/// Why there can be no flow.
#[inline(always)]
pub fn insert<A: Family, T: Tables<A>>(new: &mut NewFlow<A>, tables: &T) -> Result<(), InsertError> {
    let flow = &new.flow;
    let (index, tag) = place(tables, flow.client, flow.client_port, flow.proto);
    let set = tables.set(index).ok_or(InsertError::Full)?;
    if !lock(set, tables) {
        return Err(InsertError::Contended);
    }
    let outcome = insert_locked(new, set, index, tag, tables);
    unlock(set, tables);
    outcome
}

#[inline(always)]
fn insert_locked<A: Family, T: Tables<A>>(
    new: &mut NewFlow<A>,
    set: T::Set,
    index: u32,
    tag: u16,
    tables: &T,
) -> Result<(), InsertError> {
    let now = tables.now();
    // One pass: is the flow there by now, and which way would be given up for it?
    let mut existing = WAYS;
    let mut victim = any_way(0, tables);
    let mut rank = 0;
    for way in 0..WAYS {
        let word = tables.word(set, way);
        let mut way_rank = eviction_rank(word, now);
        if word.tag() == tag && word.is_live(now) {
            let flow = &new.flow;
            let client = |other: &Flow<A>| other.is_of(flow.client, flow.client_port, flow.proto);
            let same = |other: &Flow<A>| {
                client(other) && other.frontend == flow.frontend && other.frontend_port == flow.frontend_port
            };
            if tables.fits(set, way, same) {
                existing = way;
                break;
            }
            // A connection that has ended, to the same backend: its replies would pass for ours.
            let same_backend = |other: &Flow<A>| {
                client(other)
                    && other.backend == flow.backend
                    && other.backend_port == flow.backend_port
                    && !other.shares_port()
                    && !flow.shares_port()
            };
            if tables.fits(set, way, same_backend) {
                if word.state() != FlowState::TCP_CLOSED {
                    // Another CPU was faster; the client's repetition gets a port of its own.
                    return Err(InsertError::Contended);
                }
                way_rank = u32::MAX;
            }
        }
        if way_rank > rank {
            rank = way_rank;
            victim = any_way(way, tables);
        }
    }
    let mut way = victim;
    if existing < WAYS {
        way = any_way(existing, tables);
        let other = tables.flow(set, way);
        // Where it had to leave its backend, another CPU may have seen to that by now.
        let remade = other.backend_id == new.flow.backend_id
            && other.backend_generation == new.flow.backend_generation
            && tables.word(set, way).state().0 < FlowState::TCP_CLIENT_FIN.0
            && holds_port(&other, reference(index, way), tables);
        if !new.replaces || remade {
            new.flow = *other;
            return Ok(());
        }
    } else if rank == 0 {
        return Err(InsertError::Full);
    }
    let word = tables.word(set, way);
    let busy = word.renewed(tag).moved_to(FlowState::BUSY, now);
    if !tables.swap_word(set, way, word, busy) {
        // A packet of the victim came in between; it is alive after all.
        return Err(InsertError::Contended);
    }
    if new.masquerade != A::UNSPECIFIED {
        match take_port(&new.flow, new.hash, reference(index, way), tables) {
            Some(port) => {
                new.flow.nat = new.masquerade;
                new.flow.nat_port = port;
            }
            None => {
                tables.swap_word(set, way, busy, busy.moved_to(FlowState::FREE, now));
                return Err(InsertError::NatPortsExhausted);
            }
        }
    }
    tables.put_flow(set, way, &new.flow);
    tables.swap_word(set, way, busy, busy.moved_to(new.state, now));
    Ok(())
}

/// How gladly a way is given up: 0 never, then half-open flows by age, then ended, expired and free ones.
#[inline(always)]
const fn eviction_rank(word: FlowWord, now: Moment) -> u32 {
    const ENDED: u32 = 2 << 24;
    let (state, remaining) = (word.state(), word.remaining(now));
    if state.0 == FlowState::FREE.0 || remaining <= 0 {
        u32::MAX - 1
    } else if state.0 == FlowState::TCP_CLOSED.0 {
        ENDED - (remaining as u32 & 0xff_ffff)
    } else if state.is_half_open() {
        (1 << 24) - (remaining as u32 & 0xff_ffff)
    } else {
        0
    }
}

/// Takes a port nobody uses towards this backend. Where the draws find none, one whose connection has
/// ended; and where there is none either, one whose client has never vouched for it.
#[inline(always)]
fn take_port<A: Family, T: Tables<A>>(flow: &Flow<A>, hash: u32, own: u32, tables: &T) -> Option<Port> {
    let config = tables.config();
    let (first, count) = (config.nat_port_first, config.nat_port_count);
    for greed in 0..3 {
        for attempt in 0..NAT_ATTEMPTS {
            let draw = mix(hash as u64, attempt) >> 32;
            let port = match flow.proto {
                // Its checksum covers the ports: the client's own or none.
                Proto::SCTP => flow.client_port,
                _ => Port::new(first.wrapping_add(((draw * count as u64) >> 32) as u16)),
            };
            let slot = nat_index(flow.backend, flow.backend_port, port, flow.proto, tables);
            let taken = tables.nat_slot(slot)?;
            if port_claim(taken, slot, own, tables) > greed || speaks_itself(flow, port, tables) {
                continue;
            }
            if tables.swap_nat_slot(slot, taken, own) {
                return Some(port);
            }
        }
    }
    None
}

/// Whether the client itself speaks to the backend from `port`, so that a flow which keeps the client's
/// address cannot have it.
#[inline(always)]
fn speaks_itself<A: Family, T: Tables<A>>(flow: &Flow<A>, port: Port, tables: &T) -> bool {
    let other = (flow.backend, flow.backend_port);
    flow.shares_port()
        && tables.find(&Query::new((flow.client, port), flow.proto, other, Query::<A>::BACKEND)).is_some()
}

/// How firmly a NAT slot is held: 0 by nobody, 1 by a flow that has ended, 2 by a half-open one, 3 by
/// one that lives.
#[inline(always)]
fn port_claim<A: Family, T: Tables<A>>(taken: u32, slot: u32, own: u32, tables: &T) -> u32 {
    let Some((set, way)) = locate(taken, tables) else { return 0 };
    let (word, now) = (tables.word(set, way), tables.now());
    if taken == own || word.remaining(now) <= 0 || word.state().0 == FlowState::FREE.0 {
        return 0;
    }
    if word.state().0 == FlowState::BUSY.0 {
        // Another CPU is writing the record that will say whether it is held.
        return 3;
    }
    if !tables.fits(set, way, |other| other.nat != A::UNSPECIFIED && nat_index_of(other, tables) == slot) {
        0
    } else if word.state() == FlowState::TCP_CLOSED {
        1
    } else if word.state().is_half_open() {
        2
    } else {
        3
    }
}

/// The live flow a NAT slot refers to.
#[inline(always)]
fn owner<A: Family, T: Tables<A>>(slot: u32, tables: &T) -> Option<Found<T::Copied, T::Set>> {
    let (set, way) = locate(slot, tables)?;
    let word = tables.word(set, way);
    if !word.is_live(tables.now()) {
        return None;
    }
    let flow = tables.flow(set, way);
    tables.word(set, way).settles(word).then_some(Found { set, way, word, flow, reference: slot })
}

/// Searches a client's set: what [`Tables::find`] does.
#[inline(always)]
pub fn search<A: Family, T: Tables<A>>(query: &Query<A>, tables: &T) -> Option<Found<T::Copied, T::Set>> {
    let (index, tag) = place(tables, query.client, query.client_port, query.proto);
    let set = tables.set(index)?;
    let now = tables.now();
    let mut hit = WAYS;
    for way in 0..WAYS {
        let word = tables.word(set, way);
        if word.tag() != tag || !word.is_live(now) {
            continue;
        }
        if tables.fits(set, way, |flow| query.fits(flow)) {
            hit = way;
            break;
        }
    }
    if hit >= WAYS {
        return None;
    }
    let way = any_way(hit, tables);
    let word = tables.word(set, way);
    let flow = tables.flow(set, way);
    let whole =
        word.tag() == tag && word.is_live(now) && query.fits(&flow) && tables.word(set, way).settles(word);
    whole.then_some(Found { set, way, word, flow, reference: reference(index, way) })
}

/// `way`, but the verifier knows only that it is one: see [`Tables::forget_history`].
#[inline(always)]
fn any_way<A: Family, T: Tables<A>>(way: usize, tables: &T) -> usize {
    tables.forget_history(way as u32) as usize % WAYS
}

/// What the NAT slot of a flow holds: its index + 1.
#[inline(always)]
const fn reference(index: u32, way: usize) -> u32 {
    index * WAYS as u32 + way as u32 + 1
}

/// The way that a NAT slot's value refers to; the inverse of [`reference`].
#[inline(always)]
pub fn locate<A, T: FlowSets<A>>(slot: u32, tables: &T) -> Option<(T::Set, usize)> {
    let index = slot.checked_sub(1)?;
    Some((tables.set(index / WAYS as u32)?, index as usize % WAYS))
}

/// The NAT slot of a backend and a masquerading port.
#[inline(always)]
fn nat_index<A: Family, T: Tables<A>>(
    backend: A,
    backend_port: Port,
    nat_port: Port,
    proto: Proto,
    tables: &T,
) -> u32 {
    nat_hash(backend, backend_port, nat_port, proto) & A::config(tables.config()).nat_slot_mask
}

/// The NAT slot that a masqueraded flow took.
#[inline(always)]
fn nat_index_of<A: Family, T: Tables<A>>(flow: &Flow<A>, tables: &T) -> u32 {
    nat_index(flow.backend, flow.backend_port, flow.nat_port, flow.proto, tables)
}

/// Whether a masqueraded flow still owns its port. One that has ended or was never confirmed may have
/// lost it to another.
#[inline(always)]
pub fn owns_port<A: Family, T: Tables<A>>(found: &Found<T::Copied, T::Set>, tables: &T) -> bool {
    holds_port(&found.flow, found.reference, tables)
}

#[inline(always)]
fn holds_port<A: Family, T: Tables<A>>(flow: &Flow<A>, reference: u32, tables: &T) -> bool {
    flow.nat == A::UNSPECIFIED || tables.nat_slot(nat_index_of(flow, tables)) == Some(reference)
}

/// Set index and tag of a client.
#[inline(always)]
fn place<A: Family, T: Tables<A>>(tables: &T, client: A, port: Port, proto: Proto) -> (u32, u16) {
    let config = tables.config();
    let hash = client_hash(client, port, proto, config.hash_seed);
    (hash as u32 & A::config(config).flow_set_mask, (hash >> 48) as u16)
}

#[inline(always)]
fn lock<A, T: FlowSets<A>>(set: T::Set, tables: &T) -> bool {
    for _ in 0..LOCK_ATTEMPTS {
        let word = tables.word(set, 0);
        if !word.is_locked() && tables.swap_word(set, 0, word, word.locked()) {
            return true;
        }
    }
    false
}

#[inline(always)]
fn unlock<A, T: FlowSets<A>>(set: T::Set, tables: &T) {
    tables.clear_lock(set);
}
