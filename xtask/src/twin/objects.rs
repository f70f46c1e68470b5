//! The objects of the API that a case stands for, and the requests that bring them in.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::cases::{Case, Kind, Member, State};
use crate::kube::Request;
use lb_lab::{AddressPlan, Family, NodeId};

const NODES: &str = "/api/v1/nodes";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// The Nodes of a lab, without which kube-proxy does not begin; the second list is sent after the first.
pub fn nodes(plan: &AddressPlan, families: &[Family]) -> (Vec<Request>, Vec<Request>) {
    let node = |id: NodeId| {
        let ranges: Vec<_> = families.iter().map(|family| plan.pods_of(id, *family).to_string()).collect();
        let addresses: Vec<_> = families
            .iter()
            .map(|family| json!({ "type": "InternalIP", "address": plan.node_ip(id, *family) }))
            .collect();
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": id.name(), "labels": { "kubernetes.io/hostname": id.name() } },
            "spec": { "podCIDR": ranges[0], "podCIDRs": ranges },
        });
        let status = json!({ "status": { "addresses": addresses } });
        (Request::create(NODES, object), Request::patch(&format!("{NODES}/{}/status", id.name()), status))
    };
    NodeId::ALL.into_iter().map(node).unzip()
}

/// Requests that create the Service; the address of the load balancer needs the second one, sent after the first.
pub fn service(case: &Case) -> (Request, Option<Request>) {
    let status = case.balancer.map(|_| {
        let ingress = Family::ALL.map(|family| json!({ "ip": case.balancer(family) }));
        let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        Request::patch(&format!("{SERVICES}/{}/status", case.name), status)
    });
    (Request::create(SERVICES, service_object(case)), status)
}

fn service_object(case: &Case) -> Value {
    let ports = case.ports.iter().map(|port| {
        let mut object = json!({
            "name": port.name(),
            "protocol": port.protocol.name(),
            "port": port.port,
            "targetPort": port.target,
        });
        if let Some(node_port) = port.node_port {
            object["nodePort"] = json!(node_port);
        }
        object
    });
    let mut spec = json!({
        "type": case.kind.name(),
        "ipFamilyPolicy": "RequireDualStack",
        "ipFamilies": Family::ALL.map(Family::name),
        "clusterIP": case.cluster_ip(Family::V4),
        "clusterIPs": Family::ALL.map(|family| case.cluster_ip(family)),
        "ports": ports.collect::<Vec<_>>(),
        "externalIPs": Family::ALL.iter().filter_map(|family| case.external_ip(*family)).collect::<Vec<_>>(),
    });
    if case.kind != Kind::ClusterIp {
        spec["externalTrafficPolicy"] = json!(if case.external_local { "Local" } else { "Cluster" });
    }
    if let Some(port) = case.health_port {
        spec["healthCheckNodePort"] = json!(port);
    }
    if !case.sources.is_empty() {
        let ranges = Family::ALL.iter().flat_map(|family| case.source_ranges(*family));
        spec["loadBalancerSourceRanges"] = json!(ranges.collect::<Vec<_>>());
    }
    if case.affinity {
        spec["sessionAffinity"] = json!("ClientIP");
        spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 10800 } });
    }
    let labels: serde_json::Map<String, Value> =
        case.label.iter().map(|label| ((*label).to_owned(), json!("somebody-else"))).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": case.name, "namespace": "default", "labels": labels },
        "spec": spec,
    })
}

/// The requests that create the EndpointSlices, one a family.
pub fn create_slices(case: &Case, address_of: impl Fn(&str, Family) -> IpAddr) -> Vec<Request> {
    let slice = |family| Request::create(SLICES, slice_object(case, family, |pod| address_of(pod, family)));
    Family::ALL.map(slice).into()
}

/// The requests that delete a Service and what belongs to it.
pub fn delete(case: &Case) -> Vec<Request> {
    let slices = Family::ALL.map(|family| Request::delete(&format!("{SLICES}/{}", slice_name(case, family))));
    let service = Request::delete(&format!("{SERVICES}/{}", case.name));
    slices.into_iter().chain([service]).collect()
}

/// The requests that change the endpoints of the EndpointSlices.
pub fn change_slices(case: &Case, address_of: impl Fn(&str, Family) -> IpAddr) -> Vec<Request> {
    let slice = |family| {
        let endpoints = endpoints(case, |pod| address_of(pod, family));
        Request::patch(&format!("{SLICES}/{}", slice_name(case, family)), json!({ "endpoints": endpoints }))
    };
    Family::ALL.map(slice).into()
}

fn slice_name(case: &Case, family: Family) -> String {
    format!("{}-{}", case.name, family.name().to_lowercase())
}

fn slice_object(case: &Case, family: Family, address_of: impl Fn(&str) -> IpAddr) -> Value {
    let ports = case
        .ports
        .iter()
        .map(|port| json!({ "name": port.name(), "protocol": port.protocol.name(), "port": port.target }));
    // A controller copies the labels of the Service.
    let mut labels =
        serde_json::Map::from_iter([("kubernetes.io/service-name".to_owned(), json!(case.name))]);
    labels.extend(case.label.iter().map(|label| ((*label).to_owned(), json!("somebody-else"))));
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": slice_name(case, family), "namespace": "default", "labels": labels },
        "addressType": family.name(),
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": endpoints(case, address_of),
    })
}

fn endpoints(case: &Case, address_of: impl Fn(&str) -> IpAddr) -> Vec<Value> {
    let endpoint = |member: &Member| {
        let mut object = json!({
            "addresses": [address_of(member.pod)],
            "conditions": {
                "ready": member.state == State::Ready,
                "serving": member.state != State::NotReady,
                "terminating": member.state == State::Terminating,
            },
        });
        if let Some(node) = member.node() {
            object["nodeName"] = json!(node.name());
        }
        object
    };
    case.members.iter().map(endpoint).collect()
}
