//! Both families at once, source ranges, ranges of ClusterIPs, and what the rest of the agent is told.

use super::*;

const STEP: Duration = Duration::from_secs(10);

fn dual(name: &str, last: u8, spec: serde_json::Value) -> Object {
    let (v4, v6) = (format!("10.96.0.{last}"), format!("fd00::{last:x}"));
    let mut all = json!({"clusterIPs": [v4, v6]});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    service(name, &v4, all)
}

fn balanced(mut object: Object, ingress: &[&str]) -> Object {
    let Object::Service(service) = &mut object else { panic!("a Service") };
    let ingress: Vec<_> = ingress.iter().map(|ip| json!({"ip": ip})).collect();
    service.status = Some(serde_json::from_value(json!({"loadBalancer": {"ingress": ingress}})).unwrap());
    object
}

#[test]
fn a_dual_stack_service_is_one_port_with_rings_of_each_family() {
    let store = MemStore::new(SLOTS);
    let objects = [
        dual("web", 10, json!({"ports": [{"name": "http", "port": 80, "nodePort": 30080}]})),
        slice("web-4", "web", &[endpoint("10.1.0.1", "node-a")]),
        slice("web-6", "web", &[endpoint("fd00:1::1", "node-a"), endpoint("fd00:1::2", "node-b")]),
    ];
    let mut next = Reconciler::new(Config::new("node-a", Some(7)), Box::new(store.clone()));
    next.set_node_addresses(addresses(&["192.0.2.1", "2001:db8::1"]));
    list(&mut next, &objects);
    next.handle(Event::Synced);
    let stats = flush(&mut next, Instant::now());
    let view = view(&store);
    let (v4, v6) = ("10.1.0.1", "fd00:1::1,fd00:1::2");
    for (frontend, list) in [
        ("10.96.0.10:80/TCP", v4),
        ("0.0.0.0:30080/TCP", v4),
        ("[fd00::a]:80/TCP", v6),
        ("[::]:30080/TCP", v6),
    ] {
        assert!(
            view[frontend].ends_with(&format!("outside [{list}] inside [{list}]")),
            "{frontend}: {view:?}"
        );
    }
    assert_eq!((view["10.96.0.10"].as_str(), view["fd00::a"].as_str()), ("flags 128", "flags 128"));
    assert_eq!(view["cover"], "[Some(10.96.0.10/32), Some(fd00::a/128)]");
    assert_eq!((stats.service_ports, stats.frontends, stats.service_entries), (1, 4, [5, 5]));
    let ids: BTreeSet<_> = store.contents().service_names.into_keys().collect();
    assert_eq!(ids.len(), 1, "affinity is shared by all its addresses");
    check(&store);
}

/// Sources may come before the frontend says that they are looked up, and go after it.
#[test]
fn source_ranges_follow_the_service() {
    let web = |ranges: &[&str]| {
        let object = dual("web", 10, json!({"loadBalancerSourceRanges": ranges}));
        balanced(object, &["203.0.113.1", "2001:db8:7::1"])
    };
    let store = MemStore::new(SLOTS);
    let mut reconciler = settled(&store, &[web(&["10.0.0.0/8", "192.0.2.0/24"])]);
    let ranges = |store: &MemStore| {
        let view = view(store);
        view.into_keys()
            .filter_map(|key| key.strip_suffix(" to web:http").map(str::to_owned))
            .collect::<Vec<_>>()
    };
    assert_eq!(ranges(&store), ["10.0.0.0/8", "192.0.2.0/24", "203.0.113.1/32"], "our own address is inside");
    assert!(view(&store)["203.0.113.1:80/TCP"].contains("flags 65"));
    assert!(view(&store)["[2001:db8:7::1]:80/TCP"].contains("flags 1 "));
    assert_eq!(reconciler.stats().source_ranges, 3);
    check(&store);

    store.take_ops();
    reconciler.handle(applied(web(&["10.0.0.0/8", "fd77::/16"])));
    flush(&mut reconciler, Instant::now());
    assert_eq!(
        store.take_ops().iter().map(name_of).collect::<Vec<_>>(),
        ["PutSourceRanges", "PutServices", "DeleteSourceRanges"]
    );
    assert_eq!(ranges(&store), ["10.0.0.0/8", "fd77::/16"]);
    check(&store);

    // The next agent finds them as they should be.
    settled(&store, &[web(&["10.0.0.0/8", "fd77::/16"])]);
    assert_eq!(store.take_ops(), []);
    // A Service that is gone leaves none behind, nor does one that went while no agent ran.
    settled(&store, &[]);
    let of_the_node = store.contents().services.len();
    assert_eq!(view(&store).len(), 1 + of_the_node);
    assert!(store.contents().services.iter().all(|(frontend, _)| frontend.is_node()));
    check(&store);
}

