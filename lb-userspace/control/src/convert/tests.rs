//! Objects right and wrong, and what is made of them.

use serde_json::{Value, json};

use super::*;
use crate::model::{
    Conditions, Family, Hints, Kind, ObjectRef, Origin, Policy, Problem, Protocol, Restricted, Service,
    Slice, SourceRanges,
};
use crate::objects::{self, HEADLESS, OTHER_PROXY};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Reads a Service that stands in a manifest.
fn read(labels: Value, spec: Value, status: Value) -> (Option<Service>, Vec<Problem>) {
    let object = json!({"metadata": {"name": "web", "labels": labels}, "spec": spec, "status": status});
    let object: objects::Service = serde_json::from_value(object).unwrap();
    let origin = Origin { file: "demo.yaml".into(), line: 3 };
    service(&object, &ObjectRef::new(Kind::Service, "default", "web"), Some(&origin))
}

fn served(spec: Value) -> Service {
    let (service, problems) = read(json!({}), spec, json!({}));
    assert_eq!(problems, []);
    service.unwrap()
}

/// The problems of a Service, without the part that is the same for all.
fn wrong(spec: Value) -> Vec<String> {
    let (_, problems) = read(json!({}), spec, json!({}));
    problems
        .iter()
        .map(|problem| problem.to_string().replace("demo.yaml:3: Service default/web: ", ""))
        .collect()
}

#[test]
fn what_is_not_said_gets_the_meaning_kubernetes_gives_it() {
    let service = served(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    assert_eq!(service.cluster_ips, [ip("10.96.0.1")]);
    assert_eq!(service.ports.len(), 1);
    assert_eq!((&*service.ports[0].name, service.ports[0].protocol), ("", Protocol::Tcp));
    assert_eq!((service.external_policy, service.internal_policy), (Policy::Cluster, Policy::Cluster));
    assert_eq!((service.affinity_seconds, service.health_check_node_port), (None, None));
}

#[test]
fn every_field_is_read() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIPs": ["fd00::1", "10.96.0.1"], "clusterIP": "fd00::1",
        "externalIPs": ["198.51.100.1", "2001:db8::9"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "healthCheckNodePort": 32000, "loadBalancerSourceRanges": [" 192.0.2.77/24 "],
        "ports": [{"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}],
    });
    let ingress = json!([{"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"},
                         {"ip": "2001:db8::3", "ipMode": "VIP"}, {"hostname": "lb.example"}]);
    let (service, problems) = read(json!({}), spec, json!({"loadBalancer": {"ingress": ingress}}));
    assert_eq!(problems, []);
    let service = service.unwrap();
    assert_eq!(service.cluster_ips, [ip("fd00::1"), ip("10.96.0.1")]);
    assert_eq!(service.external_ips, [ip("198.51.100.1"), ip("2001:db8::9")]);
    assert_eq!(service.load_balancer_ips, [ip("203.0.113.1"), ip("2001:db8::3")]);
    assert_eq!(service.source_ranges, [SourceRanges::Only(vec![net("192.0.2.0/24")]), SourceRanges::Any]);
    assert_eq!((service.external_policy, service.internal_policy), (Policy::Local, Policy::Local));
    assert_eq!(service.affinity_seconds.unwrap().get(), 60);
    assert_eq!(service.health_check_node_port.unwrap().get(), 32000);
    assert_eq!(service.ports[0].protocol, Protocol::Udp);
    assert_eq!(service.ports[0].node_port.unwrap().get(), 30053);
}

#[test]
fn services_of_others_are_left_alone_in_silence() {
    let ports = json!([{"port": 80}]);
    for spec in [
        json!({"clusterIP": "None", "ports": ports}),
        json!({"type": "ExternalName", "externalName": "example.org", "clusterIP": "10.96.0.1", "ports": ports}),
    ] {
        assert_eq!(read(json!({}), spec, json!({})), (None, Vec::new()));
    }
    let spec = json!({"clusterIP": "10.96.0.1", "ports": ports});
    let (service, problems) = read(json!({OTHER_PROXY: ""}), spec.clone(), json!({}));
    assert_eq!((service, problems), (None, Vec::new()), "the key counts, not the value");
    assert!(read(json!({HEADLESS: ""}), spec, json!({})).0.is_some(), "that is for its slices");
}

#[test]
fn what_is_wrong_is_named() {
    let with = |key: &str, value: Value| {
        let mut spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        spec[key] = value;
        wrong(spec)
    };
    let missing = "it is missing, and manifests are not given one by anybody; write the";
    let port = "is not a port; use a number from 1 to 65535";
    let cases = [
        (with("clusterIP", json!("")), format!("spec.clusterIP: {missing} address to serve")),
        (
            with("clusterIP", json!("010.1.1.1")),
            "spec.clusterIP: \"010.1.1.1\" is not an IP address; write four numbers from 0 to 255 without leading zeros, like 10.0.0.1, or an IPv6 address, like 2001:db8::1".to_owned(),
        ),
        (with("ports", json!([])), "spec.ports: there is none; add the ports to serve".to_owned()),
        (with("ports", json!([{"port": 0}])), format!("spec.ports[0].port: 0 {port}")),
        (with("ports", json!([{"port": 65536}])), format!("spec.ports[0].port: 65536 {port}")),
        (with("ports", json!([{"port": 1, "nodePort": -1}])), format!("spec.ports[0].nodePort: -1 {port}")),
        (
            with("ports", json!([{"port": 1, "protocol": "QUIC"}])),
            "spec.ports[0].protocol: \"QUIC\" is not known, this port is left out; use TCP, UDP or SCTP".to_owned(),
        ),
        (
            with("ports", json!([{"port": 1}, {"port": 2}])),
            "spec.ports[1].name: port 1 has the name \"\" and the protocol TCP as well, this one is left out; give each a name of its own".to_owned(),
        ),
        (with("type", json!("NodePort")), format!("spec.ports[0].nodePort: {missing} port to serve")),
        (
            with("externalTrafficPolicy", json!("Near")),
            "spec.externalTrafficPolicy: \"Near\" is not known, taken for Cluster; use Cluster or Local".to_owned(),
        ),
        (
            with("sessionAffinity", json!("Cookie")),
            "spec.sessionAffinity: \"Cookie\" is not known, taken for None; use ClientIP or None".to_owned(),
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, [expected]);
    }
    let affinity = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_401}}});
    let (service, problems) = read(json!({}), affinity, json!({}));
    assert_eq!(problems.len(), 1);
    assert_eq!(service.unwrap().affinity_seconds.unwrap().get(), 10_800);
}

