//! Whether the agent works: `/healthz` and `/livez`, as kube-proxy answers them; and the small HTTP server they share with
//! whoever else has something to answer.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hyper::StatusCode;
use lb_control::model::Family;
use lb_control::reconcile::Status;
use lb_kernel::links::State;
use lb_telemetry::recorder::{Question, Recorder};
use serde::Serialize;
use tokio::sync::watch;

pub mod http;
mod room;
pub mod service;
#[cfg(test)]
mod tests;

use self::http::{Reply, Routes};

/// How often kube-proxy looks at everything again by default.
const SYNC_PERIOD: Duration = Duration::from_secs(30);
/// A change that has waited this long means that the agent does not keep up, as with kube-proxy.
const OVERDUE: Duration = SYNC_PERIOD.saturating_mul(2);

/// What Go writes for a moment that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// What the health answers are made of.
#[derive(Clone, Debug)]
pub struct Health {
    status: watch::Receiver<Status>,
    attached: watch::Receiver<State>,
    /// The maps held Services when this agent began: traffic is served before the first list.
    took_over: bool,
    recorder: Recorder,
}

/// How one family fares.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
struct FamilyHealth {
    last_updated: String,
    healthy: bool,
}

/// Body of an answer; the names and their order are kube-proxy's.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
struct Answer {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyHealth>,
}

impl Health {
    /// Answers from what the loops publish. `took_over`: the maps held Services from an earlier agent.
    pub const fn new(
        status: watch::Receiver<Status>,
        attached: watch::Receiver<State>,
        took_over: bool,
        recorder: Recorder,
    ) -> Self {
        Self { status, attached, took_over, recorder }
    }

    /// Whether the agent keeps up; the Node object plays no part.
    pub fn is_keeping_up(&self) -> bool {
        let attached = self.attached.borrow().started;
        is_keeping_up(&self.status.borrow(), attached, Instant::now())
    }

    fn answer(&self, question: Question, now: Instant, wall: SystemTime) -> (StatusCode, Answer) {
        let status = self.status.borrow();
        let keeping_up = is_keeping_up(&status, self.attached.borrow().started, now);
        // A node that serves nothing yet must not be sent traffic; starting its agent anew would not help.
        let serves = status.last_success.is_some() || self.took_over;
        let healthy = keeping_up && (question == Question::Livez || serves);
        let eligible = status.node.as_ref().is_none_or(|node| node.eligible);
        let synced = status.last_success.and_then(|at| wall.checked_sub(now.saturating_duration_since(at)));
        let last_sync = synced.map_or_else(|| NEVER.to_owned(), rfc3339);
        let good = healthy && (question == Question::Livez || eligible);
        // One loop serves both families, so both fare alike.
        let of_family = FamilyHealth { last_updated: last_sync.clone(), healthy };
        let families = if synced.is_some() { &Family::ALL[..] } else { &[] };
        let answer = Answer {
            // While all is well the state is as fresh as the moment.
            last_updated: if good { rfc3339(wall) } else { last_sync },
            current_time: rfc3339(wall),
            node_eligible: (question == Question::Healthz).then_some(eligible),
            healthy,
            status: families.iter().map(|family| (family.label(), of_family.clone())).collect(),
        };
        (if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, answer)
    }

    /// The answer over HTTP.
    pub fn reply(&self, question: Question) -> Reply {
        let (status, answer) = self.answer(question, Instant::now(), SystemTime::now());
        self.recorder.answered(question, status == StatusCode::OK);
        // Strings and booleans always make JSON.
        let body = serde_json::to_string(&answer).unwrap_or_default();
        http::reply(status, "application/json", body)
    }
}

/// No change has waited too long. That the API server cannot be reached is no sign of ill health: what the
/// maps hold serves on.
fn is_keeping_up(status: &Status, attached: bool, now: Instant) -> bool {
    let overdue = status.queued_since.is_some_and(|since| now.saturating_duration_since(since) >= OVERDUE);
    attached && !overdue
}

/// A time as Go writes it in JSON: `2026-11-21T02:00:00.5Z`, no trailing zeros.
fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| NEVER.to_owned(), |time| time.to_string())
}

/// The paths of `--healthz-bind-address`.
pub fn routes(health: Health) -> Routes {
    Arc::new(move |path| match path {
        "/healthz" => Some(health.reply(Question::Healthz)),
        "/livez" => Some(health.reply(Question::Livez)),
        _ => None,
    })
}
