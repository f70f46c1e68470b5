//! Nodes whose uplinks are plain veths, as kind, k3d and LXC make them: nobody has prepared the far ends, and the agent decides by itself
//! how it works there.
mod lab_support;

use lab_support::{Checks, ECHO, FAR, Scene, WEB, options, paths};
use lb_lab::{AgentOptions, Family, Lab, Layout, NodeId, SocketLb, UPLINK, Wire, XdpForward, XdpMode, at};

/// Requests to a pod of another node, of which none may be lost.
const REQUESTS: u32 = 100_000;

fn lab(gro: bool) -> Lab {
    let builder = Lab::builder().layout(Layout::PointToPoint).wire(Wire::Veths { gro });
    builder.helper(env!("CARGO_BIN_EXE_xtask")).build().expect("a lab")
}

/// A scene on such nodes, whose agents decide by themselves whether XDP sends.
fn scene(gro: bool, xdp: XdpMode) -> Scene {
    let options = AgentOptions { xdp_forward: XdpForward::Auto, ..options(xdp, SocketLb::Host) };
    Scene::within(lab(gro), &options)
}

fn check(gro: bool) {
    let mut scene = scene(gro, XdpMode::Auto);
    let mut checks = Checks::new();
    // (First what asks the kernel for ICMP errors, of which it sends so many in a row.)
    for part in [
        paths::passed,
        paths::from_outside,
        paths::from_pods_by_packets,
        paths::from_hosts,
        paths::spread,
        paths::agreement,
        paths::ports_again,
    ] {
        part(&scene, &mut checks);
    }
    checks.finish(&mut scene);
    let from = scene.lab.client();
    for family in Family::ALL {
        let node = scene.lab.node_ip(NodeId::A, family);
        let report = from.http(at(node, FAR.node_port(WEB)), REQUESTS / 4).expect("a report");
        assert_eq!(report.answered(), u64::from(REQUESTS / 4), "{report:?}");
        let report = from.udp(at(node, FAR.node_port(ECHO)), REQUESTS / 4).expect("a report");
        assert_eq!(report.answered(), u64::from(REQUESTS / 4), "{report:?}");
    }
    // Long packets, with sums that are still to be finished, both ways at once.
    const BYTES: usize = 16 << 20;
    let to = at(scene.lab.node_ip(NodeId::A, Family::V4), FAR.node_port(ECHO));
    let report = from.bulk(to, BYTES).expect("a report");
    assert_eq!((report.echoed, report.failure.as_deref()), (BYTES, None), "{report:?}");
}

#[test]
fn every_path_where_the_far_end_does_not_merge() {
    check(false);
}

#[test]
fn every_path_where_the_far_end_merges() {
    check(true);
}

/// XDP in the driver is there for the asking, and sends nothing by itself.
#[test]
fn native_xdp_on_a_veth_sends_nothing() {
    let mut scene = scene(true, XdpMode::Native);
    for netns in [scene.lab.client(), scene.lab.node(NodeId::A), scene.lab.node(NodeId::B)] {
        netns.run(&["ethtool", "-K", UPLINK, "tx", "off"]).expect("finished sums");
    }
    let mut checks = Checks::new();
    paths::from_outside(&scene, &mut checks);
    checks.finish(&mut scene);
    let shown = scene.lab.agent(NodeId::A).shunt(&["get", "interfaces"]).expect("a table").stdout;
    let uplink = shown.lines().find(|line| line.starts_with(UPLINK)).expect("the uplink's row");
    assert!(uplink.contains("uplink_xdp (xdp native)") && uplink.contains("off: no card"), "{shown}");
}
