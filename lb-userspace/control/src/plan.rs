//! The changes that lead from what is to what should be, in a safe order.
//!
//! | step | why there |
//! |---|---|
//! | names, new backends | nothing refers to them yet |
//! | new rings | of backends that are in force, in room nothing points at |
//! | new source ranges, wider range of ClusterIPs | before the frontends they are for |
//! | frontends that exist | each switches from the old to the new ring in one update |
//! | frontends that go | |
//! | backends that go | no ring in force refers to them any more |
//! | source ranges that go, narrower range of ClusterIPs | no frontend needs them any more |
//! | new frontends | last, and by themselves: a full map must not hold up all the rest |
//!
//! A plan is idempotent: when the store fails in the middle it is applied again from the start.

mod backends;
mod cover;
mod node;
mod port;
mod publish;
mod recover;
mod rings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lb_common::abi::{Backend, BackendId, Ring, Service, ServiceId, ServiceName, capacity};
use lb_common::addr::Port;

use crate::allocate::{Ids, Reuse, RingArena};
use crate::desired::{Claims, DesiredService};
use crate::model::{Family, Frontend, Problem, Protocol, ServiceKey};
use crate::store::{self, Actual, Cover, Op, PodName};
use backends::Backends;
use cover::cover;
pub use node::OfNode;
use node::{NODE_NETWORKS, NodeState, SERVICE_CIDRS};
use recover::Recovered;
pub use rings::RingPlan;

/// Address and port of an endpoint.
type AddressPort = (IpAddr, u16);

/// A UDP endpoint that is one no longer: sockets connected to it are to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retired {
    /// Its id.
    pub id: BackendId,
    /// Its generation.
    pub generation: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// How many ids there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Service ports.
    pub service_ids: u32,
    /// Endpoints of Service ports.
    pub backends: u32,
    /// Ranges of permitted sources.
    pub source_ranges: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            service_ids: capacity::SERVICE_IDS,
            backends: capacity::BACKENDS,
            source_ranges: capacity::SOURCE_RANGES as usize,
        }
    }
}

/// What the planner must know.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Seed of the rings.
    pub seed: u64,
    /// How long ids and ring room rest before they are used again.
    pub grace: Duration,
    /// How many ids there are.
    pub limits: Limits,
    /// Slots of the ring arena.
    pub ring_slots: u32,
}

/// Changes in order. See the module's table.
#[derive(Debug, Default)]
pub struct Plan {
    /// Names and new backends.
    pub prepare: Vec<Op>,
    /// New rings; their slots are worked out when they are written.
    pub rings: Vec<RingPlan>,
    /// Everything that lets packets see the change, but for new frontends.
    pub switch: Vec<Op>,
    /// New frontends, each with its Service; an address of the node has none.
    pub insert: Vec<(Frontend, Service, Option<ServiceKey>)>,
    /// Services to plan again later: they did not get all they need.
    pub unfinished: Vec<ServiceKey>,
    /// What was left out for want of room, by Service.
    pub problems: HashMap<ServiceKey, Vec<Problem>>,
    /// UDP endpoints that are gone once `switch` is in force.
    pub retired: Vec<Retired>,
    freed: Freed,
}

/// What may be used again once the plan has been applied.
#[derive(Debug, Default)]
struct Freed {
    rings: Vec<Ring>,
    services: Vec<ServiceId>,
    backends: Vec<BackendId>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.prepare.is_empty() && self.rings.is_empty() && self.switch.is_empty() && self.insert.is_empty()
    }

    /// Number of entries written or deleted; a ring counts as one.
    pub fn changes(&self) -> usize {
        let entries = |op: &Op| match op {
            Op::PutServiceNames(entries) => entries.len(),
            Op::PutBackendNames(entries) => entries.len(),
            // Go with a new Service port or backend.
            Op::ResetServiceTraffic(_) | Op::ResetBackendFlows(_) | Op::NotePorts(_) => 0,
            Op::PutSourceRanges(ranges) | Op::DeleteSourceRanges(ranges) => ranges.len(),
            Op::CoverServices(_) | Op::AskNodeNetworks(_) => 1,
            Op::PutBackends(entries) => entries.len(),
            Op::WriteRing(..) => 1,
            Op::PutServices(entries) => entries.len(),
            Op::DeleteServices(keys) => keys.len(),
            Op::DeleteServiceNames(keys) => keys.len(),
            Op::DeleteBackendNames(keys) => keys.len(),
        };
        let ops = self.prepare.iter().chain(&self.switch).map(entries).sum::<usize>();
        ops + self.rings.len() + self.insert.len()
    }
}

