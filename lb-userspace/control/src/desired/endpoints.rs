//! Which endpoints of a Service port serve, and which take new connections.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use super::{Claims, NodeView};
use crate::model::{
    Endpoint, Family, Frontend, Hints, Problem, Service, ServiceKey, ServicePort, Severity, Slice,
};

/// An endpoint that serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredEndpoint {
    /// Address.
    pub address: IpAddr,
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
    /// Whom it is meant for.
    pub hints: Hints,
}

/// The endpoints of one family that take new connections, as indices into the port's endpoints, ascending.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lists {
    /// For [`super::List::Cluster`].
    pub cluster: Vec<u32>,
    /// For [`super::List::Local`].
    pub local: Vec<u32>,
    /// Some endpoint takes new connections somewhere: to a client with an empty list, drop; else refuse.
    pub any: bool,
}

/// The Service of the API server itself, whose endpoints are the API server's addresses.
pub fn is_api_service(key: &ServiceKey) -> bool {
    &*key.namespace == "default" && &*key.name == "kubernetes"
}

/// The serving endpoints of a Service port, by address and port, each once.
///
/// An endpoint in several slices counts as what says most for it: local, then ready, then serving.
pub(super) fn of_port<'a>(
    service: &Service,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice>,
    node: &NodeView,
    claims: &Claims,
    problems: &mut Vec<Problem>,
) -> Vec<DesiredEndpoint> {
    let rank = |endpoint: &Endpoint| {
        let conditions = endpoint.conditions;
        (endpoint.local, conditions.ready, conditions.serving, !conditions.terminating)
    };
    let mut best: BTreeMap<(IpAddr, NonZeroU16), &Endpoint> = BTreeMap::new();
    for slice in slices.filter(|slice| service.cluster_ip(slice.family).is_some()) {
        for slice_port in &slice.ports {
            if slice_port.name != port.name || slice_port.protocol != port.protocol {
                continue;
            }
            for endpoint in &slice.endpoints {
                let at = Frontend::new(endpoint.address, slice_port.port.get(), port.protocol);
                if let Some(message) = refusal(endpoint, at, node, claims) {
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
            hints: endpoint.hints.clone(),
        })
        .collect()
}

/// Why an endpoint may not be one, if so (CVE-2021-25737): who may write EndpointSlices could lead other people's clients in circles.
///
/// ClusterIPs are nobody's host, so the address alone counts. Other addresses of Services may be those of a node, where pods in the
/// host's network have endpoints too (an ingress whose external addresses are the nodes' own): there a packet arrives, and
/// goes round no more. So only an address counts behind which no node is known: neither this one, nor one whose Node object
/// has it, nor one that the slice names.
fn refusal(endpoint: &Endpoint, at: Frontend, node: &NodeView, claims: &Claims) -> Option<String> {
    let left_out = |what: String| Some(format!("{what} and is left out; use the address of a pod"));
    if claims.is_cluster_ip(at.address) {
        return left_out(format!("{} is the ClusterIP of a Service", at.address));
    }
    let is_elsewhere = !endpoint.node.is_empty() && !endpoint.local;
    if claims.is_wanted(at) && !is_elsewhere && !node.is_of_a_node(at.address) {
        return left_out(format!("{at} is where a Service is served"));
    }
    None
}

/// Who takes new connections, of each family: `CategorizeEndpoints` of kube-proxy.
pub(super) fn lists(endpoints: &[DesiredEndpoint], node: &NodeView) -> [Lists; 2] {
    Family::ALL.map(|family| {
        let of_family =
            || (0u32..).zip(endpoints).filter(move |(_, endpoint)| Family::of(endpoint.address) == family);
        let pick = |wanted: &dyn Fn(&DesiredEndpoint) -> bool| -> Vec<u32> {
            of_family().filter(|(_, endpoint)| wanted(endpoint)).map(|(i, _)| i).collect()
        };
        let topology = Topology::of(of_family().map(|(_, endpoint)| endpoint), node.zone.as_deref());
        let mut cluster = pick(&|endpoint| endpoint.ready && topology.allows(endpoint));
        if cluster.is_empty() {
            // Anywhere, whatever the hints say.
            cluster = pick(&|endpoint| endpoint.draining);
        }
        let mut local = pick(&|endpoint| endpoint.ready && endpoint.local);
        if local.is_empty() {
            local = pick(&|endpoint| endpoint.draining && endpoint.local);
        }
        let any = of_family().any(|(_, endpoint)| endpoint.ready || endpoint.draining);
        Lists { cluster, local, any }
    })
}

/// How far the hints of a family's endpoints narrow the Cluster list.
enum Topology<'a> {
    Off,
    /// Those meant for this node.
    Node,
    /// Those meant for this zone.
    Zone(&'a str),
}

impl<'a> Topology<'a> {
    /// Hints count where every ready endpoint has them and one at least is meant for us; those for nodes go
    /// before those for zones.
    fn of<'e>(endpoints: impl Iterator<Item = &'e DesiredEndpoint> + Clone, zone: Option<&'a str>) -> Self {
        let ready = endpoints.filter(|endpoint| endpoint.ready);
        let any = |allows: &dyn Fn(&DesiredEndpoint) -> bool| ready.clone().any(allows);
        let nodes = !any(&|endpoint| endpoint.hints.this_node.is_none());
        if nodes && any(&|endpoint| endpoint.hints.this_node == Some(true)) {
            return Self::Node;
        }
        let Some(zone) = zone else { return Self::Off };
        let zones = !any(&|endpoint| endpoint.hints.zones.is_empty());
        let ours = Self::Zone(zone);
        if zones && any(&|endpoint| ours.allows(endpoint)) { ours } else { Self::Off }
    }

    fn allows(&self, endpoint: &DesiredEndpoint) -> bool {
        match self {
            Self::Off => true,
            Self::Node => endpoint.hints.this_node == Some(true),
            Self::Zone(zone) => endpoint.hints.zones.iter().any(|hint| **hint == **zone),
        }
    }
}
