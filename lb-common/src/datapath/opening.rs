//! The first packet of a flow: which list of endpoints, which of them, and whose address it sees.

use super::clients::{self, is_local};
use super::flow_table::{self, InsertError, NewFlow};
use super::ingress::Origin;
use super::parse::Tuple;
use super::tables::{Backend, Tables};
use super::{Family, flow, select};
use crate::abi::{
    self, Affinity, BackendId, ConfigFlags, Flow, FlowReference, Moment, Ring, Service, ServiceFlags,
    ServiceId,
};
use crate::addr::{Port, Proto};
use crate::maglev;

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
    /// The endpoints to choose from; not empty.
    pub list: List,
    /// How long a client stays with an endpoint; 0: no longer than a flow.
    pub affinity_seconds: u32,
    /// The flow is in the table, and has ended, lost its port, or must leave its backend.
    pub replaces: bool,
}

/// A list of endpoints: the Cluster list or the Local one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct List {
    /// Its ring.
    pub ring: Ring,
    /// The flag its members have: [`abi::Backend::IN_CLUSTER`] or [`abi::Backend::IN_LOCAL`].
    pub member: u16,
    /// With nobody in it, packets are dropped and not refused: somebody serves elsewhere.
    pub drop_when_empty: bool,
}

impl List {
    /// The list for pods and processes of this node.
    #[inline(always)]
    pub const fn inside(service: &Service) -> Self {
        Self {
            ring: service.inside,
            member: member(service.flags.has(ServiceFlags::INSIDE_IS_LOCAL)),
            drop_when_empty: service.flags.has(ServiceFlags::DROP_INSIDE),
        }
    }

    /// The list for everyone else.
    #[inline(always)]
    pub const fn outside(service: &Service) -> Self {
        Self {
            ring: service.outside,
            member: member(service.flags.has(ServiceFlags::OUTSIDE_IS_LOCAL)),
            drop_when_empty: service.flags.has(ServiceFlags::DROP_OUTSIDE),
        }
    }

    /// The list for a packet. `externalTrafficPolicy: Local` is for clients that are not the cluster's:
    /// a pod of another node that comes to this one may have any endpoint, as a pod of this one may.
    #[inline(always)]
    pub fn of<A: Family, T: Tables<A>>(service: &Service, origin: Origin, source: A, tables: &T) -> Self {
        let short_circuit = match origin {
            Origin::Pod => true,
            Origin::Wire | Origin::Uplink => {
                service.flags.has(ServiceFlags::LOCAL_POLICY)
                    && is_local(source, tables.config()) == Some(true)
            }
        };
        if short_circuit { Self::inside(service) } else { Self::outside(service) }
    }
}

const fn member(local: bool) -> u16 {
    if local { abi::Backend::IN_LOCAL } else { abi::Backend::IN_CLUSTER }
}

/// Picks a backend and puts the record together.
///
/// # Errors
/// Why there can be no flow.
#[inline(always)]
pub fn prepare<A: Family, T: Tables<A>>(opening: &Opening<A>, tables: &T) -> Result<NewFlow<A>, InsertError> {
    let tuple = &opening.tuple;
    if opening.service_flags.has(ServiceFlags::CHECK_SOURCES)
        && !tables.in_source_range(opening.service, tuple.source)
    {
        return Err(InsertError::SourceDenied);
    }
    let hash = select::flow_hash(tuple, tables.config().hash_seed);
    let (backend_id, backend) =
        choose(hash, tuple.source, opening.service, &opening.list, opening.affinity_seconds, tables)
            .ok_or(InsertError::NoBackend)?;
    // When this client port already speaks to that backend under another address, their packets could
    // not be told apart: the later flow gets a port of its own.
    let shares_port = flow_table::is_port_taken(tuple, &backend, tables);
    let mut masquerade = A::UNSPECIFIED;
    if masquerades(opening, &backend, tables) {
        masquerade = tables.masquerade_address(tuple.source, backend.address);
        if masquerade == A::UNSPECIFIED {
            return Err(InsertError::NatPortsExhausted);
        }
    } else if shares_port {
        masquerade = tuple.source;
    }
    if tuple.proto == Proto::SCTP && shares_port {
        // Its ports cannot change.
        return Err(InsertError::NatPortsExhausted);
    }
    clients::note(tuple.source, tables);
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
        port_holder: FlowReference::NONE,
    })
}

/// The endpoint a client stays with, or the one its hash points at.
#[inline(always)]
pub fn choose<A: Family, T: Tables<A>>(
    hash: u32,
    client: A,
    service: ServiceId,
    list: &List,
    affinity_seconds: u32,
    tables: &T,
) -> Option<(BackendId, Backend<A>)> {
    let slot = list.ring.offset + maglev::slot(hash, list.ring.length);
    if affinity_seconds == 0 {
        let id = tables.ring_slot(slot)?;
        return Some((id, tables.backend(id)?));
    }
    let now = tables.now();
    let kept = tables
        .affinity(client, service)
        .filter(|kept| now.since(kept.used) < Moment::steps(affinity_seconds))
        .and_then(|kept| Some((kept, tables.backend(kept.backend)?)))
        .filter(|(kept, backend)| backend.generation == kept.generation && backend.has(list.member));
    let (id, backend) = match kept {
        Some((kept, backend)) => (kept.backend, backend),
        None => {
            let id = tables.ring_slot(slot)?;
            (id, tables.backend(id)?)
        }
    };
    let affinity = Affinity { backend: id, generation: backend.generation, used: now };
    tables.note_affinity(client, service, affinity);
    Some((id, backend))
}

/// Whether the backend must see one of our addresses instead of the client's.
#[inline(always)]
fn masquerades<A: Family, T: Tables<A>>(opening: &Opening<A>, backend: &Backend<A>, tables: &T) -> bool {
    let flags = opening.service_flags;
    let external = flags.has(ServiceFlags::EXTERNAL);
    if !external && tables.config().flags.has(ConfigFlags::MASQUERADE_ALL) {
        return true;
    }
    match opening.origin {
        // A pod that reaches itself would otherwise see a packet from itself.
        Origin::Pod => opening.tuple.source == backend.address,
        // Behind this node already: the answer passes here, and the client's address is kept. Not that of a
        // pod of another node: it reaches the same backend past this node too (by the ClusterIP), from the
        // same port perhaps, and the two connections would be one to the backend.
        _ if backend.is_local() => {
            external
                && !flags.has(ServiceFlags::LOCAL_POLICY)
                && is_local(opening.tuple.source, tables.config()) == Some(true)
        }
        // Its answer would not come back through this node otherwise. (With the policy Local only a
        // client that may have any endpoint gets here.)
        _ if external => true,
        _ => is_local(opening.tuple.source, tables.config()) == Some(false),
    }
}
