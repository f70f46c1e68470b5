//! Figures that no map holds: what the agent's own loops saw. Cheap to clone, shared by all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lb_control::model::Family;
use lb_control::reconcile::Observer;
use prometheus_client::metrics::histogram::Histogram;

/// Bounds of a sync's duration, in seconds: kube-proxy's, 1 ms to 16 s.
fn sync_buckets() -> impl Iterator<Item = f64> {
    (0..15).map(|power| 0.001 * f64::from(1_u32 << power))
}

/// Bounds of the network programming latency, in seconds: kube-proxy's.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let seconds = (1..=59).map(f64::from);
    let five = (0..12).map(|n| 60.0 + 5.0 * f64::from(n));
    let half_minutes = (0..7).map(|n| 120.0 + 30.0 * f64::from(n));
    [0.25, 0.5].into_iter().chain(seconds).chain(five).chain(half_minutes)
}

#[derive(Debug)]
struct Figures {
    programming: [Histogram; 2],
    durations: Histogram,
    full: Histogram,
    partial: Histogram,
    answers: [[AtomicU64; 2]; 2],
    services: Changes,
    endpoints: Changes,
    /// Milliseconds since 1970.
    queued_at: AtomicU64,
    sockets_destroyed: AtomicU64,
}

#[derive(Debug, Default)]
struct Changes {
    seen: AtomicU64,
    applied: AtomicU64,
}

impl Changes {
    fn counts(&self) -> (u64, u64) {
        let (applied, seen) = (self.applied.load(Ordering::Relaxed), self.seen.load(Ordering::Relaxed));
        (seen, seen.saturating_sub(applied))
    }

    fn apply(&self) {
        self.applied.store(self.seen.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Takes the figures down.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Figures>);

impl Default for Recorder {
    fn default() -> Self {
        let sync = || Histogram::new(sync_buckets());
        let programming = || Histogram::new(programming_buckets());
        Self(Arc::new(Figures {
            programming: [programming(), programming()],
            durations: sync(),
            full: sync(),
            partial: sync(),
            answers: Default::default(),
            services: Changes::default(),
            endpoints: Changes::default(),
            queued_at: AtomicU64::default(),
            sockets_destroyed: AtomicU64::default(),
        }))
    }
}

/// The codes a health question is answered with: yes and no.
const CODES: [u16; 2] = [200, 503];

/// Which question is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// `/healthz`: should a load balancer send traffic to this node?
    Healthz,
    /// `/livez`: does the agent work? The Node object plays no part.
    Livez,
}

impl Observer for Recorder {
    fn changes(&self, services: u64, endpoint_slices: u64) {
        self.0.services.seen.fetch_add(services, Ordering::Relaxed);
        self.0.endpoints.seen.fetch_add(endpoint_slices, Ordering::Relaxed);
    }

    fn programmed(&self, family: Family, latency: Duration) {
        self.0.programming[family as usize].observe(latency.as_secs_f64());
    }
}

impl Recorder {
    /// The maps were brought to what they should hold; `full`: every Service was looked at.
    pub fn synced(&self, took: Duration, full: bool) {
        let seconds = took.as_secs_f64();
        self.0.durations.observe(seconds);
        if full { &self.0.full } else { &self.0.partial }.observe(seconds);
    }

    /// All changes taken in so far are in force.
    pub fn all_applied(&self) {
        self.0.services.apply();
        self.0.endpoints.apply();
    }

    /// A change was queued, this long since 1970.
    pub fn queued(&self, at: Duration) {
        self.0.queued_at.store(u64::try_from(at.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A health question was answered.
    pub fn answered(&self, question: Question, good: bool) {
        self.0.answers[question as usize][usize::from(!good)].fetch_add(1, Ordering::Relaxed);
    }

    /// Connected UDP sockets were destroyed because their endpoint is gone.
    pub fn destroyed_sockets(&self, count: u64) {
        self.0.sockets_destroyed.fetch_add(count, Ordering::Relaxed);
    }

    /// The network programming latency of a family.
    pub fn programming(&self, family: Family) -> Histogram {
        self.0.programming[family as usize].clone()
    }

    /// Durations of all syncs, of full ones, of partial ones.
    pub fn durations(&self) -> [Histogram; 3] {
        [self.0.durations.clone(), self.0.full.clone(), self.0.partial.clone()]
    }

    /// How often a question was answered with each code.
    pub fn answers(&self, question: Question) -> [(u16, u64); 2] {
        let counts = &self.0.answers[question as usize];
        std::array::from_fn(|i| (CODES[i], counts[i].load(Ordering::Relaxed)))
    }

    /// Changes of Services: all, and those not in force yet.
    pub fn service_changes(&self) -> (u64, u64) {
        self.0.services.counts()
    }

    /// Changes of EndpointSlices: all, and those not in force yet.
    pub fn endpoint_changes(&self) -> (u64, u64) {
        self.0.endpoints.counts()
    }

    /// When a change was last queued, in seconds since 1970; 0: never.
    pub fn queued_at(&self) -> f64 {
        self.0.queued_at.load(Ordering::Relaxed) as f64 / 1000.0
    }

    /// Connected UDP sockets destroyed so far.
    pub fn sockets_destroyed(&self) -> u64 {
        self.0.sockets_destroyed.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latency_has_kube_proxys_bounds() {
        let bounds: Vec<f64> = programming_buckets().collect();
        assert_eq!(bounds.len(), 80);
        assert_eq!((bounds[0], bounds[1], bounds[2], bounds[79]), (0.25, 0.5, 1.0, 300.0));
        assert!(bounds.is_sorted());
    }

    #[test]
    fn changes_are_pending_until_they_are_applied() {
        let recorder = Recorder::default();
        recorder.changes(2, 3);
        assert_eq!((recorder.service_changes(), recorder.endpoint_changes()), ((2, 2), (3, 3)));
        recorder.all_applied();
        recorder.changes(0, 1);
        assert_eq!((recorder.service_changes(), recorder.endpoint_changes()), ((2, 0), (4, 1)));
    }
}