/// Source ranges: trimmed, filtered by family, `0.0.0.0/0` lets everybody in.
#[test]
fn source_ranges_are_read_by_family() {
    let read = |ranges: Value| {
        let spec =
            json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "loadBalancerSourceRanges": ranges});
        let (service, problems) = read(json!({}), spec, json!({}));
        (service.unwrap().source_ranges, problems.len())
    };
    let only = |ranges: &[&str]| SourceRanges::Only(ranges.iter().map(|text| net(text)).collect());
    assert_eq!(read(json!([])), ([SourceRanges::Any, SourceRanges::Any], 0));
    assert_eq!(
        read(json!([" 192.0.2.1/24 ", "10.0.0.0/8", "192.0.2.0/24"])),
        ([only(&["10.0.0.0/8", "192.0.2.0/24"]), SourceRanges::Any], 0),
        "as with kube-proxy, a family that no range speaks of is open"
    );
    assert_eq!(read(json!(["2001:db8::/32"])), ([SourceRanges::Any, only(&["2001:db8::/32"])], 0));
    assert_eq!(read(json!(["192.0.2.0/24", "0.0.0.0/0"])), ([SourceRanges::Any, SourceRanges::Any], 0));
    for wrong in ["192.0.2.1", "010.0.0.0/8", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/08", "all", ""] {
        assert_eq!(read(json!([wrong])), ([only(&[]), only(&[])], 1), "{wrong}: nobody may come");
    }
}

