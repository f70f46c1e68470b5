//! What this node itself sends to Services, where no socket hook has served it: raw sockets, the kernel's own, processes without
//! hooks or left to us.
//!
//! Its packets are met where they leave, routed to the frontend. They get both their new addresses there and go on by the way that
//! the kernel has for those ([`onward`]). Each of these flows carries a port of its own, so that an answer names it; the answer gets
//! both its addresses back where it comes in.
//!
//! A backend that is this node too would answer the node's own address without a device in between. So it sees the frontend's, and
//! its answer takes the way that the question came.

use super::desk::Desk;
use super::flow::{self, Side};
use super::flow_table::{self, Found, InsertError};
use super::ingress::{self, Origin};
use super::opening::{Chosen, Opened, Opening, OpeningKind, masquerades, record};
use super::outcome::{Leg, Outcome, Step};
use super::parse::{Parsed, Segment, TcpFlags, Tuple};
use super::tables::PacketTables;
use super::{Family, Point, clients, frontends, own};
use crate::abi::{Flow, FlowReference, Reason};
use crate::addr::Proto;

/// Where the kernel routes a packet of this node: the index of the interface that it leaves by, or one of these. (A number and not
/// an enum: see [`Outcome`].)
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hop(pub u32);

impl Hop {
    /// The kernel does not say.
    pub const UNKNOWN: Self = Self(0);
    /// To this node itself.
    pub const HERE: Self = Self(u32::MAX);
    /// Bit: the packet comes in by the interface in place of leaving.
    pub const INWARDS: u32 = 1 << 31;
}

/// Whether a packet that leaves, and belongs to no client's flow, may be this node's to a Service: a bit or two tell of most.
#[inline(always)]
pub fn may_ask<A: Family, T: PacketTables<A>>(parsed: &Parsed<A>, tables: &T) -> bool {
    let tuple = &parsed.tuple;
    tables.is_sent_by_node() && ingress::may_be_ours(tuple.destination, tuple.destination_port, tables)
}

/// Finds the flow of the packet whose opening is on the desk; [`Step::SERVE`] if it has none.
#[inline(always)]
pub fn find<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Outcome {
    let Opening { tuple, flags, segment, .. } = desk.opening;
    let of_packet = (tuple.proto, flags, &segment);
    // What a backend sends that is this node too.
    if let Some(found) = flow_table::by_masqueraded(&tuple, tables, desk)
        && found.flow.is_of_node()
        && found.flow.nat == found.flow.frontend
    {
        return reply(&found, Origin::Node, of_packet, tables);
    }
    let mut replaces = FlowReference::NONE;
    if let Some(found) = flow_table::by_frontend(&tuple, tables, desk) {
        if found.flow.is_of_node()
            && !ingress::begins_again(&found, (tuple.proto, flags), tables)
            && flow_table::owns_port(&found, tables)
        {
            flow_table::advance(&found.position, Side::Client, of_packet, tables);
            return Outcome::translate(Leg::NODE_REQUEST, Reason::Forward);
        }
        replaces = found.position.reference;
    }
    desk.opening.replaces = replaces;
    Outcome::new(Step::SERVE, Reason::NoService)
}

/// Says what becomes of the packet that has no flow, if it is to a Service; else [`Step::JUDGE_OWN`], or [`Step::PASS`] if it is
/// nobody's.
#[inline(always)]
pub fn serve<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Outcome {
    let Opening { tuple, flags, segment, ttl, replaces, .. } = desk.opening;
    // Ports of SCTP cannot change; and what goes to this node itself does not leave.
    if tuple.proto != Proto::SCTP && !frontends::is_nodes(tuple.destination, tables) {
        let mut parsed = Parsed::NOTHING;
        (parsed.tuple, parsed.flags, parsed.segment, parsed.ttl) = (tuple, flags, segment, ttl);
        let outcome = ingress::serve(&parsed, Origin::Node, replaces, tables, desk);
        if outcome.step() == Step::OPEN {
            return Outcome::open(Leg::NODE_REQUEST, Reason::NewFlow);
        }
        if !outcome.is_for(Reason::NoService) {
            return outcome;
        }
    }
    if !own::may_share(tuple.source_port, tables) {
        return Outcome::pass(Reason::NoService);
    }
    (desk.opening.kind, desk.opening.replaces) = (OpeningKind::OWN, FlowReference::NONE);
    Outcome::new(Step::JUDGE_OWN, Reason::NoService)
}

