//! The reconciler on a store in memory: from objects to what packets meet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::ServiceFlags;
use serde_json::json;

use super::*;
use crate::model::Kind;
use crate::network::NodeAddresses;
use crate::source::objects::{
    applied, created, deleted, endpoint, node, reset, service, service_cidr, slice, slice_with, stopping,
};
use crate::source::{Event, Object};
use crate::store::memory::MemStore;
use crate::store::{Actual, Op};

mod dual;
mod node_ports;
mod random;

const SLOTS: u32 = 1 << 20;

fn reconciler(store: &MemStore) -> Reconciler {
    let mut reconciler = Reconciler::new(Config::new("node-a", Some(7)), Box::new(store.clone()));
    reconciler.set_node_addresses(addresses(&["192.0.2.1"]));
    reconciler
}

/// A node with these addresses, and loopback.
fn addresses(own: &[&str]) -> NodeAddresses {
    let own: Vec<IpAddr> = own.iter().map(|text| text.parse().unwrap()).collect();
    let loopback = ["127.0.0.1", "::1"].map(|text| text.parse().unwrap());
    let node_ports = own.iter().copied().chain(loopback).collect();
    NodeAddresses { node_ports, own, ..NodeAddresses::default() }
}

/// A reconciler that has listed `objects` and applied them.
fn settled(store: &MemStore, objects: &[Object]) -> Reconciler {
    let mut reconciler = reconciler(store);
    list(&mut reconciler, objects);
    reconciler.handle(Event::Synced);
    flush(&mut reconciler, Instant::now());
    reconciler
}

fn list(reconciler: &mut Reconciler, objects: &[Object]) {
    for kind in [Kind::Node, Kind::ServiceCidr, Kind::Service, Kind::EndpointSlice] {
        reconciler.handle(reset(kind, objects.iter().filter(|object| object.kind() == kind).cloned()));
    }
}

fn flush(reconciler: &mut Reconciler, now: Instant) -> Stats {
    match reconciler.flush(now) {
        Outcome::Applied(stats) => stats,
        other => panic!("{other:?}"),
    }
}

/// What a packet to each frontend meets, without the numbers that may differ between two agents.
fn view(store: &MemStore) -> BTreeMap<String, String> {
    let actual = store.contents();
    let mut view = BTreeMap::new();
    for (frontend, service) in &actual.services {
        if frontend.is_of_an_address() {
            view.insert(frontend.to_string(), format!("flags {}", service.flags.0));
            continue;
        }
        let name = &actual.service_names[&service.id];
        let list = |ring: lb_common::abi::Ring| {
            let slots = actual.rings.get(&(ring.offset, ring.length)).cloned().unwrap_or_default();
            let addresses: BTreeSet<_> =
                slots.iter().map(|id| IpAddr::from(actual.backends[id].address).to_string()).collect();
            addresses.into_iter().collect::<Vec<_>>().join(",")
        };
        view.insert(
            frontend.to_string(),
            format!(
                "{}:{} flags {} affinity {} outside [{}] inside [{}]",
                name.name.as_str(),
                name.port.as_str(),
                service.flags.0,
                service.affinity_seconds,
                list(service.outside),
                list(service.inside),
            ),
        );
    }
    for (id, range) in &actual.source_ranges {
        let whose = actual.service_names.get(id).map_or("", |name| name.name.as_str());
        let port = actual.service_names.get(id).map_or("", |name| name.port.as_str());
        view.insert(format!("{range} to {whose}:{port}"), String::new());
    }
    view.insert("cover".to_owned(), format!("{:?}", actual.cover));
    view
}

/// The active backends and everything said about them.
fn backends(actual: &Actual) -> BTreeSet<String> {
    let active = actual.backends.iter().filter(|(_, backend)| backend.is_active());
    active
        .map(|(id, backend)| {
            let (service, name) = (&actual.service_names[&backend.service], &actual.backend_names[id]);
            let place = format!("{}:{} flags {}", IpAddr::from(backend.address), backend.port, backend.flags);
            format!("{}:{} {place} {name:?}", service.name.as_str(), service.port.as_str())
        })
        .collect()
}

fn check(store: &MemStore) {
    assert_eq!(store.violations(), Vec::<String>::new());
    let actual = store.contents();
    let active: BTreeSet<_> =
        actual.backends.iter().filter(|(_, backend)| backend.is_active()).map(|(id, _)| *id).collect();
    assert_eq!(
        actual.backend_names.keys().copied().collect::<BTreeSet<_>>(),
        active,
        "names of active backends"
    );
}

