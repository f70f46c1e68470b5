//! Packets that enter the node, from the wire or from one of its pods.

use super::clients::may_have_flows;
use super::flow_table::{self, InsertError};
use super::opening::{List, Opening};
use super::parse::Parsed;
use super::rewrite::Translation;
use super::tables::Tables;
use super::{Family, Tally, Verdict, flow};
use crate::abi::{Reason, Service, SourceRange};
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
}

/// What a packet is to us, before anything is decided about its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolved<A, F> {
    /// Client to backend.
    Forward(F, Reason),
    /// A backend's answer to a masqueraded flow.
    MasqueradeReply(F),
    /// Neither, or nobody to send it to.
    Verdict(Verdict<A>),
}

/// Decides for tc: the destination is translated, the kernel routes, egress does the rest.
///
/// A reply keeps its source until egress: with the frontend's address, which may be the node's own,
/// the kernel would take it for a martian.
#[inline(always)]
pub fn ingress<A: Family, T: Tables<A>>(parsed: &Parsed<A>, origin: Origin, tables: &T) -> Verdict<A> {
    match resolve(parsed, origin, tables) {
        Resolved::Forward(flow, reason) => {
            let translation = Translation::destination(flow.backend, flow.backend_port);
            let translation = if flow.shares_port() {
                translation.with_source(flow.client, flow.nat_port)
            } else {
                translation
            };
            Verdict::Translate(translation, Tally::new(&flow, reason))
        }
        Resolved::MasqueradeReply(flow) => {
            let port = if flow.shares_port() { flow.nat_port } else { flow.client_port };
            Verdict::Translate(
                Translation::destination(flow.client, port),
                Tally::new(&flow, Reason::MasqueradeReply),
            )
        }
        Resolved::Verdict(verdict) => verdict,
    }
}

/// Finds the flow of a packet, or makes it.
///
/// Flows come before Services: a connection outlives its Service, and most packets have a flow.
#[inline(always)]
pub fn resolve<A: Family, T: Tables<A>>(
    parsed: &Parsed<A>,
    origin: Origin,
    tables: &T,
) -> Resolved<A, T::Copied> {
    let tuple = &parsed.tuple;
    if is_strangers(parsed, tables) {
        return Resolved::Verdict(Verdict::Pass(Reason::NoService));
    }
    let mut replaces = false;
    let mut direct = None;
    if let Some(found) = flow_table::by_destination(tuple, tables) {
        let flow = &found.flow;
        if flow.frontend != tuple.destination || flow.frontend_port != tuple.destination_port {
            direct = Some(found);
        } else {
            let serves = || {
                let backend = tables.backend(flow.backend_id);
                backend.is_some_and(|it| it.is_active() && it.generation == flow.backend_generation)
            };
            let stays = !flow::must_reselect(tuple.proto, found.word.state(), parsed.flags, serves);
            if stays && flow_table::owns_port(&found, tables) {
                flow_table::advance(&found, flow::Side::Client, parsed.flags, tables);
                return Resolved::Forward(found.flow, Reason::Forward);
            }
            replaces = true;
        }
    } else if let Some(found) = flow_table::by_masqueraded(tuple, tables) {
        flow_table::advance(&found, flow::Side::Backend, parsed.flags, tables);
        return Resolved::MasqueradeReply(found.flow);
    }
    if direct.is_none() && !may_be_ours(tuple.destination, tables) {
        return Resolved::Verdict(Verdict::Pass(Reason::NoService));
    }
    if let Some(service) = tables.service(tuple.destination, tuple.destination_port, tuple.proto) {
        return begin(parsed, origin, replaces, service, tables);
    }
    if let Some(found) = direct {
        if !(matches!(origin, Origin::Uplink) && tables.seen_by_xdp()) {
            flow_table::forget_for_direct(&found, parsed.flags, tables);
        }
        return Resolved::Verdict(Verdict::Pass(Reason::NoService));
    }
    Resolved::Verdict(unknown(tuple.destination, tables))
}

