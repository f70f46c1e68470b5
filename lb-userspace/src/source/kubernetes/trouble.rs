//! What goes wrong with the API, once per change of state instead of once per attempt.

use std::collections::BTreeMap;

use kube::runtime::watcher;

use crate::model::{Kind, Problem, Severity};

/// What is wrong with each watch now.
pub(super) struct Troubles {
    url: String,
    now: BTreeMap<Kind, Problem>,
}

impl Troubles {
    pub(super) fn new(url: String) -> Self {
        Self { url, now: BTreeMap::new() }
    }

    /// A watch failed. Returns whether that is news.
    pub(super) fn failed(&mut self, kind: Kind, error: &watcher::Error) -> bool {
        // Watches end now and then, by time-out or compaction, and are begun anew without anybody noticing.
        if matches!(error, watcher::Error::WatchError(status) if status.code == 410) {
            return false;
        }
        let severity =
            if matches!(kind, Kind::Node | Kind::ServiceCidr) { Severity::Warning } else { Severity::Error };
        let problem = Problem::of_source(severity, self.describe(kind, error));
        if self.now.get(&kind) == Some(&problem) {
            return false;
        }
        self.now.insert(kind, problem);
        true
    }

    /// A watch works. Returns whether that is news.
    pub(super) fn solved(&mut self, kind: Kind) -> bool {
        self.now.remove(&kind).is_some()
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        self.now.values().cloned().collect()
    }

    fn describe(&self, kind: Kind, error: &watcher::Error) -> String {
        let (resource, group) = match kind {
            Kind::Service => ("services", ""),
            Kind::EndpointSlice => ("endpointslices", "discovery.k8s.io"),
            Kind::Node => ("nodes", ""),
            Kind::ServiceCidr => ("servicecidrs", "networking.k8s.io"),
        };
        let url = &self.url;
        let client_error = match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => Some(error),
            watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => None,
        };
        let code = match (client_error, error) {
            (Some(kube::Error::Api(status)), _) => Some(status.code),
            (_, watcher::Error::WatchError(status)) => Some(status.code),
            _ => None,
        };
        let until = "what is known stays in force, trying again";
        match code {
            Some(401) => format!(
                "Kubernetes API {url} does not know us (401 Unauthorized); \
                 renew the token or the client certificate of the kubeconfig or service account; {until}"
            ),
            Some(403) => format!(
                "Kubernetes API {url} does not let us list and watch {resource} (403 Forbidden); add to our \
                 ClusterRole: apiGroups [{group:?}], resources [{resource:?}], verbs [\"list\", \"watch\"]; {until}"
            ),
            Some(404) => format!(
                "Kubernetes API {url} has no {resource} (404 Not Found); Kubernetes 1.21 or newer is needed; {until}"
            ),
            Some(_) => format!("Kubernetes API {url}: {resource}: {error}; {until}"),
            None => {
                format!("Kubernetes API {url} cannot be reached for {resource}: {}; {until}", causes(error))
            }
        }
    }
}

/// An error with all its causes, each said once.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16) -> watcher::Error {
        let status = kube::core::Status::failure("no", "Reason").with_code(code);
        watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn what_to_do_is_said_once_for_each_state() {
        let mut troubles = Troubles::new("https://api:6443/".to_owned());
        assert!(troubles.failed(Kind::EndpointSlice, &refused(403)));
        assert!(!troubles.failed(Kind::EndpointSlice, &refused(403)), "the same again is no news");
        let problems = troubles.problems();
        assert!(
            problems[0].message.contains(
                "apiGroups [\"discovery.k8s.io\"], resources [\"endpointslices\"], verbs [\"list\", \"watch\"]"
            ),
            "{}",
            problems[0]
        );
        assert!(troubles.failed(Kind::EndpointSlice, &refused(401)));
        assert!(troubles.problems()[0].message.contains("renew the token"));
        assert!(troubles.solved(Kind::EndpointSlice));
        assert!(!troubles.solved(Kind::EndpointSlice));
        assert_eq!(troubles.problems(), []);
    }

    #[test]
    fn a_node_that_may_not_be_read_is_no_error() {
        let mut troubles = Troubles::new("https://api:6443/".to_owned());
        assert!(troubles.failed(Kind::Node, &refused(403)));
        assert_eq!(troubles.problems()[0].severity, Severity::Warning);
    }

    #[test]
    fn an_expired_watch_is_not_told() {
        let mut troubles = Troubles::new(String::new());
        let status = kube::core::Status::failure("too old", "Expired").with_code(410);
        assert!(!troubles.failed(Kind::Service, &watcher::Error::WatchError(Box::new(status))));
    }
}
