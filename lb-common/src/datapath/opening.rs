//! The first packet of a flow: which list of endpoints, which of them, and whose address it sees.

use super::clients::{self, is_local};
use super::desk::Desk;
use super::flow_table::{self, InsertError};
use super::ingress::Origin;
use super::own::NOBODYS;
use super::parse::{Segment, TcpFlags, Tuple};
use super::tables::{Backend, PacketTables, Tables};
use super::{Family, flow, frontends, select};
use crate::abi::{
    self, Affinity, BackendId, ConfigFlags, Flow, FlowReference, FlowState, Moment, Progress, Ring, Service,
    ServiceFlags, ServiceId, SourceRange,
};
use crate::addr::{Port, Proto};
use crate::maglev;

/// Whose flow is about to be made. (A number, as the verifier would follow each variant.)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpeningKind(u32);

impl OpeningKind {
    /// A client's, to a Service.
    pub const CLIENT: Self = Self(0);
    /// The same, unless it answers a connection of the node's own.
    pub const OR_ANSWER: Self = Self(3);
    /// The node's own: see [`super::own`].
    pub const OWN: Self = Self(1);
    /// The same, and it is to hold the port that it leaves from, or to get another.
    pub const OWN_PORT: Self = Self(2);
    /// It is the node's own, to a Service, or may be: see [`super::of_node`].
    pub const OF_NODE: Self = Self(4);
    /// Nobody's: to a port that no Service has, at an external address of some. It goes its way unless that leads in a circle.
    pub const NOBODYS: Self = Self(5);
}

/// A flow that is about to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening<A> {
    /// Whose.
    pub kind: OpeningKind,
    /// Client and frontend.
    pub tuple: Tuple<A>,
    /// TCP flags of the packet.
    pub flags: TcpFlags,
    /// TCP sequence numbers of the packet.
    pub segment: Segment,
    /// TTL or hop limit of the packet.
    pub ttl: u8,
    /// Where the packet comes from.
    pub origin: Origin,
    /// The Service port.
    pub service: ServiceId,
    /// Its flags.
    pub service_flags: ServiceFlags,
    /// The endpoints to choose from.
    pub list: List,
    /// How long a client stays with an endpoint; 0: no longer than a flow.
    pub affinity_seconds: u32,
    /// The flow that it takes the place of: the same, which has ended, lost its port, or must leave its backend.
    pub replaces: FlowReference,
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
    /// Nobody.
    pub const NONE: Self = Self { ring: Ring { offset: 0, length: 0 }, member: 0, drop_when_empty: false };

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

    /// The list for a packet. `externalTrafficPolicy: Local` is not for pods and processes of this node; those of another one come from
    /// outside, as everybody does.
    #[inline(always)]
    pub const fn of(service: &Service, origin: Origin) -> Self {
        match origin {
            Origin::Pod | Origin::Node => Self::inside(service),
            Origin::Wire | Origin::Uplink => Self::outside(service),
        }
    }
}

const fn member(local: bool) -> u16 {
    if local { abi::Backend::IN_LOCAL } else { abi::Backend::IN_CLUSTER }
}

/// Who gets a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chosen<A> {
    /// The flow's hash.
    pub hash: u32,
    /// Which endpoint.
    pub id: BackendId,
    /// Its address.
    pub backend: Backend<A>,
}

/// The steps of making a flow. In the kernel each is a function of its own, so that packets of known flows do not carry their weight.
pub trait Steps {
    /// [`own::answers`].
    fn answers(&mut self) -> Opened;

    /// [`prepare_own`].
    fn prepare_own(&mut self) -> Opened;

    /// [`prepare`].
    fn prepare(&mut self) -> Opened;

    /// [`flow_table::is_port_taken`].
    fn is_port_taken(&mut self) -> bool;

    /// [`compose`].
    fn compose(&mut self, shares_port: bool) -> Opened;

