//! Rules of single objects, with real sockets: topology hints, endpoints that terminate, `ipMode`, ServiceCIDRs.
mod lab_support;

use lab_support::{
    Checks, ECHO, FAMILIES, NEAR, Numbered, Scene, WEB, cluster_ip, eventually, node_port, options,
};
use lb_lab::{Endpoint, Layout, NodeId, SocketLb, XdpMode, at};
use serde_json::{Value, json};

const BY_ZONE: Numbered = Numbered(30);
const BY_NODE: Numbered = Numbered(31);
const INCOMPLETE: Numbered = Numbered(32);
const LEAVING: Numbered = Numbered(33);
const GONE: Numbered = Numbered(34);
const PROXIED: Numbered = Numbered(35);

/// Node A is in the zone `east`; where node B is nobody says.
fn node_a() -> Value {
    let labels = json!({ "topology.kubernetes.io/zone": "east" });
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NodeId::A.name(), "labels": labels } })
}

fn zone(name: &str) -> Value {
    json!({ "forZones": [{ "name": name }] })
}

fn node(id: NodeId) -> Value {
    json!({ "forNodes": [{ "name": id.name() }] })
}

/// Applies a Service whose endpoints have these hints.
fn apply(scene: &Scene, number: Numbered, endpoints: &[(&str, Value)]) {
    let service = number.service(&format!("hinted-{}", number.0));
    let pods: Vec<Endpoint> = endpoints.iter().map(|(pod, _)| scene.endpoint(pod)).collect();
    let mut text = format!("---\n{}\n", service.object());
    for family in FAMILIES {
        let mut slice = service.slice_of(*family, &pods);
        for ((_, hints), endpoint) in endpoints.iter().zip(slice["endpoints"].as_array_mut().expect("a list"))
        {
            endpoint["hints"] = hints.clone();
        }
        text += &format!("---\n{slice}\n");
    }
    scene.lab.apply_text(service.name(), &text).expect("a manifest");
}

/// Waits until what was applied is in force on both nodes: this Service comes last.
fn in_force(scene: &Scene, last: Numbered) {
    let service = last.service("last");
    scene.lab.apply(&service, &[scene.endpoint("b1")]).expect("a manifest");
    for family in FAMILIES {
        for from in [scene.pod("visitor"), scene.lab.node(NodeId::B)] {
            let to = at(last.cluster_ip_of(*family), WEB);
            eventually("the Services", || from.http(to, 1).is_ok_and(|report| report.answered() == 1));
        }
    }
}

#[test]
fn hints_lead_to_the_endpoints_that_are_meant_for_this_node() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    scene.lab.apply_text("node-a", &node_a().to_string()).expect("a manifest");
    apply(&scene, BY_ZONE, &[("a1", zone("west")), ("b1", zone("east"))]);
    apply(&scene, BY_NODE, &[("a1", node(NodeId::B)), ("b1", node(NodeId::A))]);
    apply(&scene, INCOMPLETE, &[("a1", zone("east")), ("b1", Value::Null)]);
    in_force(&scene, Numbered(39));
    let (client, visitor, node_b) = (scene.lab.client(), scene.pod("visitor"), scene.lab.node(NodeId::B));
    for family in FAMILIES.iter().copied() {
        let at_node_a = |service| node_port(service, scene.lab.node_ip(NodeId::A, family));
        for service in [BY_ZONE, BY_NODE] {
            checks.answered("hints", visitor, cluster_ip(service, family), &["b1"], None);
            checks.answered("hints", client, at_node_a(service), &["b1"], None);
        }
        checks.answered("hints for nodes", node_b, cluster_ip(BY_NODE, family), &["a1"], None);
        // Its zone is not known, so those for zones do not count; nor do they where an endpoint has none.
        let all = &["a1", "b1"];
        checks.answered("no zone", node_b, cluster_ip(BY_ZONE, family), all, None);
        checks.answered("incomplete hints", visitor, cluster_ip(INCOMPLETE, family), all, None);
    }
    checks.finish(&mut scene);
}

