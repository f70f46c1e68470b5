//! The level-triggered loop: model changes in, map changes out.

mod facts;
mod intake;
mod nodes;
mod run;
mod status;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use tokio::sync::mpsc::UnboundedSender;

use crate::desired::{self, Claims, DesiredService, ExternalIps, HealthCheck, NodeView};
use crate::model::{Catalog, Family, Frontend, Kind, Node, NodePortPlaces, ObjectRef, Problem, ServiceKey};
use crate::plan::{Draft, Limits, OfNode, Plan, Planner, Settings};
use crate::seed;
use crate::store::{Store, StoreError};
use facts::Facts;
use nodes::Nodes;

pub use crate::plan::Retired;
pub use facts::{NoLocalEndpoints, Takeover};
pub use run::{Inputs, run};
pub use status::{Outcome, Stats, Status};

/// What the [`Reconciler`] must know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our node's name, as `nodeName` of endpoints says it.
    pub node_name: String,
    /// The source has our Node, or something is wrong. (Manifests may do without Nodes.)
    pub has_nodes: bool,
    /// Which `externalIPs` are served.
    pub external_ips: ExternalIps,
    /// The ranges ClusterIPs are taken from, besides those of ServiceCIDR objects.
    pub service_cidrs: Vec<IpNet>,
    /// The ranges pods' addresses are taken from, besides those of our Node.
    pub pod_ranges: Vec<IpNet>,
    /// Where the API server listens, besides the endpoints of Service default/kubernetes.
    pub api_servers: Vec<SocketAddr>,
    /// Is told what came in and what is in force.
    pub observer: Arc<dyn Observer>,
    /// Is told of UDP endpoints that are gone.
    pub retired: Option<UnboundedSender<Vec<Retired>>>,
    /// Is told of new frontends at addresses of the node, nodePorts among them.
    pub opened: Option<UnboundedSender<Vec<Frontend>>>,
    /// Seed of the rings and of the programs' hashes; none: that of the cluster.
    pub hash_seed: Option<u64>,
    /// How long room that packets in flight may still read is left alone.
    pub grace: Duration,
    /// How many ids the maps have room for.
    pub limits: Limits,
    /// Called, on a thread that may wait, after a flush that left much memory free.
    pub give_back_memory: fn(),
}

/// Whoever wants to know how changes fare: telemetry, of which this crate knows nothing.
pub trait Observer: std::fmt::Debug + Send + Sync {
    /// Changes of objects were taken in.
    fn changes(&self, services: u64, endpoint_slices: u64);

    /// A change to endpoints came into force, this long after what triggered it
    /// (annotation `endpoints.kubernetes.io/last-change-trigger-time`).
    fn programmed(&self, family: Family, latency: Duration);
}

/// Nobody.
impl Observer for () {
    fn changes(&self, _services: u64, _endpoint_slices: u64) {}

    fn programmed(&self, _family: Family, _latency: Duration) {}
}

