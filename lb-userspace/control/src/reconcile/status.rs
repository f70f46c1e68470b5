//! What the loop says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{NoLocalEndpoints, Takeover};
use crate::desired::HealthCheck;
use crate::model::{Node, Problem, ServiceKey};
use crate::store::StoreError;

/// What the last successful flush did, and what is now in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Services in force.
    pub services: usize,
    /// Ports of those.
    pub service_ports: usize,
    /// Frontends in force, of both families.
    pub frontends: usize,
    /// Entries in the service map of each family, those for ClusterIPs as a whole included.
    pub service_entries: [usize; 2],
    /// Entries in the map of permitted sources.
    pub source_ranges: usize,
    /// Active backends.
    pub backends: usize,
    /// Ring slots in use.
    pub ring_slots: u32,
    /// Services looked at by the last flush.
    pub changed_services: usize,
    /// Single entries written or deleted by the last flush (a ring counts as one).
    pub changes: usize,
    /// Service ports with a Local policy and no endpoint here, while there are some elsewhere.
    pub no_local_endpoints: NoLocalEndpoints,
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
    /// What the `healthCheckNodePort` of each Service that has one is to answer.
    pub health_checks: Arc<BTreeMap<ServiceKey, HealthCheck>>,
    /// External addresses in force that are this node's own.
    pub takeovers: Arc<[Takeover]>,
    /// ClusterIPs that are this node's own: a program may listen there.
    pub own_cluster_ips: Arc<BTreeSet<IpAddr>>,
}
