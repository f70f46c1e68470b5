//! Endpoint choice, policies and precedence, as tables.

use std::num::NonZeroU16;

use super::*;
use crate::convert;
use crate::source::Object;
use crate::source::objects::{endpoint, slice, stopping};
use serde_json::{Value, json};

fn desired(spec: Value, endpoints: &[Value], node: &NodeView) -> (DesiredService, Vec<Problem>) {
    let object = crate::source::objects::service("web", "10.96.0.10", spec);
    let Object::Service(read) = &object else { panic!("a Service") };
    let (read, problems) = convert::service(read, &object.reference(), None);
    assert_eq!(problems, []);
    let object = slice("web-1", "web", endpoints);
    let Object::EndpointSlice(slice) = &object else { panic!("a slice") };
    let (slice, problems) = convert::endpoint_slice(slice, &object.reference(), "node-a", None);
    assert_eq!(problems, []);
    service(&read.unwrap(), slice.iter(), node)
}

/// The lists of the one port, as the last byte of each address.
fn lists(endpoints: &[Value]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (desired, _) = desired(json!({}), endpoints, &NodeView::default());
    let port = &desired.ports[0];
    let last = |index: u32| port.endpoints[index as usize].address.octets()[3];
    (
        (0u32..).take(port.endpoints.len()).map(last).collect(),
        port.cluster.iter().copied().map(last).collect(),
        port.local.iter().copied().map(last).collect(),
    )
}

fn unready(address: &str, node: &str, serving: bool) -> Value {
    json!({"addresses": [address], "nodeName": node, "conditions": {"ready": false, "serving": serving}})
}

#[test]
fn endpoints_are_chosen_as_kube_proxy_chooses_them() {
    let (a, b) = ("node-a", "node-b");
    let cases = [
        (
            "all ready",
            vec![endpoint("10.1.0.2", b), endpoint("10.1.0.1", a)],
            (vec![1, 2], vec![1, 2], vec![1]),
        ),
        (
            "a ready one goes before one that stops",
            vec![endpoint("10.1.0.1", b), stopping("10.1.0.2", b, true)],
            (vec![1, 2], vec![1], vec![]),
        ),
        (
            "none ready: those that stop but serve",
            vec![
                stopping("10.1.0.1", b, true),
                stopping("10.1.0.2", b, false),
                stopping("10.1.0.3", a, true),
            ],
            (vec![1, 3], vec![1, 3], vec![3]),
        ),
        (
            "each list falls back by itself",
            vec![endpoint("10.1.0.1", b), stopping("10.1.0.2", a, true)],
            (vec![1, 2], vec![1], vec![2]),
        ),
        ("serving alone is not ready", vec![unready("10.1.0.1", a, true)], (vec![1], vec![], vec![])),
        ("neither", vec![unready("10.1.0.1", a, false)], (vec![], vec![], vec![])),
        (
            "the local one of two wins",
            vec![endpoint("10.1.0.1", b), endpoint("10.1.0.1", a)],
            (vec![1], vec![1], vec![1]),
        ),
    ];
    for (what, endpoints, expected) in cases {
        assert_eq!(lists(&endpoints), expected, "{what}");
        let reversed: Vec<_> = endpoints.into_iter().rev().collect();
        assert_eq!(lists(&reversed), expected, "{what}, in another order");
    }
}

#[test]
fn an_endpoint_at_the_services_own_address_is_left_out() {
    let (desired, problems) = desired(json!({}), &[endpoint("10.96.0.10", "node-b")], &NodeView::default());
    assert_eq!(desired.ports[0].endpoints, []);
    assert!(
        problems[0]
            .to_string()
            .starts_with("EndpointSlice default/web-1: endpoints: 10.96.0.10 is the ClusterIP")
    );
}

fn frontends(spec: Value, external_ips: &str) -> Vec<String> {
    let node = NodeView {
        addresses: vec![Ipv4Addr::new(192, 0, 2, 1)],
        external_ips: external_ips.parse().unwrap(),
    };
    let (desired, _) = desired(spec, &[], &node);
    let text = |f: &DesiredFrontend| {
        format!(
            "{}:{} {:?} {:?}/{:?} {}",
            f.frontend.address, f.frontend.port, f.class, f.outside, f.inside, f.flags.0
        )
    };
    desired.ports.iter().flat_map(|port| port.frontends.iter().map(text)).collect()
}

