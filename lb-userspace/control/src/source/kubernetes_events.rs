//! Tells users what is wrong with their objects, as Kubernetes Events. Best effort: the agent does not
//! depend on it.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::watch;

use super::KubeClient;
use crate::model::{Kind, ObjectRef, Problem, Severity};

/// Rest between two Events: a broken cluster must not be flooded on top.
const PACE: Duration = Duration::from_millis(200);
/// The API's limit for a note.
const NOTE_LENGTH: usize = 1000;

/// Writes an Event for each problem that appears in the watched value, until its sender is gone.
///
/// A problem that stays is told once; one that comes back is told again.
pub async fn report<T>(
    client: KubeClient,
    node_name: String,
    mut values: watch::Receiver<T>,
    problems_of: impl Fn(&T) -> Vec<Problem>,
) {
    let reporter = Reporter { controller: "shunt".to_owned(), instance: Some(node_name) };
    let recorder = Recorder::new(client.0, reporter);
    let mut reported = BTreeSet::new();
    let mut refused = false;
    while values.changed().await.is_ok() {
        let now: BTreeSet<Problem> =
            problems_of(&values.borrow_and_update()).into_iter().filter(is_for_users).collect();
        reported.retain(|problem| now.contains(problem));
        for problem in now {
            let Some(object) = problem.object.clone().filter(|_| !reported.contains(&problem)) else {
                continue;
            };
            match recorder.publish(&event(&problem), &reference(&object)).await {
                Ok(()) => refused = false,
                Err(error) if !refused => {
                    refused = true;
                    tracing::warn!(%error, "cannot write Kubernetes Events; allow us to create and patch events.events.k8s.io");
                }
                Err(error) => tracing::debug!(%error, "cannot write a Kubernetes Event"),
            }
            reported.insert(problem);
            tokio::time::sleep(PACE).await;
        }
    }
}

fn is_for_users(problem: &Problem) -> bool {
    problem.object.is_some() && problem.severity >= Severity::Warning
}

fn event(problem: &Problem) -> Event {
    let mut note = match problem.field.as_str() {
        "" => problem.message.clone(),
        field => format!("{field}: {}", problem.message),
    };
    if note.len() > NOTE_LENGTH {
        let end = (0..=NOTE_LENGTH).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
        note.truncate(end);
    }
    Event {
        type_: EventType::Warning,
        reason: problem.reason.unwrap_or(reason(problem.severity)).to_owned(),
        note: Some(note),
        action: "Program".to_owned(),
        secondary: None,
    }
}

const fn reason(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "ShuntNotServed",
        Severity::Notice | Severity::Warning => "ShuntPartlyServed",
    }
}

fn reference(object: &ObjectRef) -> ObjectReference {
    ObjectReference {
        api_version: Some(
            match object.kind {
                Kind::EndpointSlice => "discovery.k8s.io/v1",
                Kind::ServiceCidr => "networking.k8s.io/v1",
                Kind::Service | Kind::Endpoints | Kind::Node => "v1",
            }
            .to_owned(),
        ),
        kind: Some(object.kind.as_str().to_owned()),
        namespace: Some(object.namespace.to_string()).filter(|namespace| !namespace.is_empty()),
        name: Some(object.name.to_string()),
        ..ObjectReference::default()
    }
}
