//! What comes to life while the agent is stopped, killed or replaced: the keeper serves it.
mod lab_support;

use lab_support::{ALL, Checks, ECHO, FAMILIES, FAR, Scene, cluster_ip, eventually, node_port, options};
use lb_lab::{AgentOptions, Family, Layout, NodeId, PodKind, SocketLb, UPLINK, XdpMode, at, shunt_program};

/// Connections kept busy.
const CONNECTIONS: u32 = 50;

/// A new pod on node A. Its interface's name.
fn add_pod(scene: &mut Scene, name: &str) -> String {
    scene.lab.add_pod(NodeId::A, name, PodKind::Idle).expect("a pod").device().to_owned()
}

fn is_served(scene: &Scene, name: &str, what: &str, checks: &mut Checks) {
    let first = at(FAR.cluster_ip(), ECHO);
    eventually(&format!("{what}: an answer"), || {
        scene.pod(name).udp(first, 1).is_ok_and(|report| report.answered() == 1)
    });
    for family in FAMILIES {
        checks.answered(what, scene.pod(name), cluster_ip(FAR, *family), &["b1"], None);
    }
}

/// Waits until the agent of node A says that the keeper has served an interface, and counts it among its own.
fn is_taken_over(scene: &mut Scene, device: &str) {
    eventually(&format!("the agent to tell of {device}"), || {
        let log = scene.lab.agent(NodeId::A).log();
        log.lines().any(|line| line.contains("the keeper had attached") && line.contains(device))
    });
    let agent = scene.lab.agent(NodeId::A);
    let shown = agent.shunt(&["get", "interfaces", device]).expect("a table").stdout;
    assert!(shown.contains("pod_ingress") && shown.contains("pod_egress"), "{shown}");
}

fn keepers(scene: &mut Scene, node: NodeId) -> usize {
    scene.lab.agent(node).keepers().expect("/proc").len()
}

/// A second program at an interface would pass what the first has translated, and count it.
fn translated_twice(scene: &mut Scene) -> u64 {
    scene.lab.agent(NodeId::A).packets("pod_ingress", "translated").expect("metrics")
}

