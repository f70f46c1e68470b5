//! The level-triggered loop: model changes in, map changes out.

mod run;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::convert;
use crate::dataplane::store::{Op, Store, StoreError};
use crate::desired::{self, Claims, ExternalIps, NodeView};
use crate::model::{Catalog, Kind, Node, ObjectRef, Problem, ServiceKey, SliceKey};
use crate::plan::{Limits, Plan, Planner, Settings};
use crate::source::{Event, Object, Sourced};

pub use run::run;

/// What the [`Reconciler`] must know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our node's name, as `nodeName` of endpoints says it.
    pub node_name: String,
    /// Which `externalIPs` are served.
    pub external_ips: ExternalIps,
    /// Seed of the rings: the same on every node of a cluster.
    pub hash_seed: u64,
    /// How long room that packets in flight may still read is left alone.
    pub grace: Duration,
    /// How many ids the maps have room for.
    pub limits: Limits,
}

impl Config {
    /// The usual for a node.
    pub fn new(node_name: impl Into<String>, hash_seed: u64) -> Self {
        Self {
            node_name: node_name.into(),
            external_ips: ExternalIps::default(),
            hash_seed,
            grace: Duration::from_secs(2),
            limits: Limits::default(),
        }
    }
}

/// What the last successful flush did, and what is now in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Services in force.
    pub services: usize,
    /// Ports of those.
    pub service_ports: usize,
    /// Frontends in the service map.
    pub frontends: usize,
    /// Active backends.
    pub backends: usize,
    /// Ring slots in use.
    pub ring_slots: u32,
    /// Services looked at by the last flush.
    pub changed_services: usize,
    /// Single entries written or deleted by the last flush (a ring counts as one).
    pub changes: usize,
}

/// How a flush ended.
#[derive(Debug)]
pub enum Outcome {
    /// The source has not listed everything yet: nothing was touched.
    NotSynced,
    /// The store holds what it should.
    Applied(Stats),
    /// The store refused. What it held serves on; call `flush` again after `retry_after`.
    Failed {
        /// What the store said.
        error: StoreError,
        /// When to try again; grows while failures last.
        retry_after: Duration,
    },
}

/// What the loop tells the rest of the agent after every step.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The source has listed everything.
    pub synced: bool,
    /// When the store last took all there was. None before the first time.
    pub last_success: Option<Instant>,
    /// Since when a change has been waiting; none when all is in force.
    pub queued_since: Option<Instant>,
    /// How long the last flush took.
    pub last_duration: Duration,
    /// Flushes that succeeded.
    pub syncs: u64,
    /// Flushes that failed.
    pub failures: u64,
    /// What the store said last, while it refuses.
    pub error: Option<String>,
    /// See [`Stats`].
    pub stats: Stats,
    /// All that is wrong with what we were given, in order.
    pub problems: Arc<[Problem]>,
    /// Our Node object, when there is one.
    pub node: Option<Arc<Node>>,
}

/// Slots written at a time; bounds the memory a large change takes.
const RING_BATCH: usize = 1 << 20;
/// New frontends written at a time.
const INSERT_BATCH: usize = 256;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// Owns the model, the ids and the store.
pub struct Reconciler {
    config: Config,
    store: Box<dyn Store>,
    synced: bool,
    catalog: Catalog,
    node_view: NodeView,
    node: Option<Arc<Node>>,
    claims: Claims,
    planner: Option<Planner>,
    /// A plan the store has not taken completely.
    pending: Option<Plan>,
    dirty: BTreeSet<ServiceKey>,
    /// Services that did not get all they need, to be tried again.
    later: BTreeSet<ServiceKey>,
    later_at: Option<Instant>,
    failures: u32,
    stats: Stats,
    object_problems: BTreeMap<ObjectRef, Vec<Problem>>,
    service_problems: BTreeMap<ServiceKey, Vec<Problem>>,
    source_problems: Vec<Problem>,
}

