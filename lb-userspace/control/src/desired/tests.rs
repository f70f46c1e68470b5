//! Endpoint choice, policies and precedence, as tables.

use super::*;
use crate::convert;
use crate::model::Slice;
use crate::source::Object;
use crate::source::objects::{endpoint, slice, slice_with, stopping};
use serde_json::{Value, json};

mod hostile;
mod topology;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn read_slice(object: &Object) -> Slice {
    let Object::EndpointSlice(slice) = object else { panic!("a slice") };
    let (slice, problems) = convert::endpoint_slice(slice, &object.reference(), "node-a", None);
    assert_eq!(problems, []);
    slice.unwrap()
}

/// What a Service with these slices wants when it is alone.
fn desired_of(object: &Object, slices: &[Slice], node: &NodeView) -> (DesiredService, Vec<Problem>) {
    let Object::Service(read) = object else { panic!("a Service") };
    let (read, problems) = convert::service(read, &object.reference(), None);
    assert_eq!(problems, []);
    let read = read.unwrap();
    let (mut desired, mut problems) = service(&read, node);
    let mut claims = Claims::default();
    claims.update(&read.key, Some(&desired));
    problems.extend(desired.choose_endpoints(&read, slices.iter(), node, &claims));
    (desired, problems)
}

fn desired(spec: Value, endpoints: &[Value], node: &NodeView) -> (DesiredService, Vec<Problem>) {
    let object = crate::source::objects::service("web", "10.96.0.10", spec);
    desired_of(&object, &[read_slice(&slice("web-1", "web", endpoints))], node)
}

/// The last byte of the addresses of some endpoints of a port.
fn last(port: &DesiredPort, indices: &[u32]) -> Vec<u8> {
    let last = |index: &u32| match port.endpoints[*index as usize].address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    indices.iter().map(last).collect()
}

