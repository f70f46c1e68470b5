//! Whether Shunt's outcome is right beside kube-proxy's.

use super::outcome::Outcome;
use super::report::Row;

/// What is wrong with an outcome of Shunt's beside kube-proxy's; nothing if it is right.
pub fn wrong(row: &Row, native: bool) -> Vec<&'static str> {
    let (theirs, ours) = (&row.kube_proxy, if native { &row.native } else { &row.off });
    let mut wrong = Vec::new();
    let mut must = |holds: bool, what: &'static str| {
        if !holds {
            wrong.push(what);
        }
    };
    must(!ours.flow || !theirs.pods.is_empty() || theirs.is_forwarded(), "makes a flow");
    must(ours.reached().is_subset(&theirs.reached()), "reaches a pod");
    must(theirs.reached().is_subset(&ours.reached()), "reaches no pod");
    must(!ours.is_forwarded() || theirs.is_forwarded(), "is forwarded");
    must(!ours.circles(), "circles");
    must(!ours.kept_ttl, "keeps its TTL");
    must(ours.pods.values().all(|count| *count <= ours.sent), "arrives more than once");
    must(ours.errors() == theirs.errors(), "is answered otherwise");
    // (What answers a source that is another's is not for its sender.)
    let is_answered = |outcome: &Outcome| outcome.answers.contains("answered");
    must(!row.is_honest || is_answered(ours) == is_answered(theirs), "gets no answer");
    wrong
}
