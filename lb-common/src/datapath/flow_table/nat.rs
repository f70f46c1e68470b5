//! Ports to masquerade with: who holds which towards a backend.

use super::insert::{FREE, eviction_rank};
use super::{Found, Query, has_flows, is_stamp_due, locate, seems_there};
use crate::abi::{Flow, FlowReference, FlowState, NAT_LINE};
use crate::addr::{Port, Proto};
use crate::datapath::Family;
use crate::datapath::parse::Tuple;
use crate::datapath::select::{mix, nat_hash};
use crate::datapath::tables::{Backend, Tables};

/// How many lines are tried for a masqueraded flow.
const NAT_ATTEMPTS: u64 = 6;
/// How many ports of a line are looked at: each may cost a cache line, its holder's.
const NAT_HOLDERS: usize = 4;

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
    if !is_in_range(nat_port, proto, tables) {
        return None;
    }
    let line = nat_line(backend, backend_port, nat_port, proto, tables)?;
    let found = owner(tables.nat_slot(line, place_of(nat_port)), tables)?;
    let flow = &found.flow;
    let same = flow.nat_port == nat_port
        && flow.backend == backend
        && flow.backend_port == backend_port
        && flow.proto == proto;
    if same { Some(found) } else { None }
}

/// The masqueraded flow that a packet is a backend's reply to.
#[inline(always)]
pub fn by_masqueraded<A: Family, T: Tables<A>>(
    reply: &Tuple<A>,
    tables: &T,
) -> Option<Found<T::Copied, T::Set>> {
    let (nat, nat_port) = (reply.destination, reply.destination_port);
    // (What costs nothing first: most packets are nobody's replies.)
    if !is_in_range(nat_port, reply.proto, tables) || !tables.may_concern(nat) {
        return None;
    }
    let found = by_nat_port(reply.source, reply.source_port, nat_port, reply.proto, tables)?;
    (found.flow.nat == nat && found.flow.nat != found.flow.client).then_some(found)
}