fn web() -> Vec<Object> {
    vec![
        service(
            "web",
            "10.96.0.10",
            json!({"type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
        ),
        slice("web-1", "web", &[endpoint("10.1.0.1", "node-a"), endpoint("10.1.0.2", "node-b")]),
    ]
}

#[test]
fn a_service_is_served_at_all_its_addresses() {
    let store = MemStore::new(SLOTS);
    let reconciler = settled(&store, &web());
    let both = "outside [10.1.0.1,10.1.0.2] inside [10.1.0.1,10.1.0.2]";
    let expected = BTreeMap::from([
        ("10.96.0.10:80/TCP".to_owned(), format!("web:http flags 0 affinity 0 {both}")),
        ("0.0.0.0:30080/TCP".to_owned(), format!("web:http flags 1 affinity 0 {both}")),
        ("127.0.0.1".to_owned(), "flags 1536".to_owned()),
        ("192.0.2.1".to_owned(), "flags 1536".to_owned()),
        ("::1".to_owned(), "flags 1536".to_owned()),
        ("10.96.0.10".to_owned(), "flags 128".to_owned()),
        ("cover".to_owned(), "[Some(10.96.0.10/32), None]".to_owned()),
    ]);
    assert_eq!(view(&store), expected);
    assert_eq!(reconciler.problems(), []);
    let stats = reconciler.stats();
    assert_eq!((stats.services, stats.service_ports, stats.frontends, stats.backends), (1, 1, 2, 2));
    assert_eq!(stats.ring_slots, 163, "one ring for all frontends");
    check(&store);
}

#[test]
fn nothing_is_touched_before_everything_is_listed() {
    let store = MemStore::new(SLOTS);
    settled(&store, &web());
    store.take_ops();
    let mut next = reconciler(&store);
    next.handle(reset(Kind::Service, []));
    assert!(!next.is_dirty());
    assert!(matches!(next.flush(Instant::now()), Outcome::NotSynced));
    assert_eq!(store.take_ops(), []);
    next.handle(reset(Kind::EndpointSlice, []));
    next.handle(Event::Synced);
    assert!(next.is_dirty(), "also when there is nothing: what is left over must go");
    flush(&mut next, Instant::now());
    let actual = store.contents();
    assert!(actual.services.iter().all(|(frontend, _)| frontend.is_node()));
    assert!(actual.service_names.is_empty() && actual.backend_names.is_empty());
    assert!(actual.backends.values().all(|backend| !backend.is_active()));
    check(&store);
}

#[test]
fn a_restart_with_the_same_objects_writes_nothing() {
    let store = MemStore::new(SLOTS);
    let mut objects = web();
    objects.push(service("local", "10.96.0.11", json!({"internalTrafficPolicy": "Local"})));
    objects.push(slice(
        "local-1",
        "local",
        &[endpoint("10.1.0.1", "node-a"), endpoint("10.1.0.2", "node-b")],
    ));
    objects.push(service(
        "both",
        "10.96.0.12",
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "externalIPs": ["198.51.100.1"],
               "sessionAffinity": "ClientIP",
               "ports": [{"name": "http", "port": 80, "nodePort": 30081}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
    ));
    objects.push(slice(
        "both-1",
        "both",
        &[endpoint("10.1.0.1", "node-a"), stopping("10.1.0.3", "node-b", true)],
    ));
    settled(&store, &objects);
    let before = view(&store);
    store.take_ops();
    for _ in 0..3 {
        let again = settled(&store, &objects);
        assert_eq!(store.take_ops(), []);
        assert_eq!(again.stats().changes, 0);
    }
    assert_eq!(view(&store), before);
    check(&store);
}

#[test]
fn a_restart_takes_over_what_still_holds() {
    let store = MemStore::new(SLOTS);
    settled(&store, &web());
    let (before, ops) = (store.contents(), store.take_ops());
    assert!(!ops.is_empty());
    let mut objects = web();
    objects[1] = slice("web-1", "web", &[endpoint("10.1.0.2", "node-b"), endpoint("10.1.0.3", "node-b")]);
    settled(&store, &objects);
    let after = store.contents();
    let id = |actual: &Actual, address: &str| {
        let found = actual
            .backends
            .iter()
            .find(|(_, b)| b.is_active() && IpAddr::from(b.address).to_string() == address);
        found.map(|(id, backend)| (*id, backend.generation))
    };
    assert_eq!(id(&before, "10.1.0.2"), id(&after, "10.1.0.2"));
    assert_eq!(id(&after, "10.1.0.1"), None);
    assert_eq!(before.services[1].1.id, after.services[1].1.id);
    check(&store);
}

#[test]
fn an_endpoint_change_touches_its_service_alone() {
    let store = MemStore::new(SLOTS);
    let mut objects = web();
    for i in 0..20 {
        objects.push(service(&format!("other-{i}"), &format!("10.96.1.{i}"), json!({})));
    }
    let mut reconciler = settled(&store, &objects);
    store.take_ops();
    reconciler.handle(applied(slice(
        "web-1",
        "web",
        &[endpoint("10.1.0.1", "node-a"), endpoint("10.1.0.3", "node-b")],
    )));
    let stats = flush(&mut reconciler, Instant::now());
    assert_eq!(stats.changed_services, 1);
    // One backend and its name, one ring, two frontends, one retired backend and its name.
    assert_eq!(stats.changes, 7);
    let kinds: Vec<_> = store.take_ops().iter().map(name_of).collect();
    assert_eq!(
        kinds,
        [
            "PutBackendNames",
            "ResetBackendFlows",
            "PutBackends",
            "WriteRing",
            "PutServices",
            "PutBackends",
            "DeleteBackendNames"
        ]
    );
    check(&store);
}

fn name_of(op: &Op) -> &'static str {
    match op {
        Op::PutServiceNames(_) => "PutServiceNames",
        Op::PutBackendNames(_) => "PutBackendNames",
        Op::ResetServiceTraffic(_) => "ResetServiceTraffic",
        Op::ResetBackendFlows(_) => "ResetBackendFlows",
        Op::PutBackends(_) => "PutBackends",
        Op::PutSourceRanges(_) => "PutSourceRanges",
        Op::DeleteSourceRanges(_) => "DeleteSourceRanges",
        Op::CoverServices(_) => "CoverServices",
        Op::AskNodeNetworks(_) => "AskNodeNetworks",
        Op::NotePorts(_) => "NotePorts",
        Op::WriteRing(..) => "WriteRing",
        Op::PutServices(_) => "PutServices",
        Op::DeleteServices(_) => "DeleteServices",
        Op::DeleteServiceNames(_) => "DeleteServiceNames",
        Op::DeleteBackendNames(_) => "DeleteBackendNames",
    }
}

#[test]
fn what_a_second_list_lacks_is_gone() {
    let store = MemStore::new(SLOTS);
    let mut objects = web();
    objects.push(service("old", "10.96.0.20", json!({})));
    objects.push(slice("old-1", "old", &[endpoint("10.1.0.9", "node-b")]));
    let mut reconciler = settled(&store, &objects);
    list(&mut reconciler, &web());
    flush(&mut reconciler, Instant::now());
    let fresh = MemStore::new(SLOTS);
    settled(&fresh, &web());
    assert_eq!(view(&store), view(&fresh));
    assert_eq!(backends(&store.contents()), backends(&fresh.contents()));
    check(&store);
}

#[test]
fn a_failure_at_any_point_is_made_good() {
    let objects = web();
    let changed = vec![
        objects[0].clone(),
        slice("web-1", "web", &[endpoint("10.1.0.2", "node-b"), endpoint("10.1.0.4", "node-a")]),
        service("new", "10.96.0.30", json!({"externalIPs": ["198.51.100.2"]})),
    ];
    let fresh = MemStore::new(SLOTS);
    settled(&fresh, &changed);
    let mut failures = 0;
    for entries in 0.. {
        let store = MemStore::new(SLOTS);
        let mut reconciler = settled(&store, &objects);
        let before = view(&store);
        list(&mut reconciler, &changed);
        store.fail_after(entries);
        let now = Instant::now();
        let outcome = reconciler.flush(now);
        check_violations(&store);
        let Outcome::Failed { retry_after, .. } = outcome else { break };
        failures += 1;
        for (frontend, value) in before.iter().filter(|(frontend, _)| *frontend != "cover") {
            let held = &view(&store)[frontend];
            assert!(
                held == value || held == &view(&fresh)[frontend],
                "{frontend}: {held} after {entries} entries"
            );
        }
        // What comes in between is not lost either.
        reconciler.handle(applied(service("late", "10.96.0.31", json!({}))));
        reconciler.handle(deleted(Kind::Service, "late"));
        let retry = now + retry_after;
        flush(&mut reconciler, retry);
        if reconciler.next_attempt().is_some_and(|at| at <= retry) {
            flush(&mut reconciler, retry);
        }
        assert_eq!(view(&store), view(&fresh), "after {entries} entries");
        assert_eq!(backends(&store.contents()), backends(&fresh.contents()));
        check(&store);
    }
    assert!(failures > 8, "{failures}");
}

fn check_violations(store: &MemStore) {
    assert_eq!(store.violations(), Vec::<String>::new());
}

#[test]
fn a_crash_at_any_point_is_made_good_by_the_next_agent() {
    let objects = web();
    let changed = [slice("web-1", "web", &[endpoint("10.1.0.2", "node-b"), endpoint("10.1.0.4", "node-a")])];
    let mut after: Vec<_> = vec![objects[0].clone()];
    after.extend(changed.iter().cloned());
    let fresh = MemStore::new(SLOTS);
    settled(&fresh, &after);
    for entries in 0.. {
        let store = MemStore::new(SLOTS);
        let mut reconciler = settled(&store, &objects);
        list(&mut reconciler, &after);
        store.fail_after(entries);
        let outcome = reconciler.flush(Instant::now());
        drop(reconciler);
        store.fail_after(usize::MAX);
        settled(&store, &after);
        assert_eq!(view(&store), view(&fresh), "after {entries} entries");
        assert_eq!(backends(&store.contents()), backends(&fresh.contents()));
        check(&store);
        if matches!(outcome, Outcome::Applied(_)) {
            return;
        }
    }
}

#[test]
fn a_full_map_leaves_what_is_in_force_alone() {
    let store = MemStore::new(SLOTS);
    let mut reconciler = settled(&store, &web());
    store.limit_frontends(6);
    reconciler.handle(applied(service("more", "10.96.0.40", json!({}))));
    reconciler.handle(applied(slice("web-1", "web", &[endpoint("10.1.0.5", "node-b")])));
    let now = Instant::now();
    let Outcome::Failed { error, retry_after } = reconciler.flush(now) else { panic!("the map is full") };
    assert_eq!(error.map, "SERVICES4");
    assert!(view(&store)["10.96.0.10:80/TCP"].contains("inside [10.1.0.5]"), "what was there is kept up");
    check(&store);
    assert!(!reconciler.is_dirty());
    let retry = reconciler.next_attempt().expect("it is tried again");
    assert_eq!(retry, now + retry_after);
    store.limit_frontends(8);
    flush(&mut reconciler, retry);
    assert!(view(&store).contains_key("10.96.0.40:80/TCP"));
    assert_eq!(reconciler.next_attempt(), None);
}

#[test]
fn without_ring_room_the_former_endpoints_stay() {
    // Two rings of 163 slots fit, a third does not.
    let store = MemStore::new(400);
    let mut reconciler = settled(&store, &web());
    let start = Instant::now();
    let two =
        |first| applied(slice("web-1", "web", &[endpoint(first, "node-b"), endpoint("10.1.0.9", "node-b")]));
    reconciler.handle(two("10.1.0.5"));
    flush(&mut reconciler, start);
    reconciler.handle(two("10.1.0.6"));
    flush(&mut reconciler, start);
    assert!(view(&store)["10.96.0.10:80/TCP"].contains("inside [10.1.0.5,10.1.0.9]"), "{:?}", view(&store));
    assert!(reconciler.problems()[0].message.contains("no ring room"), "{:?}", reconciler.problems());
    check(&store);
    let retry = reconciler.next_attempt().expect("room will come free");
    flush(&mut reconciler, retry);
    assert!(view(&store)["10.96.0.10:80/TCP"].contains("inside [10.1.0.6,10.1.0.9]"));
    assert_eq!(reconciler.problems(), []);
    check(&store);
}

#[test]
fn the_older_service_keeps_a_contested_port_and_the_other_gets_it_later() {
    let node_port = json!({"type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": 30000}]});
    let old = created(service("zebra", "10.96.0.1", node_port.clone()), 100);
    let new = created(service("ant", "10.96.0.2", node_port), 200);
    let store = MemStore::new(SLOTS);
    let mut reconciler = settled(&store, std::slice::from_ref(&new));
    assert!(view(&store)["0.0.0.0:30000/TCP"].starts_with("ant:"));
    // It does not matter who came first to us.
    reconciler.handle(applied(old));
    flush(&mut reconciler, Instant::now());
    assert!(view(&store)["0.0.0.0:30000/TCP"].starts_with("zebra:"));
    let problems = reconciler.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(
        problems[0].to_string(),
        "Service default/ant: spec.ports: nodePort 30000/TCP belongs to Service default/zebra, which is older; choose another"
    );
    reconciler.handle(deleted(Kind::Service, "zebra"));
    flush(&mut reconciler, Instant::now());
    assert!(view(&store)["0.0.0.0:30000/TCP"].starts_with("ant:"));
    assert_eq!(reconciler.problems(), []);
    check(&store);
}