#[test]
fn without_room_for_source_ranges_nobody_is_let_in() {
    let store = MemStore::new(SLOTS);
    let mut config = Config::new("node-a", Some(7));
    config.limits.source_ranges = 2;
    let mut reconciler = Reconciler::new(config, Box::new(store.clone()));
    let web = |name: &str, last: u8, ranges: &[&str]| {
        balanced(
            dual(name, last, json!({"loadBalancerSourceRanges": ranges})),
            &[&format!("203.0.113.{last}")],
        )
    };
    list(&mut reconciler, &[web("a", 1, &["10.0.0.0/8"]), web("b", 2, &["10.0.0.0/9", "11.0.0.0/8"])]);
    reconciler.handle(Event::Synced);
    let start = Instant::now();
    flush(&mut reconciler, start);
    let served = |store: &MemStore, last: u8| view(store).contains_key(&format!("203.0.113.{last}:80/TCP"));
    assert_eq!((served(&store, 1), served(&store, 2)), (true, false));
    assert!(view(&store).contains_key("10.96.0.2:80/TCP"), "the rest of the Service is served");
    assert!(reconciler.problems()[0].message.contains("no room is left for its loadBalancerSourceRanges"));
    reconciler.handle(deleted(Kind::Service, "a"));
    flush(&mut reconciler, start + STEP);
    flush(&mut reconciler, start + 2 * STEP);
    assert!(served(&store, 2));
    assert_eq!(reconciler.problems(), []);
    check(&store);
}

#[test]
fn ranges_of_cluster_ips_come_from_objects_and_flags() {
    let store = MemStore::new(SLOTS);
    let mut config = Config::new("node-a", Some(7));
    config.service_cidrs = vec!["fd00::/108".parse().unwrap()];
    let mut reconciler = Reconciler::new(config, Box::new(store.clone()));
    list(&mut reconciler, &[dual("web", 10, json!({"externalIPs": ["10.97.0.1"]}))]);
    reconciler.handle(Event::Synced);
    flush(&mut reconciler, Instant::now());
    assert_eq!(view(&store)["cover"], "[Some(10.96.0.10/32), Some(fd00::/108)]");
    assert!(view(&store).contains_key("10.97.0.1:80/TCP"));
    reconciler.handle(applied(service_cidr("kubernetes", &["10.96.0.0/12"])));
    assert!(reconciler.is_dirty());
    flush(&mut reconciler, Instant::now());
    assert_eq!(view(&store)["cover"], "[Some(10.96.0.0/12), Some(fd00::/108)]");
    let ranges: Vec<_> =
        store.contents().source_ranges.into_iter().map(|(id, range)| (id, range.to_string())).collect();
    assert_eq!(ranges, [(u32::MAX, "10.96.0.0/12".to_owned()), (u32::MAX, "fd00::/108".to_owned())]);
    assert!(
        !view(&store).contains_key("10.97.0.1:80/TCP"),
        "an address of the Service range is nobody's to name"
    );
    // A list without it, as after the object is gone while nobody watched.
    reconciler.handle(reset(Kind::ServiceCidr, []));
    flush(&mut reconciler, Instant::now());
    assert_eq!(view(&store)["cover"], "[Some(10.96.0.10/32), Some(fd00::/108)]");
    assert_eq!(reconciler.problems(), []);
    check(&store);
}

/// Zone: from our Node's label, live.
#[test]
fn hints_follow_the_zone_of_our_node() {
    let hinted = |address: &str, zone: &str| {
        let mut endpoint = endpoint(address, "node-b");
        endpoint["hints"] = json!({"forZones": [{"name": zone}]});
        endpoint
    };
    let mut objects = web();
    objects[1] = slice("web-1", "web", &[hinted("10.1.0.1", "z1"), hinted("10.1.0.2", "z2")]);
    objects.push(node("z1"));
    let store = MemStore::new(SLOTS);
    let mut reconciler = settled(&store, &objects);
    assert!(view(&store)["10.96.0.10:80/TCP"].ends_with("inside [10.1.0.1]"));
    reconciler.handle(applied(node("z1")));
    assert!(!reconciler.is_dirty(), "a Node that says nothing new is no work");
    reconciler.handle(applied(node("z2")));
    flush(&mut reconciler, Instant::now());
    assert!(view(&store)["10.96.0.10:80/TCP"].ends_with("inside [10.1.0.2]"));
    reconciler.handle(reset(Kind::Node, []));
    flush(&mut reconciler, Instant::now());
    assert!(view(&store)["10.96.0.10:80/TCP"].ends_with("inside [10.1.0.1,10.1.0.2]"));
    check(&store);
}

/// Own VIPs: an endpoint is left out as soon as its address is a Service's, and back when it is no longer.
#[test]
fn an_endpoint_whose_address_becomes_a_service_is_left_out_meanwhile() {
    let store = MemStore::new(SLOTS);
    let mut reconciler = settled(&store, &web());
    reconciler.handle(applied(service("new", "10.1.0.2", json!({}))));
    let stats = flush(&mut reconciler, Instant::now());
    assert_eq!(stats.changed_services, 2);
    assert!(view(&store)["10.96.0.10:80/TCP"].ends_with("inside [10.1.0.1]"));
    assert_eq!(reconciler.problems().len(), 1);
    reconciler.handle(deleted(Kind::Service, "new"));
    flush(&mut reconciler, Instant::now());
    assert!(view(&store)["10.96.0.10:80/TCP"].ends_with("inside [10.1.0.1,10.1.0.2]"));
    assert_eq!(reconciler.problems(), []);
    check(&store);
}