#[test]
fn policies_choose_the_lists_of_each_frontend() {
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
    assert_eq!(
        frontends(json!({"ports": ports, "externalIPs": ["198.51.100.1"]}), "all"),
        [
            "10.96.0.10:80 ClusterIp Cluster/Cluster 0",
            "198.51.100.1:80 ExternalIp Cluster/Cluster 1",
            "192.0.2.1:30080 NodePort Cluster/Cluster 1",
            "127.0.0.1:30080 NodePort Cluster/Cluster 1",
        ]
    );
    assert_eq!(
        frontends(
            json!({"ports": ports, "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}),
            "all"
        ),
        [
            "10.96.0.10:80 ClusterIp Local/Local 0",
            "192.0.2.1:30080 NodePort Local/Cluster 3",
            "127.0.0.1:30080 NodePort Local/Cluster 3",
        ]
    );
}

#[test]
fn external_addresses_are_served_as_far_as_allowed() {
    let spec = || json!({"externalIPs": ["198.51.100.1", "192.0.2.1"]});
    let external = |policy: &str| {
        let all = frontends(spec(), policy);
        all.into_iter()
            .filter_map(|f| f.strip_suffix(" ExternalIp Cluster/Cluster 1").map(str::to_owned))
            .collect::<Vec<_>>()
    };
    assert_eq!(external("none"), [] as [&str; 0]);
    assert_eq!(external("all"), ["198.51.100.1:80"], "not the node's own");
    assert_eq!(external("198.51.0.0/16,10.0.0.0/8"), ["198.51.100.1:80"]);
    assert_eq!(external("192.0.2.1"), ["192.0.2.1:80"], "the node's own when it is named");
    assert_eq!(external("0.0.0.0/0").len(), 2);
    for wrong in ["", "any", "10.0.0.0/33", "10.0.0/8", "fd00::/8", "010.0.0.0/8"] {
        assert!(wrong.parse::<ExternalIps>().is_err(), "{wrong}");
    }
}

fn claimant(name: &str, created: Option<i64>, class: Class, address: u8) -> DesiredService {
    let frontend =
        Frontend4::new(Ipv4Addr::new(10, 0, 0, address).into(), Port::new(80), Protocol::Tcp.proto());
    let flags = ServiceFlags::default();
    let frontend = DesiredFrontend { frontend, class, outside: List::Cluster, inside: List::Cluster, flags };
    let port = DesiredPort {
        name: "".into(),
        protocol: Protocol::Tcp,
        affinity_seconds: 0,
        endpoints: Vec::new(),
        cluster: Vec::new(),
        local: Vec::new(),
        frontends: vec![frontend],
    };
    DesiredService { key: ServiceKey::new("default", name), created, ports: vec![port] }
}

fn holder(claims: &Claims, address: u8) -> Option<String> {
    let address = Ipv4Addr::new(10, 0, 0, address).into();
    let frontend =
        Frontend4::new(address, Port::new(NonZeroU16::new(80).unwrap().get()), Protocol::Tcp.proto());
    claims.holder(frontend).map(|owner| owner.service.name.to_string())
}

#[test]
fn precedence_does_not_depend_on_the_order_of_arrival() {
    let claimants = [
        claimant("b", Some(5), Class::NodePort, 1),
        claimant("a", Some(5), Class::NodePort, 1),
        claimant("z", Some(1), Class::NodePort, 1),
        claimant("y", None, Class::NodePort, 1),
    ];
    for first in 0..claimants.len() {
        let mut claims = Claims::default();
        for i in 0..claimants.len() {
            let claimant = &claimants[(first + i) % claimants.len()];
            claims.update(&claimant.key, Some(claimant));
        }
        for expected in ["z", "a", "b", "y"] {
            assert_eq!(holder(&claims, 1).as_deref(), Some(expected));
            let affected = claims.update(&ServiceKey::new("default", expected), None);
            assert_eq!(affected.is_empty(), expected == "y", "those who wait are told");
        }
        assert_eq!(holder(&claims, 1), None);
    }
}

#[test]
fn a_cluster_ip_goes_before_an_older_external_address() {
    let mut claims = Claims::default();
    let thief = claimant("thief", Some(1), Class::ExternalIp, 1);
    assert!(claims.update(&thief.key, Some(&thief)).is_empty());
    assert_eq!(holder(&claims, 1).as_deref(), Some("thief"));
    let owner = claimant("owner", Some(9), Class::ClusterIp, 1);
    let affected: Vec<_> = claims.update(&owner.key, Some(&owner)).into_iter().collect();
    assert_eq!(affected, [thief.key]);
    assert_eq!(holder(&claims, 1).as_deref(), Some("owner"));
}
