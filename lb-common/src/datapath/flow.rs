//! How a flow's state moves: pure functions of state, side, flags and, for TCP, sequence numbers.

use super::parse::{Segment, TcpFlags};
use crate::abi::{FlowState, Moment, Progress};
use crate::addr::Proto;

/// Who sent the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Side {
    /// The one who opened the flow.
    Client,
    /// The endpoint.
    Backend,
}

impl Side {
    /// The other one.
    #[inline(always)]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }
}

/// The state a flow is born with. SCTP goes the way of TCP ([`TcpFlags`]). A TCP flow picked up in its middle starts like a new one: the
/// backend's answer and the client's next packet vouch for it.
#[inline(always)]
pub const fn first(proto: Proto) -> FlowState {
    match proto {
        Proto::TCP | Proto::SCTP => FlowState::TCP_SYN,
        _ => FlowState::UDP_NEW,
    }
}

/// Whether a client's packet may begin a flow. RST ends connections and SYN+ACK answers them; SYN with FIN, and neither SYN nor ACK, are
/// nobody's in earnest.
#[inline(always)]
pub const fn may_begin(proto: Proto, flags: TcpFlags) -> bool {
    match proto {
        Proto::UDP => true,
        _ if flags.syn() => !(flags.rst() || flags.ack() || flags.fin()),
        _ => flags.ack() && !flags.rst(),
    }
}

/// The state after one more packet.
#[inline(always)]
pub fn next(state: FlowState, side: Side, flags: TcpFlags) -> FlowState {
    let event = side as usize * TcpFlags::TRANSITIONS + flags.transition_bits() as usize;
    NEXT.get(state.0 as usize & 0xf).and_then(|row| row.get(event)).map_or(state, |next| FlowState(*next))
}

/// [`transition`] as a table: one load instead of a tree of branches. A state is a cache line.
static NEXT: [[u8; 2 * TcpFlags::TRANSITIONS]; 16] = {
    const FLAGS: usize = TcpFlags::TRANSITIONS;
    let mut table = [[0; 2 * FLAGS]; 16];
    let mut state = 0;
    while state < table.len() {
        let mut flags = 0;
        while flags < FLAGS {
            let bits = TcpFlags(flags as u8);
            table[state][flags] = transition(FlowState(state as u8), Side::Client, bits).0;
            table[state][FLAGS + flags] = transition(FlowState(state as u8), Side::Backend, bits).0;
            flags += 1;
        }
        state += 1;
    }
    table
};

const fn transition(state: FlowState, side: Side, flags: TcpFlags) -> FlowState {
    type S = FlowState;
    let spoken = flags.ack() || flags.syn();
    match (state, side) {
        (S::UDP_NEW, Side::Backend) => S::UDP_REPLIED,
        (S::UDP_REPLIED, Side::Client) => S::UDP_ESTABLISHED,
        (S::FREE | S::BUSY | S::UDP_NEW | S::UDP_REPLIED | S::UDP_ESTABLISHED | S::TCP_CLOSED, _) => state,
        // Whoever gets a RST that is not quite right asks its sender with an ACK (RFC 5961, 3.2): the connection lives.
        (S::TCP_CLIENT_RESET, Side::Backend) | (S::TCP_BACKEND_RESET, Side::Client) if flags.is_plain() => {
            S::TCP_ESTABLISHED
        }
        (S::TCP_CLIENT_RESET | S::TCP_BACKEND_RESET, _) => state,
        (_, Side::Client) if flags.rst() => S::TCP_CLIENT_RESET,
        (_, Side::Backend) if flags.rst() => S::TCP_BACKEND_RESET,
        // Neither ACK nor SYN: no end of a connection sends that, and none listens to it. Nor does a
        // client's word count before the backend has said anything.
        _ if !spoken => state,
        (S::TCP_SYN, Side::Client) => state,
        (S::TCP_BACKEND_FIN, Side::Client) | (S::TCP_CLIENT_FIN, Side::Backend) if flags.fin() => {
            S::TCP_CLOSED
        }
        (S::TCP_BACKEND_FIN | S::TCP_CLIENT_FIN, _) => state,
        (_, Side::Client) if flags.fin() && !flags.syn() => S::TCP_CLIENT_FIN,
        (_, Side::Backend) if flags.fin() && !flags.syn() => S::TCP_BACKEND_FIN,
        (S::TCP_SYN, Side::Backend) => S::TCP_SYN_ACK,
        (S::TCP_SYN_ACK, Side::Client) if !flags.syn() => S::TCP_ESTABLISHED,
        _ => state,
    }
}

/// The most bytes that are believed to be on their way between two of a side's packets: those that get lost before they pass here,
/// and the [`Progress::LAG`].
const SLACK: u32 = 1 << 17;
/// The most bytes that a side gets ahead from one packet seen here to the next: a window, where all of it is lost.
const LEAP: u32 = 1 << 24;

/// Whether `number` lies between two others, both included, on the circle of sequence numbers.
#[inline(always)]
const fn is_between(number: u32, first: u32, last: u32) -> bool {
    number.wrapping_sub(first) <= last.wrapping_sub(first)
}

/// Whether a number is further on than another: by less than [`LEAP`].
#[inline(always)]
const fn is_ahead(number: u32, of: u32) -> bool {
    number.wrapping_sub(of).wrapping_sub(1) < LEAP
}

/// The later of two numbers, of which either may not be known.
#[inline(always)]
const fn later(known: u32, seen: u32) -> u32 {
    if known == 0 || is_ahead(seen, known) { seen } else { known }
}