#[test]
fn lists_fall_back_to_terminating_endpoints_each_by_itself() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    let terminating =
        |pod: &str, serving| Endpoint { ready: false, serving, terminating: true, ..scene.endpoint(pod) };
    let leaving = LEAVING.service("leaving").external_local();
    scene.lab.apply(&leaving, &[terminating("a1", true), scene.endpoint("b1")]).expect("a manifest");
    scene.lab.apply(&GONE.service("gone"), &[terminating("a1", false)]).expect("a manifest");
    // The load balancer of this one passes on what comes for its address: nodes are to let it go there.
    let mut object = PROXIED.service("proxied").object();
    for ingress in object["status"]["loadBalancer"]["ingress"].as_array_mut().expect("addresses") {
        ingress["ipMode"] = json!("Proxy");
    }
    let slices = FAMILIES.iter().map(|family| {
        let slice = PROXIED.service("proxied").slice_of(*family, &[scene.endpoint("a1")]);
        format!("---\n{slice}\n")
    });
    scene
        .lab
        .apply_text("proxied", &format!("---\n{object}\n{}", slices.collect::<String>()))
        .expect("a manifest");
    in_force(&scene, Numbered(38));
    let (client, visitor, host) = (scene.lab.client(), scene.pod("visitor"), scene.lab.node(NodeId::A));
    for family in FAMILIES.iter().copied() {
        // No endpoint of this node is ready, so the one that terminates serves who must stay here; all others
        // go to the one that is ready.
        let at_node_a = |service| node_port(service, scene.lab.node_ip(NodeId::A, family));
        checks.answered("Local list", client, at_node_a(LEAVING), &["a1"], None);
        checks.answered("Cluster list", visitor, cluster_ip(LEAVING, family), &["b1"], None);
        checks.answered("Cluster list", visitor, at_node_a(LEAVING), &["b1"], None);
        checks.refused("nobody serves", visitor, cluster_ip(GONE, family));
        checks.refused("nobody serves", client, at_node_a(GONE));
        checks.answered("ipMode Proxy", visitor, cluster_ip(PROXIED, family), &["a1"], None);
        for from in [visitor, host] {
            let to = at(PROXIED.balancer_of(family), WEB);
            let report = from.udp(at(to.ip(), ECHO), 2).expect("a report");
            checks.holds("ipMode Proxy", report.answered() == 0, || format!("{}: {report:?}", from.name()));
        }
    }
    checks.finish(&mut scene);
}

#[test]
fn unallocated_addresses_of_a_service_cidr_are_dropped() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    let plans = FAMILIES.iter().map(|family| scene.lab.plan().of(*family).services.to_string());
    let spec = json!({ "cidrs": plans.collect::<Vec<_>>() });
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "kubernetes" }, "spec": spec,
    });
    scene.lab.apply_text("kubernetes", &object.to_string()).expect("a manifest");
    in_force(&scene, Numbered(37));
    let mut before = 0;
    for family in FAMILIES.iter().copied() {
        let unallocated = at(scene.lab.plan().of(family).services.host(200), WEB);
        let report = scene.pod("visitor").udp(unallocated, 3).expect("a report");
        checks.holds("unallocated", report.answered() == 0, || format!("{family}: {report:?}"));
        let after = scene.lab.agent(NodeId::A).packets("pod_ingress", "unknown_address").expect("metrics");
        checks.holds("unallocated", after >= before + 3, || {
            format!("{family}: {before}, then {after} dropped")
        });
        before = after;
        // Those that a Service has are served as ever, and its other ports are refused.
        checks.answered("allocated", scene.pod("visitor"), cluster_ip(NEAR, family), &["a1"], None);
    }
    checks.finish(&mut scene);
}

/// What a host's own packet filter means for Services is told, when the agent starts and when it changes.
#[test]
fn rules_of_the_host_that_services_do_not_meet_are_told() {
    let mut options = options(XdpMode::Native, SocketLb::Host);
    options.more = vec!["--host-rules".into(), "ignore".into()];
    let mut scene = Scene::new(Layout::PointToPoint, &options);
    let node = scene.lab.node(NodeId::A).clone();
    let load = |rules: &str| node.run(&["nft", rules]).expect("nft");
    load(
        "add table ip fw { chain early { type filter hook prerouting priority -300; tcp dport 30011 counter; }; }",
    );
    std::thread::sleep(std::time::Duration::from_secs(2));
    let log = |scene: &mut Scene| scene.lab.agent(NodeId::A).log();
    assert!(!log(&mut scene).contains("these chains"), "none of them drops");
    load("add rule ip fw early tcp dport 30012 drop");
    eventually("word of a rule before DNAT", || {
        log(&mut scene).lines().any(|line| line.contains("WARN") && line.contains("ip/fw/early"))
    });
    load(
        "add table inet own { chain forward { type filter hook forward priority 0; policy drop; ct status dnat accept; }; }",
    );
    load("add chain ip fw jumped; add rule ip fw jumped ip daddr 10.96.1.1 reject");
    load("add chain ip fw output { type filter hook output priority -150; jump jumped; }");
    eventually("word of a policy, and of a rule that is jumped to", || {
        let log = log(&mut scene);
        log.contains("inet/own/forward") && log.contains("ip/fw/output")
    });
    let metrics = scene.lab.agent(NodeId::A).metrics().expect("metrics");
    assert!(metrics.lines().any(|line| line == "shunt_host_rules 3.0"), "{metrics}");
    // What is there when an agent starts is told once.
    scene.lab.agent(NodeId::A).stop().expect("an end");
    scene.lab.agent(NodeId::A).start().expect("a start");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(log(&mut scene).lines().filter(|line| line.contains("ip/fw/early")).count(), 1);
    load("flush ruleset");
    eventually("the metric to fall", || {
        let metrics = scene.lab.agent(NodeId::A).metrics().expect("metrics");
        metrics.lines().any(|line| line == "shunt_host_rules 0.0")
    });
}
