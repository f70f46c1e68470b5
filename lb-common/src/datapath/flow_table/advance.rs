//! What a packet does to the flow it belongs to.

use super::Position;
use crate::abi::{FlowState, FlowWord, Moment, Progress};
use crate::addr::Proto;
use crate::datapath::Family;
use crate::datapath::flow::{self, Side};
use crate::datapath::parse::{Segment, TcpFlags};
use crate::datapath::tables::PacketTables;

/// How often a state change is tried against other CPUs that change the same word.
const ADVANCE_ATTEMPTS: usize = 3;
/// Time a flow's last-seen stamp may lag: one write a second for a busy flow, not one a packet.
const STAMP_STEPS: u32 = Moment::steps(1);

/// Whether a flow's last-seen stamp lags too far.
#[inline(always)]
pub(super) fn is_stamp_due(word: FlowWord, now: Moment) -> bool {
    now.since(word.seen()) >= STAMP_STEPS
}

/// Moves a flow on by one packet: its state, how far its sides have come, and its stamp at most once a second.
#[inline(always)]
pub fn advance<A: Family, T: PacketTables<A>>(
    position: &Position<T::Set>,
    side: Side,
    (proto, flags, segment): (Proto, TcpFlags, &Segment),
    tables: &T,
) {
    let (now, set, way) = (tables.now(), position.set, position.way);
    let mut word = position.word;
    let mut flags = flags;
    let progress = tables.progress(set, way);
    if side == Side::Backend && progress.unanswered_syn != 0 {
        tables.note_unanswered_syn(set, way, 0);
    }
    if proto == Proto::TCP {
        let is_in_the_middle = word.state().is_connected() && flags.is_plain();
        if is_in_the_middle && !is_stamp_due(word, now) && !progress.lags(side, segment) {
            return;
        }
        let Some(believed) = flow::believed(word.state(), side, flags, segment, &progress) else { return };
        flags = believed;
        // Numbers begin with a SYN, as long as none have been agreed on.
        let is_first = flags.syn() && word.state().is_half_open();
        let known = if is_first { Progress::default() } else { progress };
        tables.note_progress(set, way, side, known.after(side, segment));
    }
    for _ in 0..ADVANCE_ATTEMPTS {
        let mut state = flow::next(word.state(), side, flags);
        if state == word.state() {
            if !is_stamp_due(word, now) {
                return;
            }
            if state.has_ended() {
                if state == FlowState::TCP_CLOSED || !flags.is_plain() {
                    return;
                }
                // The side that has given up speaks on: the RST was not its own.
                state = FlowState::TCP_ESTABLISHED;
            }
        }
        if tables.swap_word(set, way, word, word.moved_to(state, now)) {
            return;
        }
        word = tables.word(set, way);
        if !word.settles(position.word) || !word.is_live(now) {
            return;
        }
    }
}

/// A client speaks to a backend itself, from a port it has used towards it through a Service. The answers
/// would be taken for that flow's, so it is forgotten: with TCP if the client begins a connection and the
/// flow is over or was never confirmed; with UDP, where nothing else tells, at once.
#[inline(always)]
pub fn forget_for_direct<A: Family, T: PacketTables<A>>(
    position: &Position<T::Set>,
    (proto, flags): (Proto, TcpFlags),
    tables: &T,
) {
    let state = position.word.state();
    let over = state.is_half_open() || state.0 >= FlowState::TCP_CLIENT_FIN.0;
    if proto == Proto::UDP || flags.opens() && over {
        let freed = position.word.moved_to(FlowState::FREE, tables.now());
        tables.swap_word(position.set, position.way, position.word, freed);
    }
}
