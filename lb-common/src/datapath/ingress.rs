//! Packets that enter the node, from the wire or from one of its pods.

use super::Family;
use super::clients::may_have_flows;
use super::conntrack;
use super::desk::Desk;
use super::flow::{self, Again};
use super::flow_table::{self, Found, InsertError};
use super::frontends;
use super::of_node;
use super::opening::{List, Opening, OpeningKind};
use super::outcome::{Leg, Outcome, Step};
use super::own;
use super::parse::{Parsed, TcpFlags};
use super::tables::{PacketTables, Tables};
use crate::abi::{FlowReference, Reason, Service, SourceRange};
use crate::addr::{Port, Proto};

/// Where a packet comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The wire, and nobody before us has touched it: XDP.
    Wire,
    /// An uplink or overlay device, where XDP may have translated the packet a moment ago: tc.
    Uplink,
    /// A pod of this node.
    Pod,
    /// This node itself: its packets are met where they leave.
    Node,
}

/// Finds the flow of a packet, or says that it begins one.
///
/// Flows come before Services: a connection outlives its Service, and most packets have a flow.
#[inline(always)]
pub fn ingress<A: Family, T: PacketTables<A>>(
    parsed: &Parsed<A>,
    origin: Origin,
    tables: &T,
    desk: &mut Desk<A>,
) -> Outcome {
    let tuple = &parsed.tuple;
    let (address, port, proto) = (tuple.destination, tuple.destination_port, tuple.proto);
    if is_strangers(parsed, tables) {
        return Outcome::pass(Reason::NoService);
    }
    let of_packet = (tuple.proto, parsed.flags, &parsed.segment);
    let mut replaces = FlowReference::NONE;
    let mut direct = None;
    if let Some(found) = flow_table::by_destination(tuple, tables, desk) {
        let flow = found.flow;
        if flow.frontend != tuple.destination || flow.frontend_port != tuple.destination_port {
            direct = Some(found.position);
        } else {
            if !begins_again(&found, (proto, parsed.flags), tables) && flow_table::owns_port(&found, tables) {
                flow_table::advance(&found.position, flow::Side::Client, of_packet, tables);
                return Outcome::translate(Leg::REQUEST, Reason::Forward);
            }
            replaces = found.position.reference;
        }
    } else if let Some(found) = flow_table::by_masqueraded(tuple, tables, desk) {
        if found.flow.is_of_node() {
            return of_node::reply(&found, origin, of_packet, tables);
        }
        flow_table::advance(&found.position, flow::Side::Backend, of_packet, tables);
        if found.flow.is_own() && found.flow.nat_port == found.flow.client_port {
            return Outcome::pass(Reason::OwnConnection);
        }
        return Outcome::translate(Leg::MASQUERADED_REPLY, Reason::MasqueradeReply);
    }
    if direct.is_none() && !may_be_ours(address, port, tables) {
        return Outcome::pass(Reason::NoService);
    }
    if let Some(found) = frontends::find(address, port, proto, tables, &mut desk.source_range) {
        if conntrack::is_asked(tables) {
            return conntrack::ask(origin, replaces, desk);
        }
        return begin(parsed, origin, replaces, found, tables, desk);
    }
    if let Some(position) = direct {
        if matches!(origin, Origin::Uplink) && tables.seen_by_xdp() {
            return Outcome::pass(Reason::Translated);
        }
        flow_table::forget_for_direct(&position, (tuple.proto, parsed.flags), tables);
        return Outcome::pass(Reason::NoService);
    }
    let outcome = unknown(address, tables, &mut desk.source_range);
    if outcome.step() != Step::PASS && conntrack::is_asked(tables) {
        // A connection outlives its Service, netfilter's as ours.
        return conntrack::ask(origin, replaces, desk);
    }
    if outcome.step() == Step::PASS
        && matches!(origin, Origin::Wire | Origin::Uplink)
        && frontends::is_external(address, tables)
    {
        return of_nobody(parsed, origin, desk);
    }
    outcome
}

/// A port that no Service has, at an external address of some: whether the packet would circle is asked where flows are made.
#[inline(always)]
fn of_nobody<A: Family>(parsed: &Parsed<A>, origin: Origin, desk: &mut Desk<A>) -> Outcome {
    let opening = &mut desk.opening;
    (opening.kind, opening.origin) = (OpeningKind::NOBODYS, origin);
    (opening.tuple, opening.ttl) = (parsed.tuple, parsed.ttl);
    Outcome::open(Leg::REQUEST, Reason::NoService)
}

/// What becomes of a packet that has no flow, and no connection that netfilter knows.
#[inline(always)]
pub fn serve<A: Family, T: PacketTables<A>>(
    parsed: &Parsed<A>,
    origin: Origin,
    replaces: FlowReference,
    tables: &T,
    desk: &mut Desk<A>,
) -> Outcome {
    let tuple = &parsed.tuple;
    let (address, port, proto) = (tuple.destination, tuple.destination_port, tuple.proto);
    match frontends::find(address, port, proto, tables, &mut desk.source_range) {
        Some(found) => begin(parsed, origin, replaces, found, tables, desk),
        None => unknown(tuple.destination, tables, &mut desk.source_range),
    }
}