/// Whether this client port already speaks to `backend` under another frontend.
#[inline(always)]
pub fn is_port_taken<A: Family, T: Tables<A>>(tuple: &Tuple<A>, backend: &Backend<A>, tables: &T) -> bool {
    let (client, other) = ((tuple.source, tuple.source_port), (backend.address, backend.port));
    let conditions = Query::<A>::BACKEND | Query::<A>::OWN_PORT;
    let query = Query::new(client, tuple.proto, other, conditions, tables);
    let query = Query { except: (tuple.destination, tuple.destination_port), ..query };
    // (Most clients have one flow from a port, and this is before it is made.)
    let other = if has_flows(&query, tables) { tables.find(&query) } else { None };
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

/// Chooses a port towards the flow's backend, and who gives it up for the flow: nobody, if the lines that the flow's hash
/// points at have such a port. Else one whose connection has ended, or whose client has never vouched for it, the
/// longest ago: under a flood of first packets every port is held by such a flow, and to take an old one leaves the others
/// time to be answered.
#[inline(always)]
pub(super) fn choose_port<A: Family, T: Tables<A>>(
    flow: &Flow<A>,
    hash: u32,
    tables: &T,
) -> Option<(Port, FlowReference)> {
    for attempt in 0..NAT_ATTEMPTS {
        let drawn = draw(flow, hash, attempt, tables);
        let line = nat_line(flow.backend, flow.backend_port, drawn, flow.proto, tables)?;
        let place = match flow.proto {
            Proto::SCTP => place_of(drawn),
            _ => give_up(line, drawn, tables),
        };
        let holder = tables.nat_slot(line, place);
        let port = neighbour(drawn, place);
        // Nobody loses a port because others crowd in one line.
        let glad_enough = if attempt + 1 < NAT_ATTEMPTS { FREE } else { 1 };
        if holder_rank(holder, tables) >= glad_enough && !speaks_itself(flow, port, tables) {
            return Some((port, holder));
        }
    }
    None
}

/// Whether a port lies among those to masquerade with. (SCTP keeps the client's port, whatever it is.)
#[inline(always)]
pub(super) fn is_in_range<A: Family, T: Tables<A>>(port: Port, proto: Proto, tables: &T) -> bool {
    proto == Proto::SCTP || is_masquerading(port, tables)
}

#[inline(always)]
fn is_masquerading<A: Family, T: Tables<A>>(port: Port, tables: &T) -> bool {
    let config = tables.config();
    port.get().wrapping_sub(config.nat_port_first) < config.nat_port_count
}

/// Takes the flow's port from `holder`: not if another CPU was faster.
#[inline(always)]
pub(super) fn take_port<A: Family, T: Tables<A>>(
    flow: &Flow<A>,
    holder: FlowReference,
    own: FlowReference,
    tables: &T,
) -> bool {
    nat_line_of(flow, tables)
        .is_some_and(|line| tables.swap_nat_slot(line, place_of(flow.nat_port), holder, own))
}

/// A port to try.
#[inline(always)]
fn draw<A: Family, T: Tables<A>>(flow: &Flow<A>, hash: u32, attempt: u64, tables: &T) -> Port {
    let (first, count) = (tables.config().nat_port_first, tables.config().nat_port_count);
    let draw = mix(hash as u64, attempt) >> 32;
    match flow.proto {
        // Its checksum covers the ports: the client's own or none.
        Proto::SCTP => flow.client_port,
        _ => Port::new(first.wrapping_add(((draw * count as u64) >> 32) as u16)),
    }
}

/// The place of a line that is given up most gladly, from `drawn` on.
#[inline(always)]
fn give_up<A: Family, T: Tables<A>>(line: T::NatLine, drawn: Port, tables: &T) -> usize {
    let (mut best, mut best_rank) = (place_of(drawn), 0);
    for turn in 0..NAT_HOLDERS {
        let place = (place_of(drawn) + turn) % NAT_LINE;
        if turn != 0 && !is_masquerading(neighbour(drawn, place), tables) {
            continue;
        }
        let rank = tables.forget_history(holder_rank(tables.nat_slot(line, place), tables));
        if rank > best_rank {
            (best, best_rank) = (tables.forget_history(place as u32) as usize, rank);
        }
        if rank == FREE {
            break;
        }
    }
    best % NAT_LINE
}

/// Whether the client itself speaks to the backend from `port`, so that a flow which keeps the client's
/// address cannot have it.
#[inline(always)]
fn speaks_itself<A: Family, T: Tables<A>>(flow: &Flow<A>, port: Port, tables: &T) -> bool {
    let other = (flow.backend, flow.backend_port);
    flow.shares_port()
        && seems_there(
            &Query::new((flow.client, port), flow.proto, other, Query::<A>::BACKEND, tables),
            tables,
        )
}

/// How gladly the flow that holds a port gives it up: 0 never, [`FREE`] if there is none any more.
#[inline(always)]
fn holder_rank<A: Family, T: Tables<A>>(holder: FlowReference, tables: &T) -> u32 {
    let Some((set, way)) = locate(holder, tables) else { return FREE };
    let word = tables.word(set, way);
    if holder.is_current(word) { eviction_rank(word, tables.now()) } else { FREE }
}

/// The live flow a NAT slot refers to.
#[inline(always)]
fn owner<A: Family, T: Tables<A>>(reference: FlowReference, tables: &T) -> Option<Found<T::Copied, T::Set>> {
    let (set, way) = locate(reference, tables)?;
    let word = tables.word(set, way);
    if !reference.is_current(word) || !word.is_live(tables.now()) {
        return None;
    }
    let flow = tables.flow(set, way, word);
    tables.word_after(flow, set, way).settles(word).then_some(Found { set, way, word, flow, reference })
}

/// The NAT line of a backend and a masquerading port.
#[inline(always)]
fn nat_line<A: Family, T: Tables<A>>(
    backend: A,
    backend_port: Port,
    nat_port: Port,
    proto: Proto,
    tables: &T,
) -> Option<T::NatLine> {
    let group = nat_port.get() / NAT_LINE as u16;
    let index = nat_hash(backend, backend_port, group, proto) & A::config(tables.config()).nat_line_mask;
    tables.nat_line(index)
}

/// The NAT line of a masqueraded flow.
#[inline(always)]
fn nat_line_of<A: Family, T: Tables<A>>(flow: &Flow<A>, tables: &T) -> Option<T::NatLine> {
    nat_line(flow.backend, flow.backend_port, flow.nat_port, flow.proto, tables)
}

/// The place of a port in its line.
#[inline(always)]
fn place_of(port: Port) -> usize {
    port.get() as usize % NAT_LINE
}

/// The port at another place of the same line.
#[inline(always)]
fn neighbour(port: Port, place: usize) -> Port {
    Port::new(port.get() / NAT_LINE as u16 * NAT_LINE as u16 + place as u16)
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
pub(super) fn holds_port<A: Family, T: Tables<A>>(
    flow: &Flow<A>,
    reference: FlowReference,
    tables: &T,
) -> bool {
    flow.nat == A::UNSPECIFIED
        || nat_line_of(flow, tables)
            .is_some_and(|line| tables.nat_slot(line, place_of(flow.nat_port)) == reference)
}