/// Knows what the store holds and which ids stand for what.
#[derive(Debug)]
pub struct Planner {
    seed: u64,
    services: HashMap<ServiceKey, ServiceState>,
    /// What the service maps hold.
    published: HashMap<Frontend, Service>,
    /// Frontends that a refused batch may have put all the same.
    doubtful: BTreeSet<Frontend>,
    /// Frontends at external addresses, but for nodePorts.
    external: BTreeSet<Frontend>,
    /// Entries of the service map, by family.
    entries: [usize; 2],
    /// ClusterIPs whose unknown ports are refused.
    cluster_ips: BTreeSet<IpAddr>,
    /// Number of entries that stand for an external address of Services.
    external_addresses: usize,
    /// What of the node's own is in force.
    node: NodeState,
    /// Where the programs look for ClusterIPs.
    cover: Cover,
    /// Number of ranges of permitted sources.
    source_ranges: usize,
    limits: Limits,
    service_ids: Ids,
    backend_ids: Ids,
    /// Generation of every backend id ever given out; 0: never.
    generations: Vec<u32>,
    arena: RingArena,
    active_backends: usize,
    service_ports: usize,
    /// What a former agent left; taken over piece by piece in the first plan, the rest swept out.
    recovered: Option<Recovered>,
}

/// One Service in force.
#[derive(Debug, Default)]
struct ServiceState {
    ports: Vec<((Arc<str>, Protocol), PortState)>,
    /// Its ClusterIPs as a whole.
    whole: Vec<Frontend>,
}

/// One Service port in force.
#[derive(Debug)]
struct PortState {
    id: ServiceId,
    backends: Backends,
    /// By family.
    rings: [Rings; 2],
    frontends: Vec<Frontend>,
    source_ranges: BTreeSet<IpNet>,
}

/// One backend in force.
#[derive(Clone, PartialEq, Eq, Debug)]
struct BackendState {
    id: BackendId,
    flags: u16,
    target: Arc<str>,
    node: Arc<str>,
}

/// The rings of one family.
#[derive(Clone, Debug, Default)]
struct Rings {
    cluster: Members,
    local: Members,
}

/// A ring in force and the backends it was made of, in order.
#[derive(Clone, Debug, Default)]
struct Members {
    ring: Ring,
    ids: Arc<[BackendId]>,
}

/// A plan in the making: the lists it is put together from.
#[derive(Debug, Default)]
pub struct Draft {
    service_names: Vec<(ServiceId, ServiceName)>,
    backend_names: Vec<(BackendId, PodName)>,
    /// Service ids given out anew.
    fresh_services: Vec<ServiceId>,
    /// Backend ids given out anew.
    fresh_backends: Vec<BackendId>,
    backends: Vec<(BackendId, Backend)>,
    rings: Vec<RingPlan>,
    update: Vec<(Frontend, Service)>,
    insert: Vec<(Frontend, Service, Option<ServiceKey>)>,
    retire: Vec<(BackendId, Backend)>,
    /// Frontends that the planned Services held before.
    touched: HashSet<Frontend>,
    /// Frontends that one of the planned Services holds now.
    kept: HashSet<Frontend>,
    source_ranges: Vec<store::SourceRange>,
    gone_source_ranges: Vec<store::SourceRange>,
    /// Ports of new frontends at the node's own addresses.
    own_ports: Vec<u16>,
    retired: Vec<Retired>,
    gone_service_names: Vec<ServiceId>,
    gone_backend_names: Vec<BackendId>,
    unfinished: Vec<ServiceKey>,
    problems: HashMap<ServiceKey, Vec<Problem>>,
    freed: Freed,
}

