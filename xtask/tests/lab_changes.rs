//! What comes and goes while connections live: a Service, an address of a node.
mod lab_support;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab_support::{CHANGE, Checks, ECHO, FAMILIES, NEAR, Numbered, Scene, WEB, options};
use lb_lab::{Family, Held, Layout, Netns, NodeId, SocketLb, UPLINK, XdpMode, at, poll};

/// Connections kept through the end of their Service.
const CONNECTIONS: u32 = 20;

/// Nobody answers new connections.
fn unanswered(from: &Netns, to: SocketAddr) -> bool {
    let words = ["curl", "--silent", "--noproxy", "*", "--max-time", "0.5", &format!("http://{to}/")];
    !from.exec(&words).expect("curl").status.success()
}

#[test]
fn connections_outlive_their_service() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    let (near, far) = (Numbered(30), Numbered(31));
    for (number, name, pod) in [(near, "near-gone", "a1"), (far, "far-gone", "b1")] {
        scene.lab.apply(&number.service(name), &[scene.endpoint(pod)]).expect("a manifest");
    }
    let mut held: Vec<(String, &Netns, SocketAddr, Held)> = Vec::new();
    let (client, visitor) = (scene.lab.client(), scene.pod("visitor"));
    for family in FAMILIES.iter().copied() {
        let node = scene.lab.node_ip(NodeId::A, family);
        for (what, from, to) in [
            ("NS1", client, at(node, near.node_port(ECHO))),
            ("NS2", client, at(node, far.node_port(ECHO))),
            ("NS4", client, at(far.cluster_ip_of(family), ECHO)),
            ("EW1", visitor, at(near.cluster_ip_of(family), ECHO)),
            ("EW2", visitor, at(far.cluster_ip_of(family), ECHO)),
            ("H1", scene.lab.node(NodeId::A), at(far.cluster_ip_of(family), ECHO)),
        ] {
            lab_support::eventually("the Service", || {
                from.tcp(to, 1).is_ok_and(|report| report.answered() == 1)
            });
            let connections = from.hold(to, CONNECTIONS).expect("connections");
            held.push((format!("{what} over {family}"), from, to, connections));
        }
    }
    for name in ["near-gone", "far-gone"] {
        scene.lab.withdraw(name).expect("the Service to go");
    }
    for (what, from, to, _) in &held {
        let gone = poll("new connections to fail", CHANGE, || unanswered(from, *to).then_some(()));
        checks.holds(what, gone.is_ok(), || format!("{to} still answers new connections"));
    }
    // What is missing shows when a connection says nothing for five seconds.
    std::thread::sleep(Duration::from_secs(6));
    for (what, _, to, connections) in held {
        let report = connections.finish();
        let well = report.as_ref().is_ok_and(|report| {
            report.broken.is_empty()
                && report.connections == u64::from(CONNECTIONS)
                // Each says a line every 50 ms.
                && report.echoed > report.connections * 100
        });
        checks.holds(&what, well, || format!("connections to {to}: {report:?}"));
    }
    checks.finish(&mut scene);
}

#[test]
fn node_ports_follow_the_addresses_of_the_node() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    let lab = &scene.lab;
    for family in FAMILIES.iter().copied() {
        let wire = lab.plan().of(family).wire;
        let (to, address) = (at(wire.host(50), NEAR.node_port(WEB)), wire.host_with_prefix(50));
        let askers = [lab.client(), scene.pod("visitor"), lab.node(NodeId::A)];
        checks.holds("before", unanswered(lab.client(), to), || format!("{to} answers already"));
        lab.node(NodeId::A).ip(&format!("addr add {address} dev {UPLINK}")).expect("an address");
        for from in askers {
            let served = poll("the nodePort to be served", CHANGE, || (!unanswered(from, to)).then_some(()));
            checks.holds("added", served.is_ok(), || format!("{to} does not answer {}", from.name()));
        }
        lab.node(NodeId::A).ip(&format!("addr del {address} dev {UPLINK}")).expect("no address");
        for from in askers {
            let gone = poll("the nodePort to be gone", CHANGE, || unanswered(from, to).then_some(()));
            checks.holds("removed", gone.is_ok(), || format!("{to} still answers {}", from.name()));
        }
    }
    // The node's first addresses are served as before.
    for family in FAMILIES.iter().copied() {
        let to = lab_support::node_port(NEAR, lab.node_ip(NodeId::A, family));
        checks.answered("after", lab.client(), to, &["a1"], None);
    }
    checks.finish(&mut scene);
}

/// What some route says is local is the node's own, though no interface holds it: an address, and a network as a whole.
#[test]
fn node_ports_are_served_where_a_route_says_local() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    let lab = &scene.lab;
    for (family, route, aims) in [
        (Family::V4, "203.0.113.77", ["203.0.113.77", "203.0.113.77"]),
        (Family::V4, "198.18.64.0/18", ["198.18.64.9", "198.18.99.200"]),
        (Family::V6, "2001:db8:77::1", ["2001:db8:77::1", "2001:db8:77::1"]),
        (Family::V6, "2001:db8:78::/64", ["2001:db8:78::1", "2001:db8:78::ffff"]),
    ] {
        let node = lab.node_ip(NodeId::A, family);
        lab.client().ip(&format!("route add {route} via {node}")).expect("a way there");
        let aims = aims.map(|aim| at(aim.parse::<IpAddr>().expect("an address"), NEAR.node_port(WEB)));
        let askers = [lab.client(), scene.pod("visitor"), lab.node(NodeId::A)];
        checks.holds("before", unanswered(lab.client(), aims[0]), || format!("{route} answers already"));
        lab.node(NodeId::A).ip(&format!("route add local {route} dev lo")).expect("a local route");
        for (from, to) in askers.into_iter().flat_map(|from| aims.map(|to| (from, to))) {
            let served = poll("the nodePort to be served", CHANGE, || (!unanswered(from, to)).then_some(()));
            checks.holds("added", served.is_ok(), || format!("{to} does not answer {}", from.name()));
        }
        lab.node(NodeId::A).ip(&format!("route del local {route} dev lo")).expect("no route");
        for (from, to) in askers.into_iter().flat_map(|from| aims.map(|to| (from, to))) {
            let gone = poll("the nodePort to be gone", CHANGE, || unanswered(from, to).then_some(()));
            checks.holds("removed", gone.is_ok(), || format!("{to} still answers {}", from.name()));
        }
    }
    checks.finish(&mut scene);
}
