//! Watches for Services that take a port from a program of the node.

use std::time::Duration;

use tokio::sync::watch;
use tracing::debug;

use crate::model::Problem;
use crate::net::listeners;
use crate::reconcile::Status;

/// Programs come and go without a word: they are looked at this often.
const PERIOD: Duration = Duration::from_secs(30);

/// Keeps `problems` true until the agent ends.
pub async fn follow(mut status: watch::Receiver<Status>, problems: watch::Sender<Vec<Problem>>) {
    let mut seen = None;
    loop {
        let takeovers = status.borrow_and_update().takeovers.clone();
        if !takeovers.is_empty() || !problems.borrow().is_empty() {
            let now = match listeners::read() {
                Ok(listeners) => listeners::problems(&takeovers, &listeners),
                Err(error) => {
                    debug!(%error, "cannot read what the node listens on");
                    Vec::new()
                }
            };
            problems.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
        }
        seen.replace(takeovers);
        let due = tokio::time::sleep(PERIOD);
        tokio::pin!(due);
        loop {
            tokio::select! {
                changed = status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if seen.as_ref() != Some(&status.borrow_and_update().takeovers) {
                        break;
                    }
                }
                () = &mut due => break,
            }
        }
    }
}
