//! Programs that people run behind Services: a DNS service whose pods are replaced, and nginx as an ingress controller.
mod lab_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use lab_support::{Checks, FAMILIES, Numbered, Scene, WEB, bare, eventually};
use lb_lab::pod::{DNS_PORT, HTTP_PORT};
use lb_lab::{AgentOptions, Endpoint, Family, Layout, Netns, NodeId, PodKind, Service, at};

const DNS: Numbered = Numbered(53);
const DNS_NODE_PORT: u16 = 30053;
/// Queries of the test, over all families and askers.
const QUERIES: u32 = 10_000;
/// How long they are spread over.
const SECONDS: u32 = 8;

fn dns_service() -> Service {
    Service::new("dns", DNS.cluster_ip())
        .cluster_ip(DNS.cluster_ip_of(Family::V6))
        .udp_node_port(DNS_PORT, DNS_PORT, DNS_NODE_PORT)
        .tcp_node_port(DNS_PORT, DNS_PORT, DNS_NODE_PORT)
}

/// Writes the Service with these pods and waits until each family's queries from outside go to them alone.
fn answered_by(scene: &Scene, pods: &[&str]) {
    let endpoints: Vec<Endpoint> = pods.iter().map(|pod| scene.endpoint(pod)).collect();
    scene.lab.apply(&dns_service(), &endpoints).expect("a manifest");
    for family in FAMILIES {
        let to = at(scene.lab.node_ip(NodeId::A, *family), DNS_NODE_PORT);
        eventually(&format!("{pods:?} to answer queries"), || {
            scene.lab.client().dns(to, 20).is_ok_and(|report| report.answers.keys().eq(pods))
        });
    }
}

#[test]
fn no_query_is_lost_while_the_dns_pods_are_replaced() {
    let mut lab = bare(Layout::PointToPoint);
    lab.add_pod(NodeId::A, "dns-1", PodKind::Dns).expect("a pod");
    lab.add_pod(NodeId::B, "dns-2", PodKind::Dns).expect("a pod");
    lab.add_pod(NodeId::A, "visitor", PodKind::Idle).expect("a pod");
    lab.start_agents(&AgentOptions::default()).expect("the agents");
    let mut scene = Scene { lab };
    let mut checks = Checks::new();
    answered_by(&scene, &["dns-1", "dns-2"]);

    let mut pressing = Vec::new();
    let families = FAMILIES.len() as u32;
    for family in FAMILIES.iter().copied() {
        let inside = at(DNS.cluster_ip_of(family), DNS_PORT);
        let outside = at(scene.lab.node_ip(NodeId::A, family), DNS_NODE_PORT);
        for (from, to, share) in [
            (scene.pod("visitor"), inside, 2),
            (scene.lab.client(), outside, 2),
            (scene.lab.node(NodeId::A), inside, 1),
        ] {
            let count = QUERIES * share / 5 / families;
            let press = from.press(to, count, count / SECONDS).expect("queries");
            pressing.push((from.name().to_owned(), family, count, press));
        }
    }
    // As in life, a pod goes when the Service is without it, and its last answers may still be on their way.
    for (old, new, node, pods) in
        [("dns-1", "dns-3", NodeId::A, ["dns-2", "dns-3"]), ("dns-2", "dns-4", NodeId::B, ["dns-3", "dns-4"])]
    {
        scene.lab.add_pod(node, new, PodKind::Dns).expect("a pod");
        answered_by(&scene, &pods);
        scene.lab.remove_pod(old).expect("the pod to go");
    }
    let mut answers = BTreeMap::new();
    for (from, family, count, press) in pressing {
        let report = press.finish();
        let well = report
            .as_ref()
            .is_ok_and(|report| report.lost == 0 && report.answers.values().sum::<u64>() == u64::from(count));
        checks.holds("DNS", well, || format!("{count} queries from {from} over {family}: {report:?}"));
        eprintln!("{count} queries from {from} over {family}: {report:?}");
        for (pod, count) in report.map(|report| report.answers).unwrap_or_default() {
            *answers.entry(pod).or_insert(0) += count;
        }
    }
    checks.holds("DNS", answers.len() == 4, || format!("all four pods should have answered: {answers:?}"));
    checks.finish(&mut scene);
}

