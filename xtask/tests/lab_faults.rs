//! What must hold while things change and break: endpoints, pods, the agent itself.
mod lab_support;

use std::fs;
use std::time::{Duration, Instant};

use lab_support::{ALL, Checks, ECHO, Numbered, Scene, WEB, bare, eventually, options};
use lb_lab::pod::IPERF_PORT;
use lb_lab::{
    AgentOptions, Endpoint, HoldReport, Lab, Layout, Netns, NodeId, PodKind, Report, Service, SocketLb,
    XdpMode, at,
};

/// Connections kept busy through each fault.
const CONNECTIONS: u32 = 200;

fn unbroken(what: &str, report: &HoldReport, checks: &mut Checks) {
    let well = report.connections == u64::from(CONNECTIONS)
        && report.broken.is_empty()
        && report.not_opened.is_empty()
        && report.echoed > report.connections
        && report.opened > 0;
    checks.holds(what, well, || format!("{report:?}"));
}

/// Waits until new flows go to these pods and to no other.
fn await_pods(from: &Netns, to: std::net::SocketAddr, pods: &[&str]) {
    eventually(&format!("new connections to {to} to go to {pods:?} alone"), || {
        let report = from.tcp(to, 40).expect("a report");
        report.failures.is_empty() && report.answers.keys().eq(pods)
    });
}

#[test]
fn connections_outlive_changes_and_the_agent() {
    let mut scene = Scene::new(Layout::PointToPoint, &AgentOptions::default());
    let mut checks = Checks::new();
    let service = ALL.service("all");
    let port = at(scene.lab.node_address(NodeId::A), ALL.node_port(ECHO));
    let cluster_ip = at(ALL.cluster_ip(), ECHO);
    let held = [
        ("from outside", scene.lab.client().hold(port, CONNECTIONS)),
        ("from a pod", scene.pod("visitor").hold(cluster_ip, CONNECTIONS)),
        ("from the host", scene.lab.node(NodeId::A).hold(cluster_ip, CONNECTIONS)),
    ]
    .map(|(who, held)| (who, held.expect("held connections")));

    scene.lab.add_pod(NodeId::B, "b2", PodKind::Web).expect("a pod");
    for pods in [&["a1", "a2", "b1", "b2"][..], &["a2", "b1", "b2"], &["b1", "b2"], &["a1", "b2"]] {
        let endpoints: Vec<Endpoint> = pods.iter().map(|pod| scene.endpoint(pod)).collect();
        scene.lab.apply(&service, &endpoints).expect("a manifest");
        await_pods(scene.lab.client(), port, pods);
        await_pods(scene.pod("visitor"), cluster_ip, pods);
    }
    for _ in 0..3 {
        scene.lab.agent(NodeId::A).kill();
        // With no agent alive the kernel goes on as it was told.
        await_pods(scene.lab.client(), port, &["a1", "b2"]);
        scene.lab.agent(NodeId::A).start().expect("the agent again");
    }
    // What changes while no agent is alive is carried out by the next.
    scene.lab.agent(NodeId::A).kill();
    let endpoints = [scene.endpoint("a2"), scene.endpoint("b1")];
    scene.lab.apply(&service, &endpoints).expect("a manifest");
    scene.lab.agent(NodeId::A).start().expect("the agent again");
    await_pods(scene.lab.client(), port, &["a2", "b1"]);

    for (who, held) in held {
        match held.finish() {
            Ok(report) => unbroken(who, &report, &mut checks),
            Err(error) => checks.holds(who, false, || error.to_string()),
        }
    }
    checks.finish(&mut scene);
}

/// A web pod's UDP clients: each keeps its socket and asks again after the pod is gone.
#[test]
fn datagrams_leave_an_endpoint_that_is_gone() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    let service = ALL.service("all");
    let to = at(scene.lab.node_address(NodeId::A), ALL.node_port(ECHO));
    let flows =
        |scene: &Scene| -> Report { scene.lab.client().udp_from_ports(to, 60, 30000).expect("a report") };
    let before = flows(&scene);
    checks.holds("before", before.answers.len() == 3 && before.failures.is_empty(), || format!("{before:?}"));
    scene.lab.apply(&service, &[scene.endpoint("a2"), scene.endpoint("b1")]).expect("a manifest");
    scene.lab.remove_pod("a1").expect("the pod to go");
    eventually("datagrams of the same ports to be answered by other pods", || {
        let after = flows(&scene);
        after.failures.is_empty() && !after.answers.contains_key("a1")
    });
    let after = flows(&scene);
    let stayed = before
        .by_port
        .iter()
        .filter(|(_, pod)| *pod != "a1")
        .all(|(port, pod)| after.by_port.get(port) == Some(pod));
    checks.holds("flows of the other pods stay", stayed, || format!("{before:?}\n{after:?}"));
    checks.finish(&mut scene);
}