/// Whether the packet surely is none of our business, which a bit or two tell: it goes to no address of ours. If it may begin
/// something, a SYN or any datagram, it may also end a flow of its client ([`flow_table::forget_for_direct`]), whoever it goes
/// to; so the client must have none.
#[inline(always)]
fn is_strangers<A: Family, T: Tables<A>>(parsed: &Parsed<A>, tables: &T) -> bool {
    let goes_on = parsed.tuple.proto == Proto::TCP && !parsed.flags.opens();
    (goes_on || !may_have_flows(parsed.tuple.source, tables))
        && !may_be_ours(parsed.tuple.destination, tables)
}

/// Whether an address may be one of a Service, or one that flows are masqueraded with: it surely is neither if not.
#[inline(always)]
fn may_be_ours<A: Family, T: Tables<A>>(address: A, tables: &T) -> bool {
    let family = A::config(tables.config());
    tables.may_concern(address) || address.masked(family.service_mask) == family.service_network
}

/// Begins a flow to a Service.
#[inline(always)]
fn begin<A: Family, T: Tables<A>>(
    parsed: &Parsed<A>,
    origin: Origin,
    replaces: bool,
    service: &Service,
    tables: &T,
) -> Resolved<A, T::Copied> {
    let tuple = &parsed.tuple;
    if !flow::may_begin(parsed.flags) {
        return Resolved::Verdict(Verdict::Drop(Reason::Stray));
    }
    let Some(service) = tables.service_copy(service, tuple.destination, tuple.destination_port, tuple.proto)
    else {
        return Resolved::Verdict(Verdict::Drop(Reason::FlowTableContended));
    };
    let list = List::of(&service, origin, tuple.source, tables);
    if list.ring.length == 0 {
        return Resolved::Verdict(if list.drop_when_empty {
            Verdict::Drop(Reason::NoLocalEndpoint)
        } else {
            Verdict::Refuse(refusal(tuple.proto))
        });
    }
    let opening = Opening {
        tuple: *tuple,
        origin,
        service: service.id,
        service_flags: service.flags,
        list,
        affinity_seconds: service.affinity_seconds,
        replaces,
    };
    match tables.open(&opening) {
        Ok(flow) => Resolved::Forward(flow, Reason::NewFlow),
        Err(error) => Resolved::Verdict(no_flow(error, tuple.proto)),
    }
}

/// What becomes of a packet whose flow cannot be made.
#[inline(always)]
pub const fn no_flow<A>(error: InsertError, proto: Proto) -> Verdict<A> {
    match error {
        InsertError::Full => Verdict::Refuse(Reason::FlowTableFull),
        InsertError::Contended => Verdict::Drop(Reason::FlowTableContended),
        InsertError::NatPortsExhausted => Verdict::Refuse(Reason::NatPortsExhausted),
        InsertError::NoBackend => Verdict::Refuse(refusal(proto)),
        InsertError::SourceDenied => Verdict::Drop(Reason::SourceDenied),
        InsertError::Postponed => Verdict::Postponed,
    }
}

/// What becomes of a packet that is nobody's: towards a ClusterIP it has no business elsewhere.
#[inline(always)]
pub(super) fn unknown<A: Family, T: Tables<A>>(destination: A, tables: &T) -> Verdict<A> {
    let family = A::config(tables.config());
    if destination.masked(family.service_mask) != family.service_network {
        Verdict::Pass(Reason::NoService)
    } else if tables.service(destination, Port::default(), Proto(0)).is_some() {
        Verdict::Refuse(Reason::UnknownPort)
    } else if tables.in_source_range(SourceRange::SERVICE_CIDRS, destination) {
        Verdict::Drop(Reason::UnknownAddress)
    } else {
        Verdict::Pass(Reason::NoService)
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