impl Config {
    /// The usual for a node.
    pub fn new(node_name: impl Into<String>, hash_seed: Option<u64>) -> Self {
        Self {
            node_name: node_name.into(),
            has_nodes: false,
            external_ips: ExternalIps::default(),
            service_cidrs: Vec::new(),
            pod_ranges: Vec::new(),
            api_servers: Vec::new(),
            observer: Arc::new(()),
            retired: None,
            opened: None,
            hash_seed,
            grace: Duration::from_secs(2),
            limits: Limits::default(),
            give_back_memory: || {},
        }
    }
}

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// Owns the model, the ids and the store.
pub struct Reconciler {
    config: Config,
    store: Box<dyn Store>,
    synced: bool,
    /// The seed that the cluster's nodes have in common, as far as the source knows.
    cluster_seed: Option<u64>,
    catalog: Catalog,
    node_view: NodeView,
    node: Option<Arc<Node>>,
    nodes: Nodes,
    /// The ranges of each ServiceCIDR object.
    service_cidrs: BTreeMap<ObjectRef, Vec<IpNet>>,
    claims: Claims,
    facts: Facts,
    planner: Option<Planner>,
    /// A plan the store has not taken completely.
    pending: Option<Plan>,
    dirty: BTreeSet<ServiceKey>,
    /// Where nodePorts are served.
    node_ports: NodePortPlaces,
    broadcasts: BTreeSet<IpAddr>,
    /// What belongs to the node is to be planned anew: the ranges of ClusterIPs, where nodePorts are served.
    node_dirty: bool,
    /// Services that did not get all they need, to be tried again.
    later: BTreeSet<ServiceKey>,
    /// Addresses of the node are among what was refused.
    node_later: bool,
    later_at: Option<Instant>,
    failures: u32,
    stats: Stats,
    object_problems: BTreeMap<ObjectRef, Vec<Problem>>,
    service_problems: BTreeMap<ServiceKey, Vec<Problem>>,
    source_problems: Vec<Problem>,
    /// What has come of lists that have begun.
    listed: BTreeMap<Kind, BTreeSet<ObjectRef>>,
    /// Some problem has come or gone since they were last asked for.
    problems_changed: bool,
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
        let node_view = NodeView {
            external_ips: config.external_ips.clone(),
            service_ranges: config.service_cidrs.iter().copied().collect(),
            pod_ranges: config.pod_ranges.iter().copied().collect(),
            api_servers: config.api_servers.iter().copied().collect(),
            ..NodeView::default()
        };
        Self {
            config,
            store,
            synced: false,
            cluster_seed: None,
            catalog: Catalog::default(),
            node_view,
            node: None,
            nodes: Nodes::default(),
            service_cidrs: BTreeMap::new(),
            claims: Claims::default(),
            facts: Facts::default(),
            planner: None,
            pending: None,
            dirty: BTreeSet::new(),
            node_ports: NodePortPlaces::default(),
            broadcasts: BTreeSet::new(),
            node_dirty: false,
            later: BTreeSet::new(),
            node_later: false,
            later_at: None,
            failures: 0,
            stats: Stats::default(),
            object_problems: BTreeMap::new(),
            service_problems: BTreeMap::new(),
            source_problems: Vec::new(),
            listed: BTreeMap::new(),
            problems_changed: false,
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
        self.synced
            && (self.planner.is_none() || self.pending.is_some() || self.node_dirty || !self.dirty.is_empty())
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

    /// What the `healthCheckNodePort` of each Service is to answer.
    pub fn health_checks(&self) -> &Arc<BTreeMap<ServiceKey, HealthCheck>> {
        self.facts.health_checks()
    }

    /// External addresses in force that are this node's own.
    pub fn takeovers(&self) -> &Arc<[Takeover]> {
        self.facts.takeovers()
    }

    /// ClusterIPs that are this node's own.
    pub fn own_cluster_ips(&self) -> &Arc<BTreeSet<IpAddr>> {
        self.facts.own_cluster_ips()
    }

    /// All that is wrong with what we were given, in order, each once.
    pub fn problems(&self) -> Vec<Problem> {
        let services = self.service_problems.values().flatten();
        let mut problems: Vec<_> = self
            .source_problems
            .iter()
            .chain(self.nodes.problem())
            .chain(self.object_problems.values().flatten())
            .chain(services)
            .cloned()
            .collect();
        problems.sort();
        problems.dedup();
        problems
    }

    /// The same, when they are others than they were when this was asked last.
    pub fn changed_problems(&mut self) -> Option<Vec<Problem>> {
        std::mem::take(&mut self.problems_changed).then(|| self.problems())
    }

    fn try_flush(&mut self, now: Instant) -> Result<(), StoreError> {
        if self.later_at.is_some_and(|at| at <= now) {
            self.later_at = None;
            self.dirty.append(&mut self.later);
            self.node_dirty |= std::mem::take(&mut self.node_later);
        }
        let first = self.planner.is_none();
        if first {
            let wanted = self.wanted_seed();
            let seed = self.store.settle_seed(wanted)?;
            seed::report(wanted, seed);
            let actual = self.store.actual()?;
            let settings = Settings {
                seed,
                grace: self.config.grace,
                limits: self.config.limits,
                ring_slots: self.store.ring_slots(),
            };
            self.planner = Some(Planner::new(settings, actual));
        }
        // What the store has refused before comes first: the plan after it builds on it.
        self.carry_out(now)?;
        if !first && self.dirty.is_empty() && !self.node_dirty {
            return Ok(());
        }
        self.make_plan(now);
        self.carry_out(now)
    }

    fn wanted_seed(&self) -> seed::Wanted {
        match self.config.hash_seed {
            Some(seed) => seed::Wanted::Given(seed),
            None => seed::Wanted::Derived(self.cluster_seed.unwrap_or(seed::NONE)),
        }
    }

    fn make_plan(&mut self, now: Instant) {
        let Some(planner) = &mut self.planner else { return };
        self.node_dirty = false;
        let mut problems: BTreeMap<ServiceKey, Vec<Problem>> = BTreeMap::new();
        let mut services: BTreeMap<ServiceKey, Option<DesiredService>> = BTreeMap::new();
        // Who wants which address, until nobody else is concerned.
        let mut queue: Vec<ServiceKey> = std::mem::take(&mut self.dirty).into_iter().collect();
        let mut addresses = std::collections::HashSet::new();
        while let Some(key) = queue.pop() {
            if services.contains_key(&key) {
                continue;
            }
            let desired = self.catalog.service(&key).map(|service| {
                let (desired, found) = desired::service(service, &self.node_view);
                problems.insert(key.clone(), found);
                desired
            });
            let changed = self.claims.update(&key, desired.as_ref());
            addresses.extend(changed.addresses);
            queue.extend(changed.services);
            services.insert(key, desired);
        }
        // An endpoint may not be at a Service's address: those at addresses that changed are looked at again.
        for key in self.catalog.services_with_endpoints_at(&addresses) {
            if let Some(service) = self.catalog.service(key).filter(|_| !services.contains_key(key)) {
                let (desired, found) = desired::service(service, &self.node_view);
                problems.insert(key.clone(), found);
                services.insert(key.clone(), Some(desired));
            }
        }
        // One after the other, and forgotten: the endpoints of all Services together are many.
        let mut draft = Draft::default();
        let keys: Vec<ServiceKey> = services.keys().cloned().collect();
        for (key, mut desired) in services {
            if let (Some(desired), Some(service)) = (&mut desired, self.catalog.service(&key)) {
                let slices = self.catalog.slices(&key);
                let found = desired.choose_endpoints(service, slices, &self.node_view, &self.claims);
                problems.entry(key.clone()).or_default().extend(found);
            }
            let service = self.catalog.service(&key).zip(desired.as_ref());
            let health_check =
                service.and_then(|(service, _)| desired::health_check(service, self.catalog.slices(&key)));
            self.facts.set(&key, service, health_check, &self.claims, &self.node_view.own);
            planner.plan_service(&key, desired.as_ref(), &self.claims, now, &mut draft);
        }
        let mut plan = planner.end(
            draft,
            OfNode {
                service_cidrs: &self.node_view.service_ranges,
                node_ports: &self.node_ports,
                own: &self.node_view.own,
                broadcasts: &self.broadcasts,
            },
        );
        for (key, found) in plan.problems.drain() {
            problems.entry(key).or_default().extend(found);
        }
        for key in &keys {
            let found = problems.remove(key).filter(|found| !found.is_empty());
            self.problems_changed |= replace(&mut self.service_problems, key, found);
        }
        self.stats.changed_services = keys.len();
        self.stats.changes = plan.changes();
        self.pending = Some(plan);
    }

    /// Applies the pending plan, if there is one.
    fn carry_out(&mut self, now: Instant) -> Result<(), StoreError> {
        let Some(plan) = &self.pending else { return Ok(()) };
        write::apply(self.store.as_mut(), plan)?;
        if let Some(sender) = self.config.retired.as_ref().filter(|_| !plan.retired.is_empty()) {
            // Nobody listens any more when the agent is about to end.
            let _ = sender.send(plan.retired.clone());
        }
        let (refused, result) = write::insert(self.store.as_mut(), plan);
        let (Some(plan), Some(planner)) = (self.pending.take(), &mut self.planner) else { return Ok(()) };
        if let Some(sender) = &self.config.opened {
            let at_node =
                |it: &Frontend| it.is_node_port() || self.node_view.own.binary_search(&it.address).is_ok();
            let new = plan.insert.iter().map(|(frontend, ..)| *frontend);
            let new: Vec<_> = new.filter(|it| !it.is_of_an_address() && at_node(it)).collect();
            if !new.is_empty() {
                let _ = sender.send(new);
            }
        }
        let unfinished = plan.unfinished.clone();
        let refused_frontends: Vec<_> = refused.iter().map(|(frontend, _)| *frontend).collect();
        self.node_later |= refused.iter().any(|(frontend, _)| frontend.is_node());
        self.later
            .extend(unfinished.into_iter().chain(refused.into_iter().filter_map(|(_, service)| service)));
        planner.applied(plan, &refused_frontends, now);
        if (self.node_later || !self.later.is_empty()) && self.later_at.is_none() {
            // Room that rests is the likeliest to come free.
            self.later_at = Some(planner.next_free_room().unwrap_or(now).max(now + RETRY_LONGEST / 5));
        }
        let (services, service_ports) = planner.services();
        self.stats = Stats {
            services,
            service_ports,
            frontends: planner.frontends(),
            service_entries: planner.service_entries(),
            source_ranges: planner.source_ranges(),
            no_local_endpoints: self.facts.no_local_endpoints(),
            backends: planner.backends(),
            ring_slots: planner.ring_slots(),
            ..self.stats
        };
        self.facts.publish();
        if result.is_ok() {
            for (family, latency) in self.facts.in_force(SystemTime::now()) {
                self.config.observer.programmed(family, latency);
            }
        }
        result
    }
}

/// Puts a value in the place of another. Whether they differ.
fn replace<K: Ord + Clone, V: PartialEq>(map: &mut BTreeMap<K, V>, key: &K, value: Option<V>) -> bool {
    if map.get(key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    };
    true
}