#[test]
fn nobody_takes_a_cluster_ip_by_naming_it_as_an_external_address() {
    let thief = created(
        service(
            "thief",
            "10.96.0.66",
            json!({"externalIPs": ["10.96.0.10"],
        "ports": [{"name": "http", "port": 80}, {"name": "x", "port": 9999}]}),
        ),
        1,
    );
    let mut objects = web();
    objects.push(thief);
    let store = MemStore::new(SLOTS);
    let mut reconciler = settled(&store, &objects);
    let view = |store: &MemStore| view(store);
    assert!(view(&store)["10.96.0.10:80/TCP"].starts_with("web:"));
    assert!(!view(&store).contains_key("10.96.0.10:9999/TCP"), "not even where the owner has no port");
    assert!(reconciler.problems()[0].message.contains("is the ClusterIP of Service default/web"));
    reconciler.handle(deleted(Kind::Service, "web"));
    flush(&mut reconciler, Instant::now());
    assert!(view(&store)["10.96.0.10:9999/TCP"].starts_with("thief:"));
    check(&store);
}

#[test]
fn node_addresses_come_and_go() {
    let store = MemStore::new(SLOTS);
    let mut reconciler = settled(&store, &web());
    reconciler.set_node_addresses(addresses(&["192.0.2.9"]));
    assert!(reconciler.is_dirty());
    flush(&mut reconciler, Instant::now());
    let frontends: Vec<_> = view(&store).into_keys().collect();
    let expected =
        ["0.0.0.0:30080/TCP", "10.96.0.10", "10.96.0.10:80/TCP", "127.0.0.1", "192.0.2.9", "::1", "cover"];
    assert_eq!(frontends, expected);
    check(&store);
}