/// Ranges by annotation take the place of the field's. What cannot be read lets nobody in, and holds everywhere.
#[test]
fn source_ranges_are_read_from_annotations() {
    let read = |annotations: Value| {
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "loadBalancerSourceRanges": ["10.0.0.0/8"]});
        let object = json!({"metadata": {"name": "web", "annotations": annotations}, "spec": spec});
        let object: objects::Service = serde_json::from_value(object).unwrap();
        let (service, problems) = service(&object, &ObjectRef::new(Kind::Service, "default", "web"), None);
        let service = service.unwrap();
        let [SourceRanges::Only(ranges), _] = service.source_ranges else { panic!("restricted") };
        let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
        (ranges.join(" "), service.restricted, problems.len())
    };
    let (ranges, at) = ("shunt.dev/source-ranges", "shunt.dev/source-ranges-at");
    let of = |ranges: &str, restricted, problems| (ranges.to_owned(), restricted, problems);
    assert_eq!(read(json!({})), of("10.0.0.0/8", Restricted::LoadBalancer, 0));
    assert_eq!(read(json!({at: "external"})), of("10.0.0.0/8", Restricted::External, 0));
    assert_eq!(read(json!({at: "somewhere"})), of("10.0.0.0/8", Restricted::Everywhere, 1));
    assert_eq!(read(json!({ranges: " 192.0.2.0/24"})), of("192.0.2.0/24", Restricted::External, 0));
    assert_eq!(read(json!({ranges: ""})), of("", Restricted::External, 1));
    let one_is_wrong = json!({ranges: "192.0.2.0/24,192.0.3.1", at: "load-balancer"});
    assert_eq!(read(one_is_wrong), of("192.0.2.0/24", Restricted::LoadBalancer, 1));
}

/// One clusterIP per family, from clusterIPs before clusterIP.
#[test]
fn one_cluster_ip_counts_for_each_family() {
    let ips = |several: Value, single: &str| {
        served(json!({"clusterIPs": several, "clusterIP": single, "ports": [{"port": 80}]})).cluster_ips
    };
    assert_eq!(ips(json!(["fd00::1"]), "fd00::1"), [ip("fd00::1")]);
    assert_eq!(ips(json!(["10.96.0.1", "fd00::1"]), "10.96.0.1"), [ip("10.96.0.1"), ip("fd00::1")]);
    assert_eq!(ips(json!(["10.96.0.1", "10.96.0.2"]), "10.96.0.1"), [ip("10.96.0.1")]);
    assert_eq!(ips(json!([]), "10.96.0.1"), [ip("10.96.0.1")]);
    let service = served(json!({"clusterIPs": ["10.96.0.1", "fd00::1"], "ports": [{"port": 80}]}));
    assert_eq!(service.cluster_ip(Family::V6), Some(ip("fd00::1")));
}

/// healthCheckNodePort: only of type LoadBalancer with externalTrafficPolicy Local.
#[test]
fn a_health_check_port_needs_a_load_balancer_and_the_local_policy() {
    let port = |kind: &str, policy: &str| {
        let spec = json!({"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 32000,
                          "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
        served(spec).health_check_node_port.map(NonZeroU16::get)
    };
    assert_eq!(port("LoadBalancer", "Local"), Some(32000));
    assert_eq!(port("LoadBalancer", "Cluster"), None);
    assert_eq!(port("NodePort", "Local"), None);
}

/// Affinity: 10800 seconds when not said, 1 to 86400 when said.
#[test]
fn affinity_lasts_three_hours_when_not_said() {
    let seconds = |config: Value| {
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "sessionAffinity": "ClientIP",
                          "sessionAffinityConfig": config});
        let (service, problems) = read(json!({}), spec, json!({}));
        (service.unwrap().affinity_seconds.unwrap().get(), problems.len())
    };
    assert_eq!(seconds(json!(null)), (10_800, 0));
    for (said, expected) in
        [(1, (1, 0)), (86_400, (86_400, 0)), (0, (10_800, 1)), (86_401, (10_800, 1)), (-1, (10_800, 1))]
    {
        assert_eq!(seconds(json!({"clientIP": {"timeoutSeconds": said}})), expected);
    }
}

/// Hostile addresses (CVE-2021-25737, CVE-2021-29923).
#[test]
fn hostile_addresses_are_refused() {
    let hostile = [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "010.1.1.1",
        "x",
        "",
        "::",
        "::1",
        "fe80::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "fe80::1%eth0",
        "[2001:db8::1]",
    ];
    for text in hostile {
        assert!(address(text).is_err(), "{text}");
    }
    for text in ["10.0.0.1", "2001:db8::1", "fd00::1", "2001:0db8::0001"] {
        assert_eq!(address(text), Ok(ip(text)));
    }
}