/// nginx as an ingress controller has it: a server for each host, which leads to a Service.
fn ingress_config(folder: &Path, routes: &[(&str, Numbered)]) -> String {
    let shown = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {shown}/{kind};\n"))
        .collect();
    let servers: String = routes
        .iter()
        .map(|(host, service)| {
            let upstream: String = FAMILIES
                .iter()
                .map(|family| format!("        server {};\n", at(service.cluster_ip_of(*family), WEB)))
                .collect();
            format!(
                "    upstream {host} {{\n{upstream}    }}
    server {{
        listen {HTTP_PORT};
        listen [::]:{HTTP_PORT};
        server_name {host}.example;
        location / {{ proxy_pass http://{host}; proxy_next_upstream off; }}
    }}
"
            )
        })
        .collect();
    format!(
        "daemon off;
master_process off;
user root;
pid {shown}/nginx.pid;
error_log {shown}/nginx.err warn;
events {{ worker_connections 1024; }}
http {{
    log_format seen '$remote_addr $host $status';
    access_log {shown}/access.log seen;
{temporary}{servers}}}
"
    )
}

/// So many requests with a host of choice, a connection each; answers by pod, and the clients that pods saw.
fn browse(from: &Netns, to: std::net::SocketAddr, host: &str, count: u32) -> BTreeMap<String, u32> {
    let words = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "5"];
    let host = format!("Host: {host}.example");
    let more = ["--header", "Connection: close", "--header", &host];
    // Not curl's own counting, whose brackets an IPv6 address would be taken for.
    let urls: Vec<String> = (0..count).map(|number| format!("http://{to}/{number}")).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let text = from.run(&[&words[..], &more, &urls].concat()).expect("answers");
    let mut answers = BTreeMap::new();
    for line in text.lines() {
        let pod = line.split_ascii_whitespace().next().unwrap_or_default();
        *answers.entry(pod.to_owned()).or_default() += 1;
    }
    answers
}

#[test]
fn nginx_as_an_ingress_controller_routes_by_host_and_logs_the_client() {
    const REQUESTS: u32 = 60;
    const INGRESS: Numbered = Numbered(80);
    let routes = [("one", Numbered(81)), ("two", Numbered(82))];
    let mut lab = bare(Layout::PointToPoint);
    for (node, pod) in [(NodeId::A, "one-1"), (NodeId::B, "one-2"), (NodeId::B, "two-1")] {
        lab.add_pod(node, pod, PodKind::Web).expect("a pod");
    }
    lab.add_pod(NodeId::A, "ingress", PodKind::Idle).expect("a pod");
    let folder = lab.folder().join("ingress");
    fs::create_dir_all(&folder).expect("a folder");
    let config = folder.join("nginx.conf");
    fs::write(&config, ingress_config(&folder, &routes)).expect("a file");
    let (errors, config) = (folder.join("nginx.err").display().to_string(), config.display().to_string());
    let words = ["nginx", "-e", &errors, "-c", &config];
    let mut nginx = lab.pod("ingress").netns().spawn(&words, &folder.join("log")).expect("nginx");
    nginx.await_port("tcp", HTTP_PORT, Duration::from_secs(10)).expect("nginx");

    let web = |name: &str, number: Numbered| {
        Service::new(name, number.cluster_ip()).cluster_ip(number.cluster_ip_of(Family::V6))
    };
    for (service, pods) in [
        (web("one", routes[0].1).tcp(WEB, HTTP_PORT), &["one-1", "one-2"][..]),
        (web("two", routes[1].1).tcp(WEB, HTTP_PORT), &["two-1"]),
        (
            web("ingress", INGRESS)
                .tcp_node_port(HTTP_PORT, HTTP_PORT, INGRESS.node_port(WEB))
                .external_local(),
            &["ingress"],
        ),
    ] {
        let endpoints: Vec<Endpoint> = pods.iter().map(|pod| lab.pod(pod).into()).collect();
        lab.apply(&service, &endpoints).expect("a manifest");
    }
    lab.start_agents(&AgentOptions::default()).expect("the agents");
    let mut scene = Scene { lab };
    let mut checks = Checks::new();
    for family in FAMILIES.iter().copied() {
        let to = at(scene.lab.node_ip(NodeId::A, family), INGRESS.node_port(WEB));
        for (host, pods) in [("one", &["one-1", "one-2"][..]), ("two", &["two-1"])] {
            let answers = browse(scene.lab.client(), to, host, REQUESTS);
            let well = answers.keys().eq(pods) && answers.values().sum::<u32>() == REQUESTS;
            checks.holds("routes", well, || format!("{host} at {to} is answered by {answers:?}"));
        }
    }
    let log = fs::read_to_string(folder.join("access.log")).expect("a log");
    let mut lines: BTreeMap<&str, u32> = BTreeMap::new();
    log.lines().for_each(|line| *lines.entry(line).or_default() += 1);
    let expected: Vec<String> = FAMILIES
        .iter()
        .flat_map(|family| ["one", "two"].map(|host| (scene.lab.plan().client_ip(*family), host)))
        .map(|(client, host)| format!("{client} {host}.example 200"))
        .collect();
    let well = lines.len() == expected.len()
        && expected.iter().all(|line| lines.get(line.as_str()) == Some(&REQUESTS));
    checks.holds("access log", well, || format!("{lines:?} instead of {REQUESTS} of each of {expected:?}"));
    // The other node has no such pod, and says nothing.
    for family in FAMILIES.iter().copied() {
        let none = (scene.lab.node_ip(NodeId::B, family), INGRESS.node_port(WEB), 0);
        checks.silent("no ingress here", scene.lab.client(), none);
    }
    drop(nginx);
    checks.finish(&mut scene);
}
