//! The loop around the reconciler.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;

use super::{Outcome, Reconciler, Status};
use crate::model::Frontend;
use crate::network::NodeAddresses;
use crate::source::Event;

/// Least time between the end of a flush and the beginning of the next, in which changes gather.
const REST: Duration = Duration::from_millis(2);
/// Longest such time, after a flush that took long.
const LONGEST_REST: Duration = Duration::from_millis(20);
/// A flush of so many changes leaves much memory free.
const MANY: usize = 10_000;
/// How long the first flush waits for addresses that go by what our Node says.
const SORTING_OUT: Duration = Duration::from_secs(1);
/// Events taken in at once.
const BATCH: usize = 256;

/// What the loop follows.
#[derive(Debug)]
pub struct Inputs {
    /// The source's.
    pub events: mpsc::Receiver<Event>,
    /// This node's.
    pub node_addresses: watch::Receiver<NodeAddresses>,
    /// ClusterIPs and ports at which programs of this node listen.
    pub listeners: watch::Receiver<Arc<BTreeSet<Frontend>>>,
}

/// Runs the loop until `shutdown` ends or the source closes its channel; hands the reconciler back.
///
/// A change is applied at once, unless others have just been: then after a rest as long as their flush took, of 2 to
/// 20 ms. A single change does not wait, and a storm of them takes half of a processor at most.
pub async fn run(
    mut reconciler: Reconciler,
    Inputs { mut events, mut node_addresses, mut listeners }: Inputs,
    status: watch::Sender<Status>,
    shutdown: impl Future<Output = ()> + Send,
) -> Reconciler {
    let mut shutdown = pin!(shutdown);
    let mut batch = Vec::with_capacity(BATCH);
    let (mut addresses_open, mut listeners_open) = (true, true);
    // When the first change came that is not in force yet.
    let mut changed: Option<Instant> = None;
    let mut not_before: Option<Instant> = None;
    let mut flushed = false;
    reconciler.set_node_addresses(node_addresses.borrow_and_update().clone());
    loop {
        let sorting_out = !flushed && lags(&reconciler, &node_addresses.borrow());
        let patience = changed.filter(|_| sorting_out).map(|since| since + SORTING_OUT);
        let wake = wake_up(&reconciler, changed, not_before.max(patience));
        tokio::select! {
            biased;
            () = &mut shutdown => return reconciler,
            () = async { match wake { Some(at) => sleep_until(at.into()).await, None => std::future::pending().await } } => {
                let queued_since = changed.take();
                let began = Instant::now();
                let (back, retry_after) = flush(reconciler, &status, queued_since).await;
                reconciler = back;
                flushed = true;
                let now = Instant::now();
                let rest = now.duration_since(began).clamp(REST, LONGEST_REST);
                not_before = Some(now + retry_after.unwrap_or(rest));
                if retry_after.is_some() {
                    changed = queued_since.or(Some(now));
                }
                continue;
            }
            count = events.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return reconciler;
                }
                batch.drain(..).for_each(|event| reconciler.handle(event));
            }
            result = node_addresses.changed(), if addresses_open => match result {
                Ok(()) => reconciler.set_node_addresses(node_addresses.borrow_and_update().clone()),
                Err(_) => addresses_open = false,
            },
            result = listeners.changed(), if listeners_open => match result {
                Ok(()) => reconciler.set_listeners(listeners.borrow_and_update().clone()),
                Err(_) => listeners_open = false,
            },
        }
        if reconciler.is_dirty() {
            changed = changed.or_else(|| Some(Instant::now()));
        }
        publish(&mut reconciler, &status, |status| status.queued_since = changed);
    }
}

/// Whether the node's addresses do not go by our Node yet, as after a start: with `--nodeport-addresses primary` the maps would
/// lose, for a moment, what a former agent knew.
fn lags(reconciler: &Reconciler, addresses: &NodeAddresses) -> bool {
    reconciler.node().is_some_and(|node| node.addresses != addresses.from_node_object)
}

/// When to flush next, if at all.
fn wake_up(
    reconciler: &Reconciler,
    changed: Option<Instant>,
    not_before: Option<Instant>,
) -> Option<Instant> {
    let due = changed.filter(|_| reconciler.is_dirty());
    let due = due.map(|due| not_before.map_or(due, |earliest| due.max(earliest)));
    [due, reconciler.next_attempt()].into_iter().flatten().min()
}

/// Flushes on a thread of its own, since the store blocks. Returns when to try again, after a failure.
async fn flush(
    mut reconciler: Reconciler,
    status: &watch::Sender<Status>,
    queued_since: Option<Instant>,
) -> (Reconciler, Option<Duration>) {
    let work = tokio::task::spawn_blocking(move || {
        let start = Instant::now();
        let outcome = reconciler.flush(start);
        (reconciler, outcome, start.elapsed())
    });
    let (mut reconciler, outcome, took) = match work.await {
        Ok(done) => done,
        // The reconciler is lost with the thread; the panic has been printed. Going on would serve a
        // state nobody keeps up.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    let applied = if let Outcome::Applied(stats) = &outcome { stats.changes } else { 0 };
    let retry_after = match &outcome {
        Outcome::Failed { retry_after, .. } => Some(*retry_after),
        _ => None,
    };
    publish(&mut reconciler, status, |status| {
        status.last_duration = took;
        match outcome {
            Outcome::NotSynced => {}
            Outcome::Applied(_) => {
                status.syncs += 1;
                status.last_success = Some(Instant::now());
                status.queued_since = None;
                if status.error.take().is_some() {
                    tracing::info!("the maps take changes again");
                }
            }
            Outcome::Failed { error, .. } => {
                status.failures += 1;
                status.queued_since = status.queued_since.or(queued_since);
                let error = error.to_string();
                if status.error.as_ref() != Some(&error) {
                    tracing::error!(%error, "the maps refuse a change; what they held serves on, trying again");
                }
                status.error = Some(error);
            }
        }
    });
    if applied >= MANY {
        tokio::task::spawn_blocking(reconciler.config.give_back_memory);
    }
    (reconciler, retry_after)
}

fn publish(reconciler: &mut Reconciler, status: &watch::Sender<Status>, change: impl FnOnce(&mut Status)) {
    let problems = reconciler.changed_problems();
    status.send_modify(|status| {
        status.synced = reconciler.is_synced();
        status.stats = reconciler.stats();
        status.node = reconciler.node().cloned();
        status.health_checks = reconciler.health_checks().clone();
        status.takeovers = reconciler.takeovers().clone();
        status.own_cluster_ips = reconciler.own_cluster_ips().clone();
        if let Some(problems) = problems {
            status.problems = problems.into();
        }
        change(status);
    });
}
