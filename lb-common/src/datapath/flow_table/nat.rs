//! Ports to masquerade with: who holds which towards a backend.

use super::advance::is_stamp_due;
use super::insert::{FREE, InsertError, NewFlow, eviction_rank};
use super::search::{find, has_flows};
use super::{Found, Home, Position, Query, locate};
use crate::abi::{Flow, FlowReference, FlowState, Moment, NAT_LINE};
use crate::addr::{Port, Proto};
use crate::datapath::Family;
use crate::datapath::desk::Desk;
use crate::datapath::parse::Tuple;
use crate::datapath::select::{mix, nat_hash};
use crate::datapath::tables::{Backend, PacketTables, Tables};

/// How many lines are looked at first, a few ports in each: every one may cost a cache line, its holder's.
const FIRST_LINES: u32 = 6;
/// How many ports of each.
const FIRST_HOLDERS: usize = 4;
/// How many lines are looked at, with all their ports, when nobody has given up one so far. (Netfilter's NAT tries as many ports:
/// `nf_nat_l4proto_unique_tuple`.)
const LINES: u32 = FIRST_LINES + 16;
/// Time without a packet after which a UDP flow that its client has not vouched for gives up its port: as long as a resolver
/// waits before it asks again from the same port.
const UDP_PATIENCE: u32 = Moment::steps(5);

/// First port and number of those that stand in for privileged ones: some servers take a port below 1024 for a sign of trust (NFS,
/// rsh), so that class is kept, as netfilter's NAT keeps it (`nf_nat_l4proto_unique_tuple`).
const PRIVILEGED: (u16, u16) = (600, 424);

/// The flow that has taken `nat_port` towards this backend. Whether the packet's other address is the
/// one it should be is the caller's to ask.
#[inline(always)]
pub fn by_nat_port<'d, A: Family, T: PacketTables<A>>(
    (backend, backend_port): (A, Port),
    nat_port: Port,
    proto: Proto,
    tables: &T,
    desk: &'d mut Desk<A>,
) -> Option<Found<'d, A, T::Set>> {
    if !is_in_range(nat_port, proto, tables) {
        return None;
    }
    let line = tables.nat_line(nat_line_index((backend, backend_port), nat_port, proto, tables))?;
    let found = owner(tables.nat_slot(line, place_of(nat_port)), tables, desk)?;
    let flow = found.flow;
    let same = flow.nat_port == nat_port
        && flow.backend == backend
        && flow.backend_port == backend_port
        && flow.proto == proto;
    if same { Some(found) } else { None }
}

/// The masqueraded flow that a packet is a backend's reply to.
#[inline(always)]
pub fn by_masqueraded<'d, A: Family, T: PacketTables<A>>(
    reply: &Tuple<A>,
    tables: &T,
    desk: &'d mut Desk<A>,
) -> Option<Found<'d, A, T::Set>> {
    let (nat, nat_port) = (reply.destination, reply.destination_port);
    // (What costs nothing first: most packets are nobody's replies.)
    if !is_in_range(nat_port, reply.proto, tables) || !tables.may_concern(nat) {
        return None;
    }
    let found = by_nat_port((reply.source, reply.source_port), nat_port, reply.proto, tables, desk)?;
    (found.flow.nat == nat && found.flow.is_masqueraded()).then_some(found)
}

/// Whether [`is_port_taken`] may say so. Most clients have one flow from a port, and this is before it is made.
#[inline(always)]
pub fn may_share_port<A: Family, T: PacketTables<A>>(tuple: &Tuple<A>, tables: &T) -> bool {
    is_in_range(tuple.source_port, tuple.proto, tables)
        || has_flows(Home::of(tuple.source, tuple.source_port, tuple.proto, tables), tables)
}