#[test]
fn the_api_servers_endpoints_may_be_anybodys() {
    let store = MemStore::new(SLOTS);
    let mut reconciler = settled(&store, &web());
    let api = |address: &str| {
        let ports = json!([{"name": "https", "port": 8080}]);
        slice_with("kubernetes", "kubernetes", &[endpoint(address, "node-b")], ports)
    };
    let ports = json!({"ports": [{"name": "https", "port": 443}]});
    reconciler.handle(applied(service("kubernetes", "10.96.0.1", ports)));
    reconciler.handle(applied(api("10.1.0.2")));
    flush(&mut reconciler, Instant::now());
    assert!(view(&store)["10.96.0.10:80/TCP"].ends_with("inside [10.1.0.1,10.1.0.2]"));
    assert!(view(&store)["10.96.0.1:443/TCP"].ends_with("inside [10.1.0.2]"));
    reconciler.handle(applied(api("10.1.0.3")));
    flush(&mut reconciler, Instant::now());
    assert!(view(&store)["10.96.0.1:443/TCP"].ends_with("inside [10.1.0.3]"));
    check(&store);
}

#[test]
fn sctp_is_served_only_where_the_port_stays() {
    let ports = json!([{"name": "diameter", "port": 3868, "nodePort": 30868, "protocol": "SCTP"}]);
    let slice = |target: u16| {
        let ports = json!([{"name": "diameter", "port": target, "protocol": "SCTP"}]);
        slice_with("web-1", "web", &[endpoint("10.1.0.1", "node-b")], ports)
    };
    let store = MemStore::new(SLOTS);
    let mut reconciler =
        settled(&store, &[service("web", "10.96.0.10", json!({"ports": ports})), slice(3868)]);
    let served =
        |store: &MemStore| view(store).into_keys().filter(|key| key.ends_with("SCTP")).collect::<Vec<_>>();
    assert_eq!(served(&store), ["10.96.0.10:3868/SCTP"]);
    reconciler.handle(applied(slice(3869)));
    flush(&mut reconciler, Instant::now());
    assert_eq!((served(&store), reconciler.problems().len()), (vec![], 2));
    check(&store);
}

/// network_programming_duration_seconds, healthCheckNodePort, take-overs and Services without local endpoints.
#[test]
fn the_rest_of_the_agent_is_told() {
    let store = MemStore::new(SLOTS);
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
                      "healthCheckNodePort": 32000, "externalIPs": ["192.0.2.1", "198.51.100.1"]});
    let mut reconciler =
        settled(&store, &[dual("web", 10, spec), slice("web-1", "web", &[endpoint("10.1.0.1", "node-b")])]);
    let checks: Vec<_> =
        reconciler.health_checks().values().map(|check| (check.port, check.local_ready)).collect();
    assert_eq!(checks, [(32000, 0)]);
    let taken: Vec<_> =
        reconciler.takeovers().iter().map(|taken| (taken.address.to_string(), taken.port)).collect();
    assert_eq!(taken, [("192.0.2.1".to_owned(), 80)]);
    let none = reconciler.stats().no_local_endpoints;
    assert_eq!((none.internal, none.external), ([1, 0], [1, 0]));
    reconciler.handle(applied(slice("web-1", "web", &[endpoint("10.1.0.1", "node-a")])));
    let none = flush(&mut reconciler, Instant::now()).no_local_endpoints;
    assert_eq!((none.internal, none.external), ([0, 0], [0, 0]));
    assert_eq!(reconciler.health_checks().values().next().unwrap().local_ready, 1);
    reconciler.handle(deleted(Kind::Service, "web"));
    flush(&mut reconciler, Instant::now());
    assert!(reconciler.health_checks().is_empty() && reconciler.takeovers().is_empty());
}

#[tokio::test]
async fn udp_endpoints_that_are_gone_are_told_once_packets_no_longer_go_there() {
    let store = MemStore::new(SLOTS);
    let (sender, mut retired) = tokio::sync::mpsc::unbounded_channel();
    let config = Config { retired: Some(sender), ..Config::new("node-a", Some(7)) };
    let mut reconciler = Reconciler::new(config, Box::new(store.clone()));
    let slice = |last: u8| {
        let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"}]);
        slice_with("dns-1", "dns", &[endpoint(&format!("10.1.0.{last}"), "node-b")], ports)
    };
    let ports = json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]});
    list(&mut reconciler, &[service("dns", "10.96.0.10", ports), slice(1)]);
    reconciler.handle(Event::Synced);
    flush(&mut reconciler, Instant::now());
    assert!(retired.try_recv().is_err(), "nothing has gone");
    reconciler.handle(applied(slice(2)));
    flush(&mut reconciler, Instant::now());
    let reported = retired.try_recv().expect("told");
    assert_eq!(
        (reported.len(), reported[0].address.to_string(), reported[0].port),
        (1, "10.1.0.1".to_owned(), 53)
    );
}
