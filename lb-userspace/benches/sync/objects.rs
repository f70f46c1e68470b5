//! Services and EndpointSlices as an API server sends them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use lb_control::source::{Object, Sourced};

/// Endpoints to a slice, as the controller of kube-controller-manager makes them.
const PER_SLICE: usize = 100;

fn uid(kind: u8, number: usize) -> String {
    format!("{kind:08x}-5c1e-4f6b-9d53-{number:012x}")
}

fn metadata(kind: u8, name: String, number: usize, labels: &[(&str, String)]) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(format!("team-{}", number % 50)),
        uid: Some(uid(kind, number)),
        resource_version: Some(format!("{}", 1_000_000 + number)),
        generation: Some(1),
        creation_timestamp: Timestamp::from_second(1_760_000_000 + number as i64).ok().map(Time),
        labels: Some(labels.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()),
        ..ObjectMeta::default()
    }
}

fn service_name(number: usize) -> String {
    format!("service-{number:05}")
}

/// The ClusterIP of a Service.
pub fn cluster_ip(number: usize) -> [u8; 4] {
    let number = number as u32 + 10;
    [10, 96 + (number >> 16) as u8, (number >> 8) as u8, number as u8]
}

/// The address of an endpoint; `turn` counts how often it has been replaced.
pub fn endpoint_address(service: usize, endpoint: usize, turn: usize) -> [u8; 4] {
    let number = (service * 1_000 + endpoint) as u32 % (1 << 22) * 2 + turn as u32 % 2;
    // One Service of very many endpoints stays below the others' range.
    let low = if endpoint >= 1_000 { 0x0b00_0000 } else { 0x0a80_0000 };
    (low + number).to_be_bytes()
}

fn text(address: [u8; 4]) -> String {
    std::net::Ipv4Addr::from(address).to_string()
}

/// As a source reads it.
fn read<T: serde::de::DeserializeOwned>(object: &impl serde::Serialize) -> Box<T> {
    let read = serde_json::to_value(object).and_then(serde_json::from_value);
    Box::new(read.expect("an object that can be read"))
}

/// A Service with one TCP port.
pub fn service(number: usize) -> Sourced {
    let name = service_name(number);
    let labels = [("app", name.clone()), ("app.kubernetes.io/managed-by", "Helm".to_owned())];
    let mut metadata = metadata(1, name.clone(), number, &labels);
    let configuration = "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"spec\":{\"ports\":[{\"port\":80}]}}";
    metadata.annotations = Some(BTreeMap::from([(
        "kubectl.kubernetes.io/last-applied-configuration".to_owned(),
        configuration.to_owned(),
    )]));
    let address = text(cluster_ip(number));
    let spec = ServiceSpec {
        type_: Some("ClusterIP".to_owned()),
        cluster_ip: Some(address.clone()),
        cluster_ips: Some(vec![address]),
        ip_families: Some(vec!["IPv4".to_owned()]),
        ip_family_policy: Some("SingleStack".to_owned()),
        internal_traffic_policy: Some("Cluster".to_owned()),
        session_affinity: Some("None".to_owned()),
        selector: Some(BTreeMap::from([("app".to_owned(), name)])),
        ports: Some(vec![ServicePort {
            name: Some("http".to_owned()),
            port: 80,
            protocol: Some("TCP".to_owned()),
            target_port: Some(IntOrString::Int(8080)),
            ..ServicePort::default()
        }]),
        ..ServiceSpec::default()
    };
    Object::Service(read(&Service { metadata, spec: Some(spec), status: None })).into()
}

fn endpoint(service: usize, endpoint: usize, turn: usize) -> Endpoint {
    let name = format!("{}-6d4cf56db6-{:05}", service_name(service), endpoint * 2 + turn % 2);
    Endpoint {
        addresses: vec![text(endpoint_address(service, endpoint, turn))],
        conditions: Some(EndpointConditions {
            ready: Some(true),
            serving: Some(true),
            terminating: Some(false),
        }),
        node_name: Some(format!("node-{:03}", (service + endpoint) % 100)),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: Some(name),
            namespace: Some(format!("team-{}", service % 50)),
            uid: Some(uid(2, service * 1_000 + endpoint)),
            ..ObjectReference::default()
        }),
        zone: Some("zone-a".to_owned()),
        ..Endpoint::default()
    }
}

/// Slice `slice` of a Service with `endpoints` endpoints in all; `turn`: how often its first endpoint was replaced.
pub fn slice(number: usize, slice: usize, endpoints: usize, turn: usize) -> Sourced {
    let name = service_name(number);
    let labels = [
        ("app", name.clone()),
        ("kubernetes.io/service-name", name.clone()),
        ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io".to_owned()),
    ];
    let mut metadata = metadata(3, format!("{name}-{slice:05}"), number, &labels);
    metadata.generate_name = Some(format!("{name}-"));
    metadata.annotations = Some(BTreeMap::from([(
        "endpoints.kubernetes.io/last-change-trigger-time".to_owned(),
        "2025-11-21T09:00:00Z".to_owned(),
    )]));
    metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        name,
        uid: uid(1, number),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }]);
    let first = slice * PER_SLICE;
    let last = endpoints.min(first + PER_SLICE);
    let endpoints = (first..last).map(|i| endpoint(number, i, if i == first { turn } else { 0 }));
    let object = EndpointSlice {
        metadata,
        address_type: "IPv4".to_owned(),
        endpoints: endpoints.collect(),
        ports: Some(vec![EndpointPort {
            name: Some("http".to_owned()),
            port: Some(8080),
            protocol: Some("TCP".to_owned()),
            ..EndpointPort::default()
        }]),
    };
    Object::EndpointSlice(read(&object)).into()
}

/// Number of slices of a Service.
pub const fn slices(endpoints: usize) -> usize {
    endpoints.div_ceil(PER_SLICE)
}
