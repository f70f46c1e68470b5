//! Ports to masquerade with: who holds which towards a backend.

use super::insert::{FREE, eviction_rank};
use super::{Found, Query, is_stamp_due, locate};
use crate::abi::{Flow, FlowState};
use crate::addr::{Port, Proto};
use crate::datapath::Family;
use crate::datapath::parse::Tuple;
use crate::datapath::select::{mix, nat_hash};
use crate::datapath::tables::{Backend, Tables};

/// How many ports are tried for a masqueraded flow.
const NAT_ATTEMPTS: u64 = 16;
/// After how many tries one of a flow that may be given up is good enough.
const NAT_FEW_ATTEMPTS: u64 = 8;

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

/// Takes a port nobody uses towards this backend. Where the draws find none, the one whose connection has
/// ended, or whose client has never vouched for it, the longest ago. Under a flood of first packets every port is
/// held by such a flow: fewer draws must do then, and to take the oldest leaves the others time to be answered.
#[inline(always)]
pub(super) fn take_port<A: Family, T: Tables<A>>(
    flow: &Flow<A>,
    hash: u32,
    own: u32,
    tables: &T,
) -> Option<Port> {
    let config = tables.config();
    let (first, count) = (config.nat_port_first, config.nat_port_count);
    let (mut rank, mut port, mut slot, mut taken) = (0, Port::default(), 0, 0);
    for attempt in 0..NAT_ATTEMPTS {
        if attempt >= NAT_FEW_ATTEMPTS && rank != 0 {
            break;
        }
        let draw = mix(hash as u64, attempt) >> 32;
        let drawn = match flow.proto {
            // Its checksum covers the ports: the client's own or none.
            Proto::SCTP => flow.client_port,
            _ => Port::new(first.wrapping_add(((draw * count as u64) >> 32) as u16)),
        };
        let drawn_slot = nat_index(flow.backend, flow.backend_port, drawn, flow.proto, tables);
        let holder = tables.nat_slot(drawn_slot)?;
        let drawn_rank = port_rank(holder, drawn_slot, own, tables);
        if drawn_rank <= rank || speaks_itself(flow, drawn, tables) {
            continue;
        }
        (rank, port, slot, taken) = (drawn_rank, drawn, drawn_slot, holder);
        if rank == FREE {
            if tables.swap_nat_slot(slot, taken, own) {
                return Some(port);
            }
            // Another CPU was faster.
            rank = 0;
        }
    }
    (rank != 0 && tables.swap_nat_slot(slot, taken, own)).then_some(port)
}

/// Whether the client itself speaks to the backend from `port`, so that a flow which keeps the client's
/// address cannot have it.
#[inline(always)]
fn speaks_itself<A: Family, T: Tables<A>>(flow: &Flow<A>, port: Port, tables: &T) -> bool {
    let other = (flow.backend, flow.backend_port);
    flow.shares_port()
        && tables.find(&Query::new((flow.client, port), flow.proto, other, Query::<A>::BACKEND)).is_some()
}

/// How gladly a NAT slot is given up: 0 never, [`FREE`] if nobody holds it, else as its flow.
#[inline(always)]
fn port_rank<A: Family, T: Tables<A>>(taken: u32, slot: u32, own: u32, tables: &T) -> u32 {
    let Some((set, way)) = locate(taken, tables) else { return FREE };
    let word = tables.word(set, way);
    let rank = eviction_rank(word, tables.now());
    // (While another CPU writes the record, it cannot say whether the slot is held.)
    let stale = || {
        word.state().0 != FlowState::BUSY.0
            && !tables
                .fits(set, way, |other| other.nat != A::UNSPECIFIED && nat_index_of(other, tables) == slot)
    };
    if taken == own || rank == FREE || stale() { FREE } else { rank }
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
/// lost it to another. One that is established keeps it, so that is looked at only when its stamp is due: it may
/// have been confirmed while another took the port.
#[inline(always)]
pub fn owns_port<A: Family, T: Tables<A>>(found: &Found<T::Copied, T::Set>, tables: &T) -> bool {
    let state = found.word.state();
    let established = state == FlowState::TCP_ESTABLISHED || state == FlowState::UDP_ESTABLISHED;
    established && !is_stamp_due(found.word, tables.now()) || holds_port(&found.flow, found.reference, tables)
}

#[inline(always)]
pub(super) fn holds_port<A: Family, T: Tables<A>>(flow: &Flow<A>, reference: u32, tables: &T) -> bool {
    flow.nat == A::UNSPECIFIED || tables.nat_slot(nat_index_of(flow, tables)) == Some(reference)
}
