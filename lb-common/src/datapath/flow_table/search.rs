//! Searching a client's sets: the first in place, all of them where that one says so.

use super::{CHOICES, Found, Home, Position, Query, any_way, favourite, locate};
use crate::abi::{FlowReference, FlowWord, WAYS};
use crate::datapath::Family;
use crate::datapath::desk::Desk;
use crate::datapath::tables::PacketTables;

/// What a look at one set shows.
pub enum Probe<S> {
    /// The flow: where it is. Its record is on the desk.
    Hit(Position<S>),
    /// There is none.
    Miss,
    /// [`search_set`] has to look at more.
    Unsure,
}

/// Looks at the first live way of the client's first set that carries its tag, which is nearly always the one.
#[inline(always)]
pub fn probe<A: Family, T: PacketTables<A>>(
    query: &Query<A>,
    tables: &T,
    desk: &mut Desk<A>,
) -> Probe<T::Set> {
    let Home { first: index, tag } = query.home;
    let Some(set) = tables.set(index) else { return Probe::Miss };
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
            return if is_overflowed(set, tag, tables) { Probe::Unsure } else { Probe::Miss };
        }
    }
    let way = any_way(hit, tables);
    let word = tables.word(set, way);
    let after = tables.copy_flow(set, way, word, &mut desk.found);
    let whole = word.tag() == tag && word.is_live(now) && query.fits(&desk.found) && after.settles(word);
    if !whole {
        return Probe::Unsure;
    }
    Probe::Hit(Position { set, way, word, reference: FlowReference::new(index, way, word) })
}

/// Searches a client's sets. The record comes to lie on the desk. Where two flows fit, it is the one [`probe`] sees.
#[inline(always)]
pub fn find<'d, A: Family, T: PacketTables<A>>(
    query: &Query<A>,
    tables: &T,
    desk: &'d mut Desk<A>,
) -> Option<Found<'d, A, T::Set>> {
    if tables.probes() {
        match probe(query, tables, desk) {
            Probe::Hit(position) => return Some(Found { position, flow: &desk.found }),
            Probe::Miss => return None,
            Probe::Unsure => {}
        }
    }
    search(query, tables, desk)
}

/// The same without a look in place: what is seldom asked for.
#[inline(always)]
pub fn search<'d, A: Family, T: PacketTables<A>>(
    query: &Query<A>,
    tables: &T,
    desk: &'d mut Desk<A>,
) -> Option<Found<'d, A, T::Set>> {
    query.write_to(&mut desk.query);
    let mut reference = tables.search_set(0, desk);
    if reference == ELSEWHERE {
        reference = FlowReference::NONE;
        for choice in 1..CHOICES {
            reference = tables.search_set(choice, desk);
            if reference != FlowReference::NONE {
                break;
            }
        }
    }
    let (set, way) = locate(reference, tables)?;
    Some(Found { position: Position { set, way, word: desk.word, reference }, flow: &desk.found })
}

/// In place of a reference: not in the client's first set, but perhaps in another.
pub const ELSEWHERE: FlowReference = FlowReference(u32::MAX);

/// Searches the set of this choice for the query on the desk, and lays the record and its word there. The result is the flow, none, or
/// [`ELSEWHERE`].
#[inline(always)]
pub fn search_set<A: Family, T: PacketTables<A>>(
    choice: u32,
    tables: &T,
    desk: &mut Desk<A>,
) -> FlowReference {
    let Desk { query, found, .. } = desk;
    let (tag, index) = (query.home.tag, query.home.set(choice, tables));
    let Some(set) = tables.set(index) else { return FlowReference::NONE };
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
        let is_elsewhere = choice == 0 && is_overflowed(set, tag, tables);
        return if is_elsewhere { ELSEWHERE } else { FlowReference::NONE };
    }
    let way = any_way(hit, tables);
    let after = tables.copy_flow(set, way, hit_word, found);
    // Nobody has changed the record since the word was read, so what fitted is what was copied; if that was read in this order.
    if !after.settles(hit_word) || !T::READS_IN_ORDER && !query.fits(found) {
        return FlowReference::NONE;
    }
    desk.word = hit_word;
    FlowReference::new(index, way, hit_word)
}

/// Whether the client has flows from this port at all, or another client that its tag cannot be told from.
#[inline(always)]
pub(super) fn has_flows<A: Family, T: PacketTables<A>>(home: Home, tables: &T) -> bool {
    let Home { first, tag } = home;
    let Some(set) = tables.set(first) else { return false };
    is_overflowed(set, tag, tables)
        || (0..WAYS).any(|way| {
            let word = tables.word(set, way);
            word.tag() == tag && word.is_live(tables.now())
        })
}

/// Whether flows of clients with this tag may be in other sets than their first, which is `set`.
#[inline(always)]
pub(super) fn is_overflowed<A: Family, T: PacketTables<A>>(set: T::Set, tag: u16, tables: &T) -> bool {
    tables.word(set, FlowWord::overflow_way(tag)).is_overflowed()
}
