//! Tells the log what is wrong with the objects given, once when it begins and once when it ends.

use std::collections::BTreeSet;
use std::sync::Arc;

use lb_control::model::{Problem, Severity};
use lb_control::reconcile::Status;
use tokio::sync::watch;
use tracing::{error, info, warn};

/// All that is wrong: what the reconciler found and what `others` found, in order, each once.
pub fn merge(
    mut status: watch::Receiver<Status>,
    others: [watch::Receiver<Vec<Problem>>; 2],
) -> watch::Receiver<Arc<[Problem]>> {
    let (sender, merged) = watch::channel(Arc::from([]));
    let [mut first, mut second] = others;
    tokio::spawn(async move {
        loop {
            let of_status = status.borrow_and_update().problems.clone();
            let mut now = of_status.to_vec();
            now.extend(first.borrow_and_update().iter().cloned());
            now.extend(second.borrow_and_update().iter().cloned());
            now.sort();
            now.dedup();
            sender.send_if_modified(|before: &mut Arc<[Problem]>| {
                let changed = **before != *now;
                if changed {
                    *before = now.into();
                }
                changed
            });
            // The status changes with every change of an endpoint, what is wrong hardly ever.
            let gone = tokio::select! {
                found = status.wait_for(|status| !Arc::ptr_eq(&status.problems, &of_status)) => found.is_err(),
                changed = first.changed() => changed.is_err(),
                changed = second.changed() => changed.is_err(),
            };
            if gone {
                return;
            }
        }
    });
    merged
}

/// Follows what is wrong until the agent ends.
pub async fn follow(mut problems: watch::Receiver<Arc<[Problem]>>) {
    let mut reported: Arc<[Problem]> = [].into();
    loop {
        let now = problems.borrow_and_update().clone();
        if now != reported {
            let (begun, ended) = difference(&reported, &now);
            begun.into_iter().for_each(tell);
            ended.into_iter().for_each(|problem| info!("solved: {problem}"));
            reported = now;
        }
        if problems.changed().await.is_err() {
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

    #[tokio::test]
    async fn what_several_find_is_told_as_one() {
        let problem = |text: &str| Problem::of_source(Severity::Error, text);
        let of_status = |text: &str| Status { problems: [problem(text)].into(), ..Status::default() };
        let (status, status_rx) = watch::channel(of_status("a"));
        let (first, first_rx) = watch::channel(vec![problem("c"), problem("a")]);
        let (_second, second_rx) = watch::channel(Vec::new());
        let mut merged = merge(status_rx, [first_rx, second_rx]);
        let is = |wanted: &'static [&str]| {
            move |now: &Arc<[Problem]>| now.iter().map(|p| p.message.as_str()).eq(wanted.iter().copied())
        };
        merged.wait_for(is(&["a", "c"])).await.expect("both, each once");
        first.send_replace(vec![problem("d")]);
        merged.wait_for(is(&["a", "d"])).await.expect("what is gone is gone");
        status.send_replace(of_status("b"));
        merged.wait_for(is(&["b", "d"])).await.expect("both");
    }

    #[test]
    fn what_stays_wrong_is_not_told_again() {
        let problem = |text: &str| Problem::of_source(Severity::Error, text);
        let (old, new) = ([problem("a"), problem("b")], [problem("b"), problem("c")]);
        assert_eq!(difference(&old, &new), (vec![&new[1]], vec![&old[0]]));
        assert_eq!(difference(&new, &new), (vec![], vec![]));
    }
}
