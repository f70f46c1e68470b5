//! Where objects come from: the Kubernetes API or a folder of manifests.
//!
//! Both sources speak through one channel of [`Event`]s. A source never gives up: what goes wrong while
//! it runs is an [`Event::Problems`], and the objects last seen stay in force.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;
use tokio::sync::mpsc;

use crate::model::{Kind, ObjectRef, Origin, Problem};
use crate::objects::{EndpointSlice, Endpoints, Metadata, Node, Service, ServiceCidr};

pub mod kubernetes;
pub mod kubernetes_events;
pub mod manifests;
#[cfg(test)]
pub(crate) mod objects;

/// An object of one of the kinds we read.
#[derive(Clone, PartialEq, Debug)]
pub enum Object {
    /// `v1 Service`.
    Service(Box<Service>),
    /// `discovery.k8s.io/v1 EndpointSlice`.
    EndpointSlice(Box<EndpointSlice>),
    /// `v1 Endpoints`. Stands in manifests alone, whose source makes EndpointSlices of it before anybody hears of it.
    Endpoints(Box<Endpoints>),
    /// `v1 Node`.
    Node(Box<Node>),
    /// `networking.k8s.io/v1 ServiceCIDR`.
    ServiceCidr(Box<ServiceCidr>),
}

impl Object {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Endpoints(_) => Kind::Endpoints,
            Self::Node(_) => Kind::Node,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
        }
    }

    /// What every object has.
    pub const fn metadata(&self) -> &Metadata {
        match self {
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Endpoints(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::ServiceCidr(object) => &object.metadata,
        }
    }

    /// Its kind, namespace (`default` when it has none) and name.
    pub fn reference(&self) -> ObjectRef {
        reference(self.kind(), self.metadata())
    }
}

/// Names an object of `kind`.
fn reference(kind: Kind, metadata: &Metadata) -> ObjectRef {
    let namespace = match kind {
        Kind::Node | Kind::ServiceCidr => "",
        _ => metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default"),
    };
    ObjectRef::new(kind, namespace, metadata.name.as_deref().unwrap_or(""))
}

/// An object and where it was written.
#[derive(Clone, PartialEq, Debug)]
pub struct Sourced {
    /// The object.
    pub object: Object,
    /// File and line, when it comes from a manifest.
    pub origin: Option<Origin>,
}

impl From<Object> for Sourced {
    fn from(object: Object) -> Self {
        Self { object, origin: None }
    }
}

/// What a source tells.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// The object is there, new or changed.
    Applied(Sourced),
    /// The object is gone.
    Deleted(ObjectRef),
    /// These are all objects of the kind; whatever else was known of it is gone.
    Reset {
        /// The kind.
        kind: Kind,
        /// Every object of it.
        objects: Vec<Sourced>,
    },
    /// A list of the kind begins; one that has not ended is void.
    ListBegun(Kind),
    /// An object of the list that has begun.
    Listed(Sourced),
    /// The object is in the list that has begun, but cannot be read: what is known of it stays in force.
    Unreadable(ObjectRef),
    /// The list is complete: whatever else was known of the kind is gone.
    ListEnded(Kind),
    /// What tells the cluster from any other, which its nodes can read and its clients cannot. Sent once before
    /// [`Event::Synced`], if there is such a thing.
    Cluster(String),
    /// Services and EndpointSlices have both been listed completely, and the rest as far as it can be. Sent once.
    Synced,
    /// All that is wrong with the source itself now; replaces the set sent before.
    Problems(Vec<Problem>),
}

/// Which source to read.
#[derive(Clone, Debug)]
pub enum Config {
    /// A file or folder of manifests, watched.
    Manifests {
        /// The file or folder.
        path: PathBuf,
        /// Called after a reading that left much memory free.
        give_back_memory: fn(),
    },
    /// The Kubernetes API.
    Kubernetes {
        /// The kubeconfig; without one `$KUBECONFIG`, `~/.kube/config` or the pod's service account.
        kubeconfig: Option<PathBuf>,
        /// Our Node.
        node_name: String,
        /// The ranges ClusterIPs are taken from, as far as they are known: an API server inside is one that we have to serve
        /// before we can ask it.
        service_cidrs: Vec<IpNet>,
        /// Ask who the cluster is ([`Event::Cluster`]).
        identify: bool,
    },
}

/// A source that runs until its receiver is dropped.
#[derive(Debug)]
pub struct Source {
    /// What it tells, in order.
    pub events: mpsc::Receiver<Event>,
    /// The API client, for [`kubernetes_events`]; none for manifests.
    pub client: Option<KubeClient>,
    /// Where the API server listens, as far as its address is written down.
    pub api_servers: Vec<std::net::SocketAddr>,
    /// How often the API server could not be reached.
    pub connection_errors: ConnectionErrors,
}

/// Counts requests that got no answer. Cheap to clone, shared by all who count and read.
#[derive(Clone, Debug, Default)]
pub struct ConnectionErrors(Arc<AtomicU64>);

impl ConnectionErrors {
    /// One more.
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// All so far.
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A Kubernetes client, opaque to the rest of the agent.
#[derive(Clone)]
pub struct KubeClient(pub(crate) kube::Client);

impl std::fmt::Debug for KubeClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KubeClient")
    }
}

/// Why a source could not start.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The manifests are not there.
    #[error("--manifests {}: {source}; give a file or folder that exists", path.display())]
    Manifests {
        /// The path given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The path cannot be watched.
    #[error("--manifests {}: cannot watch for changes: {source}", path.display())]
    Watch {
        /// The path given.
        path: PathBuf,
        /// What the watcher said.
        #[source]
        source: notify::Error,
    },
    /// No usable configuration for the Kubernetes API.
    #[error("Kubernetes API: {message}")]
    Kubernetes {
        /// What is missing or wrong, and what to do.
        message: String,
    },
}

/// Starts a source. Call from within a tokio runtime.
///
/// # Errors
/// When the source can never work as configured: no such path, unreadable kubeconfig. An API server that
/// does not answer is not such an error: it is reported as [`Event::Problems`] and tried again.
pub async fn spawn(config: Config) -> Result<Source, SourceError> {
    match config {
        Config::Manifests { path, give_back_memory } => manifests::spawn(path, give_back_memory),
        Config::Kubernetes { kubeconfig, node_name, service_cidrs, identify } => {
            kubernetes::spawn(kubeconfig, node_name, &service_cidrs, identify).await
        }
    }
}

/// Events a source may be ahead of its reader.
pub(crate) const QUEUE: usize = 1024;
