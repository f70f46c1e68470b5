//! Tells the log what is wrong with the objects given, once when it begins and once when it ends.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::model::{Problem, Severity};
use crate::reconcile::Status;

/// Follows the status until the agent ends.
pub async fn follow(mut status: watch::Receiver<Status>) {
    let mut told: Arc<[Problem]> = [].into();
    loop {
        let now = status.borrow_and_update().problems.clone();
        if now != told {
            let (begun, ended) = difference(&told, &now);
            begun.into_iter().for_each(tell);
            ended.into_iter().for_each(|problem| info!("solved: {problem}"));
            told = now;
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

fn tell(problem: &Problem) {
    match problem.severity {
        Severity::Notice => info!("{problem}"),
        Severity::Warning => warn!("{problem}"),
        Severity::Error => error!("{problem}"),
    }
}

/// What is in `new` alone, and what is in `old` alone.
fn difference<'a>(old: &'a [Problem], new: &'a [Problem]) -> (Vec<&'a Problem>, Vec<&'a Problem>) {
    let (before, after): (BTreeSet<_>, BTreeSet<_>) = (old.iter().collect(), new.iter().collect());
    (after.difference(&before).copied().collect(), before.difference(&after).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_wrong_is_not_told_again() {
        let problem = |text: &str| Problem::of_source(Severity::Error, text);
        let (old, new) = ([problem("a"), problem("b")], [problem("b"), problem("c")]);
        assert_eq!(difference(&old, &new), (vec![&new[1]], vec![&old[0]]));
        assert_eq!(difference(&new, &new), (vec![], vec![]));
    }
}
