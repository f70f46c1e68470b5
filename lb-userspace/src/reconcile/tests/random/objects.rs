//! Objects by chance, from few names and addresses, so that they get in each other's way.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::*;

/// Number of Services and of slices there can be.
const NAMES: u8 = 4;

fn service_name() -> impl Strategy<Value = String> {
    (0..NAMES).prop_map(|name| format!("s{name}"))
}

fn cluster_ips() -> impl Strategy<Value = Vec<String>> {
    (0u8..3, 0u8..4).prop_map(|(families, last)| {
        let (v4, v6) = (format!("10.96.0.{last}"), format!("fd00::{last}"));
        match families {
            0 => vec![v4],
            1 => vec![v6],
            _ => vec![v6, v4],
        }
    })
}

/// Good ones, a ClusterIP of somebody, the node's, one of the ServiceCIDR, and none at all.
const EXTERNAL: [&str; 8] = [
    "198.51.100.1",
    "2001:db8:9::1",
    "10.96.0.1",
    "fd00::1",
    "192.0.2.1",
    "10.97.0.1",
    "10.1.0.2",
    "010.1.1.1",
];

fn external(count: usize) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::collection::vec(proptest::sample::select(&EXTERNAL[..]), 0..=count)
}

const RANGES: [&str; 5] = ["10.0.0.0/8", " 192.0.2.0/24", "2001:db8::/32", "::/8", "0.0.0.0/0"];

fn ranges() -> impl Strategy<Value = Vec<&'static str>> {
    prop_oneof![
        2 => Just(Vec::new()),
        1 => proptest::collection::vec(proptest::sample::select(&RANGES[..]), 0..3),
    ]
}

fn ports() -> impl Strategy<Value = Value> {
    let first = (0u8..3, 0u8..3, any::<bool>(), any::<bool>());
    first.prop_map(|(port, node_port, second, third)| {
        let mut ports = vec![json!({"name": "http", "port": 80 + port})];
        if node_port > 0 {
            ports[0]["nodePort"] = json!(30_000 + u32::from(node_port));
        }
        if second {
            ports.push(json!({"name": "dns", "port": 53, "protocol": "UDP"}));
        }
        if third {
            ports.push(json!({"name": "sig", "port": 8080 + u32::from(port), "protocol": "SCTP"}));
        }
        json!(ports)
    })
}

pub(super) fn any_service() -> impl Strategy<Value = Object> {
    let rules = (any::<bool>(), any::<bool>(), any::<bool>(), 0u8..8, proptest::option::of(0i64..3));
    (service_name(), cluster_ips(), ports(), external(2), external(1), ranges(), rules).prop_map(
        |(name, ips, ports, external, ingress, ranges, (etp, itp, affinity, odd, time))| {
            let policy = |local| if local { "Local" } else { "Cluster" };
            let ingress: Vec<_> = ingress.into_iter().map(|ip| json!({"ip": ip})).collect();
            let spec = json!({
                "type": if odd == 0 { "ExternalName" } else { "LoadBalancer" },
                "clusterIP": ips[0], "clusterIPs": ips, "ports": ports, "externalIPs": external,
                "externalTrafficPolicy": policy(etp), "internalTrafficPolicy": policy(itp),
                "sessionAffinity": if affinity { "ClientIP" } else { "None" },
                "loadBalancerSourceRanges": ranges, "healthCheckNodePort": 32000,
            });
            let labels = if odd == 1 { json!({"service.kubernetes.io/headless": ""}) } else { json!({}) };
            let object = json!({
                "metadata": {"name": name, "namespace": "default", "labels": labels},
                "spec": spec,
                "status": {"loadBalancer": {"ingress": ingress}},
            });
            let object = Object::Service(Box::new(serde_json::from_value(object).unwrap()));
            time.map_or(object.clone(), |second| created(object, second))
        },
    )
}

fn any_endpoint(v6: bool) -> impl Strategy<Value = Value> {
    (1u8..10, any::<bool>(), 0u8..5, 0u8..6).prop_map(move |(last, local, state, hints)| {
        let address = match (last, v6) {
            // ClusterIPs, and somebody's external address.
            (5..8, false) => format!("10.96.0.{}", last - 5),
            (5..8, true) => format!("fd00::{}", last - 5),
            (8, false) => "198.51.100.1".to_owned(),
            (8, true) => "2001:db8:9::1".to_owned(),
            (9, true) => "fe80::1".to_owned(),
            (_, false) => format!("10.1.0.{last}"),
            (_, true) => format!("fd00:1::{last}"),
        };
        let node = if local { "node-a" } else { "node-b" };
        let mut endpoint = match state {
            0 => stopping(&address, node, true),
            1 => stopping(&address, node, false),
            _ => endpoint(&address, node),
        };
        if hints > 0 {
            endpoint["hints"] = match hints {
                1 => json!({"forNodes": [{"name": "node-a"}]}),
                2 => json!({"forNodes": [{"name": "node-b"}], "forZones": [{"name": "z1"}]}),
                other => json!({"forZones": [{"name": format!("z{}", other % 2)}]}),
            };
        }
        endpoint
    })
}

pub(super) fn any_slice() -> impl Strategy<Value = Object> {
    let endpoints = any::<bool>().prop_flat_map(|v6| proptest::collection::vec(any_endpoint(v6), 0..4));
    (0..NAMES, service_name(), endpoints, any::<bool>()).prop_map(|(name, service, endpoints, moved)| {
        let ports = json!([
            {"name": "http", "port": if moved { 8081 } else { 8080 }},
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "sig", "port": 8080, "protocol": "SCTP"},
            {"name": "none"},
        ]);
        slice_with(&format!("e{name}"), &service, &endpoints, ports)
    })
}

pub(super) fn any_object() -> impl Strategy<Value = Object> {
    prop_oneof![
        6 => any_service(),
        8 => any_slice(),
        1 => (0u8..3).prop_map(|zone| node(&format!("z{zone}"))),
        1 => (0u8..2).prop_map(|wide| service_cidr("kubernetes", if wide > 0 { &["10.96.0.0/12", "fd00::/108"] } else { &["10.96.0.0/16"] })),
    ]
}

pub(super) fn any_name() -> impl Strategy<Value = ObjectRef> {
    (0u8..8, 0..NAMES).prop_map(|(kind, name)| match kind {
        0 => ObjectRef::new(Kind::Node, "", "node-a"),
        1 => ObjectRef::new(Kind::ServiceCidr, "", "kubernetes"),
        2..5 => ObjectRef::new(Kind::Service, "default", format!("s{name}")),
        _ => ObjectRef::new(Kind::EndpointSlice, "default", format!("e{name}")),
    })
}
