//! The changes that lead from what is to what should be, in a safe order.
//!
//! | step | why there |
//! |---|---|
//! | names, new backends | nothing refers to them yet |
//! | new rings | of backends that are in force, in room nothing points at |
//! | frontends that exist | each switches from the old to the new ring in one update |
//! | frontends that go | |
//! | backends that go | no ring in force refers to them any more |
//! | new frontends | last, and by themselves: a full map must not hold up all the rest |
//!
//! A plan is idempotent: when the store fails in the middle it is applied again from the start.

mod port;
mod recover;
mod rings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_common::abi::{
    Backend4, BackendId, BackendName, Frontend4, Ring, Service, ServiceId, ServiceName, capacity,
};
use lb_common::addr::{Ipv4, Port, Proto};

use crate::allocate::{Ids, RingArena};
use crate::dataplane::store::{Actual, Op};
use crate::desired::{Claims, DesiredService};
use crate::model::{Problem, Protocol, ServiceKey};
use recover::Recovered;
pub use rings::RingPlan;

/// How many ids there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Service ports.
    pub service_ids: u32,
    /// Endpoints of Service ports.
    pub backends: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { service_ids: capacity::SERVICE_IDS, backends: capacity::BACKENDS }
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
    /// New frontends, each with its Service.
    pub insert: Vec<(Frontend4, Service, ServiceKey)>,
    /// Services to plan again later: they did not get all they need.
    pub unfinished: Vec<ServiceKey>,
    /// What was left out for want of room, by Service.
    pub problems: HashMap<ServiceKey, Vec<Problem>>,
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
    services: HashMap<ServiceKey, Ports>,
    /// What the service map holds.
    published: HashMap<Frontend4, Service>,
    /// Frontends that a refused batch may have put all the same.
    doubtful: BTreeSet<FrontendOrder>,
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

type Ports = BTreeMap<(Arc<str>, Protocol), PortState>;

/// One Service port in force.
#[derive(Debug)]
struct PortState {
    id: ServiceId,
    backends: BTreeMap<(Ipv4Addr, u16), BackendState>,
    cluster: Members,
    local: Members,
    frontends: Vec<Frontend4>,
}

/// One backend in force.
#[derive(Clone, PartialEq, Eq, Debug)]
struct BackendState {
    id: BackendId,
    local: bool,
    target: Arc<str>,
    node: Arc<str>,
}

/// A ring in force and the backends it was made of, in order.
#[derive(Clone, Debug, Default)]
struct Members {
    ring: Ring,
    ids: Arc<[BackendId]>,
}

/// The lists a plan is put together from.
#[derive(Default)]
struct Draft {
    service_names: Vec<(ServiceId, ServiceName)>,
    backend_names: Vec<(BackendId, BackendName)>,
    backends: Vec<(BackendId, Backend4)>,
    rings: Vec<RingPlan>,
    update: Vec<(Frontend4, Service)>,
    insert: Vec<(Frontend4, Service, ServiceKey)>,
    retire: Vec<(BackendId, Backend4)>,
    /// Frontends that the planned Services held before.
    touched: HashSet<Frontend4>,
    /// Frontends that one of the planned Services holds now.
    kept: HashSet<Frontend4>,
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
        let known =
            actual.services.iter().map(|(_, service)| service.id).chain(actual.service_names.keys().copied());
        let mut planner = Self {
            seed,
            services: HashMap::new(),
            published: actual.services.iter().copied().collect(),
            doubtful: BTreeSet::new(),
            service_ids: Ids::new(limits.service_ids, grace, known),
            backend_ids: Ids::new(limits.backends, grace, active),
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
        now: Instant,
    ) -> Plan {
        let mut draft = Draft::default();
        for (key, desired) in services {
            self.plan_service(key, desired.as_ref(), claims, now, &mut draft);
        }
        if let Some(recovered) = self.recovered.take() {
            self.sweep(recovered, &mut draft);
        }
        self.finish(draft)
    }

    /// Tells that all of `plan` is in force but for the new frontends of `refused`, of which some may be.
    pub fn applied(&mut self, plan: Plan, refused: &[Frontend4], now: Instant) {
        for frontend in refused {
            self.published.remove(frontend);
            self.doubtful.insert(order(frontend));
        }
        plan.freed.rings.into_iter().for_each(|ring| self.arena.release(ring, now));
        plan.freed.services.into_iter().for_each(|id| self.service_ids.give_back(id, now));
        plan.freed.backends.into_iter().for_each(|id| self.backend_ids.give_back(id, now));
    }

    /// Number of frontends in force.
    pub fn frontends(&self) -> usize {
        self.published.len()
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
        let gone = gone.into_iter().filter(|frontend| self.published.remove(*frontend).is_some()).map(order);
        let delete: BTreeSet<_> = std::mem::take(&mut self.doubtful).into_iter().chain(gone).collect();
        let delete = delete.into_iter().map(|(address, port, proto)| {
            Frontend4::new(Ipv4::from_octets(address), Port::new(port), Proto(proto))
        });
        let mut prepare = Vec::new();
        let mut switch = Vec::new();
        push(&mut prepare, draft.service_names, Op::PutServiceNames);
        push(&mut prepare, draft.backend_names, Op::PutBackendNames);
        push(&mut prepare, draft.backends, Op::PutBackends);
        push(&mut switch, draft.update, Op::PutServices);
        push(&mut switch, delete.collect(), Op::DeleteServices);
        push(&mut switch, draft.retire, Op::PutBackends);
        push(&mut switch, draft.gone_service_names, Op::DeleteServiceNames);
        push(&mut switch, draft.gone_backend_names, Op::DeleteBackendNames);
        Plan {
            prepare,
            rings: draft.rings,
            switch,
            insert: draft.insert,
            unfinished: draft.unfinished,
            problems: draft.problems,
            freed: draft.freed,
        }
    }

    /// Takes a backend out of force. Its generation stays until the id gets another endpoint.
    fn retire(&mut self, id: BackendId, service: ServiceId, endpoint: (Ipv4Addr, u16), draft: &mut Draft) {
        let backend = Backend4 {
            address: endpoint.0.into(),
            port: Port::new(endpoint.1),
            generation: self.generation(id),
            service,
            ..Backend4::default()
        };
        draft.retire.push((id, backend));
        draft.gone_backend_names.push(id);
        draft.freed.backends.push(id);
    }

    fn generation(&self, id: BackendId) -> u32 {
        self.generations.get(id as usize).copied().unwrap_or(0)
    }

    /// Asserts what a frontend holds.
    fn publish(&mut self, frontend: Frontend4, value: Service, key: &ServiceKey, draft: &mut Draft) {
        draft.kept.insert(frontend);
        match self.published.insert(frontend, value) {
            Some(old) if old == value => {}
            Some(_) => draft.update.push((frontend, value)),
            None => draft.insert.push((frontend, value, key.clone())),
        }
    }
}

/// A frontend in a form that has an order.
type FrontendOrder = ([u8; 4], u16, u8);

fn order(frontend: &Frontend4) -> FrontendOrder {
    (frontend.address.octets(), frontend.port.get(), frontend.proto.0)
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
