//! Making a flow: under the lock of its client's first set, in the way that is given up most gladly.

use super::nat::take_port;
use super::search::is_overflowed;
use super::{CHOICES, Home, any_way, favourite, locate};
use crate::abi::{Flow, FlowReference, FlowState, FlowWord, Moment, WAYS};
use crate::datapath::Family;
use crate::datapath::desk::Desk;
use crate::datapath::tables::{FlowSets, PacketTables, Tables};

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
    /// The Service has no endpoint on this node, and its policy is Local.
    NoLocalEndpoint,
    /// It answers a connection of the node's own, and begins none.
    Answer,
    /// It claims to come from where nothing comes from: the node's own address, nobody's, or another link.
    Martian,
    /// Its TTL is at an end, and the kernel answers.
    TimeExceeded,
    /// It goes to a port of no Service, and would circle.
    UnknownPort,
    /// It is nobody's.
    Nobodys,
}

impl InsertError {
    /// From a function's result: the inverse of `as u32`.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        const FULL: u32 = InsertError::Full as u32;
        const NO_PORTS: u32 = InsertError::NatPortsExhausted as u32;
        const NO_BACKEND: u32 = InsertError::NoBackend as u32;
        const DENIED: u32 = InsertError::SourceDenied as u32;
        const NO_LOCAL: u32 = InsertError::NoLocalEndpoint as u32;
        const ANSWER: u32 = InsertError::Answer as u32;
        const MARTIAN: u32 = InsertError::Martian as u32;
        const TIME: u32 = InsertError::TimeExceeded as u32;
        const UNKNOWN: u32 = InsertError::UnknownPort as u32;
        const NOBODYS: u32 = InsertError::Nobodys as u32;
        match number {
            FULL => Self::Full,
            NO_PORTS => Self::NatPortsExhausted,
            NO_BACKEND => Self::NoBackend,
            DENIED => Self::SourceDenied,
            NO_LOCAL => Self::NoLocalEndpoint,
            ANSWER => Self::Answer,
            MARTIAN => Self::Martian,
            TIME => Self::TimeExceeded,
            UNKNOWN => Self::UnknownPort,
            NOBODYS => Self::Nobodys,
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

/// Frees the way of a flow that netfilter goes on with, unless it is another's by now.
#[inline(always)]
pub fn give_up<A: Family, T: PacketTables<A>>(replaced: FlowReference, tables: &T) {
    let Some((set, way)) = locate(replaced, tables) else { return };
    let word = tables.word(set, way);
    if replaced.is_current(word) {
        tables.swap_word(set, way, word, word.moved_to(FlowState::FREE, tables.now()));
    }
}

/// What a set shows to whoever wants to make a flow there: a number, as functions in the kernel have no other result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Survey(pub u32);

impl Survey {
    /// It holds a live flow that cannot be told from the one that is to be made.
    pub const CONTENDED: Self = Self(1 << 16);
    /// Other sets may hold flows of the client.
    const ELSEWHERE: u32 = 1 << 17;
    /// Nothing can be had, and nothing is there.
    pub const NOTHING: Self = Self::new(0, WAYS as u32, false);

    #[inline(always)]
    const fn new(way: usize, held: u32, is_elsewhere: bool) -> Self {
        Self(way as u32 | held << 8 | if is_elsewhere { Self::ELSEWHERE } else { 0 })
    }

    /// The way that is given up most gladly.
    #[inline(always)]
    pub(super) const fn way(self) -> usize {
        self.0 as usize % WAYS
    }

    /// How many ways may not be given up.
    #[inline(always)]
    const fn held(self) -> u32 {
        self.0 >> 8 & 0xff
    }

    #[inline(always)]
    const fn is_elsewhere(self) -> bool {
        self.0 & Self::ELSEWHERE != 0
    }
}

/// Looks through the set of this choice for the flow on the desk: for the flow itself and for a connection that has ended whose
/// replies would pass for its own, which are named on the desk; and for what can be had there.
#[inline(always)]
pub fn survey_set<A: Family, T: PacketTables<A>>(choice: u32, tables: &T, desk: &mut Desk<A>) -> Survey {
    let Desk { new: NewFlow { flow, .. }, home, same, ended, .. } = desk;
    let index = home.set(choice, tables);
    let now = tables.now();
    let Some(set) = tables.set(index) else { return Survey::NOTHING };
    // (What the loop finds has no history for the verifier: it would follow every combination.)
    let (mut victim, mut rank, mut held) = (0, 0, 0);
    for way in 0..WAYS {
        let word = tables.word(set, way);
        let way_rank = rank_here(way, word, home.tag, tables);
        held = tables.forget_history(held + u32::from(way_rank == 0));
        if way_rank > rank {
            rank = way_rank;
            victim = tables.forget_history(way as u32) as usize;
        }
        if word.tag() != home.tag || !word.is_live(now) {
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
                return Survey::CONTENDED;
            }
            *ended = FlowReference::new(index, way, word);
        }
    }
    let is_elsewhere = choice == 0 && is_overflowed(set, home.tag, tables);
    Survey::new(any_way(victim, tables), held, is_elsewhere)
}

/// Looks through the client's sets: the first, and the others if it is crowded, or if flows of the client may be there. The result is
/// where the flow belongs: where it or what stands in its way is, else in the first set, unless that is crowded, else in the emptiest.
#[inline(always)]
fn place<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Result<(u32, usize), InsertError> {
    (desk.same, desk.ended) = (FlowReference::NONE, FlowReference::NONE);
    let first = tables.survey_set(0, desk);
    if first == Survey::CONTENDED {
        return Err(InsertError::Contended);
    }
    let (mut choice, mut best) = (0, first);
    if first.is_elsewhere() || first.held() >= CROWDED {
        for other in 1..CHOICES {
            let survey = tables.survey_set(other, desk);
            if survey == Survey::CONTENDED {
                return Err(InsertError::Contended);
            }
            if first.held() >= CROWDED && survey.held() < best.held() {
                choice = tables.forget_history(other);
                best = Survey(tables.forget_history(survey.0));
            }
        }
    }
    let there = desk.same.place().or_else(|| desk.ended.place());
    Ok(there.unwrap_or((desk.home.set(choice, tables), best.way())))
}

#[inline(always)]
fn insert_locked<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Result<(), InsertError> {
    let now = tables.now();
    // (Anew: another CPU may have made the flow before the lock, or one in the way that was the best.)
    let (index, way) = place(tables, desk)?;
    if let Some((set, way)) = locate(desk.ended, tables) {
        let word = tables.word(set, way);
        let freed = word.moved_to(FlowState::FREE, now);
        if !word.state().has_ended() || !tables.swap_word(set, way, word, freed) {
            return Err(InsertError::Contended);
        }
    }
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

/// How gladly a way of a set is given up for a flow with this tag: [`eviction_rank`], and the favourite way first or last but one.
#[inline(always)]
fn rank_here<A: Family, T: Tables<A>>(way: usize, word: FlowWord, tag: u16, tables: &T) -> u32 {
    let now = tables.now();
    let mut rank = tables.forget_history(eviction_rank(word, now));
    let is_favourite = tables.forget_history(favourite(tag) as u32) as usize == way;
    if is_favourite && rank == FREE {
        rank = FIRST_CHOICE;
    } else if is_favourite && rank != 0 && now.since(word.seen()) >= FAVOURITE_STEPS {
        rank = SECOND_CHOICE;
    }
    tables.forget_history(rank)
}

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
