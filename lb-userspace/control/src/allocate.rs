//! Ids and ring room: given out once, left alone for a grace time when given back.
//!
//! Time is passed in. Everything here can be recovered from what the maps hold.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use lb_common::abi::Ring;

/// When a number that was given back is given out again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reuse {
    /// After this time, and then before a fresh one: numbers stay small.
    After(Duration),
    /// When there is no fresh one left: what still knows the number may live for hours.
    Last,
}

/// Numbers from 0 up to a limit.
#[derive(Debug)]
pub struct Ids {
    next: u32,
    limit: u32,
    reuse: Reuse,
    /// Free numbers below `next`, the one free for longest first; no time: free since before our time.
    free: VecDeque<(Option<Instant>, u32)>,
}

impl Ids {
    /// Numbers below `limit`, of which those of `used` are taken.
    pub fn new(limit: u32, reuse: Reuse, used: impl Iterator<Item = u32>) -> Self {
        let mut used: Vec<u32> = used.filter(|id| *id < limit).collect();
        used.sort_unstable();
        used.dedup();
        let next = used.last().map_or(0, |last| last + 1);
        let mut used = used.into_iter().peekable();
        let free = (0..next).filter(|id| used.next_if_eq(id).is_none()).map(|id| (None, id)).collect();
        Self { next, limit, reuse, free }
    }

    /// A number nobody has: one that may be used again, else a fresh one, else the one that has been free for longest.
    /// None when all are taken.
    pub fn take(&mut self, now: Instant) -> Option<u32> {
        let rested = match self.reuse {
            Reuse::Last => false,
            Reuse::After(grace) => self.free.front().is_some_and(|(since, _)| {
                since.is_none_or(|since| now.saturating_duration_since(since) >= grace)
            }),
        };
        if !rested && self.next < self.limit {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.free.pop_front().map(|(_, id)| id)
    }

    /// Gives a number back.
    pub fn give_back(&mut self, id: u32, now: Instant) {
        self.free.push_back((Some(now), id));
    }
}

/// Room for rings: first fit; what is given back rests for a grace time, since packets in flight may
/// still read it.
#[derive(Debug)]
pub struct RingArena {
    free: BTreeMap<u32, u32>,
    resting: VecDeque<(Instant, Ring)>,
    grace: Duration,
    used: u32,
}

impl RingArena {
    /// An arena of `slots` slots, all free.
    pub fn new(slots: u32, grace: Duration) -> Self {
        let free = if slots == 0 { BTreeMap::new() } else { BTreeMap::from([(0, slots)]) };
        Self { free, resting: VecDeque::new(), grace, used: 0 }
    }

    /// Slots that are not free: in use or resting.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// When the next room becomes free.
    pub fn next_free(&self) -> Option<Instant> {
        self.resting.front().map(|(since, _)| *since + self.grace)
    }

    /// Takes the very room of `ring`, as found in the maps. False when some of it is taken or lies
    /// outside: then nothing is taken.
    pub fn reserve(&mut self, ring: Ring) -> bool {
        let Some(end) = ring.offset.checked_add(ring.length) else { return false };
        let Some((&offset, &length)) = self.free.range(..=ring.offset).next_back() else { return false };
        if ring.length == 0 || end > offset + length {
            return false;
        }
        self.free.remove(&offset);
        if ring.offset > offset {
            self.free.insert(offset, ring.offset - offset);
        }
        if offset + length > end {
            self.free.insert(end, offset + length - end);
        }
        self.used += ring.length;
        true
    }

    /// Room for `length` slots. None when no free piece is long enough.
    pub fn allocate(&mut self, length: u32, now: Instant) -> Option<Ring> {
        while let Some((_, ring)) =
            self.resting.pop_front_if(|(since, _)| now.saturating_duration_since(*since) >= self.grace)
        {
            self.free_now(ring);
        }
        let (&offset, _) = self.free.iter().find(|(_, room)| **room >= length)?;
        let ring = Ring { offset, length };
        self.reserve(ring).then_some(ring)
    }

