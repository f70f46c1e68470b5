//! The door between the control side and the kernel's maps: what is there, and what to change.

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_common::abi::{Backend4, BackendId, BackendName, Frontend4, Ring, Service, ServiceId, ServiceName};

/// What the maps hold, as read once when an agent starts.
#[derive(Clone, Debug, Default)]
pub struct Actual {
    /// Every frontend.
    pub services: Vec<(Frontend4, Service)>,
    /// Every backend slot ever given out ([`Backend4::generation`] above 0), active or not.
    pub backends: BTreeMap<BackendId, Backend4>,
    /// Names by Service id.
    pub service_names: BTreeMap<ServiceId, ServiceName>,
    /// Names by backend id.
    pub backend_names: BTreeMap<BackendId, BackendName>,
    /// Slots of every ring that some Service points at.
    pub rings: BTreeMap<(u32, u32), Arc<[BackendId]>>,
}

/// One change to the maps. A list of them is applied in order; each is idempotent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Write names of Service ids.
    PutServiceNames(Vec<(ServiceId, ServiceName)>),
    /// Write names of backend ids.
    PutBackendNames(Vec<(BackendId, BackendName)>),
    /// Write backends.
    PutBackends(Vec<(BackendId, Backend4)>),
    /// Write the slots of a ring that no Service points at yet.
    WriteRing(Ring, Arc<[BackendId]>),
    /// Write frontends: the moment packets see the change.
    PutServices(Vec<(Frontend4, Service)>),
    /// Take out frontends.
    DeleteServices(Vec<Frontend4>),
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
}
