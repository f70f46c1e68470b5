//! What goes wrong with the API, once per change of state instead of once per attempt.

use std::collections::{BTreeMap, BTreeSet};

use kube::runtime::watcher;

use super::access::Access;
use super::reach::causes;
use super::{Identity, Read, resource};
use crate::model::{Kind, ObjectRef, Problem, Severity};

/// The API server, as it is spoken of.
#[derive(Clone, Default)]
pub(super) struct Server {
    url: String,
    /// The proxy it is asked through.
    proxy: Option<String>,
    /// It is asked at the address of a Service; how that is known.
    at_a_service: Option<&'static str>,
}

impl Server {
    pub(super) fn of(access: &Access) -> Self {
        Self {
            url: access.config.cluster_url.to_string(),
            proxy: access.proxy.as_ref().map(ToString::to_string),
            at_a_service: access.at_a_service,
        }
    }
}

/// What is wrong with each watch now.
pub(super) struct Troubles {
    server: Server,
    now: BTreeMap<Kind, Problem>,
    /// That the API server cannot be reached.
    unreachable: Option<Problem>,
    /// That nobody says who the cluster is.
    unidentified: Option<Problem>,
    /// Objects that cannot be read.
    unreadable: BTreeMap<ObjectRef, Problem>,
    /// Those of the list that has begun.
    listed: BTreeMap<Kind, BTreeSet<ObjectRef>>,
}

impl Troubles {
    pub(super) fn new(server: Server) -> Self {
        Self {
            server,
            now: BTreeMap::new(),
            unreachable: None,
            unidentified: None,
            unreadable: BTreeMap::new(),
            listed: BTreeMap::new(),
        }
    }

    /// Who the cluster is has been asked for. Returns whether what came of it is a trouble.
    pub(super) fn identified(&mut self, identity: &Identity) -> bool {
        let instead = match identity {
            Identity::NotAsked | Identity::Namespace(_) => return false,
            Identity::Service(..) => "the UID of Service default/kubernetes is taken instead",
            Identity::Unknown(_) => "without it every client can compute backends and masquerading ports",
        };
        let (url, why) = (&self.server.url, identity.why());
        self.unidentified = Some(Problem::of_source(
            Severity::Warning,
            format!(
                "Kubernetes API {url} does not let us get the Namespace kube-system ({why}), whose UID is to seed the \
                 hashes; {instead}. Add to our ClusterRole: apiGroups [\"\"], resources [\"namespaces\"], \
                 resourceNames [\"kube-system\"], verbs [\"get\"], or give all nodes one --hash-seed; then start the \
                 agent anew"
            ),
        ));
        true
    }

