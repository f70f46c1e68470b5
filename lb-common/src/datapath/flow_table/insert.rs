//! Making a flow: under the lock of its client's first set, in the way that is given up most gladly.

use super::nat::take_port;
use super::search::is_overflowed;
use super::{CHOICES, Home, any_way, favourite, locate};
use crate::abi::{Flow, FlowReference, FlowState, FlowWord, Moment, WAYS};
use crate::datapath::Family;
use crate::datapath::desk::Desk;
use crate::datapath::tables::{FlowSets, PacketTables};

/// Time without a packet after which a flow that may be given up leaves its way to one that is looked for there
/// first: longer than an answer takes.
const FAVOURITE_STEPS: u32 = Moment::steps(1);

/// Ways that may not be given up, from which on a client's other sets are looked at too. (More would fill first sets to the brim, and
/// leave no choice when the others are full; fewer would have more flows looked for in two sets. Measured with the test
/// `a_table_is_filled_to_85_percent_before_anyone_is_refused`.)
const CROWDED: u32 = 6;

/// How often the lock of a set is tried.
const LOCK_ATTEMPTS: usize = 32;

/// How often a flow is tried to be made. Whoever is in the way needs less than the time of one attempt, unless the host
/// takes the CPU away from it.
const ATTEMPTS: usize = 16;

/// A flow to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow<A> {
    /// The record; `nat` and `nat_port` are filled in on the way.
    pub flow: Flow<A>,
    /// The address to masquerade with; `UNSPECIFIED`: none.
    pub masquerade: A,
    /// State to start with.
    pub state: FlowState,
    /// The flow that it takes the place of: the same, which has ended, lost its port, or must leave its backend.
    pub replaces: FlowReference,
    /// The flow's hash: where the search for a port begins.
    pub hash: u32,
    /// Who gives up the port; filled in on the way.
    pub port_holder: FlowReference,
    /// Where it is in the end; nowhere if another CPU has made it.
    pub made: FlowReference,
}

/// Why a flow cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum InsertError {
    /// Every way of the client's sets holds a flow that may not be evicted.
    Full = 1,
    /// The set's lock could not be had.
    Contended,
    /// No free port for this backend.
    NatPortsExhausted,
    /// The ring or the backends are not what the Service says.
    NoBackend,
    /// The Service does not take clients from there.
    SourceDenied,
}

impl InsertError {
    /// From a function's result: the inverse of `as u32`.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        const FULL: u32 = InsertError::Full as u32;
        const NO_PORTS: u32 = InsertError::NatPortsExhausted as u32;
        const NO_BACKEND: u32 = InsertError::NoBackend as u32;
        const DENIED: u32 = InsertError::SourceDenied as u32;
        match number {
            FULL => Self::Full,
            NO_PORTS => Self::NatPortsExhausted,
            NO_BACKEND => Self::NoBackend,
            DENIED => Self::SourceDenied,
            _ => Self::Contended,
        }
    }
}

/// Tries again while `attempt` loses a race for the lock of a set, a way or a port: there are others, and the client would
/// wait a second before it repeats itself. `contended` is what it says then.
#[inline(always)]
pub fn until_won<R: Copy + PartialEq>(contended: R, mut attempt: impl FnMut() -> R) -> R {
    for _ in 1..ATTEMPTS {
        let outcome = attempt();
        if outcome != contended {
            return outcome;
        }
    }
    attempt()
}

/// Makes the flow on the desk, unless another CPU has made it in the meantime: then that one comes to lie there.
///
/// # Errors
/// Why there can be no flow.
#[inline(always)]
pub fn insert<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Result<(), InsertError> {
    let flow = &desk.new.flow;
    desk.home = Home::of(flow.client, flow.client_port, flow.proto, tables);
    let set = tables.set(desk.home.first).ok_or(InsertError::Full)?;
    if !lock(set, tables) {
        return Err(InsertError::Contended);
    }
    let outcome = insert_locked(tables, desk);
    unlock(set, tables);
    outcome
}

/// Unmakes the flow that was just made, unless packets have moved it on.
#[inline(always)]
pub fn unmake<A: Family, T: PacketTables<A>>(made: FlowReference, tables: &T) {
    let Some((set, way)) = locate(made, tables) else { return };
    let word = tables.word(set, way);
    let is_new = word.state() == FlowState::TCP_SYN || word.state() == FlowState::UDP_NEW;
    if made.is_current(word) && is_new {
        tables.swap_word(set, way, word, word.moved_to(FlowState::FREE, tables.now()));
    }
}

