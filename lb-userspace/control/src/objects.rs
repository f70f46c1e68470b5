//! Kubernetes objects, as far as we read them.
//!
//! A type of ours and not of `k8s-openapi`, which refuses an object for any field that is not as it should be. Here nothing is
//! required, null is as good as nothing, and what nobody asks for is not looked at: the API server stores and returns more than
//! its own schema allows, and an agent must not go blind for it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Label that says which Service an EndpointSlice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of a Node's zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Label of a Service that is somebody else's to serve, whatever the value.
pub const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// Label of an EndpointSlice of a Service without a ClusterIP, whatever the value: nobody serves it.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Annotation of an EndpointSlice: when the first change came that it shows.
pub const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Annotation of a Service: `true`, and its external flows are masqueraded towards pods of the node too.
pub const MASQUERADE_EXTERNAL: &str = "shunt.dev/masquerade-external";
/// Annotation of a Service: networks, with commas between them, in place of `spec.loadBalancerSourceRanges`.
pub const SOURCE_RANGES: &str = "shunt.dev/source-ranges";
/// Annotation of a Service: where its source ranges hold, `load-balancer`, `external` or `everywhere`.
pub const SOURCE_RANGES_AT: &str = "shunt.dev/source-ranges-at";
/// Label of Endpoints that are not to become EndpointSlices, with the value `true`.
pub const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation of Endpoints that are the lock of a leader.
pub const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// The labels and annotations that are kept.
const KEPT: [&str; 10] = [
    SERVICE_NAME,
    ZONE,
    OTHER_PROXY,
    HEADLESS,
    TRIGGERED,
    SKIP_MIRROR,
    LEADER,
    MASQUERADE_EXTERNAL,
    SOURCE_RANGES,
    SOURCE_RANGES_AT,
];

/// What stands for null, too.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(reader: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(reader)?.unwrap_or_default())
}

/// A list that may be null, and its entries too: each keeps its place, by which it is named when it is wrong.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(reader: D) -> Result<Vec<T>, D::Error> {
    let entries: Option<Vec<Option<T>>> = Option::deserialize(reader)?;
    Ok(entries.into_iter().flatten().map(Option::unwrap_or_default).collect())
}

/// A text that nothing depends on: anything else is as good as none.
fn perhaps_text<'de, D: Deserializer<'de>>(reader: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(reader)? {
        Value::String(text) => Some(text),
        _ => None,
    })
}

/// Whether anything is there; what it is nobody asks.
fn is_something<'de, D: Deserializer<'de>>(reader: D) -> Result<bool, D::Error> {
    Ok(match Value::deserialize(reader)? {
        Value::Null => false,
        Value::Bool(is) => is,
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    })
}

/// Labels or annotations: those we know.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Marks(BTreeMap<String, String>);

impl Marks {
    /// The value of one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The same, with one more or another.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut marks = self.clone();
        marks.0.insert(name.to_owned(), value.to_owned());
        marks
    }
}

impl<'de> Deserialize<'de> for Marks {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(MarksVisitor)
    }
}

struct MarksVisitor;

impl<'de> Visitor<'de> for MarksVisitor {
    type Value = Marks;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("names and values")
    }

    fn visit_unit<E>(self) -> Result<Marks, E> {
        Ok(Marks::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Marks, A::Error> {
        let mut marks = Marks::default();
        while let Some(name) = map.next_key::<String>()? {
            // Annotations may be large.
            if !KEPT.contains(&name.as_str()) {
                map.next_value::<IgnoredAny>()?;
            } else if let Value::String(text) = map.next_value()? {
                marks.0.insert(name, text);
            } else {
                marks.0.insert(name, String::new());
            }
        }
        Ok(marks)
    }
}

/// What every object has.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    /// Its name.
    pub name: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// What the API server calls this state of it.
    #[serde(deserialize_with = "perhaps_text")]
    pub resource_version: Option<String>,
    /// Its labels.
    pub labels: Marks,
    /// Its annotations.
    pub annotations: Marks,
    /// When it was made.
    #[serde(deserialize_with = "perhaps_text")]
    pub creation_timestamp: Option<String>,
    /// When it was asked to go.
    pub deletion_timestamp: Option<Value>,
}