#[test]
fn a_returning_endpoint_gets_another_generation() {
    let store = MemStore::new(SLOTS);
    let mut config = Config::new("node-a", Some(7));
    config.limits.backends = 2;
    let mut reconciler = Reconciler::new(config, Box::new(store.clone()));
    list(&mut reconciler, &web());
    reconciler.handle(Event::Synced);
    let now = Instant::now();
    flush(&mut reconciler, now);
    for endpoints in [
        &[endpoint("10.1.0.1", "node-a")][..],
        &[endpoint("10.1.0.1", "node-a"), endpoint("10.1.0.7", "node-b")],
    ] {
        reconciler.handle(applied(slice("web-1", "web", endpoints)));
        flush(&mut reconciler, now);
    }
    let backends = store.contents().backends;
    assert_eq!(backends.len(), 2);
    let generations: Vec<_> =
        backends.values().map(|b| (IpAddr::from(b.address).to_string(), b.generation)).collect();
    assert_eq!(generations, [("10.1.0.1".to_owned(), 1), ("10.1.0.7".to_owned(), 2)]);
    check(&store);
}

#[test]
fn an_empty_list_refuses_or_drops() {
    let flags = |objects: &[Object], frontend: &str| {
        let store = MemStore::new(SLOTS);
        settled(&store, objects);
        check(&store);
        let text = view(&store)[frontend].clone();
        text.split(' ').nth(2).unwrap().parse::<u32>().map(ServiceFlags).unwrap()
    };
    let (external, local) = (ServiceFlags::EXTERNAL, ServiceFlags::LOCAL_POLICY);
    let elsewhere = slice("s", "web", &[endpoint("10.1.0.2", "node-b")]);
    let itp = service("web", "10.96.0.10", json!({"internalTrafficPolicy": "Local"}));
    let drops = ServiceFlags::DROP_INSIDE.with(ServiceFlags::DROP_OUTSIDE);
    let both_local = ServiceFlags::OUTSIDE_IS_LOCAL.with(ServiceFlags::INSIDE_IS_LOCAL);
    assert_eq!(flags(&[itp.clone(), elsewhere.clone()], "10.96.0.10:80/TCP"), drops.with(both_local));
    assert_eq!(flags(&[itp], "10.96.0.10:80/TCP"), both_local);
    let etp = service(
        "web",
        "10.96.0.10",
        json!({"externalTrafficPolicy": "Local", "externalIPs": ["198.51.100.1"]}),
    );
    let local = local.with(ServiceFlags::OUTSIDE_IS_LOCAL);
    let expected = external.with(local).with(ServiceFlags::DROP_OUTSIDE);
    assert_eq!(flags(&[etp.clone(), elsewhere], "198.51.100.1:80/TCP"), expected);
    assert_eq!(flags(&[etp], "198.51.100.1:80/TCP"), external.with(local));
}