/// What can be had in a set: the way that is given up most gladly, and how many may not be given up.
#[derive(Clone, Copy, Debug)]
pub struct Weight(pub u32);

impl Weight {
    #[inline(always)]
    const fn new(way: usize, held: u32) -> Self {
        Self(way as u32 | held << 8)
    }

    #[inline(always)]
    pub(super) const fn way(self) -> usize {
        self.0 as usize % WAYS
    }

    #[inline(always)]
    const fn held(self) -> u32 {
        self.0 >> 8
    }
}

/// Looks at the set of this choice for the flow on the desk: what can be had there.
#[inline(always)]
pub fn weigh_set<A: Family, T: PacketTables<A>>(choice: u32, tables: &T, desk: &mut Desk<A>) -> Weight {
    let home = desk.home;
    let now = tables.now();
    let Some(set) = tables.set(home.set(choice, tables)) else { return Weight::new(0, WAYS as u32) };
    // (What the loop finds has no history for the verifier: it would follow every combination.)
    let (mut victim, mut rank, mut held) = (0, 0, 0);
    for way in 0..WAYS {
        let word = tables.word(set, way);
        let mut way_rank = tables.forget_history(eviction_rank(word, now));
        let is_favourite = tables.forget_history(favourite(home.tag) as u32) as usize == way;
        if is_favourite && way_rank == FREE {
            way_rank = FIRST_CHOICE;
        } else if is_favourite && way_rank != 0 && now.since(word.seen()) >= FAVOURITE_STEPS {
            way_rank = SECOND_CHOICE;
        }
        let way_rank = tables.forget_history(way_rank);
        held = tables.forget_history(held + u32::from(way_rank == 0));
        if way_rank > rank {
            rank = way_rank;
            victim = tables.forget_history(way as u32) as usize;
        }
    }
    Weight::new(any_way(victim, tables), held)
}

/// Of a client's sets, the one to put a new flow in: the first, unless that is crowded; then the emptiest. And the way there.
#[inline(always)]
fn place<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> (u32, usize) {
    let mut choice = 0;
    let mut best = tables.weigh_set(0, desk);
    if best.held() >= CROWDED {
        for other in 1..CHOICES {
            let weight = tables.weigh_set(other, desk);
            if weight.held() < best.held() {
                choice = tables.forget_history(other);
                best = Weight(tables.forget_history(weight.0));
            }
        }
    }
    (desk.home.set(choice, tables), best.way())
}

/// What a set holds of the flow that is to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct There(pub u32);

impl There {
    /// What the desk says.
    pub const SEEN: Self = Self(0);
    /// The same, and other sets may hold more.
    pub const ELSEWHERE: Self = Self(1);
    /// A live flow that cannot be told from the one that is to be made.
    pub const CONTENDED: Self = Self(2);
}

/// Looks for the flow on the desk in the set of this choice, and for a connection that has ended whose replies would pass for its
/// own: they are named on the desk.
#[inline(always)]
pub fn look_in_set<A: Family, T: PacketTables<A>>(choice: u32, tables: &T, desk: &mut Desk<A>) -> There {
    let Desk { new: NewFlow { flow, .. }, home, same, ended, .. } = desk;
    let index = home.set(choice, tables);
    let Some(set) = tables.set(index) else { return There::SEEN };
    for way in 0..WAYS {
        let word = tables.word(set, way);
        if word.tag() != home.tag || !word.is_live(tables.now()) {
            continue;
        }
        let client = |other: &Flow<A>| other.is_of(flow.client, flow.client_port, flow.proto);
        let is_same = |other: &Flow<A>| {
            client(other) && other.frontend == flow.frontend && other.frontend_port == flow.frontend_port
        };
        let has_its_backend = |other: &Flow<A>| {
            client(other)
                && other.backend == flow.backend
                && other.backend_port == flow.backend_port
                && !other.shares_port()
                && !flow.shares_port()
        };
        if tables.fits(set, way, is_same) {
            *same = FlowReference::new(index, way, word);
        } else if tables.fits(set, way, has_its_backend) {
            if !word.state().has_ended() {
                // Another CPU was faster; the client's repetition gets a port of its own.
                return There::CONTENDED;
            }
            *ended = FlowReference::new(index, way, word);
        }
    }
    if choice == 0 && is_overflowed(set, home.tag, tables) { There::ELSEWHERE } else { There::SEEN }
}

