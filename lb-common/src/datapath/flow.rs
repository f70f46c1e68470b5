//! How a flow's state moves: a pure function of state, side and flags.

use super::parse::TcpFlags;
use crate::abi::FlowState;
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

/// The state a flow is born with. SCTP goes the way of TCP ([`TcpFlags`]). A TCP flow picked up in its middle starts like a new one: the
/// backend's answer and the client's next packet vouch for it.
#[inline(always)]
pub const fn first(proto: Proto) -> FlowState {
    match proto {
        Proto::TCP | Proto::SCTP => FlowState::TCP_SYN,
        _ => FlowState::UDP_NEW,
    }
}

/// Whether a client's packet may begin a flow. RST ends connections and SYN+ACK answers them.
#[inline(always)]
pub const fn may_begin(flags: TcpFlags) -> bool {
    !(flags.rst() || flags.syn() && flags.ack())
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
        _ if flags.rst() => S::TCP_CLOSED,
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

/// Whether a client's packet must get a new backend although its flow is known.
///
/// `backend_serves`: whether the flow's backend id still stands for the endpoint the flow was made with; asked only
/// where it matters, for the answer lies in memory that nothing else of an established connection needs.
/// TCP keeps its backend whatever happens to the endpoint, except that a SYN may start over
/// after the old connection ended or its backend went. UDP never stays on an endpoint that is gone.
#[inline(always)]
pub fn must_reselect(
    proto: Proto,
    state: FlowState,
    flags: TcpFlags,
    backend_serves: impl FnOnce() -> bool,
) -> bool {
    match proto {
        // The states from the first FIN on are the highest numbers.
        Proto::TCP | Proto::SCTP => {
            flags.opens() && (state.0 >= FlowState::TCP_CLIENT_FIN.0 || !backend_serves())
        }
        _ => !backend_serves(),
    }
}