impl Planner {
    /// Starts from what the store holds.
    pub fn new(settings: Settings, actual: Actual) -> Self {
        let Settings { seed, grace, limits, ring_slots } = settings;
        let mut generations = Vec::new();
        for (id, backend) in &actual.backends {
            set_generation(&mut generations, *id, backend.generation);
        }
        // An id is taken while a backend is in force or a former agent may have died before retiring it.
        let active = actual.backends.iter().filter(|(_, backend)| backend.is_active()).map(|(id, _)| *id);
        let of_services = actual.services.iter().filter(|(frontend, _)| !frontend.is_of_an_address());
        let of_ranges = actual.source_ranges.iter().map(|(id, _)| *id).filter(|id| node::is_of_service(*id));
        let known = of_services
            .map(|(_, service)| service.id)
            .chain(actual.service_names.keys().copied())
            .chain(of_ranges);
        let mut entries = [0; 2];
        for (frontend, _) in &actual.services {
            entries[Family::of(frontend.address) as usize] += 1;
        }
        let whole = actual.services.iter().filter(|(frontend, _)| frontend.is_whole());
        let outer = actual.services.iter().filter(|(frontend, _)| frontend.is_external_address());
        let ranges = |of: ServiceId| {
            let ranges = actual.source_ranges.iter().filter(move |(id, _)| *id == of);
            ranges.map(|(_, range)| *range).collect()
        };
        let addresses = actual.services.iter().filter(|(frontend, _)| frontend.is_node());
        let is_external =
            |(frontend, service): &&(Frontend, Service)| publish::is_external(frontend, service);
        let node = NodeState {
            service_cidrs: ranges(SERVICE_CIDRS),
            networks: ranges(NODE_NETWORKS),
            addresses: addresses
                .map(|(frontend, service)| (frontend.address, node::Kind::of(service.flags)))
                .collect(),
            asks_networks: actual.asks_node_networks,
        };
        let mut planner = Self {
            seed,
            services: HashMap::new(),
            published: actual.services.iter().copied().collect(),
            doubtful: BTreeSet::new(),
            external: actual.services.iter().filter(is_external).map(|(frontend, _)| *frontend).collect(),
            entries,
            external_addresses: outer.count(),
            cluster_ips: whole.map(|(frontend, _)| frontend.address).collect(),
            node,
            cover: actual.cover,
            source_ranges: actual.source_ranges.len(),
            limits,
            service_ids: Ids::new(limits.service_ids, Reuse::Last, known),
            backend_ids: Ids::new(limits.backends, Reuse::After(grace), active),
            generations,
            arena: RingArena::new(ring_slots, grace),
            active_backends: 0,
            service_ports: 0,
            recovered: None,
        };
        planner.recovered = Some(Recovered::new(actual, &mut planner.arena));
        planner
    }

    /// Plans some Services anew; none: the Service is gone. `claims` must know all of them already, and
    /// every Service that gains or loses a frontend must be among them.
    ///
    /// The first plan must name every Service there is: whatever else the store holds is taken out.
    pub fn plan(
        &mut self,
        services: &[(ServiceKey, Option<DesiredService>)],
        claims: &Claims,
        node: OfNode<'_>,
        now: Instant,
    ) -> Plan {
        let mut draft = Draft::default();
        for (key, desired) in services {
            self.plan_service(key, desired.as_ref(), claims, now, &mut draft);
        }
        self.end(draft, node)
    }

    /// Ends the plan of all the Services that [`Planner::plan_service`] was called for. See [`Planner::plan`].
    pub fn end(&mut self, mut draft: Draft, node: OfNode<'_>) -> Plan {
        let recovered = self.recovered.take();
        let is_first = recovered.is_some();
        if let Some(recovered) = recovered {
            self.sweep(recovered, &mut draft);
        }
        self.plan_node(node, is_first, &mut draft);
        self.finish(draft)
    }

    /// Tells that all of `plan` is in force but for the new frontends of `refused`, of which some may be.
    pub fn applied(&mut self, plan: Plan, refused: &[Frontend], now: Instant) {
        for frontend in refused {
            self.unpublish(frontend);
            self.doubtful.insert(*frontend);
        }
        plan.freed.rings.into_iter().for_each(|ring| self.arena.release(ring, now));
        plan.freed.services.into_iter().for_each(|id| self.service_ids.give_back(id, now));
        plan.freed.backends.into_iter().for_each(|id| self.backend_ids.give_back(id, now));
    }

    /// Number of frontends in force.
    pub fn frontends(&self) -> usize {
        let of_addresses = self.cluster_ips.len() + self.node.addresses.len() + self.external_addresses;
        self.published.len() - of_addresses
    }

    /// Entries in the service map of each family: frontends, ClusterIPs as a whole, addresses of the node, external addresses.
    pub fn service_entries(&self) -> [usize; 2] {
        self.entries
    }