#[test]
fn a_new_pod_is_served_at_once() {
    let mut scene = Scene::new(Layout::PointToPoint, &AgentOptions::default());
    let mut checks = Checks::new();
    for number in 0..5 {
        let name = format!("new-{number}");
        scene.lab.add_pod(NodeId::A, &name, PodKind::Idle).expect("a pod");
        let start = Instant::now();
        let mut reached = None;
        while reached.is_none() && start.elapsed() < Duration::from_secs(2) {
            // Each program waits 20 ms at most, so that a packet lost before the hook is there costs no more.
            let words = ["curl", "--silent", "--noproxy", "*", "--max-time", "0.02", "--fail"];
            let url = format!("http://{}:{WEB}/", ALL.cluster_ip());
            let output = scene.pod(&name).exec(&[&words[..], &[&url]].concat()).expect("curl");
            reached = output.status.success().then(|| start.elapsed());
        }
        let soon = reached.is_some_and(|after| after < Duration::from_millis(100));
        checks.holds("a new pod", soon, || format!("{name} reached the Service after {reached:?}"));
    }
    checks.finish(&mut scene);
}

#[test]
fn a_pod_that_takes_over_an_address_is_served() {
    let mut scene = Scene::new(Layout::Bridge, &AgentOptions::default());
    let mut checks = Checks::new();
    let address = scene.lab.pod("a1").address();
    let to = at(scene.lab.node_address(NodeId::A), lab_support::NEAR.node_port(WEB));
    for number in 0..3 {
        let (old, new) = (
            if number == 0 { "a1".into() } else { format!("again-{}", number - 1) },
            format!("again-{number}"),
        );
        scene.lab.remove_pod(&old).expect("the pod to go");
        scene.lab.add_pod_at(NodeId::A, &new, PodKind::Web, address).expect("a pod");
        eventually("the new pod to answer", || {
            let report = scene.lab.client().http(to, 3).expect("a report");
            report.answers.get(&new) == Some(&3)
        });
        let inside = scene.pod(&new).http(at(ALL.cluster_ip(), WEB), 10);
        let well = inside.as_ref().is_ok_and(|report| report.failures.is_empty());
        checks.holds("from the new pod", well, || format!("{inside:?}"));
    }
    checks.finish(&mut scene);
}

/// Checksum errors seen by the TCP and UDP of a namespace.
fn checksum_errors(netns: &Netns) -> u64 {
    let table = netns.within(|| fs::read_to_string("/proc/thread-self/net/snmp")).expect("a namespace");
    let table = table.expect("/proc/net/snmp");
    let mut lines = table.lines();
    let mut sum = 0;
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let columns = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
        sum += columns
            .filter(|(name, _)| *name == "InCsumErrors")
            .filter_map(|(_, value)| value.parse::<u64>().ok())
            .sum::<u64>();
    }
    sum
}

const SPEED: Numbered = Numbered(50);

