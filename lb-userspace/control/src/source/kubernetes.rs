//! Objects from the Kubernetes API.

mod access;
mod client;
mod identity;
mod proxy;
mod reach;
mod seen;
mod service_cidrs;
mod trouble;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures::stream::{BoxStream, select_all};
use futures::{FutureExt, StreamExt};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use ipnet::IpNet;

use super::{ConnectionErrors, Event, KubeClient, Object, QUEUE, Source, SourceError};
use crate::model::{Kind, Problem};
use crate::objects::{HEADLESS, OTHER_PROXY};
use access::Access;
use identity::Identity;
use reach::{CALM as CALM_OF_REQUESTS, Connection, Reach};
use seen::Seen;
use trouble::{Server, Troubles};

/// What kube-proxy watches: Services that are no other proxy's, and EndpointSlices of Services that have a ClusterIP.
fn without(label: &str) -> watcher::Config {
    watcher::Config::default().labels(&format!("!{label}"))
}

/// Pause after the first failure; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Time without a failure after which pauses start small again.
const CALM: Duration = Duration::from_secs(60);

/// Starts watching the API.
pub(super) async fn spawn(
    kubeconfig: Option<PathBuf>,
    node_name: String,
    ranges: &[IpNet],
    identify: bool,
) -> Result<Source, SourceError> {
    // Fails when somebody else in the process was first, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let access = Access::read(kubeconfig, ranges, |name| std::env::var(name).ok()).await?;
    let url = access.config.cluster_url.to_string();
    if let Some(proxy) = &access.proxy {
        tracing::info!("the API server {url} is asked through the proxy {proxy}");
    }
    let server = Server::of(&access);
    let errors = ConnectionErrors::default();
    let (reach, connection) = Reach::new(errors.clone(), CALM_OF_REQUESTS);
    let client = client::client(&access.config, access.proxy, &reach).map_err(|error| {
        SourceError::Kubernetes { message: format!("{url}: {error}; correct the kubeconfig") }
    })?;
    let api_servers = access.address.into_iter().collect();
    let (sender, events) = mpsc::channel(QUEUE);
    let watched = select_all([
        watch(&client, "v1", without(OTHER_PROXY), Kind::Service, |object| Object::Service(Box::new(object))),
        watch(&client, "v1", without(HEADLESS), Kind::EndpointSlice, |object| {
            Object::EndpointSlice(Box::new(object))
        }),
        watch(
            &client,
            "v1",
            watcher::Config::default().fields(&format!("metadata.name={node_name}")),
            Kind::Node,
            |object| Object::Node(Box::new(object)),
        ),
        service_cidrs::watched(client.clone()),
    ]);
    let asked = client.clone();
    tokio::spawn(async move {
        let identity = async { if identify { identity::read(&asked).await } else { Identity::NotAsked } };
        // An error means that nobody listens any more.
        let _ = forward(watched.boxed(), identity, connection, sender, Troubles::new(server)).await;
    });
    Ok(Source { events, client: Some(KubeClient(client)), api_servers, connection_errors: errors })
}

/// What one watch tells.
struct Watched {
    kind: Kind,
    result: watcher::Result<watcher::Event<Read>>,
}

/// An object, or why one that is there cannot be read.
type Read = Result<Object, Box<Problem>>;

/// What the API calls a kind: group, and name of the resource.
const fn resource(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Service => ("", "services"),
        Kind::EndpointSlice => ("discovery.k8s.io", "endpointslices"),
        Kind::Endpoints => ("", "endpoints"),
        Kind::Node => ("", "nodes"),
        Kind::ServiceCidr => ("networking.k8s.io", "servicecidrs"),
    }
}

fn watch<T>(
    client: &Client,
    version: &str,
    config: watcher::Config,
    kind: Kind,
    wrap: fn(T) -> Object,
) -> BoxStream<'static, Watched>
where
    T: Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let (group, plural) = resource(kind);
    let gvk = GroupVersionKind::gvk(group, version, kind.as_str());
    let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
    watcher(Api::<Seen<T>>::all_with(client.clone(), &resource), config)
        // Without it kube asks again at once, for ever.
        .backoff(ResetTimerBackoff::new(Retries::new(), CALM))
        .map(move |result| Watched {
            kind,
            result: result.map(|event| {
                let read = |object: Seen<T>| object.read(kind, wrap);
                match event {
                    watcher::Event::Apply(object) => watcher::Event::Apply(read(object)),
                    watcher::Event::Delete(object) => watcher::Event::Delete(read(object)),
                    watcher::Event::Init => watcher::Event::Init,
                    watcher::Event::InitApply(object) => watcher::Event::InitApply(read(object)),
                    watcher::Event::InitDone => watcher::Event::InitDone,
                }
            }),
        })
        .boxed()
}