/// The same in all sets.
#[inline(always)]
fn look_everywhere<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Result<(), InsertError> {
    (desk.same, desk.ended) = (FlowReference::NONE, FlowReference::NONE);
    let first = tables.look_in_set(0, desk);
    if first == There::CONTENDED {
        return Err(InsertError::Contended);
    }
    if first == There::ELSEWHERE {
        for choice in 1..CHOICES {
            if tables.look_in_set(choice, desk) == There::CONTENDED {
                return Err(InsertError::Contended);
            }
        }
    }
    Ok(())
}

#[inline(always)]
fn insert_locked<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Result<(), InsertError> {
    let now = tables.now();
    // Is the flow there by now?
    look_everywhere(tables, desk)?;
    if let Some((set, way)) = locate(desk.ended, tables) {
        let word = tables.word(set, way);
        let freed = word.moved_to(FlowState::FREE, now);
        if !word.state().has_ended() || !tables.swap_word(set, way, word, freed) {
            return Err(InsertError::Contended);
        }
    }
    // (Anew: another CPU may have made a flow in the way that was the one before the lock.)
    let (index, way) = match desk.same.place().or_else(|| desk.ended.place()) {
        Some(place) => place,
        None => place(tables, desk),
    };
    let set = tables.set(index).ok_or(InsertError::Full)?;
    let word = tables.word(set, way);
    if desk.same != FlowReference::NONE {
        // Another CPU may have made it by now, or made it anew.
        if desk.same != desk.new.replaces {
            // (Nobody writes a client's records without the lock: there is no order to keep.)
            tables.copy_flow(set, way, FlowWord::default(), &mut desk.found);
            return Ok(());
        }
    } else if eviction_rank(word, now) == 0 {
        return Err(InsertError::Full);
    }
    let busy = word.renewed(desk.home.tag).moved_to(FlowState::BUSY, now);
    if !tables.swap_word(set, way, word, busy) {
        // A packet of the victim came in between; it is alive after all. Or, in another set than the first, another client.
        return Err(InsertError::Contended);
    }
    let made = FlowReference::new(index, way, busy);
    if desk.new.masquerade != A::UNSPECIFIED {
        if !take_port(&desk.new.flow, desk.new.port_holder, made, tables) {
            tables.swap_word(set, way, busy, busy.moved_to(FlowState::FREE, now));
            return Err(InsertError::Contended);
        }
        desk.new.flow.nat = desk.new.masquerade;
    }
    if index != desk.home.first {
        let first = tables.set(desk.home.first).ok_or(InsertError::Full)?;
        tables.mark(first, FlowWord::overflow_way(desk.home.tag));
    }
    tables.put_flow(set, way, &desk.new.flow);
    tables.swap_word(set, way, busy, busy.moved_to(desk.new.state, now));
    desk.new.made = made;
    desk.new.flow.write_to(&mut desk.found);
    Ok(())
}

/// What is given up most gladly: a way without a flow, or with one that has expired.
pub(super) const FREE: u32 = u32::MAX - 1;
/// The favourite way, if it holds nothing.
const FIRST_CHOICE: u32 = u32::MAX;
/// The favourite way, if it may be given up and has been silent; not while there is a way without a flow: an answer may still
/// come, or what is left of a connection that has ended.
const SECOND_CHOICE: u32 = FREE - 1;

/// How gladly a way is given up: 0 never, then half-open flows by age, then ended ones, then [`FREE`].
#[inline(always)]
pub(super) fn eviction_rank(word: FlowWord, now: Moment) -> u32 {
    const ENDED: u32 = 1 << 24;
    let state = word.state();
    if state.0 == FlowState::FREE.0 || word.remaining(now) <= 0 {
        return FREE;
    }
    // By what is past, not by what remains: flows of several protocols are half-open for several times.
    let age = (now.since(word.seen()) & 0xff_ffff) + 1;
    if state.has_ended() {
        ENDED + age
    } else if state.is_half_open() {
        age
    } else {
        0
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn races_are_run_again_and_not_for_ever() {
        let contended = Err(InsertError::Contended);
        let mut outcomes = [contended, contended, Err(InsertError::Full), Ok(())].into_iter();
        assert_eq!(until_won(contended, || outcomes.next().unwrap()), Err(InsertError::Full));
        let mut attempts = 0;
        let lost = until_won(contended, || {
            attempts += 1;
            contended
        });
        assert_eq!((lost, attempts), (contended, ATTEMPTS));
    }
}
