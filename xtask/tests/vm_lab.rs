//! The agent in a kernel of a virtual machine: every path with real sockets, with native XDP and without, through its
//! death and until its cleanup. One test, because loading the programs is what takes longest there.
mod lab_support;

use std::collections::BTreeMap;
use std::time::Instant;

use lab_support::{ALL, CHANGE, Checks, ECHO, PACE, Scene, options, paths};
use lb_lab::{Family, Layout, NodeId, SocketLb, XdpMode, at, poll_every};

/// Connections that are kept busy while the agent is killed and started again.
const CONNECTIONS: u32 = 3;

/// The name of the lab's own XDP programs.
const WIRE: &str = "assembled";

/// Says what has been reached, for whoever reads how far it came.
fn part(name: &str, scene: &Scene, checks: &mut Checks, check: fn(&Scene, &mut Checks)) {
    let began = Instant::now();
    check(scene, checks);
    println!("{name}: {:.1} s", began.elapsed().as_secs_f64());
}

#[test]
fn the_agent_serves_until_it_is_taken_out() {
    let began = Instant::now();
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    println!("agents ready: {:.1} s", began.elapsed().as_secs_f64());
    let mut checks = Checks::new();
    part("from outside with native XDP", &scene, &mut checks, paths::from_outside);
    part("from pods", &scene, &mut checks, paths::from_pods_by_packets);
    part("from hosts", &scene, &mut checks, paths::from_hosts);
    part("what matches no Service", &scene, &mut checks, paths::passed);
    let forwarded = scene.lab.agent(NodeId::A).packets("uplink_xdp", "forward");
    checks.holds("native XDP", forwarded.as_ref().is_ok_and(|count| *count > 0), || format!("{forwarded:?}"));

    killed_and_started_again(&mut scene, &mut checks);
    part("from outside without XDP", &scene, &mut checks, paths::from_outside);

    checks.finish(&mut scene);
    taken_out(&mut scene);
}

/// Connections and new requests are served while no agent lives and while the next one, without XDP, begins.
fn killed_and_started_again(scene: &mut Scene, checks: &mut Checks) {
    let began = Instant::now();
    let node = NodeId::A;
    let outside = at(scene.lab.node_address(node), ALL.node_port(ECHO));
    let [inside, inside6] = Family::ALL.map(|family| at(ALL.cluster_ip_of(family), ECHO));
    // More would take the emulated processor's time from the agent that starts.
    let held =
        [(scene.lab.client(), outside), (scene.pod("visitor"), inside6), (scene.lab.node(node), inside)].map(
            |(from, to)| {
                (
                    format!("held from {} to {to}", from.name()),
                    from.hold(to, CONNECTIONS).expect("held connections"),
                )
            },
        );
    scene.lab.agent(node).kill();
    let udp = at(scene.lab.node_ip(node, Family::V6), ALL.node_port(ECHO));
    let report = scene.lab.client().udp(udp, 5);
    let served = report.as_ref().is_ok_and(|report| report.answered() == 5);
    checks.holds("no agent", served, || format!("{report:?}"));
    scene.lab.agent(node).options_mut().xdp = XdpMode::Off;
    scene.lab.agent(node).start().expect("the agent again");
    for (what, held) in held {
        let report = held.finish();
        let well = report.as_ref().is_ok_and(|report| {
            report.connections == u64::from(CONNECTIONS)
                && report.broken.is_empty()
                && report.not_opened.is_empty()
                && report.echoed > report.connections
                && report.opened > 0
        });
        checks.holds(&what, well, || format!("{report:?}"));
    }
    println!("killed and started again: {:.1} s", began.elapsed().as_secs_f64());
}

/// `shunt cleanup` leaves no program and no map, and no pin of either.
fn taken_out(scene: &mut Scene) {
    let (programs, maps) = (loaded(scene, "prog"), loaded(scene, "map"));
    assert!(programs.len() > 10 && maps.len() > 10, "before the cleanup: {programs:?} {maps:?}");
    let folders = NodeId::ALL.map(|node| scene.lab.bpffs(node));
    scene.lab.clean_agents().expect("shunt cleanup");
    for folder in folders {
        assert!(!folder.exists(), "{} is still there", folder.display());
    }
    for (kind, before) in [("prog", programs), ("map", maps)] {
        // The kernel takes its time to free them.
        let mut left = before;
        let gone = poll_every(PACE, "all to be gone", CHANGE, || {
            let now = loaded(scene, kind);
            left.retain(|id, _| now.contains_key(id));
            left.is_empty().then_some(())
        });
        assert!(gone.is_ok(), "{kind}: the cleanup left {left:?}");
    }
}

/// Ids and names of all programs or maps of this kernel but the wire's own. Those of bpftool itself are new each time.
fn loaded(scene: &Scene, kind: &str) -> BTreeMap<u64, String> {
    let text = scene.lab.client().run(&["bpftool", "--json", kind, "show"]).expect("bpftool");
    let all: Vec<serde_json::Value> = serde_json::from_str(&text).expect("JSON");
    let named = all.iter().filter_map(|it| Some((it["id"].as_u64()?, it["name"].as_str()?.to_owned())));
    named.filter(|(_, name)| name != WIRE).collect()
}
