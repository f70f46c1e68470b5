//! The level-triggered loop: model changes in, map changes out.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::dataplane::store::{Store, StoreError};
use crate::desired::ExternalIps;
use crate::model::Problem;
use crate::source::Event;

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
}

/// Owns the model, the ids and the store.
pub struct Reconciler {
    store: Box<dyn Store>,
}

impl Reconciler {
    /// Starts empty. The store is first read by the first `flush` after [`Event::Synced`].
    pub fn new(config: Config, store: Box<dyn Store>) -> Self {
        let _ = config;
        Self { store }
    }

    /// Takes in what a source tells. Touches no map.
    pub fn handle(&mut self, event: Event) {
        let _ = event;
    }

    /// The addresses nodePorts are served on. `127.0.0.1` is added here, for the socket hooks.
    pub fn set_node_addresses(&mut self, addresses: Vec<Ipv4Addr>) {
        let _ = addresses;
    }

    /// Brings the store to what it should hold. Blocks for as long as the store takes.
    pub fn flush(&mut self, now: Instant) -> Outcome {
        let _ = (now, &mut self.store);
        Outcome::NotSynced
    }

    /// Whether `flush` has anything to do.
    pub fn is_dirty(&self) -> bool {
        false
    }

    /// All that is wrong with what we were given, in order, each once.
    pub fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }
}

/// Runs the loop until `shutdown` ends or the source closes its channel; hands the reconciler back.
///
/// A change is applied 5 ms after the last one, and 50 ms after the first at the latest.
pub async fn run(
    reconciler: Reconciler,
    events: mpsc::Receiver<Event>,
    node_addresses: watch::Receiver<Vec<Ipv4Addr>>,
    status: watch::Sender<Status>,
    shutdown: impl Future<Output = ()> + Send,
) -> Reconciler {
    let _ = (events, node_addresses, status);
    shutdown.await;
    reconciler
}
