//! Hostile objects: what may be neither an endpoint nor an external address.

use super::*;

/// A second Service beside `web`, whose endpoints are asked about.
fn refusals(other: Value, node: &NodeView, endpoints: &[Value]) -> (Vec<String>, Vec<String>) {
    let read = |object: &Object| {
        let Object::Service(service) = object else { panic!("a Service") };
        convert::service(service, &object.reference(), None).0.unwrap()
    };
    let web = read(&crate::source::objects::service("web", "10.96.0.10", json!({})));
    let other = read(&crate::source::objects::service("other", "10.96.0.20", other));
    let mut claims = Claims::default();
    claims.update(&other.key, Some(&service(&other, node).0));
    let (mut desired, _) = service(&web, node);
    claims.update(&web.key, Some(&desired));
    let slices = [read_slice(&slice("web-1", "web", endpoints))];
    let problems = desired.choose_endpoints(&web, slices.iter(), node, &claims);
    let left = desired.ports[0].endpoints.iter().map(|endpoint| endpoint.address.to_string());
    (left.collect(), problems.iter().map(ToString::to_string).collect())
}

#[test]
fn endpoints_at_addresses_of_services_are_left_out() {
    let addresses = ["10.96.0.10", "10.96.0.20", "198.51.100.1", "10.1.0.1"];
    let nowhere = |address: &str| json!({"addresses": [address], "conditions": {"ready": true}});
    let endpoints = addresses.map(nowhere);
    let of = |text: &str| {
        format!("EndpointSlice default/web-1: endpoints: {text} and is left out; use the address of a pod")
    };
    let own = of("10.96.0.10 is the ClusterIP of a Service");
    let others = of("10.96.0.20 is the ClusterIP of a Service");
    let spec = |port: u16| json!({"externalIPs": ["198.51.100.1"], "ports": [{"name": "x", "port": port}]});
    let (left, problems) = refusals(spec(8080), &NodeView::default(), &endpoints);
    assert_eq!(left, ["10.1.0.1"]);
    let external = of("198.51.100.1:8080/TCP is where a Service is served");
    assert_eq!(problems, [own.clone(), others.clone(), external]);
    // An external address may be a node's, where pods of the host's network have endpoints on other ports.
    let (left, problems) = refusals(spec(80), &NodeView::default(), &endpoints);
    assert_eq!(left, ["10.1.0.1", "198.51.100.1"]);
    assert_eq!(problems, [own.clone(), others.clone()]);
    // Nor does one of this node lead in circles.
    let node = NodeView { own: vec![ip("198.51.100.1")], ..NodeView::default() };
    let (left, problems) = refusals(spec(8080), &node, &endpoints);
    assert_eq!(left, ["10.1.0.1", "198.51.100.1"]);
    assert_eq!(problems, [own.clone(), others.clone()]);
    // Nor one of another node, by its Node object or by what the slice says.
    let node = NodeView { others: [ip("198.51.100.1")].into(), ..NodeView::default() };
    assert_eq!(refusals(spec(8080), &node, &endpoints).0, ["10.1.0.1", "198.51.100.1"]);
    let endpoints = addresses.map(|address| endpoint(address, "node-b"));
    let (left, problems) = refusals(spec(8080), &NodeView::default(), &endpoints);
    assert_eq!(left, ["10.1.0.1", "198.51.100.1"]);
    assert_eq!(problems, [own, others]);
}

#[test]
fn a_flood_of_hostile_endpoints_is_cut_short() {
    let ports: Vec<_> = (0..100).map(|port| json!({"name": "http", "port": 8000 + port})).collect();
    let nowhere = json!({"addresses": ["198.51.100.1"], "conditions": {"ready": true}});
    let slices = [read_slice(&slice_with("web-1", "web", &[nowhere], json!(ports)))];
    let ports: Vec<_> = (0..100)
        .map(|port| json!({"name": format!("p{port}"), "port": 8000 + port}))
        .chain([json!({"name": "http", "port": 80})])
        .collect();
    let object = crate::source::objects::service(
        "web",
        "10.96.0.10",
        json!({"ports": ports, "externalIPs": ["198.51.100.1"]}),
    );
    let (_, problems) = desired_of(&object, &slices, &NodeView::default());
    assert_eq!(problems.len(), 11);
    assert_eq!(problems[10].message, "90 more problems of its endpoints are not shown");
}

/// A proxy before it, a Service in another Namespace: kube-proxy serves both.
#[test]
fn the_api_server_may_be_any_services_endpoint() {
    let node = NodeView { api_servers: ["192.0.2.9:8080".parse().unwrap()].into(), ..NodeView::default() };
    let endpoints = [endpoint("192.0.2.9", "node-b"), endpoint("10.1.0.1", "node-b")];
    let (left, problems) = refusals(json!({}), &node, &endpoints);
    assert_eq!((left, problems.len()), (vec!["10.1.0.1".to_owned(), "192.0.2.9".to_owned()], 0));
}

/// externalIPs and load-balancer addresses: never of the Service or pod ranges, nor the API server's (CVE-2020-8554).
#[test]
fn some_addresses_are_never_external() {
    let node = NodeView {
        service_ranges: ["10.96.0.0/16".parse().unwrap(), "fd00::/108".parse().unwrap()].into(),
        pod_ranges: ["10.1.0.0/16".parse().unwrap()].into(),
        api_servers: ["192.0.2.9:6443".parse().unwrap(), "192.0.2.1:6443".parse().unwrap()].into(),
        ..node_view()
    };
    let read = |address: &str, port: u16| {
        let ports = json!([{"name": "http", "port": port}]);
        let spec =
            json!({"clusterIPs": ["10.96.0.10", "fd00::10"], "externalIPs": [address], "ports": ports});
        let (desired, problems) = desired(spec, &[], &node);
        let served = desired.ports[0].frontends.iter().any(|wanted| wanted.class == Class::ExternalIp);
        assert_ne!(served, !problems.is_empty(), "{address}: {problems:?}");
        served
    };
    for (address, port) in
        [("10.96.7.7", 80), ("fd00::77", 80), ("10.1.2.3", 80), ("192.0.2.9", 80), ("192.0.2.1", 6443)]
    {
        assert!(!read(address, port), "{address}:{port}");
    }
    // An API server on this node has a port of its address, not all of it.
    for (address, port) in [("192.0.2.1", 80), ("198.51.100.1", 6443), ("2001:db8::1", 80)] {
        assert!(read(address, port), "{address}:{port}");
    }
}