fn while_the_agent_is_stopped(layout: Layout) {
    let mut scene = Scene::new(layout, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    scene.lab.agent(NodeId::A).suspend().expect("stopped");
    let device = add_pod(&mut scene, "new");
    is_served(&scene, "new", "the agent is stopped", &mut checks);
    let held = scene.pod("new").hold(at(FAR.cluster_ip(), ECHO), CONNECTIONS).expect("held connections");
    scene.lab.agent(NodeId::A).resume().expect("goes on");
    is_taken_over(&mut scene, &device);
    is_served(&scene, "new", "the agent is back", &mut checks);
    let held = held.finish().expect("a report");
    let well = held.broken.is_empty() && held.not_opened.is_empty() && held.opened > 0;
    checks.holds("connections of the new pod", well, || format!("{held:?}"));
    checks.holds("one program at each place", translated_twice(&mut scene) == 0, || "two".into());
    // It is the agent's turn again.
    add_pod(&mut scene, "next");
    is_served(&scene, "next", "a pod for the agent", &mut checks);
    let kept = scene.lab.agent(NodeId::A).metrics().expect("metrics");
    checks.holds("counted once", kept.contains("\nshunt_keeper_interfaces_total 1\n"), || kept.clone());
    checks.finish(&mut scene);
}

#[test]
fn pods_that_come_while_the_agent_is_stopped_are_served() {
    while_the_agent_is_stopped(Layout::PointToPoint);
}

#[test]
fn so_are_ports_of_a_bridge() {
    while_the_agent_is_stopped(Layout::Bridge);
}

#[test]
fn the_next_agent_takes_over_from_the_keeper_of_one_that_was_killed() {
    let mut scene = Scene::new(Layout::PointToPoint, &AgentOptions::default());
    let mut checks = Checks::new();
    scene.lab.agent(NodeId::A).kill();
    let device = add_pod(&mut scene, "orphan");
    is_served(&scene, "orphan", "no agent", &mut checks);
    let port = at(scene.lab.node_address(NodeId::A), ALL.node_port(ECHO));
    let held = [(scene.lab.client(), port), (scene.pod("orphan"), at(ALL.cluster_ip(), ECHO))]
        .map(|(from, to)| from.hold(to, CONNECTIONS).expect("held connections"));
    let before = scene.lab.agent(NodeId::A).keepers().expect("/proc");
    scene.lab.agent(NodeId::A).start().expect("the next agent");
    is_taken_over(&mut scene, &device);
    eventually("the keeper of the next agent alone to be there", || {
        let now = scene.lab.agent(NodeId::A).keepers().expect("/proc");
        now.len() == 1 && now != before
    });
    is_served(&scene, "orphan", "the next agent", &mut checks);
    for held in held {
        let report = held.finish().expect("a report");
        let well = report.broken.is_empty() && report.not_opened.is_empty() && report.opened > 0;
        checks.holds("held through all of it", well, || format!("{report:?}"));
    }
    checks.holds("one program at each place", translated_twice(&mut scene) == 0, || "two".into());
    checks.finish(&mut scene);
}

fn an_uplink_made_anew(xdp: XdpMode) {
    let mut scene = Scene::new(Layout::PointToPoint, &options(xdp, SocketLb::Host));
    let mut checks = Checks::new();
    scene.lab.agent(NodeId::A).kill();
    scene.lab.remake_uplink(NodeId::A).expect("another uplink");
    let served = |scene: &Scene, what: &str, checks: &mut Checks| {
        for family in Family::ALL {
            let to = at(scene.lab.node_ip(NodeId::A, family), FAR.node_port(ECHO));
            eventually(&format!("{what}: an answer at {to}"), || {
                scene.lab.client().udp(to, 1).is_ok_and(|report| report.answered() == 1)
            });
            let to = node_port(FAR, scene.lab.node_ip(NodeId::A, family));
            checks.answered(what, scene.lab.client(), to, &["b1"], None);
        }
    };
    served(&scene, "no agent", &mut checks);
    let shown = scene.lab.agent(NodeId::A).shunt(&["get", "interfaces", UPLINK]).expect("a table").stdout;
    let has_xdp = shown.contains("uplink_xdp (xdp native)") == (xdp == XdpMode::Native);
    checks.holds("XDP as the agent has it", has_xdp, || shown.clone());
    scene.lab.agent(NodeId::A).start().expect("the next agent");
    served(&scene, "the next agent", &mut checks);
    checks.finish(&mut scene);
}

#[test]
fn an_uplink_that_is_made_anew_without_an_agent_is_served() {
    an_uplink_made_anew(XdpMode::Native);
}

#[test]
fn so_is_one_without_xdp() {
    an_uplink_made_anew(XdpMode::Off);
}

/// As a container of its own, beside the agent's: it outlives agents, and keeps for one after the other.
#[test]
fn a_keeper_of_its_own_keeps_for_whoever_connects() {
    let mut scene = Scene::new(Layout::PointToPoint, &AgentOptions::default());
    let mut checks = Checks::new();
    let folder = scene.lab.folder();
    let path = |name: &str| folder.join(name).display().to_string();
    let (bpffs, socket) = (scene.lab.bpffs(NodeId::A).display().to_string(), path("keeper"));
    let program = shunt_program().expect("the program").display().to_string();
    let words = [&program, "keeper", "--bpffs", &bpffs, "--socket", &socket];
    let mut keeper = scene.lab.node(NodeId::A).spawn(&words, &folder.join("keeper.log")).expect("a keeper");
    eventually("the keeper to listen", || std::fs::exists(&socket).unwrap_or(false));
    scene.lab.agent(NodeId::A).stop().expect("ended");
    scene.lab.agent(NodeId::A).options_mut().more = ["--keeper".to_owned(), socket].into();
    for round in ["first", "second"] {
        scene.lab.agent(NodeId::A).start().expect("the agent");
        assert_eq!(keepers(&mut scene, NodeId::A), 1, "none of the agent's own");
        scene.lab.agent(NodeId::A).kill();
        add_pod(&mut scene, round);
        is_served(&scene, round, "no agent", &mut checks);
    }
    scene.lab.agent(NodeId::A).start().expect("the agent");
    scene.lab.agent(NodeId::A).stop().expect("ended");
    assert_eq!(keeper.ended(), None, "{}", keeper.log());
    keeper.stop(lab_support::CHANGE).expect("it ends when it is told to");
    checks.finish(&mut scene);
}

#[test]
fn a_keeper_ends_when_it_should_and_leaves_nothing() {
    let mut scene = Scene::new(Layout::PointToPoint, &AgentOptions::default());
    let [a, b] = NodeId::ALL;
    for node in NodeId::ALL {
        eventually("a keeper on each node", || keepers(&mut scene, node) == 1);
    }
    // With the agent, if that is told to end.
    scene.lab.agent(a).stop().expect("ended");
    assert_eq!(keepers(&mut scene, a), 0);
    scene.lab.agent(a).start().expect("the agent");
    // By cleanup, if the agent was killed; nothing comes back then.
    scene.lab.agent(a).kill();
    add_pod(&mut scene, "orphan");
    eventually("the keeper's work", || {
        let shown = scene.lab.agent(a).shunt(&["get", "interfaces"]).expect("a table").stdout;
        let device = scene.lab.pod("orphan").device().to_owned();
        shown.lines().any(|line| line.contains(&device) && line.contains("pod_ingress"))
    });
    let output = scene.lab.agent(a).shunt(&["cleanup"]).expect("cleanup");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(keepers(&mut scene, a), 0);
    assert!(!scene.lab.agent(a).bpffs().exists());
    add_pod(&mut scene, "late");
    assert!(!scene.lab.agent(a).bpffs().exists());
    assert_eq!(keepers(&mut scene, b), 1, "that of another node has nothing to do with it");
    // A keeper that is killed is replaced, and none is there where none is wanted.
    let killed = scene.lab.agent(b).keepers().expect("/proc");
    scene.lab.node(b).run(&["kill", "-9", &killed[0].to_string()]).expect("killed");
    eventually("another keeper", || {
        let now = scene.lab.agent(b).keepers().expect("/proc");
        now.len() == 1 && now != killed
    });
    scene.lab.agent(a).options_mut().more = ["--keeper", "off"].map(str::to_owned).into();
    scene.lab.agent(a).start().expect("the agent");
    assert_eq!(keepers(&mut scene, a), 0);
}
