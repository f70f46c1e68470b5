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
            let labels =
                if odd == 1 { json!({"service.kubernetes.io/service-proxy-name": ""}) } else { json!({}) };
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

/// Where a Service can be wrong, and with what.
const ODD_SERVICE: [(&str, &str); 22] = [
    ("/spec/clusterIP", r#""""#),
    ("/spec/clusterIP", r#""None""#),
    ("/spec/clusterIPs", "null"),
    ("/spec/clusterIPs", r#"["10.96.0.1", "10.96.0.2", "::ffff:10.96.0.3", "x"]"#),
    ("/spec/type", r#""Strange""#),
    ("/spec/ports", "[]"),
    ("/spec/ports/0/port", "0"),
    ("/spec/ports/0/port", "-1"),
    ("/spec/ports/0/port", "65536"),
    ("/spec/ports/0/port", "53"),
    ("/spec/ports/0/protocol", r#""QUIC""#),
    ("/spec/ports/0/nodePort", "-2147483648"),
    ("/spec/ports/0/nodePort", "80"),
    ("/spec/ports/0/name", r#""dns""#),
    ("/spec/externalIPs", r#"["", "127.0.0.1", "fe80::1%eth0", "255.255.255.255", "ff02::1", "10.0.0.1/8"]"#),
    ("/spec/loadBalancerSourceRanges", r#"["", "10.0.0.0/33", "::/129", "0.0.0.0/0", "::ffff:0:0/95"]"#),
    ("/spec/sessionAffinityConfig", r#"{"clientIP": {"timeoutSeconds": -1}}"#),
    ("/spec/sessionAffinityConfig", r#"{"clientIP": {"timeoutSeconds": 2147483647}}"#),
    ("/spec/externalTrafficPolicy", r#""Nowhere""#),
    ("/spec/healthCheckNodePort", "-1"),
    ("/spec", "null"),
    (
        "/status",
        r#"{"loadBalancer": {"ingress": [{"ip": "::1"}, {}, {"ip": "10.96.0.1", "ipMode": "Odd"}]}}"#,
    ),
];

/// Where a slice can be wrong, and with what.
const ODD_SLICE: [(&str, &str); 14] = [
    ("/addressType", r#""FQDN""#),
    ("/addressType", r#""IPX""#),
    ("/ports", "null"),
    ("/ports/0/port", "-1"),
    ("/ports/0/port", "65536"),
    ("/ports/0/name", "null"),
    ("/ports/0/protocol", r#""""#),
    ("/endpoints/0/addresses", "[]"),
    ("/endpoints/0/addresses/0", r#""0.0.0.0""#),
    ("/endpoints/0/addresses/0", r#""10.1.0.256""#),
    ("/endpoints/0/nodeName", "null"),
    ("/endpoints/0/hints", r#"{"forNodes": [], "forZones": []}"#),
    ("/endpoints/0/conditions", r#"{"ready": true, "serving": false, "terminating": true}"#),
    ("/metadata/labels", "null"),
];

/// The object with one thing about it odd, where it has that.
fn odd(object: Object, which: usize) -> Object {
    fn put<T: serde::Serialize + serde::de::DeserializeOwned>(object: &T, odd: (&str, &str)) -> Option<T> {
        let mut object = serde_json::to_value(object).ok()?;
        let (parent, field) = odd.0.rsplit_once('/')?;
        let value = serde_json::from_str(odd.1).unwrap();
        match object.pointer_mut(parent)? {
            Value::Object(fields) => drop(fields.insert(field.to_owned(), value)),
            Value::Array(items) => *items.get_mut(field.parse::<usize>().ok()?)? = value,
            _ => return None,
        }
        serde_json::from_value(object).ok()
    }
    let changed = match &object {
        Object::Service(service) => put(service, ODD_SERVICE[which % ODD_SERVICE.len()]).map(Object::Service),
        Object::EndpointSlice(slice) => {
            put(slice, ODD_SLICE[which % ODD_SLICE.len()]).map(Object::EndpointSlice)
        }
        _ => None,
    };
    changed.unwrap_or(object)
}

pub(super) fn any_object() -> impl Strategy<Value = Object> {
    let right = prop_oneof![
        6 => any_service(),
        8 => any_slice(),
        1 => (0u8..3).prop_map(|zone| node(&format!("z{zone}"))),
        1 => (0u8..2).prop_map(|wide| service_cidr("kubernetes", if wide > 0 { &["10.96.0.0/12", "fd00::/108"] } else { &["10.96.0.0/16"] })),
    ];
    let oddity = proptest::option::weighted(0.3, any::<usize>());
    (right, oddity).prop_map(|(object, oddity)| match oddity {
        Some(which) => odd(object, which),
        None => object,
    })
}

pub(super) fn any_name() -> impl Strategy<Value = ObjectRef> {
    (0u8..8, 0..NAMES).prop_map(|(kind, name)| match kind {
        0 => ObjectRef::new(Kind::Node, "", "node-a"),
        1 => ObjectRef::new(Kind::ServiceCidr, "", "kubernetes"),
        2..5 => ObjectRef::new(Kind::Service, "default", format!("s{name}")),
        _ => ObjectRef::new(Kind::EndpointSlice, "default", format!("e{name}")),
    })
}

/// What cannot be read any more would only be the right object once more.
#[test]
fn every_oddity_is_one() {
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30_000}]);
    let service =
        service("s0", "10.96.0.9", json!({"clusterIPs": ["10.96.0.9"], "type": "NodePort", "ports": ports}));
    let slice = slice("e0", "s0", &[endpoint("10.1.0.1", "node-a")]);
    for (object, count) in [(service, ODD_SERVICE.len()), (slice, ODD_SLICE.len())] {
        for which in 0..count {
            assert_ne!(odd(object.clone(), which), object, "{which}");
        }
    }
}
