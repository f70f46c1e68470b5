//! Services.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};

use super::report::Report;
use super::{NAME_LENGTH, address, annotation, port, sources};
use crate::model::{Kind, ObjectRef, Origin, Policy, Problem, Protocol, Service, ServiceKey, ServicePort};
use crate::objects as k8s;

/// `sessionAffinityConfig.clientIP.timeoutSeconds` when not said.
const AFFINITY_DEFAULT: NonZeroU32 = NonZeroU32::new(10_800).unwrap();
const AFFINITY_LONGEST: u32 = 86_400;

/// Reads a Service. None when it is not ours to serve, or cannot be.
pub fn service(
    object: &k8s::Service,
    reference: &ObjectRef,
    origin: Option<&Origin>,
) -> (Option<Service>, Vec<Problem>) {
    debug_assert_eq!(reference.kind, Kind::Service);
    let mut report = Report::new(reference.clone(), origin);
    let service = read(object, reference, origin, &mut report);
    (service, report.finish())
}

fn read(
    object: &k8s::Service,
    reference: &ObjectRef,
    origin: Option<&Origin>,
    report: &mut Report<'_>,
) -> Option<Service> {
    let Some(spec) = &object.spec else {
        report.error("spec", "it is missing; write what the Service is to do");
        return None;
    };
    if object.metadata.labels.get(k8s::OTHER_PROXY).is_some() || spec.type_.as_deref() == Some("ExternalName")
    {
        return None;
    }
    for (field, text) in [("metadata.namespace", &reference.namespace), ("metadata.name", &reference.name)] {
        if text.len() > NAME_LENGTH {
            report.error(field, format!("it is longer than {NAME_LENGTH} characters; shorten it"));
            return None;
        }
    }
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP" | "NodePort" | "LoadBalancer") => {}
        Some(other) => {
            let message = format!(
                "{other:?} is not known, taken for ClusterIP; use ClusterIP, NodePort or LoadBalancer"
            );
            report.warn("spec.type", message);
        }
    }
    let cluster_ips = cluster_ips(spec, origin, report)?;
    let ports = ports(spec, origin, report);
    if ports.is_empty() {
        return None;
    }
    let external_policy =
        policy(spec.external_traffic_policy.as_deref(), "spec.externalTrafficPolicy", report);
    Some(Service {
        key: ServiceKey { namespace: reference.namespace.clone(), name: reference.name.clone() },
        created: created(&object.metadata),
        cluster_ips,
        external_ips: external_ips(spec, report),
        load_balancer_ips: load_balancer_ips(object, report),
        source_ranges: sources::ranges(object, report),
        restricted: sources::restricted(&object.metadata, report),
        ports,
        external_policy,
        internal_policy: policy(
            spec.internal_traffic_policy.as_deref(),
            "spec.internalTrafficPolicy",
            report,
        ),
        affinity_seconds: affinity(spec, report),
        health_check_node_port: health_check_node_port(spec, external_policy, report),
        masquerade_external: masquerade_external(&object.metadata, report),
    })
}

fn masquerade_external(metadata: &k8s::Metadata, report: &mut Report<'_>) -> bool {
    match metadata.annotations.get(k8s::MASQUERADE_EXTERNAL) {
        Some("true") => true,
        None | Some("false") => false,
        Some(other) => {
            report.warn(
                annotation(k8s::MASQUERADE_EXTERNAL),
                format!("{other:?} is taken for false; write \"true\" or \"false\""),
            );
            false
        }
    }
}

/// When it was made, in seconds. What cannot be read is as good as missing: it decides between two who want the same.
fn created(metadata: &k8s::Metadata) -> Option<i64> {
    let time: jiff::Timestamp = metadata.creation_timestamp.as_ref()?.parse().ok()?;
    Some(time.as_second())
}

/// One for each family, the first that is named.
fn cluster_ips(
    spec: &k8s::ServiceSpec,
    origin: Option<&Origin>,
    report: &mut Report<'_>,
) -> Option<Vec<IpAddr>> {
    let single = spec.cluster_ip.iter().map(|text| ("spec.clusterIP".to_owned(), text));
    let several = spec.cluster_ips.iter().enumerate();
    let several = several.map(|(i, text)| (format!("spec.clusterIPs[{i}]"), text));
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut reported = BTreeSet::new();
    for (field, text) in several.chain(single).filter(|(_, text)| !text.is_empty()) {
        if text == "None" {
            return None;
        }
        match address(text) {
            Ok(address) if addresses.iter().any(|known| known.is_ipv4() == address.is_ipv4()) => {}
            Ok(address) => addresses.push(address),
            Err(message) => {
                if reported.insert(text) {
                    report.error(field, message);
                }
            }
        }
    }
    if addresses.is_empty() && reported.is_empty() && origin.is_some() {
        let message = "it is missing, and manifests are not given one by anybody; write the address to serve";
        report.error("spec.clusterIP", message);
    }
    Some(addresses).filter(|addresses| !addresses.is_empty())
}