#[test]
fn networks_are_read_without_guessing() {
    assert_eq!(network("192.0.2.77/24"), Some(net("192.0.2.0/24")));
    assert_eq!(network("2001:db8::1/32"), Some(net("2001:db8::/32")));
    for wrong in
        ["", "10.0.0.0", "10.0.0/8", "010.0.0.0/8", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "10.0.0.0/08"]
    {
        assert_eq!(network(wrong), None, "{wrong}");
    }
}

#[test]
fn the_ranges_of_cluster_ips_are_read() {
    let object =
        json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12", "fd00:1::/108", "x"]}});
    let reference = ObjectRef::new(Kind::ServiceCidr, "", "kubernetes");
    let (ranges, problems) = service_cidr(&serde_json::from_value(object).unwrap(), &reference, None);
    assert_eq!(ranges, [net("10.96.0.0/12"), net("fd00:1::/108")]);
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].to_string().starts_with("ServiceCIDR kubernetes: spec.cidrs[2]: \"x\""),
        "{}",
        problems[0]
    );
}

fn read_slice(object: Value) -> (Option<Slice>, Vec<Problem>) {
    let object: objects::EndpointSlice = serde_json::from_value(object).unwrap();
    endpoint_slice(&object, &ObjectRef::new(Kind::EndpointSlice, "default", "web-1"), "node-a", None)
}

fn slice_of(endpoints: Value, ports: Value) -> (Slice, Vec<Problem>) {
    let labels = json!({"kubernetes.io/service-name": "web"});
    let (slice, problems) = read_slice(
        json!({"metadata": {"labels": labels}, "addressType": "IPv4", "endpoints": endpoints, "ports": ports}),
    );
    (slice.unwrap(), problems)
}

#[test]
fn endpoints_are_read_as_kube_proxy_reads_them() {
    let endpoints = json!([
        {"addresses": ["10.1.0.1", "10.1.0.99"], "nodeName": "node-a", "targetRef": {"name": "web-abc"}},
        {"addresses": ["10.1.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.1.0.3"], "conditions": {"ready": false}, "nodeName": "node-b"},
    ]);
    let ports = json!([{"name": "http", "port": 8080}, {"name": "all"}, {"port": 1}, {"name": "zero", "port": 0}, {"name": "s", "port": 2, "protocol": "SCTP"},
                       {"name": "dns", "port": 53, "protocol": "UDP"}]);
    let (slice, problems) = slice_of(endpoints, ports);
    assert_eq!(problems, []);
    let ports: Vec<_> =
        slice.ports.iter().map(|port| (&*port.name, port.port.get(), port.protocol)).collect();
    assert_eq!(ports, [("http", 8080, Protocol::Tcp), ("s", 2, Protocol::Sctp), ("dns", 53, Protocol::Udp)]);
    let read: Vec<_> = slice.endpoints.iter().map(|e| (e.address.to_string(), e.local, &*e.target)).collect();
    let expected = [("10.1.0.1", true, "web-abc"), ("10.1.0.2", false, ""), ("10.1.0.3", false, "")];
    assert_eq!(read, expected.map(|(address, local, target)| (address.to_owned(), local, target)));
    let conditions: Vec<_> = slice.endpoints.iter().map(|e| e.conditions).collect();
    let of = |ready, serving, terminating| Conditions { ready, serving, terminating };
    assert_eq!(conditions, [of(true, true, false), of(false, true, true), of(false, true, false)]);
}

#[test]
fn hostile_endpoints_are_left_out_and_named() {
    let hostile =
        ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255", "::1", "010.1.1.1"];
    let endpoints: Vec<_> = hostile.iter().map(|address| json!({"addresses": [address]})).collect();
    let (slice, problems) =
        slice_of(json!(endpoints), json!([{"name": "", "port": 80}, {"name": "x", "port": 65_536}]));
    assert_eq!(slice.endpoints, []);
    assert_eq!(problems.len(), hostile.len() + 1);
    assert_eq!(problems[1].field, "endpoints[0].addresses[0]");
}

