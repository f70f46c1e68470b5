//! Packets that enter the node, from the wire or from one of its pods.

use super::flow_table::{self, InsertError, NewFlow};
use super::parse::{Parsed, Tuple};
use super::rewrite::Translation;
use super::tables::{Backend, Tables};
use super::{Tally, Verdict, flow, select};
use crate::abi::{Flow, Reason, Ring, ServiceFlags, ServiceId};
use crate::addr::{Address, Port, Proto};
use crate::maglev;

/// Where a packet comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// An uplink or overlay device.
    Wire,
    /// A pod of this node.
    Pod,
}

/// What a packet is to us, before anything is decided about its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolved<A> {
    /// Client to backend.
    Forward(Flow<A>, Reason),
    /// A backend's answer to a masqueraded flow.
    MasqueradeReply(Flow<A>),
    /// Neither, or nobody to send it to.
    Verdict(Verdict<A>),
}

/// Decides for tc: the destination is translated, the kernel routes, egress does the rest.
///
/// A reply keeps its source until egress: with the frontend's address, which may be the node's own,
/// the kernel would take it for a martian.
#[inline(always)]
pub fn ingress<A: Address, T: Tables<A>>(parsed: &Parsed<A>, origin: Origin, tables: &T) -> Verdict<A> {
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
#[inline(always)]
pub fn resolve<A: Address, T: Tables<A>>(parsed: &Parsed<A>, origin: Origin, tables: &T) -> Resolved<A> {
    let tuple = &parsed.tuple;
    if tables.service(tuple.destination, tuple.destination_port, tuple.proto).is_some() {
        return forward(parsed, origin, tables);
    }
    let (backend, port) = (tuple.source, tuple.source_port);
    if let Some(found) = flow_table::by_nat_port(backend, port, tuple.destination_port, tuple.proto, tables)
        && found.flow.nat == tuple.destination
        && found.flow.nat != found.flow.client
    {
        flow_table::advance(&found, flow::Side::Backend, parsed.flags, tables);
        return Resolved::MasqueradeReply(found.flow);
    }
    // (Not from the wire: there the packet may be one that XDP has translated a moment ago.)
    if parsed.flags.opens() && matches!(origin, Origin::Pod) {
        flow_table::forget_for_direct(tuple, tables);
    }
    Resolved::Verdict(Verdict::Pass(Reason::NoService))
}

#[inline(always)]
fn forward<A: Address, T: Tables<A>>(parsed: &Parsed<A>, origin: Origin, tables: &T) -> Resolved<A> {
    let tuple = &parsed.tuple;
    let mut replaces = false;
    if let Some(found) = flow_table::by_frontend(tuple, tables) {
        let backend = tables.backend(found.flow.backend_id);
        let serves = backend
            .is_some_and(|backend| backend.active && backend.generation == found.flow.backend_generation);
        let stays = !flow::must_reselect(tuple.proto, found.word.state(), parsed.flags, serves);
        if stays && flow_table::owns_port(&found, tables) {
            flow_table::advance(&found, flow::Side::Client, parsed.flags, tables);
            return Resolved::Forward(found.flow, Reason::Forward);
        }
        replaces = true;
    }
    if !flow::may_begin(parsed.flags) {
        return Resolved::Verdict(Verdict::Drop(Reason::Stray));
    }
    let Some(service) = tables.service_copy(tuple.destination, tuple.destination_port, tuple.proto) else {
        return Resolved::Verdict(Verdict::Drop(Reason::FlowTableContended));
    };
    let (ring, drop_when_empty) = match origin {
        Origin::Wire => (service.outside, service.flags.has(ServiceFlags::DROP_OUTSIDE)),
        Origin::Pod => (service.inside, service.flags.has(ServiceFlags::DROP_INSIDE)),
    };
    if ring.length == 0 {
        return Resolved::Verdict(if drop_when_empty {
            Verdict::Drop(Reason::NoLocalEndpoint)
        } else {
            Verdict::Refuse(refusal(tuple.proto))
        });
    }
    let opening =
        Opening { tuple: *tuple, origin, service: service.id, service_flags: service.flags, ring, replaces };
    match tables.open(&opening) {
        Ok(flow) => Resolved::Forward(flow, Reason::NewFlow),
        Err(InsertError::Full) => Resolved::Verdict(Verdict::Refuse(Reason::FlowTableFull)),
        Err(InsertError::Contended) => Resolved::Verdict(Verdict::Drop(Reason::FlowTableContended)),
        Err(InsertError::NatPortsExhausted) => Resolved::Verdict(Verdict::Refuse(Reason::NatPortsExhausted)),
        Err(InsertError::NoBackend) => Resolved::Verdict(Verdict::Refuse(refusal(tuple.proto))),
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

/// A flow that is about to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening<A> {
    /// Client and frontend.
    pub tuple: Tuple<A>,
    /// Where the packet comes from.
    pub origin: Origin,
    /// The Service port.
    pub service: ServiceId,
    /// Its flags.
    pub service_flags: ServiceFlags,
    /// The ring to choose from; not empty.
    pub ring: Ring,
    /// The flow is in the table, with a backend it must leave.
    pub replaces: bool,
}

/// Picks a backend and puts the record together.
///
/// # Errors
/// Why there can be no flow.
#[inline(always)]
pub fn prepare<A: Address, T: Tables<A>>(
    opening: &Opening<A>,
    tables: &T,
) -> Result<NewFlow<A>, InsertError> {
    let tuple = &opening.tuple;
    let hash = select::flow_hash(tuple, tables.config().hash_seed);
    let slot = opening.ring.offset + maglev::slot(hash, opening.ring.length);
    let backend_id = tables.ring_slot(slot).ok_or(InsertError::NoBackend)?;
    let backend = tables.backend(backend_id).ok_or(InsertError::NoBackend)?;
    // When this client port already speaks to that backend under another address, their packets could
    // not be told apart: the later flow gets a port of its own.
    let shares_port = flow_table::is_port_taken(tuple, &backend, tables);
    let masquerade = if masquerades(opening, &backend, tables) {
        let address = tables.masquerade_address(tuple.source, backend.address);
        if address == A::UNSPECIFIED {
            return Err(InsertError::NatPortsExhausted);
        }
        Some(address)
    } else if shares_port {
        Some(tuple.source)
    } else {
        None
    };
    Ok(NewFlow {
        flow: Flow {
            client: tuple.source,
            frontend: tuple.destination,
            backend: backend.address,
            nat: A::UNSPECIFIED,
            client_port: tuple.source_port,
            frontend_port: tuple.destination_port,
            backend_port: backend.port,
            nat_port: Port::default(),
            service: opening.service,
            backend_id,
            backend_generation: backend.generation,
            proto: tuple.proto,
            flags: if shares_port { Flow::<A>::SHARED_PORT } else { 0 },
            reserved: [0; 2],
            spare: [0; 6],
        },
        masquerade,
        state: flow::first(tuple.proto),
        replaces: opening.replaces,
        hash,
    })
}

/// Whether the backend must see one of our addresses instead of the client's, because its answer
/// would not come back through this node otherwise.
#[inline(always)]
fn masquerades<A: Address, T: Tables<A>>(opening: &Opening<A>, backend: &Backend<A>, tables: &T) -> bool {
    match opening.origin {
        // A pod that reaches itself would otherwise see a packet from itself.
        Origin::Pod => opening.tuple.source == backend.address,
        // Behind this node already: the answer passes here, and the client's address is kept.
        Origin::Wire if backend.local => false,
        Origin::Wire if opening.service_flags.has(ServiceFlags::EXTERNAL) => {
            !opening.service_flags.has(ServiceFlags::LOCAL_POLICY)
        }
        Origin::Wire => tables.in_cluster_range(opening.tuple.source) == Some(false),
    }
}
