//! Two agents that follow a real API server: what it says is what the kernel does, also while it is away.
mod lab_support;

use std::net::SocketAddr;
use std::time::Duration;

use lab_support::{
    ALL, Checks, ECHO, ELSEWHERE, EMPTY, PACE, Scene, WEB, bare, cluster_ip, eventually, node_port,
};
use lb_lab::{AgentOptions, Endpoint, Family, Layout, Netns, NodeId, PodKind, Relay, Source, at, poll_every};
use serde_json::json;
use xtask::kube::{ApiServer, Assets, Identity, Options, Request};

/// The Service that the agents serve.
const SERVICE: &str = "/api/v1/namespaces/default/services/all";

/// Puts a condition without a time on it, which the API server takes, and gives back as null.
fn without_a_time(server: &ApiServer) {
    let condition = json!({"type": "lab.example/Odd", "status": "True", "reason": "Odd", "message": "",
                           "lastTransitionTime": null});
    let status = json!({"status": {"conditions": [condition]}});
    server.send(&[Request::patch(&format!("{SERVICE}/status"), status)]).expect("a patch");
    let stored = server.get_raw(SERVICE).expect("the Service");
    assert!(stored.contains(r#""lastTransitionTime":null"#), "{stored}");
}

fn answered_by(from: &Netns, to: SocketAddr, pods: &[&str]) -> bool {
    let report = from.tcp(to, 40).expect("a report");
    report.failures.is_empty() && report.answers.keys().eq(pods)
}

/// Puts an EndpointSlice in place of the one of its name. Not `kubectl apply`: older servers know EndpointSlices as a
/// custom resource, which cannot be merged the way kubectl merges the built-in one.
fn replace(server: &ApiServer, scene: &Scene, slice: &serde_json::Value) {
    let file = scene.lab.folder().join("slice.json");
    std::fs::write(&file, slice.to_string()).expect("a file");
    xtask::command::output(server.kubectl(Identity::Admin).args(["replace", "-f"]).arg(&file))
        .expect("kubectl");
}

/// The seed that an agent says it goes by, as far as a log tells it.
fn seed_of_the_cluster(scene: &Scene, node: NodeId) -> String {
    let log = scene.lab.agent_log(node);
    let line = log.lines().find(|line| line.contains("hash seed: the cluster's"));
    let seed = line.and_then(|line| line.split_once("seed=")).map(|(_, seed)| seed.trim().to_owned());
    seed.unwrap_or_else(|| panic!("{} goes by another seed:\n{log}", node.name()))
}

/// What the agent of a node answers a load balancer that asks for its health: status and whether the node is eligible.
fn health(scene: &Scene, path: &str) -> (String, Option<bool>) {
    let url = format!("http://127.0.0.1:10256{path}");
    let curl = ["curl", "--silent", "--noproxy", "*", "--write-out", "\n%{http_code}", &url];
    let answer = scene.lab.node(NodeId::A).run(&curl).expect("an answer");
    let (body, status) = answer.trim_end().rsplit_once('\n').expect("a body and a status");
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    (status.to_owned(), body["nodeEligible"].as_bool())
}

/// The cluster autoscaler marks a node it is about to remove: load balancers are to send their clients elsewhere.
fn a_node_about_to_go(server: &ApiServer, scene: &Scene, checks: &mut Checks) {
    let name = NodeId::A.name();
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
    server.apply(&node.to_string()).expect("a Node");
    let taint = |what: &str| {
        let mut kubectl = server.kubectl(Identity::Admin);
        xtask::command::output(kubectl.args(["taint", "node", name, what])).expect("kubectl");
    };
    taint("ToBeDeletedByClusterAutoscaler=now:NoSchedule");
    eventually("the node to be ineligible", || health(scene, "/healthz") == ("503".into(), Some(false)));
    let lives = health(scene, "/livez");
    checks.holds("livez of a node about to go", lives == ("200".into(), None), || format!("{lives:?}"));
    taint("ToBeDeletedByClusterAutoscaler-");
    eventually("the node to be eligible again", || health(scene, "/healthz") == ("200".into(), Some(true)));
}

#[test]
fn agents_follow_the_api_server_and_outlive_it() {
    let assets = Assets::find_or_build().expect("programs of an API server");
    let mut server = ApiServer::start(&assets, Options::default()).expect("an API server");
    let port: u16 = server.url().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");

    let mut lab = bare(Layout::PointToPoint);
    for (node, name) in [(NodeId::A, "a1"), (NodeId::A, "a2"), (NodeId::B, "b1")] {
        lab.add_pod(node, name, PodKind::Web).expect("a pod");
    }
    lab.add_pod(NodeId::A, "visitor", PodKind::Idle).expect("a pod");
    let _relays: Vec<Relay> =
        NodeId::ALL.iter().map(|node| lab.relay(*node, port).expect("a way to the API server")).collect();
    let service = ALL.single_stack("all");
    let endpoints = |lab: &lb_lab::Lab, pods: &[&str]| -> Vec<Endpoint> {
        pods.iter().map(|pod| lab.pod(pod).into()).collect()
    };
    server.apply(&service.manifest(&endpoints(&lab, &["a1", "a2", "b1"]))).expect("a Service");
    server.apply(&EMPTY.single_stack("empty").object().to_string()).expect("a Service");
    without_a_time(&server);
    let source = Source::Kubernetes(server.kubeconfig(Identity::Agent));
    lab.start_agents(&AgentOptions { source, ..AgentOptions::default() }).expect("the agents");
    let mut scene = Scene { lab };
    let mut checks = Checks::new();

    let seeds = NodeId::ALL.map(|node| seed_of_the_cluster(&scene, node));
    checks.holds("one seed on both nodes", seeds[0] == seeds[1], || format!("{seeds:?}"));

    let (client, node_a) = (scene.lab.plan().client(), scene.lab.node_address(NodeId::A));
    let all = &["a1", "a2", "b1"];
    checks.answered("NS1, NS2", scene.lab.client(), node_port(ALL, node_a), all, None);
    checks.answered("EW1, EW2", scene.pod("visitor"), cluster_ip(ALL, Family::V4), all, None);
    checks.answered("H1", scene.lab.node(NodeId::B), cluster_ip(ALL, Family::V4), all, None);
    checks.refused("R1", scene.lab.client(), node_port(EMPTY, node_a));

    // The Service was listed with its null; now it comes over the watch, and at the end its deletion does.
    let another = ELSEWHERE.external_ip_of(Family::V4);
    let spec = json!({"spec": {"externalIPs": [another]}});
    server.send(&[Request::patch(SERVICE, spec)]).expect("a patch");
    eventually("the changed Service to be served", || {
        scene.pod("visitor").http(at(another, WEB), 3).is_ok_and(|report| report.answered() == 3)
    });

    let (outside, inside) = (at(node_a, ALL.node_port(ECHO)), at(ALL.cluster_ip(), ECHO));
    let change = |server: &ApiServer, scene: &Scene, pods: &[&str]| {
        replace(server, scene, &service.slice(&endpoints(&scene.lab, pods)));
        for (from, to) in [(scene.lab.client(), outside), (scene.pod("visitor"), inside)] {
            eventually(&format!("{} to reach {pods:?}", from.name()), || answered_by(from, to, pods));
        }
    };
    change(&server, &scene, &["a1"]);
    checks.answered("NS1", scene.lab.client(), node_port(ALL, node_a), &["a1"], Some(client.into()));
    change(&server, &scene, &["a2", "b1"]);
    a_node_about_to_go(&server, &scene, &mut checks);

    let held = scene.lab.client().hold(outside, 50).expect("held connections");
    server.stop();
    checks.answered("without the server", scene.lab.client(), node_port(ALL, node_a), &["a2", "b1"], None);
    server.start_again().expect("the server again");
    replace(&server, &scene, &service.slice(&endpoints(&scene.lab, &["a1", "b1"])));
    // A watch is taken up again after a pause of at most five seconds and some jitter.
    let again = poll_every(PACE, "the agents to follow again", Duration::from_secs(20), || {
        answered_by(scene.lab.client(), outside, &["a1", "b1"]).then_some(())
    });
    checks.holds("after the outage", again.is_ok(), || format!("{again:?}"));
    let held = held.finish().expect("a report");
    let well = held.broken.is_empty() && held.not_opened.is_empty();
    checks.holds("connections outlive the outage", well, || format!("{held:?}"));

    server.delete(&["service", "all"]).expect("the Service to go");
    let web = at(ALL.cluster_ip(), WEB);
    eventually("the Service to be gone", || {
        scene.pod("visitor").http(web, 1).is_ok_and(|report| report.failed() == 1)
    });
    checks.finish(&mut scene);
}