/// `v1 Service`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Service {
    /// See [`Metadata`].
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
    /// What it is to do.
    pub spec: Option<ServiceSpec>,
    /// What load balancers say.
    pub status: Option<ServiceStatus>,
}

/// `spec` of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub type_: Option<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "list")]
    pub cluster_ips: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub ports: Vec<ServicePort>,
    #[serde(rename = "externalIPs", deserialize_with = "list")]
    pub external_ips: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub load_balancer_source_ranges: Vec<String>,
    pub external_traffic_policy: Option<String>,
    pub internal_traffic_policy: Option<String>,
    pub session_affinity: Option<String>,
    pub session_affinity_config: Option<SessionAffinityConfig>,
    pub health_check_node_port: Option<i32>,
    #[serde(rename = "selector", deserialize_with = "is_something")]
    pub has_selector: bool,
}

/// A port of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct ServicePort {
    pub name: Option<String>,
    pub protocol: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub port: i32,
    pub node_port: Option<i32>,
}

/// `spec.sessionAffinityConfig` of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// `spec.sessionAffinityConfig.clientIP` of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct ClientIpConfig {
    pub timeout_seconds: Option<i32>,
}

/// `status` of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct ServiceStatus {
    pub load_balancer: Option<LoadBalancer>,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct LoadBalancer {
    #[serde(deserialize_with = "list")]
    pub ingress: Vec<Ingress>,
}

/// An address of a load balancer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct Ingress {
    pub ip: Option<String>,
    pub ip_mode: Option<String>,
}

/// `discovery.k8s.io/v1 EndpointSlice`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct EndpointSlice {
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    pub address_type: String,
    #[serde(deserialize_with = "list")]
    pub ports: Vec<EndpointPort>,
    #[serde(deserialize_with = "list")]
    pub endpoints: Vec<Endpoint>,
}

/// A port of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct EndpointPort {
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub port: Option<i32>,
}

/// An endpoint of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct Endpoint {
    #[serde(deserialize_with = "list")]
    pub addresses: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: EndpointConditions,
    pub node_name: Option<String>,
    pub target_ref: Option<Reference>,
    pub hints: Option<EndpointHints>,
}

/// `v1 Endpoints`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct Endpoints {
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "list")]
    pub subsets: Vec<EndpointSubset>,
}

/// Addresses of Endpoints that have the same ports.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct EndpointSubset {
    #[serde(deserialize_with = "list")]
    pub addresses: Vec<EndpointAddress>,
    #[serde(deserialize_with = "list")]
    pub not_ready_addresses: Vec<EndpointAddress>,
    #[serde(deserialize_with = "list")]
    pub ports: Vec<EndpointPort>,
}

/// An address of Endpoints.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct EndpointAddress {
    #[serde(deserialize_with = "or_default")]
    pub ip: String,
    pub node_name: Option<String>,
    pub target_ref: Option<Reference>,
}

/// What state an endpoint is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct EndpointConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

/// Something that is named: the pod behind an endpoint, a zone, a node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct Reference {
    #[serde(deserialize_with = "or_default")]
    pub name: String,
}

/// For whom an endpoint is meant.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct EndpointHints {
    #[serde(deserialize_with = "list")]
    pub for_nodes: Vec<Reference>,
    #[serde(deserialize_with = "list")]
    pub for_zones: Vec<Reference>,
}

/// `v1 Node`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct Node {
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    pub spec: NodeSpec,
    #[serde(deserialize_with = "or_default")]
    pub status: NodeStatus,
}

/// `spec` of a Node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs", deserialize_with = "list")]
    pub pod_cidrs: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub taints: Vec<Taint>,
}

/// What keeps pods off a Node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct Taint {
    #[serde(deserialize_with = "or_default")]
    pub key: String,
}

/// `status` of a Node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct NodeStatus {
    #[serde(deserialize_with = "list")]
    pub addresses: Vec<NodeAddress>,
}

/// An address of a Node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct NodeAddress {
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub type_: String,
    #[serde(deserialize_with = "or_default")]
    pub address: String,
}

/// `networking.k8s.io ServiceCIDR`, of any version.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct ServiceCidr {
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    pub spec: ServiceCidrSpec,
}

/// `spec` of a ServiceCIDR.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub struct ServiceCidrSpec {
    #[serde(deserialize_with = "list")]
    pub cidrs: Vec<String>,
}
