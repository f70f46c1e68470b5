//! With which address a node masquerades whose card has several.
mod lab_support;

use std::net::IpAddr;

use lab_support::{BEYOND, Checks, ECHO, FAMILIES, FAR, Scene, eventually, node_port, options};
use lb_lab::{Family, Layout, NodeId, SocketLb, UPLINK, XdpMode, at};

/// Of the second network on the wire.
fn second(node: NodeId, family: Family) -> IpAddr {
    host(if node == NodeId::A { 11 } else { 12 }, family)
}

fn host(number: u8, family: Family) -> IpAddr {
    let text = match family {
        Family::V4 => format!("10.77.0.{number}"),
        Family::V6 => format!("2001:db8:77::{number}"),
    };
    text.parse().expect("an address")
}

/// The nodes get a second network on their cards, and the way to the other one's pods leads through it.
fn add_a_network(scene: &Scene) {
    let plan = scene.lab.plan();
    for family in FAMILIES.iter().copied() {
        let (option, bits, more) = if family == Family::V4 { ("-4", 24, "") } else { ("-6", 64, "nodad") };
        let add = format!("ip {option} addr add {}/{bits} dev {UPLINK} {more}", host(1, family));
        scene.lab.client().run(&add.split_ascii_whitespace().collect::<Vec<_>>()).expect("ip");
        for (node, other) in [(NodeId::A, NodeId::B), (NodeId::B, NodeId::A)] {
            let lines = [
                format!("addr add {}/{bits} dev {UPLINK} {more}", second(node, family)),
                format!("route replace {} via {}", plan.pods_of(other, family), second(other, family)),
            ];
            for line in lines {
                let words = ["ip", option].into_iter().chain(line.split_ascii_whitespace());
                scene.lab.node(node).run(&words.collect::<Vec<_>>()).expect("ip");
            }
        }
    }
}

fn two_networks(mode: XdpMode) {
    let mut scene = Scene::new(Layout::PointToPoint, &options(mode, SocketLb::Host));
    add_a_network(&scene);
    let mut checks = Checks::new();
    let client = scene.lab.client();
    for family in FAMILIES.iter().copied() {
        let own = scene.lab.node_ip(NodeId::A, family);
        // IPv6 goes by the destination, which is nearer to the first network.
        let toward = if family == Family::V4 { second(NodeId::A, family) } else { own };
        let to = at(own, FAR.node_port(ECHO));
        eventually("the second network", || {
            let report = client.udp(to, 1);
            report.is_ok_and(|report| report.clients.contains_key(&toward))
        });
        checks.answered("toward the other node", client, node_port(FAR, own), &["b1"], Some(toward));
        checks.answered(
            "toward the client's network",
            client,
            node_port(BEYOND, own),
            &["outsider"],
            Some(own),
        );
        let there = second(NodeId::A, family);
        checks.answered("at the second address", client, node_port(FAR, there), &["b1"], Some(toward));
    }
    checks.finish(&mut scene);
}

#[test]
fn a_card_with_two_networks_speaks_from_the_next_hops() {
    two_networks(XdpMode::Native);
}

#[test]
fn a_card_with_two_networks_speaks_from_the_next_hops_with_tc() {
    two_networks(XdpMode::Off);
}