/// Bulk traffic, with every offload on between pods and nodes, arrives with sound checksums.
fn bulk(layout: Layout, xdp: XdpMode) {
    let mut lab: Lab = bare(layout);
    lab.add_pod(NodeId::A, "near", PodKind::Iperf).expect("a pod");
    lab.add_pod(NodeId::B, "far", PodKind::Iperf).expect("a pod");
    lab.add_pod(NodeId::A, "visitor", PodKind::Idle).expect("a pod");
    for (number, pod) in [(50, "near"), (51, "far")] {
        let service = Numbered(number);
        let ports = Service::new(pod, service.cluster_ip())
            .tcp_node_port(IPERF_PORT, IPERF_PORT, 30000 + u16::from(number))
            .udp_node_port(IPERF_PORT, IPERF_PORT, 30000 + u16::from(number));
        lab.apply(&ports, &[lab.pod(pod).into()]).expect("a manifest");
    }
    lab.start_agents(&options(xdp, SocketLb::Host)).expect("the agents");
    let mut scene = Scene { lab };
    let mut checks = Checks::new();
    let lab = &scene.lab;
    let node = lab.node_address(NodeId::A);
    let far = Numbered(SPEED.0 + 1);
    for (what, from, address, port) in [
        ("pod → ClusterIP, same node", scene.pod("visitor"), SPEED.cluster_ip(), IPERF_PORT),
        ("pod → ClusterIP, other node", scene.pod("visitor"), far.cluster_ip(), IPERF_PORT),
        ("outside → nodePort, same node", lab.client(), node, 30050),
        ("outside → nodePort, other node", lab.client(), node, 30051),
        ("host → ClusterIP, other node", lab.node(NodeId::A), far.cluster_ip(), IPERF_PORT),
    ] {
        let (address, port) = (address.to_string(), port.to_string());
        for mode in [
            &[][..],
            &["--reverse"],
            &["--udp", "--bitrate", "100M"],
            &["--udp", "--bitrate", "100M", "--reverse"],
        ] {
            let words = [
                "iperf3",
                "--client",
                &address,
                "--port",
                &port,
                "--time",
                "1",
                "--json",
                "--connect-timeout",
                "2000",
            ];
            let words = [&words[..], mode].concat();
            let output = from.exec(&words).expect("iperf3");
            let report: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_default();
            let end = &report["end"];
            let sum = if mode.contains(&"--udp") { &end["sum"] } else { &end["sum_received"] };
            let bits = sum["bits_per_second"].as_f64().unwrap_or_default();
            eprintln!("{what} {mode:?}: {:.0} Mbit/s", bits / 1e6);
            checks.holds(what, output.status.success() && bits > 20e6, || {
                format!("{mode:?}: {bits} bit/s, {}: {}", output.status, report["error"])
            });
        }
    }
    let namespaces = [lab.client(), lab.node(NodeId::A), lab.node(NodeId::B)];
    for netns in namespaces.into_iter().chain(lab.pods().map(|pod| pod.netns())) {
        let errors = checksum_errors(netns);
        checks.holds("checksums", errors == 0, || format!("{errors} checksum errors in {}", netns.name()));
    }
    checks.finish(&mut scene);
}

#[test]
fn bulk_traffic_keeps_its_checksums_with_native_xdp() {
    bulk(Layout::PointToPoint, XdpMode::Native);
}

#[test]
fn bulk_traffic_keeps_its_checksums_with_generic_xdp() {
    bulk(Layout::PointToPoint, XdpMode::Generic);
}

#[test]
fn bulk_traffic_keeps_its_checksums_without_xdp() {
    bulk(Layout::Bridge, XdpMode::Off);
}

#[test]
fn clean_up_leaves_nothing_and_the_network_as_it_was() {
    let mut scene = Scene::new(Layout::PointToPoint, &AgentOptions::default());
    // bpftool does not show tcx everywhere; the requests below do.
    let attached = |scene: &Scene| -> String {
        let node = scene.lab.node(NodeId::A);
        let group = scene.lab.node_cgroup(NodeId::A).expect("a control group");
        let group = group.display().to_string();
        let show = |words: &[&str]| node.run(words).unwrap_or_else(|error| panic!("{error}"));
        show(&["bpftool", "net", "show"])
            + &show(&["tc", "qdisc", "show"])
            + &show(&["ip", "-details", "link", "show", "dev", lb_lab::UPLINK])
            + &node.exec(&["bpftool", "cgroup", "show", &group]).expect("bpftool").stdout
    };
    let before = attached(&scene);
    assert!(before.contains("uplink_xdp") && before.contains("connect4"), "{before}");
    let to = at(scene.lab.node_address(NodeId::A), ALL.node_port(WEB));
    assert_eq!(scene.lab.client().http(to, 3).expect("a report").answered(), 3);

    scene.lab.clean_agents().expect("shunt cleanup");
    for node in NodeId::ALL {
        let pins = scene.lab.bpffs(node);
        assert!(!pins.exists(), "{} is still there", pins.display());
    }
    let after = attached(&scene);
    for ours in ["uplink", "xdp id", "pod_", "connect", "sendmsg", "recvmsg", "getpeername", "clsact"] {
        assert!(!after.contains(ours), "{ours} is still attached:\n{after}");
    }
    let report = scene.lab.client().http(to, 2).expect("a report");
    assert_eq!(report.failures.get("refused"), Some(&2), "nobody serves the nodePort any more: {report:?}");
    let report = scene.pod("a1").http(at(ALL.cluster_ip(), WEB), 1).expect("a report");
    assert_eq!(report.answered(), 0, "nobody serves the ClusterIP any more: {report:?}");
    let pod = at(scene.lab.pod("b1").address(), lb_lab::pod::HTTP_PORT);
    assert_eq!(scene.pod("a1").http(pod, 3).expect("a report").answered(), 3);
}
