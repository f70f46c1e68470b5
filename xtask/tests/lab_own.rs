//! Connections of the node's own beside those of Services: the kernel and Shunt share one space of ports.
mod lab_support;

use std::net::SocketAddr;

use lab_support::{Checks, ECHO, FAMILIES, FAR, NEAR, Scene, WEB, options};
use lb_lab::pod::{HTTP_PORT, UDP_PORT};
use lb_lab::{Family, Layout, Netns, NodeId, SocketLb, XdpMode, at};

/// Sockets of the node, each from a port of its own.
const SOCKETS: u32 = 1250;
/// Clients of a Service at the same time.
const CLIENTS: u32 = 300;
/// Where the ports to masquerade with begin.
const FIRST_PORT: u16 = 10_000;

#[test]
fn the_nodes_own_connections_keep_their_answers_with_xdp() {
    the_nodes_own_connections_keep_their_answers(XdpMode::Native);
}

#[test]
fn the_nodes_own_connections_keep_their_answers_with_tc() {
    the_nodes_own_connections_keep_their_answers(XdpMode::Off);
}

fn the_nodes_own_connections_keep_their_answers(mode: XdpMode) {
    let mut scene = Scene::new(Layout::PointToPoint, &options(mode, SocketLb::Host));
    let mut checks = Checks::new();
    for family in FAMILIES.iter().copied() {
        from_node_ports(&scene, family, &mut checks);
        from_masquerading_ports(&scene, family, &mut checks);
    }
    checks.finish(&mut scene);
}

fn get_from(netns: &Netns, port: u16, to: SocketAddr) -> bool {
    let (port, url) = (port.to_string(), format!("http://{to}/"));
    let words = ["curl", "--silent", "--noproxy", "*", "--max-time", "3", "--local-port", &port, &url];
    netns.exec(&words).is_ok_and(|output| output.status.success())
}

/// From a port that is also a nodePort, to a server far away: the answers come to that very port.
fn from_node_ports(scene: &Scene, family: Family, checks: &mut Checks) {
    let lab = &scene.lab;
    let (node, far_away) = (lab.node(NodeId::A), lab.plan().client_ip(family));
    for service in [NEAR, FAR] {
        // (A port that IPv4 has just left cannot be had for IPv6.)
        let port = service.node_port(if family == Family::V4 { WEB } else { ECHO });
        let answered = get_from(node, port, at(far_away, HTTP_PORT));
        checks.holds("TCP from a nodePort", answered, || format!("{family:?}: no answer to port {port}"));
        let port = service.node_port(ECHO);
        let report = node.udp_from_ports(at(far_away, UDP_PORT), 1, port);
        let answered = report.as_ref().is_ok_and(|report| report.failures.is_empty());
        checks.holds("UDP from a nodePort", answered, || format!("{family:?}: port {port}: {report:?}"));
        // Whoever else comes is a client.
        let to = lab_support::node_port(service, lab.node_ip(NodeId::A, family));
        let pod = if service == NEAR { "a1" } else { "b1" };
        checks.answered("its clients", lab.client(), to, &[pod], None);
    }
}

/// From ports that flows are masqueraded with, to the endpoint that clients of a Service are sent to.
fn from_masquerading_ports(scene: &Scene, family: Family, checks: &mut Checks) {
    let lab = &scene.lab;
    let pod = at(lab.pod("b1").ip(family), UDP_PORT);
    let node_port = at(lab.node_ip(NodeId::A, family), FAR.node_port(ECHO));
    let (node, client) = (lab.node(NodeId::A), lab.client());
    let before = client.udp_from_ports(node_port, CLIENTS, 20_000);
    let (own, during) = std::thread::scope(|threads| {
        let own = threads.spawn(|| node.udp_from_ports(pod, SOCKETS, FIRST_PORT));
        let during = client.udp_from_ports(node_port, CLIENTS, 30_000);
        (own.join().expect("no panic"), during)
    });
    for (what, report, count) in [
        ("clients before", before, CLIENTS),
        ("the node's sockets", own, SOCKETS),
        ("clients", during, CLIENTS),
    ] {
        let well = report.as_ref().is_ok_and(|report| {
            report.failures.is_empty() && report.answers.get("b1") == Some(&u64::from(count))
        });
        checks.holds(what, well, || format!("{family:?}: {report:?}"));
    }
}