/// An answer to this node. XDP leaves it to tc: the stack takes it from there.
#[inline(always)]
pub fn reply<A: Family, T: PacketTables<A>>(
    found: &Found<'_, A, T::Set>,
    origin: Origin,
    of_packet: (Proto, TcpFlags, &Segment),
    tables: &T,
) -> Outcome {
    if matches!(origin, Origin::Wire) {
        return Outcome::pass(Reason::LeftToStack);
    }
    flow_table::advance(&found.position, Side::Backend, of_packet, tables);
    Outcome::translate(Leg::NODE_REPLY, Reason::MasqueradeReply)
}

/// Puts the record of a new flow together on the desk, whose backend is chosen: [`Opened::MASQUERADED`], or an error. The backend sees
/// an address whose answers come back to a program of ours.
#[inline(always)]
pub fn compose<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Opened {
    let Desk { opening, chosen: Chosen { backend, .. }, .. } = desk;
    let Tuple { source, destination, proto, .. } = opening.tuple;
    let hop = tables.next_hop(source, backend.address);
    let masquerade = if hop == Hop::HERE {
        destination
    } else if masquerades(opening, backend, tables) || !frontends::is_nodes(source, tables) {
        tables.masquerade_address(source, backend.address)
    } else {
        source
    };
    if masquerade == A::UNSPECIFIED {
        return Opened::error(InsertError::NatPortsExhausted);
    }
    clients::note(source, tables);
    record(masquerade, Flow::<A>::SHARED_PORT | Flow::<A>::OF_NODE, flow::first(proto), desk)
}

/// Says how a packet of such a flow goes on at `interface`, now that it has these addresses (source, destination):
/// [`Step::TRANSMIT`] by `hop`, or [`Step::DELIVER`] if it stays on its way.
///
/// An answer comes in where the node's packets to the frontend leave: a strict `rp_filter` would not have it elsewhere.
#[inline(always)]
pub fn onward<A: Family, T: PacketTables<A>>(
    leg: Leg,
    point: Point,
    interface: u32,
    (source, destination): (A, A),
    tables: &T,
    hop: &mut Hop,
) -> Step {
    let is_request = leg == Leg::NODE_REQUEST;
    let route = if is_request {
        tables.next_hop(source, destination)
    } else if point == Point::Egress {
        Hop::HERE
    } else {
        tables.next_hop(destination, source)
    };
    let stays = if is_request {
        // (Whoever the frontend's packets go to may know more.)
        route == Hop::UNKNOWN
    } else {
        point != Point::Egress && (route == Hop::UNKNOWN || route == Hop::HERE || route.0 == interface)
    };
    if stays {
        return Step::DELIVER;
    }
    *hop = match route {
        Hop::HERE => Hop(interface | Hop::INWARDS),
        route if is_request => route,
        route => Hop(route.0 | Hop::INWARDS),
    };
    Step::TRANSMIT
}

/// Whether the later fragment on the desk is one of such a flow: only those change their source on the way in, or the destination of
/// what this node sends.
#[inline(always)]
pub fn has_fragment<A: Family>(point: Point, sent_by_node: bool, desk: &Desk<A>) -> bool {
    let (source, destination, _) = desk.later_addresses;
    let becomes_another = |new: A, old: A| new != A::UNSPECIFIED && new != old;
    match point {
        Point::Egress => sent_by_node && becomes_another(destination, desk.later.destination),
        Point::Ingress(_) => becomes_another(source, desk.later.source),
    }
}
