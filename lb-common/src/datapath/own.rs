//! Connections of the node's own that share a port with Services, and those that it masquerades for others, as a CNI does for pods.
//!
//! They come from sockets or from netfilter, which know nothing of our ports. Each has a record in the flow table, so that it is told
//! from a client's connection and from a masqueraded flow:
//!
//! | leaves from | towards | what the record does |
//! |---|---|---|
//! | a port to masquerade with | an endpoint | holds the port towards that endpoint, or gets another where one of our flows has it |
//! | a port of a frontend at the node's own address | anybody | says that what comes back is an answer, and begins no flow |

use super::conntrack;
use super::desk::Desk;
use super::flow::Side;
use super::flow_table::{self, InsertError};
use super::frontends;
use super::of_node;
use super::opening::{List, Opened, Opening, OpeningKind};
use super::outcome::{Leg, Outcome, Step};
use super::parse::{Parsed, TcpFlags};
use super::tables::PacketTables;
use super::{Family, Origin};
use crate::abi::{FlowReference, Reason, ServiceFlags, ServiceId};
use crate::addr::{Port, Proto};

/// In place of a Service port and of a backend's id: a connection of the node's own has none.
pub const NOBODYS: ServiceId = u32::MAX;

/// Decides for a packet that leaves and belongs to no flow of a client. Nearly all have ports that a bit or two tell from ours.
#[inline(always)]
pub fn leaves<A: Family, T: PacketTables<A>>(parsed: &Parsed<A>, tables: &T, desk: &mut Desk<A>) -> Outcome {
    let port = parsed.tuple.source_port;
    let kind = if of_node::may_ask(parsed, tables) {
        OpeningKind::OF_NODE
    } else if may_share(port, tables) {
        OpeningKind::OWN
    } else {
        return Outcome::pass(Reason::NoService);
    };
    desk.opening = Opening {
        tuple: parsed.tuple,
        flags: parsed.flags,
        segment: parsed.segment,
        ttl: parsed.ttl,
        origin: Origin::Uplink,
        service: NOBODYS,
        service_flags: ServiceFlags::default(),
        list: List::NONE,
        affinity_seconds: 0,
        replaces: FlowReference::NONE,
        kind,
    };
    Outcome::new(Step::JUDGE_OWN, Reason::NoService)
}

/// Whether a port of the node's may be one of ours.
#[inline(always)]
pub(super) fn may_share<A: Family, T: PacketTables<A>>(port: Port, tables: &T) -> bool {
    flow_table::is_masquerading(port, tables) || may_be_frontends(port, tables)
}

/// Whether what leaves from a port may take a frontend's. Not where netfilter translates: there it asks the same of conntrack, which knows
/// whose a connection is, and what leaves from a nodePort is a Service's answer.
#[inline(always)]
fn may_be_frontends<A: Family, T: PacketTables<A>>(port: Port, tables: &T) -> bool {
    tables.is_node_port(port) && !conntrack::is_asked(tables)
}

/// Decides for the packet whose opening is on the desk, if it is to be one. (A step of its own: it is seldom asked, and would take room on
/// the stack.)
#[inline(always)]
pub fn judge<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Outcome {
    let Opening { tuple, flags, segment, .. } = desk.opening;
    let nobodys = Outcome::pass(Reason::NoService);
    if flow_table::is_masquerading(tuple.source_port, tables)
        && tables.may_be_endpoint(tuple.destination, tuple.destination_port)
        && frontends::is_nodes(tuple.source, tables)
    {
        desk.opening.kind = OpeningKind::OWN_PORT;
    } else {
        let (address, port, memory) = (tuple.source, tuple.source_port, &mut desk.source_range);
        if !may_be_frontends(port, tables)
            || frontends::find(address, port, tuple.proto, tables, memory).is_none()
        {
            return nobodys;
        }
    }
    let query = flow_table::of_own(&tuple, tables);
    if let Some(found) = flow_table::search(&query, tables, desk) {
        flow_table::advance(&found.position, Side::Client, (tuple.proto, flags, &segment), tables);
        let keeps_port = found.flow.nat == A::UNSPECIFIED || found.flow.nat_port == tuple.source_port;
        return if keeps_port {
            Outcome::pass(Reason::OwnConnection)
        } else {
            Outcome::translate(Leg::MASQUERADE, Reason::OwnConnection)
        };
    }
    if !may_be_noted(tuple.proto, flags) {
        return nobodys;
    }
    // (One that is not masqueraded keeps its source on this leg.)
    Outcome::open(Leg::MASQUERADE, Reason::OwnConnection)
}

/// Whether a packet shows that there is a connection: it may have been there before we were. (SCTP keeps its ports, whoever has
/// them.)
#[inline(always)]
const fn may_be_noted(proto: Proto, flags: TcpFlags) -> bool {
    match proto {
        Proto::UDP => true,
        Proto::TCP => flags.opens() || flags.is_plain(),
        _ => false,
    }
}

/// Whether a packet to a frontend may answer a connection of the node's own: a bit tells. (The first packet of a TCP connection
/// answers nothing.)
#[inline(always)]
pub fn may_answer<A: Family, T: PacketTables<A>>(parsed: &Parsed<A>, tables: &T) -> bool {
    let begins = parsed.tuple.proto == Proto::TCP && parsed.flags.opens();
    !begins && tables.is_noted(parsed.tuple.destination)
}

/// Whether the packet whose opening is on the desk answers a connection of the node's own: [`Opened::DONE`] if not.
#[inline(always)]
pub fn answers<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Opened {
    let Opening { tuple, flags, segment, .. } = &desk.opening;
    let (proto, flags, segment) = (tuple.proto, *flags, *segment);
    let query = flow_table::of_own(&tuple.reversed(), tables);
    if let Some(found) = flow_table::search(&query, tables, desk) {
        flow_table::advance(&found.position, Side::Backend, (proto, flags, &segment), tables);
        return Opened::error(InsertError::Answer);
    }
    Opened::DONE
}