impl std::fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconciler")
            .field("synced", &self.synced)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Reconciler {
    /// Starts empty. The store is first read by the first `flush` after [`Event::Synced`].
    pub fn new(config: Config, store: Box<dyn Store>) -> Self {
        let node_view = NodeView { addresses: Vec::new(), external_ips: config.external_ips.clone() };
        Self {
            config,
            store,
            synced: false,
            catalog: Catalog::default(),
            node_view,
            node: None,
            claims: Claims::default(),
            planner: None,
            pending: None,
            dirty: BTreeSet::new(),
            later: BTreeSet::new(),
            later_at: None,
            failures: 0,
            stats: Stats::default(),
            object_problems: BTreeMap::new(),
            service_problems: BTreeMap::new(),
            source_problems: Vec::new(),
        }
    }

    /// Takes in what a source tells. Touches no map.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Applied(sourced) => self.apply(sourced),
            Event::Deleted(reference) => self.delete(&reference),
            Event::Reset { kind, objects } => self.reset(kind, objects),
            Event::Synced => self.synced = true,
            Event::Problems(problems) => self.source_problems = problems,
        }
    }

    /// The addresses nodePorts are served on. `127.0.0.1` is added here, for the socket hooks.
    pub fn set_node_addresses(&mut self, mut addresses: Vec<Ipv4Addr>) {
        addresses.retain(|address| !address.is_loopback());
        addresses.sort_unstable();
        addresses.dedup();
        if addresses != self.node_view.addresses {
            self.node_view.addresses = addresses;
            self.dirty.extend(self.catalog.services().map(|service| service.key.clone()));
        }
    }

    /// Brings the store to what it should hold. Blocks for as long as the store takes.
    pub fn flush(&mut self, now: Instant) -> Outcome {
        if !self.synced {
            return Outcome::NotSynced;
        }
        let result = self.try_flush(now);
        match result {
            Ok(()) => {
                self.failures = 0;
                Outcome::Applied(self.stats)
            }
            Err(error) => {
                let retry_after = RETRY_FIRST.saturating_mul(1 << self.failures.min(10)).min(RETRY_LONGEST);
                self.failures += 1;
                if !self.later.is_empty() {
                    self.later_at = Some(now + retry_after);
                }
                Outcome::Failed { error, retry_after }
            }
        }
    }

    /// Whether `flush` has anything to do now.
    pub fn is_dirty(&self) -> bool {
        self.synced && (self.planner.is_none() || self.pending.is_some() || !self.dirty.is_empty())
    }

    /// When `flush` will have something to do again although nothing changed.
    pub fn next_attempt(&self) -> Option<Instant> {
        self.later_at
    }

    /// Whether the source has listed everything.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// What is in force, and what the last flush did.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Our Node object, when the source has one.
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    /// All that is wrong with what we were given, in order, each once.
    pub fn problems(&self) -> Vec<Problem> {
        let services = self.service_problems.values().flatten();
        let mut problems: Vec<_> = self
            .source_problems
            .iter()
            .chain(self.object_problems.values().flatten())
            .chain(services)
            .cloned()
            .collect();
        problems.sort();
        problems.dedup();
        problems
    }

    fn apply(&mut self, sourced: Sourced) {
        let reference = sourced.object.reference();
        let origin = sourced.origin.as_ref();
        let problems = match &sourced.object {
            Object::Service(object) => {
                let (service, problems) = convert::service(object, &reference, origin);
                let key = ServiceKey { namespace: reference.namespace.clone(), name: reference.name.clone() };
                if self.catalog.set_service(&key, service) {
                    self.dirty.insert(key);
                }
                problems
            }
            Object::EndpointSlice(object) => {
                let (slice, problems) =
                    convert::endpoint_slice(object, &reference, &self.config.node_name, origin);
                let key = SliceKey { namespace: reference.namespace.clone(), name: reference.name.clone() };
                self.dirty.extend(self.catalog.set_slice(&key, slice));
                problems
            }
            Object::Node(object) => {
                if *reference.name == *self.config.node_name {
                    self.node = Some(Arc::new(convert::node(object)));
                }
                Vec::new()
            }
        };
        if problems.is_empty() {
            self.object_problems.remove(&reference);
        } else {
            self.object_problems.insert(reference, problems);
        }
    }

    fn delete(&mut self, reference: &ObjectRef) {
        self.object_problems.remove(reference);
        let (namespace, name) = (reference.namespace.clone(), reference.name.clone());
        match reference.kind {
            Kind::Service => {
                let key = ServiceKey { namespace, name };
                if self.catalog.set_service(&key, None) {
                    self.dirty.insert(key);
                }
            }
            Kind::EndpointSlice => {
                self.dirty.extend(self.catalog.set_slice(&SliceKey { namespace, name }, None));
            }
            Kind::Node => {
                if *name == *self.config.node_name {
                    self.node = None;
                }
            }
        }
    }

    fn reset(&mut self, kind: Kind, objects: Vec<Sourced>) {
        let listed: BTreeSet<_> = objects.iter().map(|sourced| sourced.object.reference()).collect();
        let known: Vec<ObjectRef> = match kind {
            Kind::Service => self.catalog.services().map(|service| service.key.object()).collect(),
            Kind::EndpointSlice => self.catalog.slice_keys().map(SliceKey::object).collect(),
            Kind::Node => vec![ObjectRef::new(Kind::Node, "", self.config.node_name.as_str())],
        };
        let wrong = self.object_problems.keys().filter(|reference| reference.kind == kind).cloned();
        let gone: Vec<_> =
            known.into_iter().chain(wrong).filter(|reference| !listed.contains(reference)).collect();
        for reference in &gone {
            self.delete(reference);
        }
        for sourced in objects {
            debug_assert_eq!(sourced.object.kind(), kind);
            self.apply(sourced);
        }
        // A list is the moment to look at everything, also at what did not change.
        if kind != Kind::Node {
            self.dirty.extend(self.catalog.services().map(|service| service.key.clone()));
        }
    }

    fn try_flush(&mut self, now: Instant) -> Result<(), StoreError> {
        if self.later_at.is_some_and(|at| at <= now) {
            self.later_at = None;
            self.dirty.append(&mut self.later);
        }
        let first = self.planner.is_none();
        if first {
            let actual = self.store.actual()?;
            let settings = Settings {
                seed: self.config.hash_seed,
                grace: self.config.grace,
                limits: self.config.limits,
                ring_slots: self.store.ring_slots(),
            };
            self.planner = Some(Planner::new(settings, actual));
        }
        // What the store has refused before comes first: the plan after it builds on it.
        self.carry_out(now)?;
        if !first && self.dirty.is_empty() {
            return Ok(());
        }
        self.make_plan(now);
        self.carry_out(now)
    }

    fn make_plan(&mut self, now: Instant) {
        let Some(planner) = &mut self.planner else { return };
        let mut queue: Vec<ServiceKey> = std::mem::take(&mut self.dirty).into_iter().collect();
        let mut seen: BTreeSet<ServiceKey> = queue.iter().cloned().collect();
        let mut services = BTreeMap::new();
        let mut problems: BTreeMap<ServiceKey, Vec<Problem>> = BTreeMap::new();
        while let Some(key) = queue.pop() {
            let desired = self.catalog.service(&key).map(|service| {
                let (desired, found) = desired::service(service, self.catalog.slices(&key), &self.node_view);
                problems.insert(key.clone(), found);
                desired
            });
            for affected in self.claims.update(&key, desired.as_ref()) {
                if seen.insert(affected.clone()) {
                    queue.push(affected);
                }
            }
            services.insert(key, desired);
        }
        let services: Vec<_> = services.into_iter().collect();
        let mut plan = planner.plan(&services, &self.claims, now);
        for (key, found) in plan.problems.drain() {
            problems.entry(key).or_default().extend(found);
        }
        for (key, _) in &services {
            match problems.remove(key).filter(|found| !found.is_empty()) {
                Some(found) => self.service_problems.insert(key.clone(), found),
                None => self.service_problems.remove(key),
            };
        }
        self.stats.changed_services = services.len();
        self.stats.changes = plan.changes();
        self.pending = Some(plan);
    }

    /// Applies the pending plan, if there is one.
    fn carry_out(&mut self, now: Instant) -> Result<(), StoreError> {
        let Some(plan) = &self.pending else { return Ok(()) };
        apply(self.store.as_mut(), plan)?;
        let (refused, result) = insert(self.store.as_mut(), plan);
        let (Some(plan), Some(planner)) = (self.pending.take(), &mut self.planner) else { return Ok(()) };
        let unfinished = plan.unfinished.clone();
        let refused_frontends: Vec<_> = refused.iter().map(|(frontend, _)| *frontend).collect();
        self.later.extend(unfinished.into_iter().chain(refused.into_iter().map(|(_, service)| service)));
        planner.applied(plan, &refused_frontends, now);
        if !self.later.is_empty() && self.later_at.is_none() {
            // Room that rests is the likeliest to come free.
            self.later_at = Some(planner.next_free_room().unwrap_or(now).max(now + RETRY_LONGEST / 5));
        }
        let (services, service_ports) = planner.services();
        self.stats = Stats {
            services,
            service_ports,
            frontends: planner.frontends(),
            backends: planner.backends(),
            ring_slots: planner.ring_slots(),
            ..self.stats
        };
        result
    }
}

