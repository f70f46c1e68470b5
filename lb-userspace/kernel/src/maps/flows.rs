//! Reads the flow table through mmap, while programs write it, without a system call.

use std::collections::BTreeMap;
use std::io;

use lb_common::abi::{Clock, Flow, FlowState, FlowWord, Moment, WAYS};
use lb_common::addr::Proto;
use nix::time::{ClockId, clock_getres, clock_gettime};
use zerocopy::FromBytes;

use super::mmap::{FlowMemory, MappedFlows};

/// A flow as it was at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LiveFlow<A> {
    /// State and time of the last packet.
    pub word: FlowWord,
    /// Who speaks to whom.
    pub flow: Flow<A>,
}

/// The time on the programs' clock.
pub fn now() -> Moment {
    // The coarse clock exists on every kernel this agent loads on; 0 makes all flows look fresh.
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64);
    Moment::from_nanos(time)
}

/// The same clock as the programs read it.
///
/// # Errors
/// The kernel does not say how long a tick lasts.
pub fn clock() -> std::io::Result<Clock> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(Clock::new(tick.tv_sec() as u64 * 1_000_000_000 + tick.tv_nsec() as u64))
}

/// One look at a way: the word, the record, and the word again, which must be that of the same record.
fn look<A>(
    word: impl Fn() -> Option<FlowWord>,
    record: impl FnOnce() -> Option<Flow<A>>,
    now: Moment,
) -> Option<LiveFlow<A>> {
    let before = word().filter(|word| word.is_live(now))?;
    let flow = record()?;
    let after = word()?;
    after.settles(before).then_some(LiveFlow { word: after, flow })
}

impl<A: FromBytes> MappedFlows<A> {
    /// Set and way of every place for a flow.
    fn ways(&self) -> impl Iterator<Item = (usize, usize)> + use<A> {
        (0..self.sets()).flat_map(|set| (0..WAYS).map(move |way| (set, way)))
    }

    /// Every live flow. One that changes hands under our eyes is looked at once more, then left out.
    pub fn live(&self, now: Moment) -> impl Iterator<Item = LiveFlow<A>> + '_ {
        self.ways().filter_map(move |(set, way)| {
            (0..2).find_map(|_| look(|| self.word(set, way), || self.record(set, way), now))
        })
    }

    /// The client of every record, also of flows that have expired: by the programs' clock, which lags, they may not
    /// have. A record that is being written is left out, for its writer knows its client.
    pub fn clients(&self) -> impl Iterator<Item = A> + '_
    where
        A: Copy,
    {
        let is_held = |word: FlowWord| word.state() > FlowState::BUSY;
        let held = self.ways().filter(move |(set, way)| self.word(*set, *way).is_some_and(is_held));
        held.filter_map(|(set, way)| Some(self.record(set, way)?.client))
    }

    /// Whether any flow lives. Reads the words alone.
    pub fn any_live(&self, now: Moment) -> bool {
        self.ways().any(|(set, way)| self.word(set, way).is_some_and(|word| word.is_live(now)))
    }

    /// Number of live flows by protocol and state. Reads the words alone.
    pub fn count_by_state(&self, now: Moment) -> BTreeMap<(&'static str, &'static str), u64> {
        let mut counts: BTreeMap<_, u64> = STATES.iter().map(|state| (state_labels(*state), 0)).collect();
        let words = self.ways().filter_map(|(set, way)| self.word(set, way));
        for word in words.filter(|word| word.is_live(now)) {
            *counts.entry(state_labels(word.state())).or_default() += 1;
        }
        counts
    }
}

impl<A: FromBytes> FlowMemory<A> {
    /// [`MappedFlows::count_by_state`] at one look.
    ///
    /// # Errors
    /// The table cannot be mapped.
    pub fn count_by_state(&self, now: Moment) -> io::Result<BTreeMap<(&'static str, &'static str), u64>> {
        Ok(self.mapped()?.count_by_state(now))
    }

    /// [`MappedFlows::any_live`] at one look.
    ///
    /// # Errors
    /// The table cannot be mapped.
    pub fn any_live(&self, now: Moment) -> io::Result<bool> {
        Ok(self.mapped()?.any_live(now))
    }

    /// Flows there is room for.
    pub fn capacity(&self) -> usize {
        self.sets() * WAYS
    }
}

/// The states a live flow can be in.
const STATES: [FlowState; 9] = [
    FlowState::TCP_SYN,
    FlowState::TCP_SYN_ACK,
    FlowState::TCP_ESTABLISHED,
    FlowState::TCP_CLIENT_FIN,
    FlowState::TCP_BACKEND_FIN,
    FlowState::TCP_CLOSED,
    FlowState::UDP_NEW,
    FlowState::UDP_REPLIED,
    FlowState::UDP_ESTABLISHED,
];

/// Protocol and state, as metric labels.
pub const fn state_labels(state: FlowState) -> (&'static str, &'static str) {
    let proto = match state {
        FlowState::UDP_NEW | FlowState::UDP_REPLIED | FlowState::UDP_ESTABLISHED => "udp",
        _ => "tcp",
    };
    (proto, state.label())
}

/// `tcp`, `udp` or the number.
pub fn proto_label(proto: Proto) -> String {
    proto.to_string().to_lowercase()
}

#[cfg(test)]
mod tests {
    use lb_common::addr::Ipv4;
    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn a_way_that_changed_hands_under_our_eyes_is_left_out() {
        let word = FlowWord::new(7, FlowState::TCP_SYN, Moment(9));
        let seen = |before: FlowWord, after: FlowWord| {
            let words = std::cell::Cell::new(before);
            let look = look(|| Some(words.replace(after)), || Some(Flow::<Ipv4>::new_zeroed()), Moment(1));
            look.map(|live| live.word)
        };
        let moved = word.moved_to(FlowState::TCP_ESTABLISHED, Moment(9));
        assert_eq!(seen(word, moved), Some(moved));
        assert_eq!(seen(word, FlowWord::new(8, FlowState::TCP_SYN, Moment(9))), None);
        assert_eq!(seen(word, word.moved_to(FlowState::BUSY, Moment(1))), None);
        assert_eq!(seen(word, FlowWord::default()), None);
        // Another client with the same tag, or the same client's next connection.
        assert_eq!(seen(word, word.renewed(7)), None);
    }

    #[test]
    fn labels_of_states_are_distinct() {
        let labels: std::collections::BTreeSet<_> = STATES.iter().map(|state| state_labels(*state)).collect();
        assert_eq!(labels.len(), STATES.len());
    }

    #[test]
    fn the_clock_moves_forward() {
        assert!(now().0 > 0);
    }
}
