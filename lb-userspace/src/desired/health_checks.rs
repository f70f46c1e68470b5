//! What the `healthCheckNodePort` of a Service answers on this node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Service, Slice};

/// The health check of one Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Endpoints of this node that are Ready, in the family that has more of them: a pod with an address
    /// of each counts once.
    pub local_ready: u32,
    /// `metadata.creationTimestamp`, in seconds; decides who keeps a contested port.
    pub created: Option<i64>,
}

/// The health check of `service`, when it has one.
pub fn health_check<'a>(service: &Service, slices: impl Iterator<Item = &'a Slice>) -> Option<HealthCheck> {
    let port = service.health_check_node_port?.get();
    let mut ready: BTreeSet<IpAddr> = BTreeSet::new();
    for slice in slices.filter(|slice| !slice.ports.is_empty()) {
        let local = slice.endpoints.iter().filter(|endpoint| endpoint.local && endpoint.conditions.ready);
        ready.extend(local.map(|endpoint| endpoint.address));
    }
    let v4 = ready.iter().filter(|address| address.is_ipv4()).count();
    let local_ready = u32::try_from(v4.max(ready.len() - v4)).unwrap_or(u32::MAX);
    Some(HealthCheck { port, local_ready, created: service.created })
}