/// Applies all of a plan but its new frontends.
fn apply(store: &mut dyn Store, plan: &Plan) -> Result<(), StoreError> {
    store.apply(&plan.prepare)?;
    let mut batch = Vec::new();
    let mut slots = 0;
    for ring in &plan.rings {
        batch.push(Op::WriteRing(ring.ring, ring.slots()));
        slots += ring.ring.length as usize;
        if slots >= RING_BATCH {
            store.apply(&batch)?;
            batch.clear();
            slots = 0;
        }
    }
    store.apply(&batch)?;
    store.apply(&plan.switch)
}

type Refused = Vec<(lb_common::abi::Frontend4, ServiceKey)>;

/// Puts the new frontends of a plan. Returns those that may not be there, and why.
fn insert(store: &mut dyn Store, plan: &Plan) -> (Refused, Result<(), StoreError>) {
    let refusal = |entries: &[(lb_common::abi::Frontend4, _, ServiceKey)]| -> Refused {
        entries.iter().map(|(frontend, _, service)| (*frontend, service.clone())).collect()
    };
    for (i, chunk) in plan.insert.chunks(INSERT_BATCH).enumerate() {
        let entries: Vec<_> = chunk.iter().map(|(frontend, value, _)| (*frontend, *value)).collect();
        let Err(error) = store.apply(&[Op::PutServices(entries.clone())]) else { continue };
        // Part of the batch may be in. One by one all that fit get in.
        for (j, entry) in entries.into_iter().enumerate() {
            if let Err(error) = store.apply(&[Op::PutServices(vec![entry])]) {
                return (refusal(&plan.insert[i * INSERT_BATCH + j..]), Err(error));
            }
        }
        tracing::debug!(%error, "new frontends written one by one");
    }
    (Vec::new(), Ok(()))
}