    /// Entries in the map of permitted sources.
    pub fn source_ranges(&self) -> usize {
        self.source_ranges
    }

    /// Number of Services and of Service ports in force.
    pub fn services(&self) -> (usize, usize) {
        (self.services.len(), self.service_ports)
    }

    /// Number of active backends.
    pub fn backends(&self) -> usize {
        self.active_backends
    }

    /// Ring slots that are not free.
    pub fn ring_slots(&self) -> u32 {
        self.arena.used()
    }

    /// When ring room that now rests becomes free.
    pub fn next_free_room(&self) -> Option<Instant> {
        self.arena.next_free()
    }

    fn finish(&mut self, draft: Draft) -> Plan {
        // A frontend nobody has taken over goes. So does what is in doubt, to be put anew.
        let gone: Vec<_> = draft.touched.difference(&draft.kept).collect();
        let gone = gone.into_iter().copied().filter(|frontend| self.unpublish(frontend));
        let gone: Vec<_> = gone.collect();
        let delete: BTreeSet<_> = std::mem::take(&mut self.doubtful).into_iter().chain(gone).collect();
        // Everything the programs must find, before and after.
        let after = cover(&self.cluster_ips, &self.node.service_cidrs);
        let both = cover::join(self.cover, after);
        let mut prepare = Vec::new();
        let mut switch = Vec::new();
        // Before their names: whoever reads the traffic goes by these.
        push(&mut prepare, draft.fresh_services, Op::ResetServiceTraffic);
        push(&mut prepare, draft.service_names, Op::PutServiceNames);
        push(&mut prepare, draft.backend_names, Op::PutBackendNames);
        push(&mut prepare, draft.fresh_backends, Op::ResetBackendFlows);
        push(&mut prepare, draft.backends, Op::PutBackends);
        push(&mut prepare, draft.source_ranges, Op::PutSourceRanges);
        push(&mut prepare, draft.own_ports, Op::NotePorts);
        let asks_networks = self.changed_networks();
        prepare.extend(asks_networks.filter(|asks| *asks).map(Op::AskNodeNetworks));
        if both != self.cover {
            prepare.push(Op::CoverServices(both));
        }
        push(&mut switch, draft.update, Op::PutServices);
        push(&mut switch, delete.into_iter().collect(), Op::DeleteServices);
        push(&mut switch, draft.retire, Op::PutBackends);
        push(&mut switch, draft.gone_source_ranges, Op::DeleteSourceRanges);
        push(&mut switch, draft.gone_service_names, Op::DeleteServiceNames);
        push(&mut switch, draft.gone_backend_names, Op::DeleteBackendNames);
        switch.extend(asks_networks.filter(|asks| !asks).map(Op::AskNodeNetworks));
        if after != both {
            switch.push(Op::CoverServices(after));
        }
        self.cover = after;
        Plan {
            prepare,
            rings: draft.rings,
            switch,
            insert: draft.insert,
            unfinished: draft.unfinished,
            problems: draft.problems,
            retired: draft.retired,
            freed: draft.freed,
        }
    }

    /// Takes a backend out of force. Its generation stays until the id gets another endpoint.
    fn retire(
        &mut self,
        id: BackendId,
        service: ServiceId,
        endpoint: AddressPort,
        is_udp: bool,
        draft: &mut Draft,
    ) {
        let generation = self.generation(id);
        if is_udp {
            draft.retired.push(Retired { id, generation, address: endpoint.0, port: endpoint.1 });
        }
        let backend = Backend {
            address: endpoint.0.into(),
            port: Port::new(endpoint.1),
            generation,
            service,
            ..Backend::default()
        };
        draft.retire.push((id, backend));
        draft.gone_backend_names.push(id);
        draft.freed.backends.push(id);
    }

    fn generation(&self, id: BackendId) -> u32 {
        self.generations.get(id as usize).copied().unwrap_or(0)
    }
}

fn set_generation(generations: &mut Vec<u32>, id: BackendId, generation: u32) {
    let index = id as usize;
    if generations.len() <= index {
        generations.resize(index + 1, 0);
    }
    generations[index] = generation;
}

fn push<T>(ops: &mut Vec<Op>, entries: Vec<T>, op: impl FnOnce(Vec<T>) -> Op) {
    if !entries.is_empty() {
        ops.push(op(entries));
    }
}