impl Progress {
    /// Of the first packet of a flow, its client's.
    #[inline(always)]
    pub const fn of_first(segment: &Segment, flags: TcpFlags) -> Self {
        let acknowledged = if flags.ack() { segment.acknowledgement } else { 0 };
        Self { sent: [segment.next, 0], acknowledged: [acknowledged, 0], unanswered_syn: 0 }
    }

    /// Whether a packet of the middle of a connection is so far ahead of what is written down that it has to be.
    #[inline(always)]
    pub const fn lags(&self, side: Side, segment: &Segment) -> bool {
        let [sent, acknowledged] = self.of(side);
        let ahead = segment.next.wrapping_sub(sent);
        let confirmed = segment.acknowledgement.wrapping_sub(acknowledged);
        ahead.wrapping_sub(Self::LAG) < LEAP || confirmed.wrapping_sub(Self::LAG) < LEAP
    }

    /// What a side has sent and acknowledged, one more of its packets counted.
    #[inline(always)]
    pub const fn after(&self, side: Side, segment: &Segment) -> [u32; 2] {
        let [sent, acknowledged] = self.of(side);
        let ack = segment.acknowledgement;
        [later(sent, segment.next), if ack == 0 { acknowledged } else { later(acknowledged, ack) }]
    }

    #[inline(always)]
    const fn of(&self, side: Side) -> [u32; 2] {
        // (Not by index: the verifier would want to see a bound.)
        let [client_sent, backend_sent] = self.sent;
        let [client_acknowledged, backend_acknowledged] = self.acknowledged;
        match side {
            Side::Client => [client_sent, client_acknowledged],
            Side::Backend => [backend_sent, backend_acknowledged],
        }
    }

    /// The numbers that a side's next packet may bear: what the other has not acknowledged yet, and a little more. Nothing if
    /// nothing is known of the side.
    #[inline(always)]
    const fn window(&self, side: Side) -> Option<(u32, u32)> {
        let [sent, _] = self.of(side);
        let [_, acknowledged] = self.of(side.other());
        if sent == 0 && acknowledged == 0 {
            return None;
        }
        let latest = if sent == 0 { acknowledged } else { sent };
        let first = if acknowledged == 0 || latest.wrapping_sub(acknowledged) > LEAP {
            latest.wrapping_sub(SLACK)
        } else {
            acknowledged
        };
        Some((first, latest.wrapping_add(SLACK)))
    }
}

/// What a packet of a TCP flow is worth: `None`, nothing, for its numbers are none that this side would send now. A packet that
/// neither end listens to must not end a connection here, nor confirm one (RFC 9293, 3.10.7.4; RFC 5961, 3). The result is the flags
/// that count.
#[inline(always)]
pub fn believed(
    state: FlowState,
    side: Side,
    flags: TcpFlags,
    segment: &Segment,
    progress: &Progress,
) -> Option<TcpFlags> {
    let counts = match progress.window(side) {
        Some((first, last)) => {
            let number = if flags.rst() { segment.sequence } else { segment.next };
            is_between(number, first, last)
        }
        // The answer to a SYN, by one of whom nothing is known yet: it knows the SYN's number.
        None => {
            let [asked, _] = progress.of(side.other());
            asked == 0 || flags.ack() && asked.wrapping_sub(segment.acknowledgement) <= SLACK
        }
    };
    if flags.rst() || state.has_ended() {
        return if counts { Some(flags) } else { None };
    }
    let confirms = match (state, side) {
        // A client that has not seen the backend's answer does not know its number.
        (FlowState::TCP_SYN_ACK, Side::Client) => match progress.window(Side::Backend) {
            Some((first, last)) if flags.ack() => is_between(segment.acknowledgement, first, last),
            _ => true,
        },
        _ => true,
    };
    if !confirms {
        return None;
    }
    Some(if counts { flags } else { flags.without_fin() })
}

/// What a SYN or a datagram does to a flow that is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Again {
    /// The packet belongs to it.
    Stays,
    /// It belongs to it, unless nobody answers.
    Asks,
    /// It begins the flow anew, with a backend of its own.
    Begins,
}

/// Half a second: an answer comes within, a client's repetition after.
const ANSWER_STEPS: u32 = Moment::steps(1) / 2;

/// Whether a client's packet must get a new backend although its flow is known.
///
/// `serves`: whether the flow's backend id still stands for the endpoint the flow was made with; asked only
/// where it matters, for the answer lies in memory that nothing else of an established connection needs.
///
/// UDP never stays on an endpoint that is gone. TCP keeps its backend whatever happens to the endpoint; a SYN begins anew
/// after the end. In the middle of a connection, or towards a backend that may have answered already, a SYN goes where
/// the others went: a backend that knows the connection answers, and whoever forged it has done nothing. Only when that SYN is
/// repeated and the first has not been answered, there is nobody: `unanswered_syn` is when it came.
#[inline(always)]
pub fn again(
    proto: Proto,
    state: FlowState,
    flags: TcpFlags,
    serves: impl FnOnce() -> bool,
    unanswered_syn: impl FnOnce() -> u32,
    now: Moment,
) -> Again {
    if proto != Proto::TCP && proto != Proto::SCTP {
        return if serves() { Again::Stays } else { Again::Begins };
    }
    if !flags.opens() {
        return Again::Stays;
    }
    if state.has_ended() {
        return Again::Begins;
    }
    if state.is_half_open() && serves() {
        return Again::Stays;
    }
    match unanswered_syn() {
        0 => Again::Asks,
        moment if now.since(Moment(moment)) >= ANSWER_STEPS => Again::Begins,
        _ => Again::Stays,
    }
}
