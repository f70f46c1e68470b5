//! Where nodePorts are served: the node's addresses and networks.

use lb_common::abi::{Service, ServiceFlags, SourceRange};
use serde_json::json;

use super::*;
use crate::model::Frontend;

/// A node may have thousands of addresses, and a nodePort is one entry: what an address brings with it is one more.
#[test]
fn an_address_of_the_node_touches_only_services_that_have_business_there() {
    let store = MemStore::new(SLOTS);
    let mut objects = web();
    let node_port = |n: u8, more: serde_json::Value| {
        let mut spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30100 + u16::from(n)}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        service(&format!("s{n}"), &format!("10.96.1.{n}"), spec)
    };
    objects.extend((0..20).map(|n| node_port(n, json!({}))));
    objects.push(node_port(20, json!({"externalIPs": ["192.0.2.7"]})));
    let mut reconciler = settled(&store, &objects);
    store.take_ops();
    reconciler.set_node_addresses(addresses(&["192.0.2.1", "192.0.2.7"]));
    let stats = flush(&mut reconciler, Instant::now());
    assert_eq!(stats.changed_services, 1, "the one whose external address is now the node's");
    let held = Frontend::node("192.0.2.7".parse().unwrap());
    let flags = ServiceFlags::NODE_ADDRESS.with(ServiceFlags::NODE_PORTS);
    let value = Service { flags, ..Service::default() };
    assert_eq!(store.take_ops(), [Op::NotePorts(vec![80]), Op::PutServices(vec![(held, value)])]);
    reconciler.set_node_addresses(addresses(&["192.0.2.1"]));
    flush(&mut reconciler, Instant::now());
    assert_eq!(store.take_ops(), [Op::DeleteServices(vec![held])]);
    check(&store);
}

#[test]
fn networks_of_the_node_are_asked_while_there_are_any() {
    let store = MemStore::new(SLOTS);
    let mut reconciler = settled(&store, &web());
    store.take_ops();
    let network: ipnet::IpNet = "10.9.0.0/16".parse().unwrap();
    let mut with = addresses(&["192.0.2.1"]);
    with.node_ports.networks.insert(network);
    reconciler.set_node_addresses(with.clone());
    flush(&mut reconciler, Instant::now());
    let range = (SourceRange::NODE_NETWORKS, network);
    let on = [Op::PutSourceRanges(vec![range]), Op::AskNodeNetworks(true)];
    assert_eq!(store.take_ops(), on);
    // The next agent finds all that as it should be.
    let mut next = super::Reconciler::new(Config::new("node-a", Some(7)), Box::new(store.clone()));
    next.set_node_addresses(with);
    list(&mut next, &web());
    next.handle(Event::Synced);
    flush(&mut next, Instant::now());
    assert_eq!(store.take_ops(), []);
    next.set_node_addresses(addresses(&["192.0.2.1"]));
    flush(&mut next, Instant::now());
    let off = [Op::DeleteSourceRanges(vec![range]), Op::AskNodeNetworks(false)];
    assert_eq!(store.take_ops(), off);
    check(&store);
}

/// Where a range lets the node in, its own processes may come, and those speak from the load balancer's address where the node has it.
#[test]
fn source_ranges_follow_the_addresses_of_the_node() {
    let store = MemStore::new(SLOTS);
    let spec = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24"]});
    let mut web = service("web", "10.96.0.10", spec);
    let Object::Service(object) = &mut web else { panic!("a Service") };
    let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
    object.status = Some(serde_json::from_value(status).unwrap());
    let mut reconciler = settled(&store, &[web]);
    let ranges = |store: &MemStore| {
        let ranges = store.contents().source_ranges.into_iter();
        ranges.map(|(_, range)| range.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ranges(&store), ["198.51.100.0/24"]);
    for (own, expected) in [
        (&["192.0.2.1", "198.51.100.9"][..], &["198.51.100.0/24", "203.0.113.1/32"][..]),
        (&["192.0.2.1"], &["198.51.100.0/24"]),
    ] {
        reconciler.set_node_addresses(addresses(own));
        flush(&mut reconciler, Instant::now());
        assert_eq!(ranges(&store), expected);
    }
    check(&store);
}

/// A program of the node that listens at a ClusterIP gets what comes there; other ports of the Service are served as ever.
#[test]
fn who_listens_at_a_clusterip_has_it() {
    let store = MemStore::new(SLOTS);
    let spec =
        json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "metrics", "port": 9153}]});
    let others = [service("web", "10.96.0.11", json!({})), service("dns", "10.96.0.10", spec)];
    let mut reconciler = settled(&store, &others);
    let address = "10.96.0.10".parse().unwrap();
    let entries = |store: &MemStore| {
        let all = store.contents().services.into_iter().map(|(it, _)| it).filter(|it| it.address == address);
        all.map(|it| (it.port, it.proto.0)).collect::<BTreeSet<_>>()
    };
    let (udp, tcp, whole, own) = ((53, 17), (9153, 6), (0, 0), (0, 255));
    assert_eq!(entries(&store), [udp, tcp, whole].into());
    assert!(reconciler.own_cluster_ips().is_empty());
    reconciler.set_node_addresses(addresses(&["192.0.2.1", "10.96.0.10"]));
    assert_eq!(flush(&mut reconciler, Instant::now()).changed_services, 1);
    assert_eq!(entries(&store), [udp, tcp, whole, own].into(), "to hold an address is not to listen");
    assert_eq!(**reconciler.own_cluster_ips(), [address].into());
    let listener = Frontend::new(address, 53, crate::model::Protocol::Udp);
    reconciler.set_listeners(Arc::new([listener].into()));
    assert_eq!(flush(&mut reconciler, Instant::now()).changed_services, 1);
    assert_eq!(entries(&store), [tcp, own].into(), "ports that no Service has are the program's, too");
    assert!(reconciler.problems().iter().any(|problem| problem.message.contains("10.96.0.10:53/UDP")));
    reconciler.set_listeners(Arc::default());
    flush(&mut reconciler, Instant::now());
    assert_eq!(entries(&store), [udp, tcp, whole, own].into());
    assert!(reconciler.problems().is_empty());
    check(&store);
}