/// Whether the client port of the opening on the desk already speaks to the backend chosen for it, under another frontend.
#[inline(always)]
pub fn is_port_taken<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> bool {
    let (tuple, backend) = (desk.opening.tuple, desk.chosen.backend);
    let (client, other) = ((tuple.source, tuple.source_port), (backend.address, backend.port));
    let conditions = Query::<A>::BACKEND | Query::<A>::OWN_PORT | Query::<A>::EXCEPT;
    let query = Query::new(client, tuple.proto, other, conditions, tables);
    let query = Query { except: (tuple.destination, tuple.destination_port), ..query };
    // A connection that has ended gives way.
    find(&query, tables, desk).is_some_and(|found| !found.position.word.state().has_ended())
        || is_shared_port_of(client, tuple.proto, &backend, tables, desk)
}

/// Whether a flow of this client carries its `port` towards `backend` in place of its own.
#[inline(always)]
fn is_shared_port_of<A: Family, T: PacketTables<A>>(
    (client, port): (A, Port),
    proto: Proto,
    backend: &Backend<A>,
    tables: &T,
    desk: &mut Desk<A>,
) -> bool {
    by_nat_port((backend.address, backend.port), port, proto, tables, desk)
        .is_some_and(|found| found.flow.shares_port() && found.flow.client == client)
}

/// Chooses a port for the flow in the making, which is masqueraded.
///
/// # Errors
/// There is none.
#[inline(always)]
pub fn choose_port<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Result<(), InsertError> {
    // What has to be waited for later comes while ports are looked for: the record that will probably be overwritten.
    desk.home = Home::of(desk.new.flow.client, desk.new.flow.client_port, desk.new.flow.proto, tables);
    if let Some(set) = tables.set(desk.home.first) {
        let survey = tables.survey_set(0, desk);
        tables.fetch_flow(set, survey.way());
    }
    let kept = if desk.new.flow.is_own() {
        own_port(tables, desk)?
    } else if desk.new.replaces == FlowReference::NONE {
        None
    } else {
        kept_port(tables, desk)
    };
    match kept {
        Some((port, holder)) => (desk.new.flow.nat_port, desk.new.port_holder) = (port, holder),
        None => find_port(tables, desk)?,
    }
    Ok(())
}

/// The port of the ended connection that is replaced, where it goes to the same backend. The backend may still wait for stray
/// segments of that connection (TIME-WAIT), and takes a new one on the same port only if its timestamps go on from there,
/// as they do from the same client port alone. <https://www.rfc-editor.org/rfc/rfc6191>
/// One that has ended on one side only, as far as we know, is left alone: the backend would not have another yet.
#[inline(always)]
fn kept_port<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Option<(Port, FlowReference)> {
    let own = desk.new.replaces;
    let (set, way) = locate(own, tables)?;
    let word = tables.word(set, way);
    let after = tables.copy_flow(set, way, word, &mut desk.found);
    let (flow, new) = (&desk.found, &desk.new.flow);
    let may_keep = word.state().has_ended()
        && own.is_current(word)
        && after.settles(word)
        && flow.backend == new.backend
        && flow.backend_port == new.backend_port
        && flow.nat == desk.new.masquerade
        // (The range may be another since the port was given out.)
        && is_in_range(flow.nat_port, flow.proto, tables)
        && holds_port(flow, own, tables);
    may_keep.then_some((flow.nat_port, own))
}

/// The port that a connection of the node's own leaves from; nothing if one of our flows has it, and it gets another.
///
/// # Errors
/// It cannot be noted, and need not be: it has spoken from its port already, or who has the port's place in the index has another
/// port, so that nobody else will get this one.
#[inline(always)]
fn own_port<A: Family, T: PacketTables<A>>(
    tables: &T,
    desk: &mut Desk<A>,
) -> Result<Option<(Port, FlowReference)>, InsertError> {
    let flow = &desk.new.flow;
    let (backend, port, proto) = ((flow.backend, flow.backend_port), flow.client_port, flow.proto);
    let has_spoken = desk.new.state == FlowState::TCP_ESTABLISHED;
    let index = nat_line_index(backend, port, proto, tables);
    let line = tables.nat_line(index).ok_or(InsertError::NatPortsExhausted)?;
    let holder = tables.nat_slot(line, place_of(port));
    if holder_rank(holder, tables) == FREE {
        return Ok(Some((port, holder)));
    }
    if has_spoken || by_nat_port(backend, port, proto, tables, desk).is_none() {
        return Err(InsertError::NatPortsExhausted);
    }
    Ok(None)
}