/// Pauses between tries, with jitter. After an outage of any length the API server is heard again within
/// some five seconds of its return, where kube's own pauses grow to thirty.
struct Retries(ExponentialBackoff);

impl Retries {
    fn new() -> Self {
        let pauses = ExponentialBuilder::default().with_min_delay(FIRST_PAUSE).with_max_delay(LONGEST_PAUSE);
        Self(pauses.with_jitter().without_max_times().build())
    }
}

impl Iterator for Retries {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl Backoff for Retries {
    fn reset(&mut self) {
        *self = Self::new();
    }
}

/// Turns what the watches tell into events until nobody listens.
async fn forward(
    mut watched: BoxStream<'static, Watched>,
    identity: impl Future<Output = Identity>,
    mut connection: Connection,
    sender: mpsc::Sender<Event>,
    mut troubles: Troubles,
) -> Result<(), mpsc::error::SendError<Event>> {
    let mut lists = Lists::default();
    let mut identity = pin!(identity.fuse());
    if !troubles.problems().is_empty() {
        sender.send(Event::Problems(troubles.problems())).await?;
    }
    loop {
        let next = tokio::select! {
            () = sender.closed() => return Ok(()),
            identity = &mut identity, if !lists.identified => {
                if troubles.identified(&identity) {
                    sender.send(Event::Problems(troubles.problems())).await?;
                }
                for event in lists.identified(identity) {
                    sender.send(event).await?;
                }
                continue;
            }
            () = connection.changed() => {
                // What is watched again may tell nothing for long.
                let solved = connection.accepted().into_iter().fold(false, |any, kind| troubles.solved(kind) | any);
                if troubles.reached(connection.cause()) | solved {
                    sender.send(Event::Problems(troubles.problems())).await?;
                }
                continue;
            }
            next = watched.next() => next,
        };
        let Some(Watched { kind, result }) = next else { return Ok(()) };
        let changed = match &result {
            Err(error) => troubles.failed(kind, error),
            // The beginning of a list does not say that it will come to an end.
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => false,
            Ok(_) => troubles.solved(kind),
        } | result.as_ref().is_ok_and(|event| troubles.look(kind, event));
        if changed {
            sender.send(Event::Problems(troubles.problems())).await?;
        }
        let events = match result {
            Ok(event) => lists.take(kind, event),
            Err(_) => lists.failed(kind),
        };
        for event in events {
            sender.send(event).await?;
        }
    }
}

/// Knows when all lists have come. Keeps none of them: objects are large and go to the reader one by one.
#[derive(Default)]
struct Lists {
    complete: BTreeSet<Kind>,
    /// It is known who the cluster is, or that nobody can say.
    identified: bool,
    synced: bool,
}

impl Lists {
    /// Says once that all lists have come.
    fn synced(&mut self) -> Option<Event> {
        let all = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];
        let now = !self.synced && self.identified && all.iter().all(|kind| self.complete.contains(kind));
        self.synced |= now;
        now.then_some(Event::Synced)
    }

    /// Nothing waits for the answer any more.
    fn identified(&mut self, identity: Identity) -> Vec<Event> {
        self.identified = true;
        let cluster = identity.uid().map(Event::Cluster);
        cluster.into_iter().chain(self.synced()).collect()
    }

    /// A list did not come. Services can be served without knowing our Node or the ranges of ClusterIPs.
    fn failed(&mut self, kind: Kind) -> Vec<Event> {
        if matches!(kind, Kind::Node | Kind::ServiceCidr) {
            self.complete.insert(kind);
        }
        self.synced().into_iter().collect()
    }