/// Whether a client's packet begins the flow that is there anew.
#[inline(always)]
pub(super) fn begins_again<A: Family, T: PacketTables<A>>(
    found: &Found<'_, A, T::Set>,
    (proto, flags): (Proto, TcpFlags),
    tables: &T,
) -> bool {
    let Found { position, flow } = found;
    let serves = || {
        let backend = tables.backend(flow.backend_id);
        backend.is_some_and(|it| it.is_active() && it.generation == flow.backend_generation)
    };
    let unanswered_syn = || tables.progress(position.set, position.way).unanswered_syn;
    let now = tables.now();
    let again = flow::again(proto, position.word.state(), flags, serves, unanswered_syn, now);
    if again == Again::Asks {
        tables.note_unanswered_syn(position.set, position.way, now.0);
    }
    again == Again::Begins
}

/// Whether the packet surely is none of our business, which a bit or two tell: it goes to no address of ours. If it may begin
/// something, a SYN or any datagram, it may also end a flow of its client ([`flow_table::forget_for_direct`]), whoever it goes
/// to; so the client must have none.
#[inline(always)]
fn is_strangers<A: Family, T: PacketTables<A>>(parsed: &Parsed<A>, tables: &T) -> bool {
    let goes_on = parsed.tuple.proto == Proto::TCP && !parsed.flags.opens();
    (goes_on || !may_have_flows(parsed.tuple.source, tables))
        && !may_be_ours(parsed.tuple.destination, parsed.tuple.destination_port, tables)
}

/// Whether an address may be one of a Service, or one that flows are masqueraded with: it surely is neither if not.
#[inline(always)]
pub(super) fn may_be_ours<A: Family, T: PacketTables<A>>(address: A, port: Port, tables: &T) -> bool {
    let family = A::config(tables.config());
    tables.may_concern(address)
        || address.masked(family.service_mask) == family.service_network
        || frontends::may_be_in_node_networks(port, tables)
}

/// Begins a flow to a Service.
#[inline(always)]
fn begin<A: Family, T: PacketTables<A>>(
    parsed: &Parsed<A>,
    origin: Origin,
    replaces: FlowReference,
    (service, address): (&Service, A),
    tables: &T,
    desk: &mut Desk<A>,
) -> Outcome {
    let tuple = &parsed.tuple;
    if !flow::may_begin(tuple.proto, parsed.flags) {
        // At an address of the node's own it may belong to a connection that was there before the Service: the kernel knows, and
        // resets what belongs to none.
        return if frontends::is_nodes(tuple.destination, tables) {
            Outcome::pass(Reason::NoService)
        } else {
            Outcome::drop(Reason::Stray)
        };
    }
    let Some(service) = tables.service_copy(service, address, tuple.destination_port, tuple.proto) else {
        return Outcome::drop(Reason::FlowTableContended);
    };
    let list = List::of(&service, origin);
    let kind = if origin == Origin::Node {
        OpeningKind::OF_NODE
    } else if own::may_answer(parsed, tables) {
        OpeningKind::OR_ANSWER
    } else {
        OpeningKind::CLIENT
    };
    desk.opening = Opening {
        kind,
        tuple: *tuple,
        flags: parsed.flags,
        segment: parsed.segment,
        ttl: parsed.ttl,
        origin,
        service: service.id,
        service_flags: service.flags,
        list,
        affinity_seconds: service.affinity_seconds,
        replaces,
    };
    Outcome::open(Leg::REQUEST, Reason::NewFlow)
}

/// What becomes of a packet whose flow cannot be made.
#[inline(always)]
pub const fn no_flow(error: InsertError, proto: Proto) -> Outcome {
    match error {
        InsertError::Full => Outcome::refuse(Reason::FlowTableFull),
        InsertError::Contended => Outcome::drop(Reason::FlowTableContended),
        InsertError::NatPortsExhausted => Outcome::refuse(Reason::NatPortsExhausted),
        InsertError::NoBackend => Outcome::refuse(refusal(proto)),
        InsertError::SourceDenied => Outcome::drop(Reason::SourceDenied),
        InsertError::NoLocalEndpoint => Outcome::drop(Reason::NoLocalEndpoint),
        InsertError::Answer => Outcome::pass(Reason::OwnConnection),
        InsertError::Martian => Outcome::drop(Reason::Martian),
        InsertError::TimeExceeded => Outcome::pass(Reason::LeftToStack),
        InsertError::UnknownPort => Outcome::refuse(Reason::UnknownPort),
        InsertError::Nobodys => Outcome::pass(Reason::NoService),
    }
}

/// What becomes of a packet that is nobody's: towards a ClusterIP it has no business elsewhere.
#[inline(always)]
pub(super) fn unknown<A: Family, T: Tables<A>>(
    destination: A,
    tables: &T,
    memory: &mut SourceRange,
) -> Outcome {
    let family = A::config(tables.config());
    if destination.masked(family.service_mask) != family.service_network {
        return Outcome::pass(Reason::NoService);
    }
    if tables.service(destination, Port::default(), Proto(0)).is_some() {
        return Outcome::refuse(Reason::UnknownPort);
    }
    // A program of this node may hold it.
    if frontends::is_nodes(destination, tables) {
        return Outcome::pass(Reason::NoService);
    }
    *memory = SourceRange::of(SourceRange::SERVICE_CIDRS, destination);
    if tables.in_source_range(memory) {
        Outcome::drop(Reason::UnknownAddress)
    } else {
        Outcome::pass(Reason::NoService)
    }
}

/// How a client learns that nobody serves.
#[inline(always)]
pub const fn refusal(proto: Proto) -> Reason {
    match proto {
        Proto::TCP => Reason::RefusedReset,
        _ => Reason::RefusedUnreachable,
    }
}
