//! The door between this crate and the kernel's maps, which lb-kernel opens: what is there, and what to change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::abi::{Backend, BackendId, BackendName, Ring, Service, ServiceId, ServiceName, Text};

use crate::model::Frontend;
use crate::seed;

pub mod memory;

/// Sources that may reach a Service port; under [`SERVICE_CIDRS`] a range of ClusterIPs, under
/// [`NODE_NETWORKS`] one of the node's own addresses.
///
/// [`SERVICE_CIDRS`]: lb_common::abi::SourceRange::SERVICE_CIDRS
/// [`NODE_NETWORKS`]: lb_common::abi::SourceRange::NODE_NETWORKS
pub type SourceRange = (ServiceId, IpNet);

/// The smallest range of each family that holds every ClusterIP, by [`crate::model::Family`].
pub type Cover = [Option<IpNet>; 2];

/// What the maps hold, as read once when an agent starts.
#[derive(Clone, Debug, Default)]
pub struct Actual {
    /// Every frontend.
    pub services: Vec<(Frontend, Service)>,
    /// Every backend slot ever given out ([`Backend::generation`] above 0), active or not.
    pub backends: BTreeMap<BackendId, Backend>,
    /// Names by Service id.
    pub service_names: BTreeMap<ServiceId, ServiceName>,
    /// Names by backend id.
    pub backend_names: BTreeMap<BackendId, BackendName>,
    /// Slots of every ring that some Service points at.
    pub rings: BTreeMap<(u32, u32), Arc<[BackendId]>>,
    /// Every range of permitted sources, and of ClusterIPs.
    pub source_ranges: BTreeSet<SourceRange>,
    /// Where the programs look for ClusterIPs.
    pub cover: Cover,
    /// Whether they serve nodePorts in networks, too.
    pub asks_node_networks: bool,
}

/// The name of a backend as long as it is not written: the record of the map is several times as large.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodName {
    /// `targetRef.name` of the endpoint.
    pub target: Arc<str>,
    /// `nodeName` of the endpoint.
    pub node: Arc<str>,
}

impl PodName {
    /// What the map holds.
    pub fn record(&self) -> BackendName {
        BackendName { target: Text::new(&self.target), node: Text::new(&self.node) }
    }
}

/// One change to the maps. A list of them is applied in order; each is idempotent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Write names of Service ids.
    PutServiceNames(Vec<(ServiceId, ServiceName)>),
    /// Write names of backend ids.
    PutBackendNames(Vec<(BackendId, PodName)>),
    /// Forget what went to Service ids, which are about to get other Service ports.
    ResetServiceTraffic(Vec<ServiceId>),
    /// Forget how many flows went to backend ids, which are about to get other endpoints.
    ResetBackendFlows(Vec<BackendId>),
    /// Write backends.
    PutBackends(Vec<(BackendId, Backend)>),
    /// Write the slots of a ring that no Service points at yet.
    WriteRing(Ring, Arc<[BackendId]>),
    /// Write frontends: the moment packets see the change.
    PutServices(Vec<(Frontend, Service)>),
    /// Let sources in.
    PutSourceRanges(Vec<SourceRange>),
    /// Say where the programs are to look for ClusterIPs.
    CoverServices(Cover),
    /// Say whether nodePorts are served in networks, too.
    AskNodeNetworks(bool),
    /// Have packets from these ports looked at: frontends at the node's own addresses have them. There is no way back.
    NotePorts(Vec<u16>),
    /// Take out frontends.
    DeleteServices(Vec<Frontend>),
    /// Let sources in no longer.
    DeleteSourceRanges(Vec<SourceRange>),
    /// Take out names of Service ids that are free again.
    DeleteServiceNames(Vec<ServiceId>),
    /// Take out names of backend ids that are free again.
    DeleteBackendNames(Vec<BackendId>),
}

/// Why a change could not be made.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {source}{}", hint.map(|hint| format!(" ({hint})")).unwrap_or_default())]
pub struct StoreError {
    /// Name of the map.
    pub map: &'static str,
    /// What the kernel said.
    #[source]
    pub source: std::io::Error,
    /// What to do about it, where that is known (e.g. the map is full and which flag sizes it).
    pub hint: Option<&'static str>,
}

/// Somewhere to keep the state: the kernel's maps, or memory in tests.
pub trait Store: Send {
    /// Reads everything. Called once at start.
    fn actual(&mut self) -> Result<Actual, StoreError>;

    /// Applies changes in order and stops at the first that fails. The caller then plans again.
    fn apply(&mut self, ops: &[Op]) -> Result<(), StoreError>;

    /// Number of ring slots there are.
    fn ring_slots(&self) -> u32;

    /// Puts a seed in force and says which: another than the one `wanted` where flows that live were made with it.
    /// Called before anything is read or written.
    fn settle_seed(&mut self, wanted: seed::Wanted) -> Result<u64, StoreError>;
}