    /// Gives the room of a ring back.
    pub fn release(&mut self, ring: Ring, now: Instant) {
        if ring.length > 0 {
            self.resting.push_back((now, ring));
        }
    }

    fn free_now(&mut self, ring: Ring) {
        let (mut offset, mut length) = (ring.offset, ring.length);
        self.used -= length;
        if let Some(after) = self.free.remove(&(offset + length)) {
            length += after;
        }
        if let Some((&before, &room)) = self.free.range(..offset).next_back()
            && before + room == offset
        {
            self.free.remove(&before);
            offset = before;
            length += room;
        }
        self.free.insert(offset, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    #[test]
    fn a_number_given_back_rests() {
        let start = Instant::now();
        let mut ids = Ids::new(3, Reuse::After(GRACE), std::iter::empty());
        assert_eq!([ids.take(start), ids.take(start)], [Some(0), Some(1)]);
        ids.give_back(0, start);
        assert_eq!(ids.take(start), Some(2), "a fresh one goes before one that has not rested");
        assert_eq!(ids.take(start), Some(0), "better too early than not at all");
        assert_eq!(ids.take(start), None);
        ids.give_back(1, start);
        assert_eq!(ids.take(start + GRACE), Some(1));
    }

    #[test]
    fn a_number_that_lives_on_elsewhere_comes_again_last() {
        let start = Instant::now();
        let mut ids = Ids::new(6, Reuse::Last, [0, 2].into_iter());
        assert_eq!(ids.take(start), Some(3));
        ids.give_back(2, start);
        ids.give_back(0, start);
        let later = start + 1000 * GRACE;
        let all: Vec<_> = std::iter::from_fn(|| ids.take(later)).collect();
        // First those nobody has had, then what a former agent left free, then what was given back, in that order.
        assert_eq!(all, [4, 5, 1, 2, 0]);
    }

    #[test]
    fn holes_are_found_again() {
        let mut ids = Ids::new(10, Reuse::After(GRACE), [5, 0, 2, 2, 99].into_iter());
        let now = Instant::now();
        let all: Vec<_> = std::iter::from_fn(|| ids.take(now)).collect();
        assert_eq!(all, [1, 3, 4, 6, 7, 8, 9]);
    }

    #[test]
    fn room_is_used_again_after_the_grace_time_and_joined() {
        let start = Instant::now();
        let mut arena = RingArena::new(30, GRACE);
        let rings: Vec<_> = (0..3).map(|_| arena.allocate(10, start).unwrap()).collect();
        assert_eq!(rings.iter().map(|ring| ring.offset).collect::<Vec<_>>(), [0, 10, 20]);
        assert_eq!(arena.allocate(1, start), None);
        for i in [0, 2, 1] {
            arena.release(rings[i], start);
        }
        assert_eq!(arena.allocate(30, start + GRACE / 2), None);
        assert_eq!(arena.next_free(), Some(start + GRACE));
        assert_eq!(arena.allocate(30, start + GRACE), Some(Ring { offset: 0, length: 30 }));
        assert_eq!(arena.used(), 30);
    }

    #[test]
    fn what_was_found_is_not_given_out() {
        let mut arena = RingArena::new(100, GRACE);
        assert!(arena.reserve(Ring { offset: 10, length: 20 }));
        for wrong in [(10, 20), (29, 5), (5, 6), (90, 11), (u32::MAX, 2), (50, 0)] {
            assert!(!arena.reserve(Ring { offset: wrong.0, length: wrong.1 }), "{wrong:?}");
        }
        let now = Instant::now();
        assert_eq!(arena.allocate(10, now), Some(Ring { offset: 0, length: 10 }));
        assert_eq!(arena.allocate(10, now), Some(Ring { offset: 30, length: 10 }));
    }
}