    fn take(&mut self, kind: Kind, event: watcher::Event<Read>) -> Vec<Event> {
        match event {
            watcher::Event::Apply(Ok(object)) => vec![Event::Applied(object.into())],
            // What is known of it stays.
            watcher::Event::Apply(Err(_)) => Vec::new(),
            watcher::Event::Delete(Ok(object)) => vec![Event::Deleted(object.reference())],
            watcher::Event::Delete(Err(problem)) => problem.object.into_iter().map(Event::Deleted).collect(),
            watcher::Event::Init => vec![Event::ListBegun(kind)],
            watcher::Event::InitApply(Ok(object)) => vec![Event::Listed(object.into())],
            watcher::Event::InitApply(Err(problem)) => {
                problem.object.into_iter().map(Event::Unreadable).collect()
            }
            watcher::Event::InitDone => {
                self.complete.insert(kind);
                [Event::ListEnded(kind)].into_iter().chain(self.synced()).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Config, spawn};

    #[tokio::test]
    async fn a_broken_kubeconfig_is_named_and_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, "apiVersion: v1\nkind: Config\nusers: [{name: a, user: {token: secret}]\n")
            .unwrap();
        let config = |path| Config::Kubernetes {
            kubeconfig: Some(path),
            node_name: "node-a".to_owned(),
            service_cidrs: Vec::new(),
            identify: true,
        };
        let error = spawn(config(path)).await.unwrap_err().to_string();
        assert!(
            error.contains("config: failed to parse kubeconfig YAML") && !error.contains("secret"),
            "{error}"
        );
        let error = spawn(config(folder.path().join("missing"))).await.unwrap_err().to_string();
        assert!(error.contains("missing") && error.contains("--kubeconfig"), "{error}");
    }

    #[tokio::test]
    async fn an_api_server_that_does_not_answer_is_a_problem_and_nothing_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        // A port nobody listens on: it was given out and closed again.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: \"http://127.0.0.1:{port}\"}}}}]\n\
             users: [{{name: u, user: {{}}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        let config = Config::Kubernetes {
            kubeconfig: Some(path),
            node_name: "node-a".to_owned(),
            service_cidrs: Vec::new(),
            identify: true,
        };
        let mut source = spawn(config).await.unwrap();
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut told = Vec::new();
        while source.connection_errors.total() < 8 {
            match tokio::time::timeout_at(deadline, source.events.recv()).await.expect("in time") {
                Some(Event::Problems(problems)) => told.push(problems),
                Some(Event::ListBegun(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        let [problems] = &told[..] else { panic!("told once: {told:?}") };
        let [problem] = &problems[..] else { panic!("one for all kinds: {problems:?}") };
        assert!(problem.message.contains("cannot be reached"), "{problem}");
    }

    fn service(name: &str) -> Object {
        let mut service = crate::objects::Service::default();
        service.metadata.name = Some(name.to_owned());
        Object::Service(Box::new(service))
    }

    #[test]
    fn nothing_is_synced_before_it_is_known_who_the_cluster_is() {
        let mut lists = Lists::default();
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr] {
            assert_eq!(lists.take(kind, watcher::Event::InitDone), [Event::ListEnded(kind)]);
        }
        let cluster = Event::Cluster("u-1".to_owned());
        assert_eq!(lists.identified(Identity::Namespace("u-1".to_owned())), [cluster, Event::Synced]);
    }

    #[test]
    fn services_do_not_wait_for_what_cannot_be_had() {
        let mut lists = Lists::default();
        assert_eq!(lists.identified(Identity::Unknown(String::new())), []);
        for kind in [Kind::Service, Kind::EndpointSlice] {
            assert_eq!(lists.take(kind, watcher::Event::InitDone).len(), 1);
        }
        assert_eq!(lists.failed(Kind::Service), []);
        assert_eq!(lists.failed(Kind::Node), []);
        assert_eq!(lists.failed(Kind::ServiceCidr), [Event::Synced]);
        assert_eq!(lists.failed(Kind::Node), []);
    }

    #[test]
    fn synced_comes_once_after_all_lists_and_a_relist_is_a_reset() {
        let mut lists = Lists { identified: true, ..Lists::default() };
        for kind in [Kind::Node, Kind::ServiceCidr] {
            assert_eq!(lists.take(kind, watcher::Event::InitDone), [Event::ListEnded(kind)]);
        }
        let begun = Event::ListBegun(Kind::Service);
        assert_eq!(lists.take(Kind::Service, watcher::Event::Init), [begun]);
        assert_eq!(
            lists.take(Kind::Service, watcher::Event::InitApply(Ok(service("a")))),
            [Event::Listed(service("a").into())]
        );
        assert_eq!(lists.take(Kind::Service, watcher::Event::InitDone), [Event::ListEnded(Kind::Service)]);
        // A list that breaks off is begun anew.
        for _ in 0..2 {
            let begun = Event::ListBegun(Kind::EndpointSlice);
            assert_eq!(lists.take(Kind::EndpointSlice, watcher::Event::Init), [begun]);
        }
        assert_eq!(
            lists.take(Kind::EndpointSlice, watcher::Event::InitDone),
            [Event::ListEnded(Kind::EndpointSlice), Event::Synced]
        );
        assert_eq!(
            lists.take(Kind::Service, watcher::Event::InitDone),
            [Event::ListEnded(Kind::Service)],
            "Synced is not said again"
        );
    }
}