    /// A watch failed. Returns whether that is news.
    pub(super) fn failed(&mut self, kind: Kind, error: &watcher::Error) -> bool {
        // Watches end now and then, by time-out or compaction, and are begun anew without anybody noticing.
        if matches!(error, watcher::Error::WatchError(status) if status.code == 410) {
            return false;
        }
        // That no answer came is told for all kinds at once, by `reached`.
        if no_answer(error) {
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

    /// The API server can be reached, or cannot for some cause. Returns whether that is news.
    pub(super) fn reached(&mut self, cause: Option<&str>) -> bool {
        let news = cause.is_some() != self.unreachable.is_some();
        if news {
            self.unreachable = cause.map(|cause| {
                let Server { url, proxy, .. } = &self.server;
                let (through, remedy) = match proxy {
                    Some(proxy) => {
                        (format!(" through the proxy {proxy}"), "; name it in NO_PROXY if it is to be asked directly")
                    }
                    None => (String::new(), ""),
                };
                let message = format!(
                    "Kubernetes API {url} cannot be reached{through}: {cause}{remedy}; what is known stays in force, trying \
                     again"
                );
                Problem::of_source(Severity::Warning, message)
            });
        }
        news
    }

    /// That the API server is asked at an address that we have to serve first.
    fn at_a_service(&self) -> Option<Problem> {
        let Server { url, at_a_service, .. } = &self.server;
        let how = (*at_a_service)?;
        Some(Problem::of_source(
            Severity::Warning,
            format!(
                "Kubernetes API {url} is at an address that has to be served before anybody can reach it ({how}), and on a \
                 node that has just started nobody does: set KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT in the \
                 DaemonSet's env (or server in the kubeconfig) to an address that the API server has without Services"
            ),
        ))
    }

    /// A watch works. Returns whether that is news.
    pub(super) fn solved(&mut self, kind: Kind) -> bool {
        self.now.remove(&kind).is_some()
    }

    /// Looks whether an object can be read. Returns whether what it finds is news.
    pub(super) fn look(&mut self, kind: Kind, event: &watcher::Event<Read>) -> bool {
        match event {
            watcher::Event::Apply(read) | watcher::Event::InitApply(read) => self.look_at(kind, read),
            watcher::Event::Delete(Ok(object)) => self.forget(|| object.reference()),
            watcher::Event::Delete(Err(problem)) => {
                problem.object.as_ref().is_some_and(|reference| self.unreadable.remove(reference).is_some())
            }
            watcher::Event::Init => {
                self.listed.insert(kind, BTreeSet::new());
                false
            }
            watcher::Event::InitDone => {
                let listed = self.listed.remove(&kind).unwrap_or_default();
                let before = self.unreadable.len();
                self.unreadable.retain(|reference, _| reference.kind != kind || listed.contains(reference));
                self.unreadable.len() != before
            }
        }
    }

    fn look_at(&mut self, kind: Kind, read: &Read) -> bool {
        let (reference, problem) = match read {
            Ok(object) => return self.forget(|| object.reference()),
            Err(problem) => match &problem.object {
                Some(reference) => (reference, &**problem),
                None => return false,
            },
        };
        if let Some(listed) = self.listed.get_mut(&kind) {
            listed.insert(reference.clone());
        }
        self.unreadable.insert(reference.clone(), problem.clone()).as_ref() != Some(problem)
    }

    /// An object can be read, or is gone. (Of very many nearly always the case.)
    fn forget(&mut self, reference: impl FnOnce() -> ObjectRef) -> bool {
        !self.unreadable.is_empty() && self.unreadable.remove(&reference()).is_some()
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let of_server = self.unreachable.iter().chain(&self.unidentified);
        let mut problems: Vec<Problem> =
            of_server.chain(self.now.values()).chain(self.unreadable.values()).cloned().collect();
        problems.extend(self.at_a_service());
        problems
    }

    fn describe(&self, kind: Kind, error: &watcher::Error) -> String {
        let (group, resource) = resource(kind);
        let url = &self.server.url;
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
            None => format!("Kubernetes API {url}: {resource} cannot be read: {}; {until}", causes(error)),
        }
    }
}

/// Whether a request got no answer, or a watch broke off, which is begun anew.
fn no_answer(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::InitialListFailed(kube::Error::Service(_))
            | watcher::Error::WatchStartFailed(kube::Error::Service(_))
            | watcher::Error::WatchFailed(kube::Error::Service(_) | kube::Error::ReadEvents(_))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api() -> Server {
        Server { url: "https://api:6443/".to_owned(), ..Server::default() }
    }

    fn refused(code: u16) -> watcher::Error {
        let status = kube::core::Status::failure("no", "Reason").with_code(code);
        watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn what_to_do_is_said_once_for_each_state() {
        let mut troubles = Troubles::new(api());
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
        let mut troubles = Troubles::new(api());
        assert!(troubles.failed(Kind::Node, &refused(403)));
        assert_eq!(troubles.problems()[0].severity, Severity::Warning);
    }

    #[test]
    fn a_cluster_that_may_not_be_asked_who_it_is_is_one_warning() {
        let mut troubles = Troubles::new(api());
        assert!(!troubles.identified(&Identity::NotAsked) && troubles.problems().is_empty());
        assert!(!troubles.identified(&Identity::Namespace("u".to_owned())) && troubles.problems().is_empty());
        assert!(troubles.identified(&Identity::Service("u".to_owned(), "403 Forbidden".to_owned())));
        let [problem] = &troubles.problems()[..] else { panic!("{:?}", troubles.problems()) };
        assert_eq!(problem.severity, Severity::Warning);
        for part in ["403 Forbidden", "default/kubernetes", "resourceNames [\"kube-system\"]", "--hash-seed"]
        {
            assert!(problem.message.contains(part), "{problem}");
        }
        // What works does not solve it.
        assert!(!troubles.solved(Kind::Service) && !troubles.problems().is_empty());
    }

    #[test]
    fn that_nothing_answers_is_one_warning_for_all_kinds() {
        let mut troubles =
            Troubles::new(Server { proxy: Some("http://p:1/ (HTTPS_PROXY)".to_owned()), ..api() });
        let error = || kube::Error::Service("connection refused".into());
        assert!(!troubles.failed(Kind::Service, &watcher::Error::InitialListFailed(error())));
        assert!(!troubles.failed(Kind::Node, &watcher::Error::WatchStartFailed(error())));
        assert!(troubles.reached(Some("connection refused")) && !troubles.reached(Some("timed out")));
        let [problem] = &troubles.problems()[..] else { panic!("{:?}", troubles.problems()) };
        assert_eq!(problem.severity, Severity::Warning);
        for part in ["connection refused", "https://api:6443/", "http://p:1/ (HTTPS_PROXY)", "NO_PROXY"] {
            assert!(problem.message.contains(part), "{problem}");
        }
        assert!(troubles.reached(None) && !troubles.reached(None) && troubles.problems().is_empty());
    }

    #[test]
    fn an_api_server_that_we_have_to_serve_first_is_told_with_the_way_out() {
        let at_a_service = Some("it is inside --service-cidr");
        let url = "https://10.96.0.1/".to_owned();
        let [problem] = &Troubles::new(Server { url, at_a_service, proxy: None }).problems()[..] else {
            panic!()
        };
        for part in ["https://10.96.0.1/", "--service-cidr", "KUBERNETES_SERVICE_HOST", "DaemonSet"] {
            assert!(problem.message.contains(part), "{problem}");
        }
    }

    #[test]
    fn an_expired_watch_is_not_told() {
        let mut troubles = Troubles::new(api());
        let status = kube::core::Status::failure("too old", "Expired").with_code(410);
        assert!(!troubles.failed(Kind::Service, &watcher::Error::WatchError(Box::new(status))));
    }
}