#[test]
fn ten_thousand_services() {
    let endpoints: Vec<_> = (0..10).map(|i| endpoint(&format!("10.1.0.{i}"), "node-b")).collect();
    let mut objects = Vec::new();
    for i in 0..10_000 {
        let name = format!("s{i}");
        objects.push(service(&name, &format!("10.96.{}.{}", i / 250, i % 250 + 1), json!({})));
        objects.push(slice(&name, &name, &endpoints));
    }
    let store = MemStore::new(16 << 20);
    let start = Instant::now();
    let mut reconciler = settled(&store, &objects);
    let first = start.elapsed();
    let stats = reconciler.stats();
    assert_eq!((stats.services, stats.backends), (10_000, 100_000));
    store.take_ops();
    let start = Instant::now();
    list(&mut reconciler, &objects);
    assert_eq!(flush(&mut reconciler, Instant::now()).changes, 0);
    let relist = start.elapsed();
    let start = Instant::now();
    reconciler.handle(applied(slice("s77", "s77", &endpoints[..9])));
    assert_eq!(flush(&mut reconciler, Instant::now()).changed_services, 1);
    let one = start.elapsed();
    let start = Instant::now();
    objects[155] = slice("s77", "s77", &endpoints[..9]);
    settled(&store, &objects);
    println!("first list {first:?}, relist {relist:?}, one endpoint {one:?}, restart {:?}", start.elapsed());
}