    /// [`super::of_node::compose`], which is for packets that leave.
    fn compose_of_node(&mut self) -> Opened {
        Opened::error(InsertError::NoBackend)
    }

    /// [`flow_table::choose_port`].
    fn choose_port(&mut self) -> Opened;

    /// [`flow_table::insert`].
    fn insert(&mut self) -> Opened;
}

/// Makes the flow whose opening, of this kind, is on the desk: [`Opened::DONE`], or an error.
#[inline(always)]
pub fn open(kind: OpeningKind, steps: &mut impl Steps) -> Opened {
    let opened = write(kind, steps);
    if opened.is_written() { make(steps, opened) } else { opened }
}

/// Lays the record of the flow on the desk: [`Opened::DONE`], [`Opened::MASQUERADED`], or an error.
#[inline(always)]
pub(super) fn write(kind: OpeningKind, steps: &mut impl Steps) -> Opened {
    if kind == OpeningKind::OR_ANSWER {
        let judged = steps.answers();
        if judged != Opened::DONE {
            return judged;
        }
    }
    let is_own = kind == OpeningKind::OWN || kind == OpeningKind::OWN_PORT;
    let opened = if is_own { steps.prepare_own() } else { steps.prepare() };
    if opened != Opened::ASK {
        return opened;
    }
    if kind == OpeningKind::OF_NODE {
        return steps.compose_of_node();
    }
    let shares_port = steps.is_port_taken();
    steps.compose(shares_port)
}

/// Makes the flow whose record is on the desk.
#[inline(always)]
pub(super) fn make(steps: &mut impl Steps, opened: Opened) -> Opened {
    flow_table::until_won(Opened::error(InsertError::Contended), || {
        let chosen = if opened == Opened::MASQUERADED { steps.choose_port() } else { Opened::DONE };
        if chosen == Opened::DONE { steps.insert() } else { chosen }
    })
}

/// How far a step has come with a flow: a number, as functions in the kernel have no other result. It is one of these, or an
/// [`InsertError`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened(pub u32);

impl Opened {
    /// The step is done.
    pub const DONE: Self = Self(0);
    /// The client may have another flow from this port, so [`flow_table::is_port_taken`] has to be asked first.
    pub const ASK: Self = Self(1 << 16);
    /// The flow's record is on the desk, and it needs a port.
    pub const MASQUERADED: Self = Self(Self::ASK.0 + 1);
    /// Netfilter translates the flow.
    pub const IN_CONNTRACK: Self = Self(Self::ASK.0 + 2);

    /// It could not be.
    #[inline(always)]
    pub const fn error(error: InsertError) -> Self {
        Self(error as u32)
    }

    /// Whether the flow's record is on the desk.
    #[inline(always)]
    pub(super) fn is_written(self) -> bool {
        self == Self::DONE || self == Self::MASQUERADED
    }

    /// Whether the flow is made.
    ///
    /// # Errors
    /// Why there is none.
    #[inline(always)]
    pub fn result(self) -> Result<(), InsertError> {
        if self == Self::DONE { Ok(()) } else { Err(InsertError::from_number(self.0)) }
    }

    /// What a step says of the record on the desk.
    #[inline(always)]
    fn record<A: Family>(desk: &Desk<A>) -> Self {
        if desk.new.masquerade == A::UNSPECIFIED { Self::DONE } else { Self::MASQUERADED }
    }
}

impl From<Result<(), InsertError>> for Opened {
    #[inline(always)]
    fn from(result: Result<(), InsertError>) -> Self {
        match result {
            Ok(()) => Self::DONE,
            Err(error) => Self::error(error),
        }
    }
}