#[test]
fn a_flood_of_mistakes_is_cut_short() {
    let endpoints: Vec<_> = (0..1000).map(|_| json!({"addresses": ["127.0.0.1"]})).collect();
    let (_, problems) = slice_of(json!(endpoints), json!([]));
    assert_eq!(problems.len(), 11);
    assert_eq!(problems[10].message, "990 more problems of the same object are not shown");
}

#[test]
fn slices_of_others_are_left_alone_in_silence() {
    let labels = json!({"kubernetes.io/service-name": "web"});
    for object in [
        json!({"metadata": {"labels": labels}, "addressType": "FQDN", "endpoints": []}),
        json!({"metadata": {}, "addressType": "IPv4", "endpoints": []}),
        json!({"metadata": {"labels": {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": "x"}},
               "addressType": "IPv4", "endpoints": []}),
    ] {
        assert_eq!(read_slice(object), (None, Vec::new()));
    }
}

#[test]
fn a_node_about_to_go_is_not_eligible() {
    let read = |object: Value| node(&serde_json::from_value(object).unwrap());
    let found = read(json!({
        "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "z1"}},
        "spec": {"podCIDR": "10.1.0.0/24"},
        "status": {"addresses": [{"type": "Hostname", "address": "node-a"}, {"type": "InternalIP", "address": "fd00::1"},
                                 {"type": "InternalIP", "address": "192.0.2.1"}]},
    }));
    assert_eq!(found.addresses, [ip("fd00::1"), ip("192.0.2.1")]);
    assert_eq!(
        (found.pod_cidrs, found.zone.as_deref(), found.eligible),
        (vec!["10.1.0.0/24".to_owned()], Some("z1"), true)
    );
    let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    assert!(!read(json!({"metadata": {"name": "a"}, "spec": {"taints": taint}})).eligible);
    assert!(!read(json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}})).eligible);
}

/// Other families: an IPv6 slice is read, an address of the other family in it is not.
#[test]
fn a_slice_is_of_one_family() {
    let labels = json!({"kubernetes.io/service-name": "web"});
    let endpoints = json!([{"addresses": ["fd00::5"]}, {"addresses": ["10.1.0.5"]}]);
    let (slice, problems) = read_slice(
        json!({"metadata": {"labels": labels}, "addressType": "IPv6", "endpoints": endpoints, "ports": []}),
    );
    let slice = slice.unwrap();
    assert_eq!((slice.family, slice.endpoints.len()), (Family::V6, 1));
    assert_eq!(slice.endpoints[0].address, ip("fd00::5"));
    let expected = "10.1.0.5 is an IPv4 address in a slice of addressType IPv6; correct one of the two";
    assert_eq!((problems.len(), problems[0].message.as_str()), (1, expected));
}

#[test]
fn hints_are_read_for_this_node_and_by_zone() {
    let hints = |hints: Value| {
        let (slice, _) = slice_of(json!([{"addresses": ["10.1.0.1"], "hints": hints}]), json!([]));
        slice.endpoints[0].hints.clone()
    };
    assert_eq!(hints(json!(null)), Hints::default());
    assert_eq!(hints(json!({"forZones": [], "forNodes": []})), Hints::default());
    let both = hints(json!({"forZones": [{"name": "z1"}, {"name": "z2"}], "forNodes": [{"name": "node-b"}]}));
    assert_eq!(both, Hints { this_node: Some(false), zones: ["z1".into(), "z2".into()].into() });
    assert_eq!(hints(json!({"forNodes": [{"name": "node-b"}, {"name": "node-a"}]})).this_node, Some(true));
}

#[test]
fn the_time_of_the_trigger_is_read() {
    let triggered = |time: &str| {
        let metadata = json!({"labels": {"kubernetes.io/service-name": "web"},
                              "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": time}});
        read_slice(json!({"metadata": metadata, "addressType": "IPv4", "endpoints": []})).0.unwrap().triggered
    };
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_700_000_000_500);
    assert_eq!(triggered("2023-11-14T22:13:20.5Z"), Some(at));
    assert_eq!(triggered("yesterday"), None);
}