#[test]
fn what_cannot_be_read_any_more_stays_in_force_until_it_is_gone() {
    let store = MemStore::new(SLOTS);
    let web = service("web", "10.96.0.10", json!({}));
    let mut reconciler = settled(&store, &[web.clone(), service("api", "10.96.0.11", json!({}))]);
    let before = view(&store);
    let relist = |reconciler: &mut Reconciler, event: Option<Event>| {
        reconciler.handle(Event::ListBegun(Kind::Service));
        reconciler.handle(Event::Listed(service("api", "10.96.0.11", json!({})).into()));
        event.into_iter().for_each(|event| reconciler.handle(event));
        reconciler.handle(Event::ListEnded(Kind::Service));
        flush(reconciler, Instant::now());
    };
    relist(&mut reconciler, Some(Event::Unreadable(web.reference())));
    assert_eq!(view(&store), before);
    relist(&mut reconciler, None);
    let after = view(&store);
    assert!(!after.keys().any(|frontend| frontend.starts_with("10.96.0.10")), "{after:?}");
    assert!(after.keys().any(|frontend| frontend.starts_with("10.96.0.11")), "{after:?}");
}

/// A Service id that is given out again says nothing of who had it before.
#[test]
fn a_new_service_begins_with_no_traffic() {
    let store = MemStore::new(SLOTS);
    let limits = Limits { service_ids: 1, ..Limits::default() };
    let config = Config { limits, ..Config::new("node-a", Some(7)) };
    let mut reconciler = Reconciler::new(config, Box::new(store.clone()));
    list(&mut reconciler, &[service("old", "10.96.0.10", json!({}))]);
    reconciler.handle(Event::Synced);
    flush(&mut reconciler, Instant::now());
    reconciler.handle(deleted(Kind::Service, "old"));
    flush(&mut reconciler, Instant::now());
    store.take_ops();
    reconciler.handle(applied(service("new", "10.96.0.11", json!({}))));
    flush(&mut reconciler, Instant::now());
    let ops = store.take_ops();
    let reset = ops.iter().position(|op| *op == Op::ResetServiceTraffic(vec![0]));
    // Whoever reads the traffic goes by the names.
    let named = ops.iter().position(|op| matches!(op, Op::PutServiceNames(_)));
    assert!(reset.is_some() && reset < named, "{ops:?}");
    assert_eq!(store.violations(), [""; 0]);
}