/// The lists of the one port, as the last byte of each address: all that serve, Cluster, Local.
fn lists(endpoints: &[Value]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (desired, _) = desired(json!({}), endpoints, &NodeView::default());
    let port = &desired.ports[0];
    let all: Vec<u32> = (0..).take(port.endpoints.len()).collect();
    (last(port, &all), last(port, &port.lists[0].cluster), last(port, &port.lists[0].local))
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

fn node_view() -> NodeView {
    NodeView {
        serves_node_ports: [true; 2],
        own: vec![ip("192.0.2.1"), ip("2001:db8::1")],
        ..NodeView::default()
    }
}

fn frontends(spec: Value, external_ips: &str) -> Vec<String> {
    let node = NodeView { external_ips: external_ips.parse().unwrap(), ..node_view() };
    frontends_on(spec, &node)
}

fn frontends_on(spec: Value, node: &NodeView) -> Vec<String> {
    let (desired, _) = desired(spec, &[], node);
    let text = |f: &DesiredFrontend| {
        format!("{} {:?} {:?}/{:?} {}", f.frontend, f.class, f.outside, f.inside, f.flags.0)
    };
    desired.ports.iter().flat_map(|port| port.frontends.iter().map(text)).collect()
}

#[test]
fn policies_choose_the_lists_of_each_frontend() {
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
    assert_eq!(
        frontends(json!({"ports": ports, "externalIPs": ["198.51.100.1"]}), "all"),
        [
            "10.96.0.10:80/TCP ClusterIp Cluster/Cluster 0",
            "198.51.100.1:80/TCP ExternalIp Cluster/Cluster 1",
            "0.0.0.0:30080/TCP NodePort Cluster/Cluster 1",
        ]
    );
    assert_eq!(
        frontends(
            json!({"ports": ports, "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}),
            "all"
        ),
        ["10.96.0.10:80/TCP ClusterIp Local/Local 0", "0.0.0.0:30080/TCP NodePort Local/Cluster 3",]
    );
}

/// externalIPs: as kube-proxy serves them, a node's own address included, limited by the flag.
#[test]
fn external_addresses_are_served_as_far_as_allowed() {
    let external = |policy: &str| {
        let spec = json!({"clusterIPs": ["10.96.0.10", "fd00::10"],
                          "externalIPs": ["198.51.100.1", "192.0.2.1", "2001:db8:9::1"]});
        let all = frontends(spec, policy);
        let suffix = "/TCP ExternalIp Cluster/Cluster 1";
        all.into_iter().filter_map(|f| f.strip_suffix(suffix).map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(external("none"), [] as [&str; 0]);
    assert_eq!(external("all"), ["198.51.100.1:80", "192.0.2.1:80", "[2001:db8:9::1]:80"]);
    assert_eq!(external("198.51.0.0/16,2001:db8:9::/48"), ["198.51.100.1:80", "[2001:db8:9::1]:80"]);
    assert_eq!(external("192.0.2.1, 2001:db8:9::1"), ["192.0.2.1:80", "[2001:db8:9::1]:80"]);
    for wrong in ["", "any", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "010.0.0.0/8"] {
        assert!(wrong.parse::<ExternalIps>().is_err(), "{wrong}");
    }
}

/// One clusterIP per family: a family without one is not served at all.
#[test]
fn a_family_without_a_cluster_ip_is_not_served() {
    let spec = |ips: Value| {
        json!({"clusterIP": ips[0], "clusterIPs": ips, "externalIPs": ["198.51.100.1", "2001:db8:9::1"],
               "ports": [{"name": "http", "port": 80, "nodePort": 30080}]})
    };
    let addresses = |ips: Value| {
        let of = |text: String| text.split("/TCP").next().unwrap_or_default().to_owned();
        frontends_on(spec(ips), &node_view()).into_iter().map(of).collect::<Vec<_>>()
    };
    let v4 = ["10.96.0.10:80", "198.51.100.1:80", "0.0.0.0:30080"];
    let v6 = ["[fd00::10]:80", "[2001:db8:9::1]:80", "[::]:30080"];
    assert_eq!(addresses(json!(["10.96.0.10"])), v4);
    assert_eq!(addresses(json!(["fd00::10"])), v6);
    assert_eq!(addresses(json!(["10.96.0.10", "fd00::10"])).len(), 6);
    let slices = [
        read_slice(&slice("web-1", "web", &[endpoint("10.1.0.1", "node-b")])),
        read_slice(&slice("web-2", "web", &[endpoint("fd00:1::1", "node-b")])),
    ];
    for (ips, counts) in [(json!(["10.96.0.10"]), [1, 0]), (json!(["10.96.0.10", "fd00::10"]), [1, 1])] {
        let object = crate::source::objects::service("web", "10.96.0.10", spec(ips));
        let (desired, _) = desired_of(&object, &slices, &NodeView::default());
        assert_eq!(desired.ports[0].lists.each_ref().map(|lists| lists.cluster.len()), counts);
    }
}

/// loadBalancerSourceRanges: load-balancer addresses alone; where a range holds the node, so may its VIP come.
#[test]
fn source_ranges_hold_for_load_balancer_addresses_alone() {
    let read = |ranges: Value| {
        let spec = json!({"clusterIPs": ["10.96.0.10", "fd00::10"], "externalIPs": ["198.51.100.1"],
                          "loadBalancerSourceRanges": ranges,
                          "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
        let mut object = crate::source::objects::service("web", "10.96.0.10", spec);
        let Object::Service(service) = &mut object else { panic!("a Service") };
        let ingress = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"ip": "2001:db8:7::1"}]}});
        service.status = Some(serde_json::from_value(ingress).unwrap());
        let (desired, _) = desired_of(&object, &[], &node_view());
        let port = &desired.ports[0];
        let checked = port.frontends.iter().filter(|f| f.flags.has(ServiceFlags::CHECK_SOURCES));
        let checked: Vec<_> = checked.map(|f| f.frontend.address.to_string()).collect();
        let ranges: Vec<_> = port.source_ranges.iter().map(IpNet::to_string).collect();
        (checked, ranges)
    };
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(read(json!([])), (vec![], vec![]));
    assert_eq!(read(json!(["10.0.0.0/8"])), (texts(&["203.0.113.1"]), texts(&["10.0.0.0/8"])));
    assert_eq!(
        read(json!(["192.0.2.0/24", "fd77::/16"])),
        (texts(&["203.0.113.1", "2001:db8:7::1"]), texts(&["192.0.2.0/24", "203.0.113.1/32", "fd77::/16"]))
    );
    assert_eq!(
        read(json!(["2001:db8::/64"])),
        (texts(&["2001:db8:7::1"]), texts(&["2001:db8::/64", "2001:db8:7::1/128"]))
    );
}

/// By annotation they hold at other frontends, too.
#[test]
fn source_ranges_hold_where_the_annotation_says() {
    let checked = |annotations: Value| {
        let spec = json!({"externalIPs": ["198.51.100.1"], "loadBalancerSourceRanges": ["10.0.0.0/8"],
                          "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
        let mut object = crate::source::objects::service("web", "10.96.0.10", spec);
        let Object::Service(service) = &mut object else { panic!("a Service") };
        service.metadata.annotations = serde_json::from_value(annotations).unwrap();
        let ingress = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
        service.status = Some(serde_json::from_value(ingress).unwrap());
        let (desired, problems) = desired_of(&object, &[], &node_view());
        let port = &desired.ports[0];
        let checked = port.frontends.iter().filter(|f| f.flags.has(ServiceFlags::CHECK_SOURCES));
        let checked: Vec<_> = checked.map(|f| f.frontend.address.to_string()).collect();
        let ranges: Vec<_> = port.source_ranges.iter().map(IpNet::to_string).collect();
        assert_eq!(problems, []);
        (checked.join(" "), ranges.join(" "))
    };
    let of = |addresses: &str, ranges: &str| (addresses.to_owned(), ranges.to_owned());
    let (ranges, at) = ("shunt.dev/source-ranges", "shunt.dev/source-ranges-at");
    let external = "203.0.113.1 198.51.100.1 0.0.0.0";
    assert_eq!(checked(json!({})), of("203.0.113.1", "10.0.0.0/8"));
    assert_eq!(checked(json!({at: "external"})), of(external, "10.0.0.0/8"));
    let everywhere = format!("10.96.0.10 {external}");
    assert_eq!(checked(json!({at: "everywhere"})), of(&everywhere, "10.0.0.0/8"));
    let both = "172.16.0.0/12 172.30.0.0/16";
    assert_eq!(checked(json!({ranges: "172.30.0.0/16, 172.16.0.0/12"})), of(external, both));
    let lb = json!({ranges: "172.30.0.0/16", at: "load-balancer"});
    assert_eq!(checked(lb), of("203.0.113.1", "172.30.0.0/16"));
}

/// SCTP: only where port equals targetPort; the rest is told.
#[test]
fn sctp_is_served_where_the_port_stays() {
    let blocked = |target: u16| {
        let ports = json!([{"name": "diameter", "port": 3868, "nodePort": 30868, "protocol": "SCTP"}]);
        let object = crate::source::objects::service("web", "10.96.0.10", json!({"ports": ports}));
        let ports = json!([{"name": "diameter", "port": target, "protocol": "SCTP"}]);
        let slices = [read_slice(&slice_with("web-1", "web", &[endpoint("10.1.0.1", "node-b")], ports))];
        let (desired, problems) = desired_of(&object, &slices, &node_view());
        let frontends = desired.ports[0].frontends.iter();
        let blocked = frontends.filter(|f| f.port_would_change).map(|f| f.frontend.to_string());
        (blocked.collect::<Vec<_>>(), problems.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let (frontends, problems) = blocked(3868);
    assert_eq!(frontends, ["0.0.0.0:30868/SCTP"]);
    assert_eq!(
        problems,
        [
            "Service default/web: spec.ports: SCTP port 30868 is not served, because endpoints listen on 3868: SCTP \
          keeps its port on the way; make port and targetPort equal"
        ]
    );
    let (frontends, problems) = blocked(3869);
    assert_eq!((frontends.len(), problems.len()), (2, 2));
}

fn claimant(name: &str, created: Option<i64>, class: Class, address: u8) -> DesiredService {
    let frontend = DesiredFrontend {
        frontend: Frontend::new(IpAddr::from([10, 0, 0, address]), 80, Protocol::Tcp),
        class,
        outside: List::Cluster,
        inside: List::Cluster,
        flags: ServiceFlags::default(),
        port_would_change: false,
    };
    let port = DesiredPort {
        name: "".into(),
        protocol: Protocol::Tcp,
        affinity_seconds: 0,
        endpoints: Vec::new(),
        lists: Default::default(),
        frontends: vec![frontend],
        source_ranges: BTreeSet::new(),
    };
    let cluster_ips = Vec::new();
    DesiredService { key: ServiceKey::new("default", name), created, cluster_ips, ports: vec![port] }
}

fn holder(claims: &Claims, address: u8) -> Option<String> {
    let frontend = Frontend::new(IpAddr::from([10, 0, 0, address]), 80, Protocol::Tcp);
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
            assert_eq!(affected.services.is_empty(), expected == "y", "those who wait are told");
        }
        assert_eq!(holder(&claims, 1), None);
    }
}

#[test]
fn a_cluster_ip_goes_before_an_older_external_address() {
    let mut claims = Claims::default();
    let thief = claimant("thief", Some(1), Class::ExternalIp, 1);
    assert!(claims.update(&thief.key, Some(&thief)).services.is_empty());
    assert_eq!(holder(&claims, 1).as_deref(), Some("thief"));
    let owner = claimant("owner", Some(9), Class::ClusterIp, 1);
    let affected: Vec<_> = claims.update(&owner.key, Some(&owner)).services.into_iter().collect();
    assert_eq!(affected, [thief.key]);
    assert_eq!(holder(&claims, 1).as_deref(), Some("owner"));
}
