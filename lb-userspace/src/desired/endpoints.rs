//! Which endpoints of a Service port serve, and which take new connections.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::model::{Endpoint, Problem, Service, ServicePort, Severity, Slice};

/// An endpoint that serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredEndpoint {
    /// Address.
    pub address: Ipv4Addr,
    /// Port.
    pub port: NonZeroU16,
    /// On this node.
    pub local: bool,
    /// `nodeName`; empty when not said.
    pub node: Arc<str>,
    /// `targetRef.name`; empty when not said.
    pub target: Arc<str>,
    /// Takes new connections.
    pub ready: bool,
    /// Is being stopped but serves: takes new connections when no ready endpoint is left.
    pub draining: bool,
}

/// The serving endpoints of a Service port, by address and port, each once.
///
/// An endpoint in several slices counts as what says most for it: local, then ready, then serving.
pub(super) fn of_port<'a>(
    service: &Service,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice>,
    problems: &mut Vec<Problem>,
) -> Vec<DesiredEndpoint> {
    let rank = |endpoint: &Endpoint| {
        let conditions = endpoint.conditions;
        (endpoint.local, conditions.ready, conditions.serving, !conditions.terminating)
    };
    let mut best: BTreeMap<(Ipv4Addr, NonZeroU16), &Endpoint> = BTreeMap::new();
    for slice in slices {
        for slice_port in &slice.ports {
            if slice_port.name != port.name || slice_port.protocol != port.protocol {
                continue;
            }
            for endpoint in &slice.endpoints {
                if endpoint.address == service.cluster_ip {
                    let message = format!(
                        "{} is the ClusterIP of the Service itself and is left out; use the address of a pod",
                        endpoint.address
                    );
                    problems.push(Problem::of(&slice.key.object(), Severity::Warning, "endpoints", message));
                    continue;
                }
                best.entry((endpoint.address, slice_port.port))
                    .and_modify(|known| {
                        if rank(endpoint) > rank(known) {
                            *known = endpoint;
                        }
                    })
                    .or_insert(endpoint);
            }
        }
    }
    best.into_iter()
        .filter(|(_, endpoint)| endpoint.conditions.ready || endpoint.conditions.serving)
        .map(|((address, port), endpoint)| DesiredEndpoint {
            address,
            port,
            local: endpoint.local,
            node: endpoint.node.clone(),
            target: endpoint.target.clone(),
            ready: endpoint.conditions.ready,
            draining: endpoint.conditions.serving && endpoint.conditions.terminating,
        })
        .collect()
}

/// Indices of the endpoints that take new connections, among those `allowed`: the ready ones, or when
/// there is none those that are being stopped but serve. (Topology hints would narrow the ready ones.)
pub(super) fn usable(endpoints: &[DesiredEndpoint], allowed: impl Fn(&DesiredEndpoint) -> bool) -> Vec<u32> {
    let pick = |wanted: &dyn Fn(&DesiredEndpoint) -> bool| -> Vec<u32> {
        (0u32..)
            .zip(endpoints)
            .filter(|(_, endpoint)| allowed(endpoint) && wanted(endpoint))
            .map(|(i, _)| i)
            .collect()
    };
    let ready = pick(&|endpoint| endpoint.ready);
    if ready.is_empty() { pick(&|endpoint| endpoint.draining) } else { ready }
}