/// It matters only where a load balancer has to know which nodes have an endpoint.
fn health_check_node_port(
    spec: &k8s::ServiceSpec,
    external_policy: Policy,
    report: &mut Report<'_>,
) -> Option<NonZeroU16> {
    let asked = spec.type_.as_deref() == Some("LoadBalancer") && external_policy == Policy::Local;
    let number = spec.health_check_node_port.filter(|number| asked && *number != 0)?;
    port(number).map_err(|message| report.warn("spec.healthCheckNodePort", message)).ok()
}

fn ports(spec: &k8s::ServiceSpec, origin: Option<&Origin>, report: &mut Report<'_>) -> Vec<ServicePort> {
    let entries = &spec.ports;
    if entries.is_empty() {
        report.error("spec.ports", "there is none; add the ports to serve");
    }
    let mut ports: Vec<ServicePort> = Vec::with_capacity(entries.len());
    for (i, entry) in entries.iter().enumerate() {
        let protocol = match entry.protocol.as_deref() {
            None | Some("" | "TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(other) => {
                let message = format!("{other:?} is not known, this port is left out; use TCP, UDP or SCTP");
                report.warn(format!("spec.ports[{i}].protocol"), message);
                continue;
            }
        };
        let number = match port(entry.port) {
            Ok(number) => number,
            Err(message) => {
                report.warn(format!("spec.ports[{i}].port"), message);
                continue;
            }
        };
        let node_port = match entry.node_port {
            None | Some(0) => None,
            Some(number) => {
                port(number).map_err(|message| report.warn(format!("spec.ports[{i}].nodePort"), message)).ok()
            }
        };
        if entry.node_port.unwrap_or(0) == 0 && origin.is_some() && spec.type_.as_deref() == Some("NodePort")
        {
            let message =
                "it is missing, and manifests are not given one by anybody; write the port to serve";
            report.warn(format!("spec.ports[{i}].nodePort"), message);
        }
        let name = entry.name.as_deref().unwrap_or("");
        if let Some(first) = ports.iter().position(|port| &*port.name == name && port.protocol == protocol) {
            let message = format!(
                "port {} has the name {name:?} and the protocol {protocol} as well, this one is left out; give each a name of its own",
                ports[first].port
            );
            report.warn(format!("spec.ports[{i}].name"), message);
            continue;
        }
        ports.push(ServicePort { name: name.into(), protocol, port: number, node_port });
    }
    ports
}

fn external_ips(spec: &k8s::ServiceSpec, report: &mut Report<'_>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (i, text) in spec.external_ips.iter().enumerate() {
        match address(text) {
            Ok(address) => addresses.push(address),
            Err(message) => report.warn(format!("spec.externalIPs[{i}]"), message),
        }
    }
    addresses
}

fn load_balancer_ips(object: &k8s::Service, report: &mut Report<'_>) -> Vec<IpAddr> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut addresses = Vec::new();
    for (i, entry) in status.iter().flat_map(|status| &status.ingress).enumerate() {
        let field = |name: &str| format!("status.loadBalancer.ingress[{i}].{name}");
        match entry.ip_mode.as_deref() {
            None | Some("" | "VIP") => {}
            // The real load balancer wants to see this traffic.
            Some("Proxy") => continue,
            Some(other) => {
                report.warn(
                    field("ipMode"),
                    format!("{other:?} is not known, the address is left out; use VIP or Proxy"),
                );
                continue;
            }
        }
        match entry.ip.as_deref().filter(|text| !text.is_empty()).map(address) {
            None => {}
            Some(Ok(address)) => addresses.push(address),
            Some(Err(message)) => report.warn(field("ip"), message),
        }
    }
    addresses
}

fn policy(text: Option<&str>, field: &str, report: &mut Report<'_>) -> Policy {
    match text {
        None | Some("" | "Cluster") => Policy::Cluster,
        Some("Local") => Policy::Local,
        Some(other) => {
            report.warn(field, format!("{other:?} is not known, taken for Cluster; use Cluster or Local"));
            Policy::Cluster
        }
    }
}

fn affinity(spec: &k8s::ServiceSpec, report: &mut Report<'_>) -> Option<NonZeroU32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            report.warn(
                "spec.sessionAffinity",
                format!("{other:?} is not known, taken for None; use ClientIP or None"),
            );
            return None;
        }
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = client_ip.and_then(|client_ip| client_ip.timeout_seconds) else {
        return Some(AFFINITY_DEFAULT);
    };
    match u32::try_from(seconds).ok().filter(|seconds| *seconds <= AFFINITY_LONGEST).and_then(NonZeroU32::new)
    {
        Some(seconds) => Some(seconds),
        None => {
            report.warn(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                format!("{seconds} is not allowed, {AFFINITY_DEFAULT} is used; use 1 to {AFFINITY_LONGEST}"),
            );
            Some(AFFINITY_DEFAULT)
        }
    }
}