/// Chooses a backend for the opening on the desk, and puts the record of the new flow together there, if that can be done without a
/// search: [`Opened::DONE`], [`Opened::MASQUERADED`], [`Opened::ASK`], or an error.
#[inline(always)]
pub fn prepare<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Opened {
    let opening = &desk.opening;
    let client = opening.tuple.source;
    if opening.kind == OpeningKind::NOBODYS {
        // (With a TTL at its end it goes nowhere.)
        let circles = opening.ttl > 1 && tables.turns_back(client, opening.tuple.destination);
        return Opened::error(if circles { InsertError::UnknownPort } else { InsertError::Nobodys });
    }
    // Nobody else has the node's own address, and nobody that of a broadcast: the kernel drops what says so (fib_validate_source; IPv6
    // would forward it). The filter tells of most.
    let of_node = opening.origin == Origin::Node;
    let is_nodes = |address| frontends::is_nodes(address, tables);
    if !of_node && (client.is_nobodys() || tables.may_concern(client) && is_nodes(client)) {
        return Opened::error(InsertError::Martian);
    }
    // Not at an address of the node's own: there the kernel would take it for itself.
    let ends_here = opening.ttl <= 1 && !of_node && !is_nodes(opening.tuple.destination);
    if opening.service_flags.has(ServiceFlags::CHECK_SOURCES) {
        desk.source_range = SourceRange::of(opening.service, client);
        if !tables.in_source_range(&desk.source_range) {
            return Opened::error(InsertError::SourceDenied);
        }
    }
    if opening.list.ring.length == 0 {
        return Opened::error(if ends_here {
            InsertError::TimeExceeded
        } else if opening.list.drop_when_empty {
            InsertError::NoLocalEndpoint
        } else {
            InsertError::NoBackend
        });
    }
    let hash = select::flow_hash(&opening.tuple, tables.config().hash_seed);
    // (Whichever of its addresses the kernel takes: the node is one client, as the socket hooks have it.)
    let who = if of_node && is_nodes(client) { A::config(tables.config()).node_address } else { client };
    let chosen = choose(hash, who, opening.service, &opening.list, opening.affinity_seconds, tables);
    let Some((id, backend)) = chosen else { return Opened::error(InsertError::NoBackend) };
    // What is for this node itself need not be forwarded.
    if (ends_here || client.stays_on_its_link()) && !is_nodes(backend.address) {
        return Opened::error(if ends_here { InsertError::TimeExceeded } else { InsertError::Martian });
    }
    desk.chosen = Chosen { hash, id, backend };
    if of_node || flow_table::may_share_port(&opening.tuple, tables) {
        return Opened::ASK;
    }
    compose(false, tables, desk)
}

/// Puts the record of the new flow together on the desk. `shares_port`: this client port already speaks to that backend under another
/// address, so that their packets could not be told apart; the later flow gets a port of its own. [`Opened::DONE`],
/// [`Opened::MASQUERADED`], or an error.
#[inline(always)]
pub fn compose<A: Family, T: PacketTables<A>>(shares_port: bool, tables: &T, desk: &mut Desk<A>) -> Opened {
    let Desk { opening, chosen: Chosen { backend, .. }, .. } = desk;
    let tuple = &opening.tuple;
    let mut masquerade = A::UNSPECIFIED;
    if masquerades(opening, backend, tables) {
        masquerade = tables.masquerade_address(tuple.source, backend.address);
        if masquerade == A::UNSPECIFIED {
            return Opened::error(InsertError::NatPortsExhausted);
        }
    } else if shares_port {
        masquerade = tuple.source;
    }
    if tuple.proto == Proto::SCTP && shares_port {
        // Its ports cannot change.
        return Opened::error(InsertError::NatPortsExhausted);
    }
    clients::note(tuple.source, tables);
    let flags = if shares_port { Flow::<A>::SHARED_PORT } else { 0 };
    record(masquerade, flags, flow::first(tuple.proto), desk)
}

