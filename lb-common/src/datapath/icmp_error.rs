//! ICMP errors about translated flows: without them path MTU discovery fails, and refusals time out.
//!
//! An error quotes a packet and goes to its sender. Turned around, the quoted addresses are those of a
//! packet of the same flow that goes the error's own way; what ingress and egress would do to that packet
//! is done to the quoted one, and to the outer addresses (RFC 5508, 4.2).

use super::desk::Desk;
use super::flow_table::{self, Found};
use super::parse::{Quote, Tuple};
use super::rewrite::{ErrorTranslation, Translation};
use super::tables::PacketTables;
use super::{Family, Tally};

/// An error on its way into the node; `None`: about nothing of ours.
#[inline(always)]
pub fn ingress<A: Family, T: PacketTables<A>>(
    tables: &T,
    desk: &mut Desk<A>,
) -> Option<(ErrorTranslation<A>, Tally)> {
    let quote = desk.quote;
    let turned = quote.tuple.reversed();
    if let Some(found) = flow_table::by_frontend(&turned, tables, desk) {
        let flow = found.flow;
        let quoted = Translation::source(flow.backend, flow.backend_port);
        let quoted =
            if flow.shares_port() { quoted.with_destination(flow.client, flow.nat_port) } else { quoted };
        let translation = ErrorTranslation { source: A::UNSPECIFIED, destination: flow.backend, quoted };
        return Some((translation, Tally::new(flow)));
    }
    let backend = (turned.source, turned.source_port);
    let found = flow_table::by_nat_port(backend, turned.destination_port, turned.proto, tables, desk)?;
    let flow = found.flow;
    if flow.nat != turned.destination || !flow.is_masqueraded() {
        return None;
    }
    let port = if flow.shares_port() && !flow.is_of_node() { flow.nat_port } else { flow.client_port };
    let mut quoted = Translation::source(flow.client, port);
    let mut source = A::UNSPECIFIED;
    if flow.is_of_node() {
        // It goes no further, so all of it changes here.
        quoted.destination = (flow.frontend, flow.frontend_port);
        if quote.source == flow.backend {
            source = flow.frontend;
        }
    }
    let translation = ErrorTranslation { source, destination: flow.client, quoted };
    Some((translation, Tally::new(flow)))
}

/// An error on its way out of the node; `None`: about nothing of ours.
#[inline(always)]
pub fn egress<A: Family, T: PacketTables<A>>(
    tables: &T,
    desk: &mut Desk<A>,
) -> Option<(ErrorTranslation<A>, Tally)> {
    let quote = desk.quote;
    let turned = quote.tuple.reversed();
    if let Some(found) = flow_table::by_reply(&turned, tables, desk) {
        let flow = found.flow;
        let quoted = Translation::destination(flow.frontend, flow.frontend_port);
        return Some((towards_client(&quote, flow, quoted), Tally::new(flow)));
    }
    if let Some(found) = flow_table::by_translated(&turned, tables, desk) {
        let flow = found.flow;
        let quoted = Translation::destination(flow.nat, flow.nat_port);
        let translation = ErrorTranslation { source: flow.nat, destination: A::UNSPECIFIED, quoted };
        return Some((translation, Tally::new(flow)));
    }
    if let Some(found) = by_shared_port(&turned, tables, desk)
        && found.flow.client == turned.destination
    {
        let flow = found.flow;
        let quoted = Translation::destination(flow.frontend, flow.frontend_port)
            .with_source(flow.client, flow.client_port);
        return Some((towards_client(&quote, flow, quoted), Tally::new(flow)));
    }
    let found = by_shared_port(&turned.reversed(), tables, desk)?;
    let flow = found.flow;
    if flow.client != turned.source || flow.nat == flow.client || flow.is_of_node() {
        return None;
    }
    let quoted = Translation::destination(flow.nat, flow.nat_port);
    let translation = ErrorTranslation { source: flow.nat, destination: A::UNSPECIFIED, quoted };
    Some((translation, Tally::new(flow)))
}

/// The flow of a backend's packet, if it carries its own port through the kernel.
#[inline(always)]
fn by_shared_port<'d, A: Family, T: PacketTables<A>>(
    reply: &Tuple<A>,
    tables: &T,
    desk: &'d mut Desk<A>,
) -> Option<Found<'d, A, T::Set>> {
    let (backend, nat_port) = ((reply.source, reply.source_port), reply.destination_port);
    let found = flow_table::by_nat_port(backend, nat_port, reply.proto, tables, desk)?;
    found.flow.shares_port().then_some(found)
}

/// The backend's own errors come from the frontend; a router's keep its address.
#[inline(always)]
fn towards_client<A: Family>(
    quote: &Quote<A>,
    flow: &crate::abi::Flow<A>,
    quoted: Translation<A>,
) -> ErrorTranslation<A> {
    let source = if quote.source == flow.backend { flow.frontend } else { A::UNSPECIFIED };
    ErrorTranslation { source, destination: A::UNSPECIFIED, quoted }
}