/// Nodes that are told of the same cluster choose alike, and a seed that flows were made with outlives the agent.
#[test]
fn the_seed_is_the_clusters_unless_another_is_given_or_in_force() {
    let slots = |store: &MemStore| store.contents().rings.into_values().collect::<Vec<_>>();
    let run = |store: &MemStore, given: Option<u64>, cluster: Option<&str>| {
        let mut reconciler = Reconciler::new(Config::new("node-a", given), Box::new(store.clone()));
        list(&mut reconciler, &web());
        cluster.into_iter().for_each(|uid| reconciler.handle(Event::Cluster(uid.to_owned())));
        reconciler.handle(Event::Synced);
        flush(&mut reconciler, Instant::now());
        check(store);
    };
    let fresh = |given, cluster| {
        let store = MemStore::new(SLOTS);
        run(&store, given, cluster);
        (slots(&store), store)
    };
    let ((one, store), (other, _)) = (fresh(None, Some("u-1")), fresh(None, Some("u-2")));
    assert_eq!(one, fresh(None, Some("u-1")).0, "as on another node");
    assert_eq!(one, fresh(Some(seed::of_cluster("u-1")), None).0);
    assert_ne!(one, other, "another cluster");
    assert_ne!(one, fresh(None, None).0, "no cluster");
    run(&store, None, None);
    assert_eq!(slots(&store), one, "flows live");
    run(&store, Some(7), Some("u-1"));
    assert_eq!(slots(&store), fresh(Some(7), None).0, "whoever gives a seed gets it");
}

/// A Node of another name than ours.
fn other_node(name: &str) -> Object {
    Object::Node(Box::new(serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()))
}

#[test]
fn a_name_that_no_node_has_is_told_until_one_has_it() {
    let said = |reconciler: &Reconciler| {
        let problems = reconciler.problems();
        assert!(problems.len() <= 1, "{problems:?}");
        problems.first().map_or_else(String::new, ToString::to_string)
    };
    // Manifests may do without Nodes, and may have ours alone.
    let store = MemStore::new(SLOTS);
    let mut reconciler = settled(&store, &[]);
    assert_eq!(said(&reconciler), "");
    reconciler.handle(applied(other_node("node-b")));
    assert!(reconciler.changed_problems().is_some());
    let told = said(&reconciler);
    assert!(told.starts_with("no Node is called node-a (there are node-b): "), "{told}");
    assert!(told.contains("--node-name"), "{told}");
    // The same words whatever others come and go.
    reconciler.handle(applied(other_node("node-c")));
    assert_eq!((said(&reconciler), reconciler.changed_problems()), (told, None));
    reconciler.handle(applied(node("zone-1")));
    assert_eq!((said(&reconciler).as_str(), reconciler.changed_problems()), ("", Some(vec![])));
    reconciler.handle(Event::Deleted(ObjectRef::new(Kind::Node, "", "node-a")));
    assert!(said(&reconciler).starts_with("no Node is called node-a (there are node-b, node-c): "));
    reconciler.handle(reset(Kind::Node, []));
    assert_eq!(said(&reconciler), "");
}

#[test]
fn the_api_server_has_our_node_or_something_is_wrong() {
    let config = Config { has_nodes: true, ..Config::new("node-a", Some(7)) };
    let mut reconciler = Reconciler::new(config, Box::new(MemStore::new(SLOTS)));
    reconciler.handle(Event::ListBegun(Kind::Node));
    assert_eq!(reconciler.problems(), [], "nothing is known yet");
    reconciler.handle(Event::ListEnded(Kind::Node));
    assert!(reconciler.problems()[0].message.starts_with("no Node is called node-a: "));
    // One that cannot be read is there; the source tells what is wrong with it.
    reconciler.handle(Event::ListBegun(Kind::Node));
    reconciler.handle(Event::Unreadable(ObjectRef::new(Kind::Node, "", "node-a")));
    reconciler.handle(Event::ListEnded(Kind::Node));
    assert_eq!(reconciler.problems(), []);
}