/// Finds a port towards the flow's backend, and who gives it up for the flow: nobody, if the lines that the flow's hash
/// points at have such a port. Else one whose connection has ended, or whose client has never vouched for it, the
/// longest ago: under a flood of first packets every port is held by such a flow, and to take an old one leaves the others
/// time to be answered.
#[inline(always)]
fn find_port<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Result<(), InsertError> {
    let lines = if desk.new.flow.proto == Proto::SCTP { 1 } else { LINES };
    desk.port_rank = 0;
    for attempt in 0..LINES {
        if attempt >= lines {
            break;
        }
        let rank = tables.look_in_line(attempt, desk);
        if rank == FREE || rank != 0 && attempt + 1 >= FIRST_LINES {
            break;
        }
    }
    if desk.port_rank == 0 {
        return Err(InsertError::NatPortsExhausted);
    }
    if speaks_itself(tables, desk) {
        // Others are drawn the next time.
        desk.new.hash = mix(desk.new.hash.into(), LINES.into()) as u32;
        return Err(InsertError::Contended);
    }
    Ok(())
}

/// Looks at one of the lines that the flow's hash points at, for a port that is given up more gladly than the one on the desk: that
/// comes to lie there. The result is how gladly the one there is given up: 0 not at all, [`FREE`] if nobody holds it.
#[inline(always)]
pub fn look_in_line<A: Family, T: PacketTables<A>>(attempt: u32, tables: &T, desk: &mut Desk<A>) -> u32 {
    let Desk { new: NewFlow { flow, hash, port_holder, .. }, port_rank, .. } = desk;
    let drawn = draw(flow.client_port, flow.proto, *hash, attempt, tables);
    let holders = match flow.proto {
        Proto::SCTP => 1,
        _ if attempt < FIRST_LINES => FIRST_HOLDERS,
        _ => NAT_LINE,
    };
    let index = nat_line_index((flow.backend, flow.backend_port), drawn, flow.proto, tables);
    let Some(line) = tables.nat_line(index) else { return 0 };
    for turn in 0..NAT_LINE {
        if turn >= holders {
            break;
        }
        let place = (place_of(drawn) + turn) % NAT_LINE;
        let port = neighbour(drawn, place);
        if turn != 0 && !is_masquerading(port, tables) {
            continue;
        }
        let holder = tables.nat_slot(line, place);
        let rank = tables.forget_history(holder_rank(holder, tables));
        if rank > *port_rank {
            (flow.nat_port, *port_holder, *port_rank) = (port, holder, rank);
        }
        if rank == FREE {
            break;
        }
    }
    *port_rank
}

/// Whether a port lies among those to masquerade with. (SCTP keeps the client's port, whatever it is.)
#[inline(always)]
pub(super) fn is_in_range<A: Family, T: Tables<A>>(port: Port, proto: Proto, tables: &T) -> bool {
    proto == Proto::SCTP || is_masquerading(port, tables)
}

/// Whether a port is one to masquerade with.
#[inline(always)]
pub fn is_masquerading<A: Family, T: Tables<A>>(port: Port, tables: &T) -> bool {
    let config = tables.config();
    let is_of = |(first, count)| u32::from(port.get().wrapping_sub(first) < count);
    // (One number for the verifier, not two ways.)
    tables.forget_history(is_of((config.nat_port_first, config.nat_port_count)) | is_of(PRIVILEGED)) != 0
}

