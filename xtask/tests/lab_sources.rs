//! Nodes with several addresses on a card, and several cards: as whom they masquerade, and which way answers go.
mod lab_support;

use std::net::IpAddr;

use lab_support::{BEYOND, Checks, ECHO, FAMILIES, FAR, NEAR, Scene, eventually, node_port, options};
use lb_lab::{AgentOptions, Family, Lab, Layout, Netns, NodeId, SocketLb, UPLINK, XdpForward, XdpMode, at};

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

/// A network behind a second card, and a client that is only reached by it.
const CARD: &str = "eth1";
const BEHIND: [&str; 2] = ["10.79.0.11", "10.79.0.1"];
const CLIENT: &str = "198.18.0.5";

/// The first node gets another card, which a client comes by that its routes would answer by the first one: marks of connections decide.
fn add_a_card(lab: &Lab) {
    let (node, client) = (lab.node(NodeId::A), lab.client());
    let [own, other] = BEHIND;
    node.ip(&format!("link add {CARD} type veth peer name far0 netns {}\n", client.ip_name()))
        .expect("a card");
    node.ip(&format!("addr add {own}/24 dev {CARD}\nlink set {CARD} up\n")).expect("an address");
    let lines = ["addr add CLIENT/32 dev lo", "addr add OTHER/24 dev far0", "link set far0 up"];
    let lines = lines.map(|line| line.replace("CLIENT", CLIENT).replace("OTHER", other)).join("\n");
    client.ip(&format!("{lines}\nroute add {own}/32 dev far0 src {CLIENT}\n")).expect("a client");
    // By the first card it is not reached.
    run(client, &format!("iptables -t raw -A PREROUTING -i {UPLINK} -d {CLIENT} -j DROP"));
    for device in ["all", CARD, UPLINK] {
        node.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0").expect("a sysctl");
    }
    let mangle = "iptables -t mangle -A";
    for line in [
        format!("{mangle} PREROUTING -i {CARD} -m conntrack --ctstate NEW -j CONNMARK --set-mark 2"),
        format!("{mangle} PREROUTING ! -i {CARD} -m connmark --mark 2 -j CONNMARK --restore-mark"),
        format!("{mangle} OUTPUT -m connmark --mark 2 -j CONNMARK --restore-mark"),
        "ip rule add fwmark 2 lookup 202".to_owned(),
        format!("ip route add default via {other} dev {CARD} table 202"),
    ] {
        run(node, &line);
    }
}

fn run(netns: &Netns, line: &str) {
    netns.run(&line.split_ascii_whitespace().collect::<Vec<_>>()).expect(line);
}

fn two_cards(mode: XdpMode) {
    let options = AgentOptions { xdp_forward: XdpForward::Auto, ..options(mode, SocketLb::Host) };
    let mut scene = Scene::new(Layout::PointToPoint, &options);
    scene.lab.agent(NodeId::A).stop().expect("an end");
    add_a_card(&scene.lab);
    let more = vec!["--uplink".to_owned(), CARD.to_owned()];
    scene.lab.start_agent(NodeId::A, AgentOptions { more, ..options }).expect("the agent");
    let mut checks = Checks::new();
    let client = scene.lab.client();
    let own: IpAddr = BEHIND[0].parse().expect("an address");
    let to = at(own, NEAR.node_port(ECHO));
    eventually("the second card", || client.udp(to, 1).is_ok_and(|report| report.answered() == 1));
    let seen: IpAddr = CLIENT.parse().expect("an address");
    let node = scene.lab.node_ip(NodeId::A, Family::V4);
    checks.answered("by the second card, to a pod there", client, node_port(NEAR, own), &["a1"], Some(seen));
    checks.answered("by the second card, to another node", client, node_port(FAR, own), &["b1"], Some(node));
    checks.answered("by the first card", client, node_port(FAR, node), &["b1"], Some(node));
    let report = client.bulk(at(own, FAR.node_port(ECHO)), BULK);
    checks.holds("long packets", report.is_ok(), || format!("{report:?}"));
    checks.finish(&mut scene);
}

const BULK: usize = 4 << 20;

/// Native XDP, which may send where rules of routing do not look at marks.
#[test]
fn answers_go_by_the_card_that_the_connection_has_come_by() {
    two_cards(XdpMode::Native);
}

#[test]
fn answers_go_by_the_card_that_the_connection_has_come_by_with_tc() {
    two_cards(XdpMode::Off);
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
