//! Making a flow: under the set's lock, in the way that is given up most gladly.

use super::nat::{choose_port, holds_port, is_in_range, take_port};
use super::{any_way, favourite, place};
use crate::abi::{Flow, FlowReference, FlowState, FlowWord, Moment, WAYS};
use crate::addr::Port;
use crate::datapath::Family;
use crate::datapath::tables::{FlowSets, Tables};

/// Time without a packet after which a flow that may be given up leaves its way to one that is looked for there
/// first: longer than an answer takes.
const FAVOURITE_STEPS: u32 = Moment::steps(1);

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
    /// The same flow is in the table, and has ended, lost its port, or must leave its backend.
    pub replaces: bool,
    /// The flow's hash: where the search for a port begins.
    pub hash: u32,
    /// Who gives up the port; filled in on the way.
    pub port_holder: FlowReference,
}

impl<A: Copy> NewFlow<A> {
    /// Writes it where another was, or nothing ([`Flow::write_to`]).
    #[inline(always)]
    pub fn write_to(self, place: &mut Self) {
        let Self { flow, masquerade, state, replaces, hash, port_holder } = self;
        flow.write_to(&mut place.flow);
        place.masquerade = masquerade;
        place.state = state;
        place.replaces = replaces;
        place.hash = hash;
        place.port_holder = port_holder;
    }
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

/// Makes a flow, unless another CPU has made it in the meantime: then `new.flow` becomes that one.
///
/// # Errors
/// Why there can be no flow.
#[inline(always)]
pub fn insert<A: Family, T: Tables<A>>(new: &mut NewFlow<A>, tables: &T) -> Result<(), InsertError> {
    let (index, tag) = place(tables, new.flow.client, new.flow.client_port, new.flow.proto);
    let set = tables.set(index).ok_or(InsertError::Full)?;
    if new.masquerade != A::UNSPECIFIED {
        // What has to be waited for, before the lock: each atomic operation waits for all that is under way. The record
        // that will probably be overwritten comes while ports are looked for.
        tables.fetch_flow(set, victim(set, tag, tables));
        let kept = if new.replaces { kept_port(new, set, (index, tag), tables) } else { None };
        let chosen = kept.or_else(|| choose_port(&new.flow, new.hash, tables));
        (new.flow.nat_port, new.port_holder) = chosen.ok_or(InsertError::NatPortsExhausted)?;
    }
    if !lock(set, tables) {
        return Err(InsertError::Contended);
    }
    let outcome = insert_locked(new, set, (index, tag), tables);
    unlock(set, tables);
    outcome
}

/// The port of the ended connection that is replaced, where it goes to the same backend. The backend may still wait for stray
/// segments of that connection (TIME-WAIT), and takes a new one on the same port only if its timestamps go on from there,
/// as they do from the same client port alone. <https://www.rfc-editor.org/rfc/rfc6191>
/// One that has ended on one side only, as far as we know, is left alone: the backend would not have another yet.
#[inline(always)]
fn kept_port<A: Family, T: Tables<A>>(
    new: &NewFlow<A>,
    set: T::Set,
    (index, tag): (u32, u16),
    tables: &T,
) -> Option<(Port, FlowReference)> {
    let same = |other: &Flow<A>| {
        let flow = &new.flow;
        other.is_of(flow.client, flow.client_port, flow.proto)
            && other.frontend == flow.frontend
            && other.frontend_port == flow.frontend_port
            && other.backend == flow.backend
            && other.backend_port == flow.backend_port
            && other.nat == new.masquerade
    };
    let has_ended = |word: FlowWord| {
        word.tag() == tag && word.state() == FlowState::TCP_CLOSED && word.is_live(tables.now())
    };
    let mut hit = tables.forget_history(WAYS as u32) as usize;
    for way in 0..WAYS {
        if has_ended(tables.word(set, way)) && tables.fits(set, way, same) {
            hit = tables.forget_history(way as u32) as usize;
        }
    }
    if hit >= WAYS {
        return None;
    }
    let way = any_way(hit, tables);
    let word = tables.word(set, way);
    let flow = tables.flow(set, way, word);
    if !has_ended(word) || !same(&flow) || !tables.word_after(flow, set, way).settles(word) {
        return None;
    }
    let own = FlowReference::new(index, way, word);
    // (The range may be another since the port was given out.)
    let may_keep = is_in_range(flow.nat_port, flow.proto, tables) && holds_port(&flow, own, tables);
    may_keep.then_some((flow.nat_port, own))
}

/// The way that is given up most gladly, if any may be.
#[inline(always)]
fn victim<A: Family, T: Tables<A>>(set: T::Set, tag: u16, tables: &T) -> usize {
    let now = tables.now();
    // (What the loop finds has no history for the verifier: it would follow every combination.)
    let (mut victim, mut rank) = (0, 0);
    for way in 0..WAYS {
        let word = tables.word(set, way);
        let mut way_rank = eviction_rank(word, now);
        let is_favourite = tables.forget_history(favourite(tag) as u32) as usize == way;
        if is_favourite && way_rank == FREE {
            way_rank = FIRST_CHOICE;
        } else if is_favourite && way_rank != 0 && now.since(word.seen()) >= FAVOURITE_STEPS {
            way_rank = SECOND_CHOICE;
        }
        let way_rank = tables.forget_history(way_rank);
        if way_rank > rank {
            rank = way_rank;
            victim = tables.forget_history(way as u32) as usize;
        }
    }
    any_way(victim, tables)
}

#[inline(always)]
fn insert_locked<A: Family, T: Tables<A>>(
    new: &mut NewFlow<A>,
    set: T::Set,
    (index, tag): (u32, u16),
    tables: &T,
) -> Result<(), InsertError> {
    let now = tables.now();
    // Is the flow there by now?
    let unknown = |number: usize| tables.forget_history(number as u32) as usize;
    let (mut existing, mut ended) = (unknown(WAYS), unknown(WAYS));
    for way in 0..WAYS {
        let word = tables.word(set, way);
        if word.tag() != tag || !word.is_live(now) {
            continue;
        }
        let flow = &new.flow;
        let client = |other: &Flow<A>| other.is_of(flow.client, flow.client_port, flow.proto);
        let same = |other: &Flow<A>| {
            client(other) && other.frontend == flow.frontend && other.frontend_port == flow.frontend_port
        };
        if tables.fits(set, way, same) {
            existing = unknown(way);
            continue;
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
            ended = unknown(way);
        }
    }
    if ended < WAYS {
        let word = tables.word(set, ended);
        if word.state() != FlowState::TCP_CLOSED
            || !tables.swap_word(set, ended, word, word.moved_to(FlowState::FREE, now))
        {
            return Err(InsertError::Contended);
        }
    }
    // (Anew: another CPU may have made a flow in the way that was the one before the lock.)
    let mut way = if ended < WAYS { any_way(ended, tables) } else { victim(set, tag, tables) };
    if existing < WAYS {
        way = any_way(existing, tables);
        // (Nobody writes a record without the lock: there is no order to keep.)
        let other = tables.flow(set, way, FlowWord::default());
        // Where it had to leave its backend, another CPU may have seen to that by now.
        let remade = other.backend_id == new.flow.backend_id
            && other.backend_generation == new.flow.backend_generation
            && tables.word(set, way).state().0 < FlowState::TCP_CLIENT_FIN.0
            && holds_port(&other, FlowReference::new(index, way, tables.word(set, way)), tables);
        if !new.replaces || remade {
            new.flow = *other;
            return Ok(());
        }
    }
    let word = tables.word(set, way);
    if existing >= WAYS && eviction_rank(word, now) == 0 {
        return Err(InsertError::Full);
    }
    let busy = word.renewed(tag).moved_to(FlowState::BUSY, now);
    if !tables.swap_word(set, way, word, busy) {
        // A packet of the victim came in between; it is alive after all.
        return Err(InsertError::Contended);
    }
    if new.masquerade != A::UNSPECIFIED {
        if !take_port(&new.flow, new.port_holder, FlowReference::new(index, way, busy), tables) {
            tables.swap_word(set, way, busy, busy.moved_to(FlowState::FREE, now));
            return Err(InsertError::Contended);
        }
        new.flow.nat = new.masquerade;
    }
    tables.put_flow(set, way, &new.flow);
    tables.swap_word(set, way, busy, busy.moved_to(new.state, now));
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
    if state.0 == FlowState::TCP_CLOSED.0 {
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
