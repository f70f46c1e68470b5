//! The node's addresses and what answers on them, followed while the agent runs.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::testbed::{Testbed, eventually, write};

const MANIFEST: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: t}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.20
  clusterIPs: [10.96.0.20, 'fd00:96::20']
  externalTrafficPolicy: Local
  healthCheckNodePort: 31999
  ports: [{port: 80, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: t, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', port: 8080}]
endpoints:
- {addresses: [10.1.0.9], nodeName: n1}
- {addresses: [10.1.0.10], nodeName: n1, conditions: {ready: false}}
- {addresses: [10.1.1.9], nodeName: n2}
";

/// Addresses that nodePorts are served at, as the kernel holds them; none before there is a nodePort.
fn served(testbed: &Testbed) -> Vec<String> {
    let bpffs = testbed.bpffs();
    let get = |what: &str| {
        let output = testbed.run(&["get", what, "-o", "json", "--bpffs", bpffs.to_str().expect("UTF-8")]);
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        rows.as_array().expect("an array").clone()
    };
    let node_port = |row: &serde_json::Value| row["port"] == 30080 && row["frontend"] == "nodePort";
    if !get("services").iter().any(node_port) {
        return Vec::new();
    }
    let rows = get("addresses");
    let mut found: Vec<String> = rows
        .iter()
        .filter(|row| row["clients"] != "nobody")
        .filter_map(|row| Some(row["address"].as_str()?.to_owned()))
        .collect();
    found.sort();
    found
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn node_ports_follow_the_nodes_addresses() {
    let testbed = Testbed::new();
    write(&testbed.manifests().join("web.yaml"), MANIFEST);
    let _agent = testbed.agent(&[]);
    eventually("what is there is served", || served(&testbed) == ["127.0.0.1", "192.0.2.10", "::1"]);
    testbed.ip(&["address", "add", "192.0.2.11/24", "dev", "eth0"]);
    testbed.ip(&["address", "add", "2001:db8::10/64", "dev", "eth0", "nodad"]);
    let more = strings(&["127.0.0.1", "192.0.2.10", "192.0.2.11", "2001:db8::10", "::1"]);
    eventually("what was added is served", || served(&testbed) == more);
    testbed.ip(&["address", "del", "192.0.2.10/24", "dev", "eth0"]);
    testbed.ip(&["address", "add", "192.0.2.11/24", "dev", "eth0"]);
    testbed.ip(&["address", "del", "2001:db8::10/64", "dev", "eth0"]);
    eventually("what went is not", || served(&testbed) == ["127.0.0.1", "192.0.2.11", "::1"]);
}

/// What the kernel takes for its own, by whatever table: no interface need hold it.
#[test]
fn node_ports_follow_local_routes() {
    let testbed = Testbed::new();
    write(&testbed.manifests().join("web.yaml"), MANIFEST);
    testbed.ip(&["route", "add", "local", "203.0.113.7", "dev", "lo", "table", "77"]);
    let _agent = testbed.agent(&[]);
    let first = ["127.0.0.1", "192.0.2.10", "203.0.113.7", "::1"];
    eventually("what is there is served", || served(&testbed) == first);
    testbed.ip(&["route", "add", "local", "10.9.0.0/16", "dev", "lo"]);
    testbed.ip(&["-6", "route", "add", "local", "2001:db8:9::/64", "dev", "lo"]);
    let more = ["10.9.0.0/16", "127.0.0.1", "192.0.2.10", "2001:db8:9::/64", "203.0.113.7", "::1"];
    eventually("networks are served", || served(&testbed) == more);
    testbed.ip(&["route", "del", "local", "203.0.113.7", "dev", "lo", "table", "77"]);
    testbed.ip(&["-6", "route", "del", "local", "2001:db8:9::/64", "dev", "lo"]);
    testbed.ip(&["route", "del", "local", "10.9.0.0/16", "dev", "lo"]);
    eventually("what went is not", || served(&testbed) == ["127.0.0.1", "192.0.2.10", "::1"]);
}

#[test]
fn node_ports_are_served_where_they_should_be() {
    let testbed = Testbed::new();
    testbed.ip(&["address", "add", "192.0.2.11/24", "dev", "eth0"]);
    write(&testbed.manifests().join("web.yaml"), MANIFEST);
    let _agent = testbed.agent(&["--nodeport-addresses", "primary"]);
    eventually("the primary address alone", || served(&testbed) == ["192.0.2.10"]);
}

/// Does `work` in the node's network namespace, on a thread of its own.
fn on_node<T: Send + 'static>(
    testbed: &Testbed,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let namespace = File::open(format!("/run/netns/{}", testbed.node())).expect("a namespace");
    let there = move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    };
    std::thread::spawn(there).join().expect("no panic")
}

fn get(testbed: &Testbed, address: &str, port: u16, path: &str) -> Option<String> {
    let at = SocketAddr::new(address.parse::<IpAddr>().expect("address"), port);
    let request = format!("GET {path} HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n");
    let ask = move || {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    on_node(testbed, ask).ok()
}

#[test]
fn a_port_taken_from_a_program_of_the_node_is_told() {
    let testbed = Testbed::new();
    let external = MANIFEST.replace("  ports: [", "  externalIPs: [192.0.2.10]\n  ports: [");
    write(&testbed.manifests().join("web.yaml"), &external);
    let listener = on_node(&testbed, || TcpListener::bind("192.0.2.10:80")).expect("bound");
    // (That may be known before it is ready.)
    let mut agent = testbed.start(&testbed.bpffs(), &[]);
    let reported = agent.wait_for("192.0.2.10 is this node's own address");
    assert!(reported.contains("listens on 80/TCP") && reported.contains("Service t/web"), "{reported}");
    drop(listener);
    write(&testbed.manifests().join("web.yaml"), MANIFEST);
    agent.wait_for("solved: ");
}

#[test]
fn no_socket_holds_a_node_port() {
    let testbed = Testbed::new();
    write(&testbed.manifests().join("web.yaml"), MANIFEST);
    let _agent = testbed.agent(&[]);
    eventually("nodePorts are served", || !served(&testbed).is_empty());
    let bound = on_node(&testbed, || TcpListener::bind("0.0.0.0:30080").map(drop));
    assert!(bound.is_ok(), "{bound:?}");
    // One that is held: that of the health check.
    eventually("the health check answers", || get(&testbed, "127.0.0.1", 31999, "/").is_some());
    let bound = on_node(&testbed, || TcpListener::bind("0.0.0.0:31999").map(drop));
    assert!(bound.is_err(), "somebody else may listen at the port of a health check");
}

#[test]
fn metrics_have_kube_proxys_paths() {
    let testbed = Testbed::new();
    let _agent = testbed.agent(&["--metrics-bind-address", "127.0.0.1:10249"]);
    for (path, expected) in [
        ("/metrics", "\nkubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"} "),
        ("/proxyMode", "\r\n\r\nshunt"),
        ("/healthz", "\r\n\r\nok"),
    ] {
        eventually(path, || {
            let answer = get(&testbed, "127.0.0.1", 10249, path).unwrap_or_default();
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(expected)
        });
    }
}

#[test]
fn load_balancers_learn_which_nodes_have_endpoints() {
    let testbed = Testbed::new();
    write(&testbed.manifests().join("web.yaml"), MANIFEST);
    let healthz = ["--healthz-bind-address", "0.0.0.0:10256"];
    let _agent = testbed.agent(&healthz);
    let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"t\",\n\t\t\"name\": \"web\"\n\t},\n\t\
                    \"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}";
    for address in ["192.0.2.10", "127.0.0.1", "::1"] {
        let mut answer = None;
        eventually("the health check answers", || {
            answer = get(&testbed, address, 31999, "/any");
            answer.as_ref().is_some_and(|answer| answer.starts_with("HTTP/1.1 200 OK\r\n"))
        });
        let answer = answer.expect("an answer");
        assert!(answer.contains("\r\nX-Load-Balancing-Endpoint-Weight: 1\r\n"), "{answer}");
        assert!(answer.ends_with(expected), "{answer}");
        let healthz = get(&testbed, address, 10256, "/healthz").expect("an answer");
        assert!(healthz.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"), "{healthz}");
        assert!(
            healthz.contains("\"nodeEligible\":true,\"healthy\":true,\"status\":{\"IPv4\":"),
            "{healthz}"
        );
    }
    let nobody =
        MANIFEST.replace("{addresses: [10.1.0.9], nodeName: n1}", "{addresses: [10.1.0.9], nodeName: n2}");
    write(&testbed.manifests().join("web.yaml"), &nobody);
    eventually("this node has no endpoint any more", || {
        let answer = get(&testbed, "192.0.2.10", 31999, "/").unwrap_or_default();
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"localEndpoints\": 0")
    });
    std::fs::remove_file(testbed.manifests().join("web.yaml")).expect("removed");
    eventually("nobody answers for a Service that is gone", || {
        get(&testbed, "192.0.2.10", 31999, "/").is_none()
    });
}

#[test]
fn the_pods_range_is_the_nodes() {
    let testbed = Testbed::new();
    let mut agent = testbed.start(&testbed.bpffs(), &["--detect-local-mode", "NodeCIDR"]);
    agent.wait_for("ready");
    let node =
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.1.0.0/24, 'fd00:1::/64']}\n";
    write(&testbed.manifests().join("node.yaml"), node);
    let line = agent.wait_for("configured");
    let line = if line.contains("fd00:1::/64") { line } else { agent.wait_for("configured") };
    assert!(line.contains("10.1.0.0/24,fd00:1::/64"), "{line}");
}
