//! EndpointSlices.

use std::sync::Arc;
use std::time::SystemTime;

use super::report::Report;
use super::{address, port};
use crate::model::{
    Conditions, Endpoint, Family, Hints, Kind, ObjectRef, Origin, Problem, Protocol, ServiceKey, Slice,
    SliceKey, SlicePort,
};
use crate::objects::{self as k8s, SERVICE_NAME, TRIGGERED};

/// Reads an EndpointSlice. None when there is nothing in it for us: names for addresses, no Service.
pub fn endpoint_slice(
    object: &k8s::EndpointSlice,
    reference: &ObjectRef,
    node_name: &str,
    origin: Option<&Origin>,
) -> (Option<Slice>, Vec<Problem>) {
    debug_assert_eq!(reference.kind, Kind::EndpointSlice);
    let mut report = Report::new(reference.clone(), origin);
    if object.metadata.labels.get(k8s::HEADLESS).is_some() {
        return (None, Vec::new());
    }
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        // Names are ignored by kube-proxy as well.
        "FQDN" => return (None, Vec::new()),
        other => {
            report.error("addressType", format!("{other:?} is not known; use IPv4 or IPv6"));
            return (None, report.finish());
        }
    };
    let Some(service) = object.metadata.labels.get(SERVICE_NAME).filter(|name| !name.is_empty()) else {
        if origin.is_some() {
            let message = format!("the label {SERVICE_NAME} is missing, so it belongs to no Service; add it");
            report.error("metadata.labels", message);
        }
        return (None, report.finish());
    };
    let ports = ports(object, &mut report);
    let endpoints = endpoints(object, family, node_name, &mut report);
    let slice = Slice {
        key: SliceKey { namespace: reference.namespace.clone(), name: reference.name.clone() },
        service: ServiceKey { namespace: reference.namespace.clone(), name: service.into() },
        family,
        triggered: triggered(object),
        ports,
        endpoints,
    };
    (Some(slice), report.finish())
}

/// What cannot be read is as good as missing: it is for a metric alone.
fn triggered(object: &k8s::EndpointSlice) -> Option<SystemTime> {
    let time: jiff::Timestamp = object.metadata.annotations.get(TRIGGERED)?.parse().ok()?;
    Some(SystemTime::from(time))
}

fn ports(object: &k8s::EndpointSlice, report: &mut Report<'_>) -> Vec<SlicePort> {
    let mut ports = Vec::new();
    for (i, entry) in object.ports.iter().enumerate() {
        // A missing port means all ports, a missing name cannot join a Service port.
        let (Some(number), Some(name)) = (entry.port.filter(|port| *port != 0), &entry.name) else {
            continue;
        };
        let protocol = match entry.protocol.as_deref() {
            None | Some("" | "TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(other) => {
                let message = format!("{other:?} is not known; use TCP, UDP or SCTP");
                report.warn(format!("ports[{i}].protocol"), message);
                continue;
            }
        };
        match port(number) {
            Ok(port) => ports.push(SlicePort { name: name.as_str().into(), protocol, port }),
            Err(message) => report.warn(format!("ports[{i}].port"), message),
        }
    }
    ports
}

fn endpoints(
    object: &k8s::EndpointSlice,
    family: Family,
    node_name: &str,
    report: &mut Report<'_>,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    // Neighbours often share a node.
    let mut last_node: Arc<str> = "".into();
    for (i, entry) in object.endpoints.iter().enumerate() {
        let Some(text) = entry.addresses.first() else {
            report.warn(format!("endpoints[{i}].addresses"), "there is none; add the address of the pod");
            continue;
        };
        let address = match address(text) {
            Ok(address) if Family::of(address) == family => address,
            Ok(address) => {
                let (its, other) = (family.label(), Family::of(address).label());
                let message = format!(
                    "{text} is an {other} address in a slice of addressType {its}; correct one of the two"
                );
                report.warn(format!("endpoints[{i}].addresses[0]"), message);
                continue;
            }
            Err(message) => {
                report.warn(format!("endpoints[{i}].addresses[0]"), message);
                continue;
            }
        };
        let node = entry.node_name.as_deref().unwrap_or("");
        if *last_node != *node {
            last_node = node.into();
        }
        let conditions = entry.conditions;
        endpoints.push(Endpoint {
            address,
            conditions: Conditions {
                ready: conditions.ready.unwrap_or(true),
                serving: conditions.serving.unwrap_or(true),
                terminating: conditions.terminating.unwrap_or(false),
            },
            local: !node.is_empty() && node == node_name,
            node: last_node.clone(),
            target: entry.target_ref.as_ref().map_or("", |target| &target.name).into(),
            hints: hints(entry, node_name),
        });
    }
    endpoints
}

fn hints(entry: &k8s::Endpoint, node_name: &str) -> Hints {
    let Some(hints) = &entry.hints else { return Hints::default() };
    let nodes = &hints.for_nodes;
    let zones = hints.for_zones.iter().map(|zone| Arc::from(zone.name.as_str()));
    Hints {
        this_node: (!nodes.is_empty()).then(|| nodes.iter().any(|node| node.name == node_name)),
        zones: zones.collect(),
    }
}