/// The same for a connection of the node's own, which goes where it goes.
#[inline(always)]
pub fn prepare_own<A: Family, T: PacketTables<A>>(tables: &T, desk: &mut Desk<A>) -> Opened {
    let Opening { tuple, kind, flags, .. } = &desk.opening;
    let hash = select::flow_hash(tuple, tables.config().hash_seed);
    let backend = Backend {
        address: tuple.destination,
        port: tuple.destination_port,
        flags: 0,
        generation: 0,
        service: NOBODYS,
    };
    let masquerade = if *kind == OpeningKind::OWN_PORT { tuple.source } else { A::UNSPECIFIED };
    let goes_on = tuple.proto == Proto::TCP && !flags.opens();
    let state = if goes_on { FlowState::TCP_ESTABLISHED } else { flow::first(tuple.proto) };
    tables.note_client(tuple.source);
    desk.chosen = Chosen { hash, id: NOBODYS, backend };
    record(masquerade, Flow::<A>::OWN, state, desk)
}

/// Puts the record of the opening on the desk together.
#[inline(always)]
pub(super) fn record<A: Family>(masquerade: A, flags: u8, state: FlowState, desk: &mut Desk<A>) -> Opened {
    let Desk { opening, chosen: Chosen { hash, id, backend }, new, .. } = desk;
    let tuple = &opening.tuple;
    // (Field by field: of a copy the compiler for BPF makes a call.)
    let flow = &mut new.flow;
    flow.client = tuple.source;
    flow.frontend = tuple.destination;
    flow.backend = backend.address;
    flow.nat = A::UNSPECIFIED;
    flow.client_port = tuple.source_port;
    flow.frontend_port = tuple.destination_port;
    flow.backend_port = backend.port;
    flow.nat_port = Port::default();
    flow.service = opening.service;
    flow.backend_id = *id;
    flow.backend_generation = backend.generation;
    flow.proto = tuple.proto;
    flow.flags = flags;
    flow.reserved = [0; 2];
    flow.progress = Progress::of_first(&opening.segment, opening.flags);
    flow.spare = 0;
    new.masquerade = masquerade;
    new.state = state;
    new.replaces = opening.replaces;
    new.hash = *hash;
    new.port_holder = FlowReference::NONE;
    new.made = FlowReference::NONE;
    Opened::record(desk)
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
        .filter(|(kept, backend)| {
            // (What was read may be what another Service's client was told: see `Tables::affinity`.)
            backend.service == service && backend.generation == kept.generation && backend.has(list.member)
        });
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
pub(super) fn masquerades<A: Family, T: Tables<A>>(
    opening: &Opening<A>,
    backend: &Backend<A>,
    tables: &T,
) -> bool {
    let flags = opening.service_flags;
    let external = flags.has(ServiceFlags::EXTERNAL);
    let node = tables.config().flags;
    let everyone = if external {
        node.has(ConfigFlags::MASQUERADE_EXTERNAL) || flags.has(ServiceFlags::MASQUERADE)
    } else {
        node.has(ConfigFlags::MASQUERADE_ALL)
    };
    if everyone && !flags.has(ServiceFlags::LOCAL_POLICY) {
        return true;
    }
    match opening.origin {
        // A pod that reaches itself would otherwise see a packet from itself.
        Origin::Pod => opening.tuple.source == backend.address,
        // Behind this node already: the answer passes here, and the client's address is kept. Not that of a
        // pod of another node: it reaches the same backend past this node too (by the ClusterIP), from the
        // same port perhaps, and the two connections would be one to the backend.
        _ if backend.is_local() => {
            let of_cluster = is_local(opening.tuple.source, tables.config());
            if external {
                of_cluster == Some(true) && !flags.has(ServiceFlags::LOCAL_POLICY)
            } else {
                of_cluster == Some(false) && node.has(ConfigFlags::MASQUERADE_EXTERNAL)
            }
        }
        // Its answer would not come back through this node otherwise. (With the policy Local only who is of this node gets here.)
        _ if external => true,
        _ => is_local(opening.tuple.source, tables.config()) == Some(false),
    }
}
