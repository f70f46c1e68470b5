//! Objects for tests, built from what matters to the test.

use serde_json::{Value, json};

use super::{Event, Object, Sourced};
use crate::model::{Kind, ObjectRef};

/// A Service of the namespace `default` with one TCP port 80 named `http`; `spec` adds to it or replaces.
pub(crate) fn service(name: &str, cluster_ip: &str, spec: Value) -> Object {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": cluster_ip, "ports": [{"name": "http", "port": 80}]},
    });
    merge(&mut object["spec"], spec);
    Object::Service(Box::new(serde_json::from_value(object).unwrap()))
}

/// The same, created at some second.
pub(crate) fn created(mut object: Object, second: i64) -> Object {
    if let Object::Service(service) = &mut object {
        let time = jiff::Timestamp::from_second(second).unwrap();
        service.metadata.creation_timestamp = Some(time.to_string());
    }
    object
}

/// An EndpointSlice of `service` with TCP port 8080 named `http`, of the family of its first endpoint.
pub(crate) fn slice(name: &str, service: &str, endpoints: &[Value]) -> Object {
    slice_with(name, service, endpoints, json!([{"name": "http", "port": 8080, "protocol": "TCP"}]))
}

/// The same, with other ports.
pub(crate) fn slice_with(name: &str, service: &str, endpoints: &[Value], ports: Value) -> Object {
    let first = endpoints.first().and_then(|endpoint| endpoint["addresses"][0].as_str());
    let family = if first.is_some_and(|address| address.contains(':')) { "IPv6" } else { "IPv4" };
    let object = json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    });
    Object::EndpointSlice(Box::new(serde_json::from_value(object).unwrap()))
}

/// A ready endpoint on `node`.
pub(crate) fn endpoint(address: &str, node: &str) -> Value {
    json!({"addresses": [address], "nodeName": node})
}

/// An endpoint that is being stopped; it serves or does not.
pub(crate) fn stopping(address: &str, node: &str, serving: bool) -> Value {
    let conditions = json!({"ready": false, "serving": serving, "terminating": true});
    json!({"addresses": [address], "nodeName": node, "conditions": conditions})
}

pub(crate) fn applied(object: Object) -> Event {
    Event::Applied(Sourced::from(object))
}

pub(crate) fn reset(kind: Kind, objects: impl IntoIterator<Item = Object>) -> Event {
    Event::Reset { kind, objects: objects.into_iter().map(Sourced::from).collect() }
}

pub(crate) fn deleted(kind: Kind, name: &str) -> Event {
    Event::Deleted(ObjectRef::new(kind, "default", name))
}

fn merge(to: &mut Value, from: Value) {
    let Value::Object(from) = from else { return };
    for (key, value) in from {
        to[key] = value;
    }
}

/// Our Node.
pub(crate) fn node(zone: &str) -> Object {
    let labels = json!({"topology.kubernetes.io/zone": zone});
    let object = json!({"metadata": {"name": "node-a", "labels": labels}});
    Object::Node(Box::new(serde_json::from_value(object).unwrap()))
}

/// A range of ClusterIPs.
pub(crate) fn service_cidr(name: &str, ranges: &[&str]) -> Object {
    let object = json!({"metadata": {"name": name}, "spec": {"cidrs": ranges}});
    Object::ServiceCidr(Box::new(serde_json::from_value(object).unwrap()))
}