/// Takes the flow's port from `holder`: not if another CPU was faster.
#[inline(always)]
pub(super) fn take_port<A: Family, T: PacketTables<A>>(
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
fn draw<A: Family, T: Tables<A>>(
    client_port: Port,
    proto: Proto,
    hash: u32,
    attempt: u32,
    tables: &T,
) -> Port {
    let (first, count) = if client_port.is_privileged() {
        PRIVILEGED
    } else {
        (tables.config().nat_port_first, tables.config().nat_port_count)
    };
    let draw = mix(hash.into(), attempt.into()) >> 32;
    match proto {
        // Its checksum covers the ports: the client's own or none.
        Proto::SCTP => client_port,
        _ => Port::new(first.wrapping_add(((draw * count as u64) >> 32) as u16)),
    }
}

/// Whether the client itself speaks to the backend from the port that was found, so that a flow which keeps the client's
/// address cannot have it.
#[inline(always)]
fn speaks_itself<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> bool {
    let flow = &desk.new.flow;
    if !flow.shares_port() {
        return false;
    }
    let (client, backend) = ((flow.client, flow.nat_port), (flow.backend, flow.backend_port));
    find(&Query::new(client, flow.proto, backend, Query::<A>::BACKEND, tables), tables, desk).is_some()
}

/// How gladly the flow that holds a port gives it up: 0 never, [`FREE`] if there is none any more.
#[inline(always)]
fn holder_rank<A: Family, T: PacketTables<A>>(holder: FlowReference, tables: &T) -> u32 {
    let Some((set, way)) = locate(holder, tables) else { return FREE };
    let (word, now) = (tables.word(set, way), tables.now());
    if !holder.is_current(word) {
        return FREE;
    }
    let is_live_udp = word.state().is_unvouched_udp() && now.since(word.seen()) < UDP_PATIENCE;
    if is_live_udp { 0 } else { eviction_rank(word, now) }
}

/// The live flow a NAT slot refers to.
#[inline(always)]
fn owner<'d, A: Family, T: PacketTables<A>>(
    reference: FlowReference,
    tables: &T,
    desk: &'d mut Desk<A>,
) -> Option<Found<'d, A, T::Set>> {
    let (set, way) = locate(reference, tables)?;
    let word = tables.word(set, way);
    if !reference.is_current(word) || !word.is_live(tables.now()) {
        return None;
    }
    let after = tables.copy_flow(set, way, word, &mut desk.found);
    let position = Position { set, way, word, reference };
    after.settles(word).then_some(Found { position, flow: &desk.found })
}

/// The index of the NAT line of a backend and a masquerading port.
#[inline(always)]
fn nat_line_index<A: Family, T: Tables<A>>(
    (backend, backend_port): (A, Port),
    nat_port: Port,
    proto: Proto,
    tables: &T,
) -> u32 {
    let group = nat_port.get() / NAT_LINE as u16;
    nat_hash(backend, backend_port, group, proto) & A::config(tables.config()).nat_line_mask
}

/// The NAT line of a masqueraded flow.
#[inline(always)]
fn nat_line_of<A: Family, T: PacketTables<A>>(flow: &Flow<A>, tables: &T) -> Option<T::NatLine> {
    let backend = (flow.backend, flow.backend_port);
    tables.nat_line(nat_line_index(backend, flow.nat_port, flow.proto, tables))
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
pub fn owns_port<A: Family, T: PacketTables<A>>(found: &Found<'_, A, T::Set>, tables: &T) -> bool {
    let word = found.position.word;
    let state = word.state();
    let established = state == FlowState::TCP_ESTABLISHED || state == FlowState::UDP_ESTABLISHED;
    established && !is_stamp_due(word, tables.now())
        || holds_port(found.flow, found.position.reference, tables)
}

/// Whether the flow's port, if it has one, is held by the flow at `reference`.
#[inline(always)]
pub(super) fn holds_port<A: Family, T: PacketTables<A>>(
    flow: &Flow<A>,
    reference: FlowReference,
    tables: &T,
) -> bool {
    flow.nat == A::UNSPECIFIED
        || nat_line_of(flow, tables)
            .is_some_and(|line| tables.nat_slot(line, place_of(flow.nat_port)) == reference)
}
