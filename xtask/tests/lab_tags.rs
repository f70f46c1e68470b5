//! Frames with 802.1Q tags from the client: priority tags (VLAN 0), which change nothing but the order in which
//! switches send, and those of a VLAN that no node is in.
//!
//! A tag travels in the frame, or beside it as network cards and veths hand it over; both are sent.
mod lab_support;

use std::fs;
use std::process::Command;

use lab_support::{Checks, EMPTY, FAMILIES, FAR, NEAR, Scene, node_port, options};
use lb_lab::assembled::Assembled;
use lb_lab::{Family, Layout, NodeId, SocketLb, UPLINK, XdpMode};

const SECTION: &str = "classifier";
/// Priority 5, no VLAN.
const PRIORITY: u16 = 5 << 13;
const FOREIGN: u16 = 7;

/// `bpf_skb_vlan_push(skb, 0x8100, tag); return TC_ACT_OK`, as an object that `tc` takes.
fn pusher(tag: u16) -> Vec<u8> {
    let [low, high] = tag.to_le_bytes();
    let instructions = [
        [0xb7, 2, 0, 0, 0x81, 0, 0, 0],
        [0xb7, 3, 0, 0, low, high, 0, 0],
        [0x85, 0, 0, 0, 18, 0, 0, 0],
        [0xb7, 0, 0, 0, 0, 0, 0, 0],
        [0x95, 0, 0, 0, 0, 0, 0, 0],
    ];
    Assembled { section: SECTION, instructions: &instructions }.object_file().expect("an object")
}

/// From now on every frame of the client has the tag.
fn tag_all(scene: &Scene, tag: u16) {
    let (client, file) = (scene.lab.client(), scene.lab.folder().join("push.o"));
    fs::write(&file, pusher(tag)).expect("a file");
    let file = file.display().to_string();
    client.run(&["tc", "qdisc", "replace", "dev", UPLINK, "clsact"]).expect("a place for filters");
    client.run(&["tc", "filter", "del", "dev", UPLINK, "egress"]).expect("no filter");
    let filter = ["bpf", "direct-action", "object-file", &file, "section", SECTION];
    let add = [&["tc", "filter", "add", "dev", UPLINK, "egress"][..], &filter].concat();
    client.run_loader(&add).expect("a filter");
}

/// Whether tags go beside frames or in them, on the whole way from the client to the nodes.
fn tags_beside_frames(scene: &Scene, beside: bool) {
    let wire = scene.lab.wire();
    for (netns, device) in [(scene.lab.client(), UPLINK), (wire, "port1"), (wire, "port2")] {
        let words = ["-K", device, "txvlan", if beside { "on" } else { "off" }];
        let output = netns.within(|| Command::new("ethtool").args(words).output());
        let output = output.expect("a namespace").expect("ethtool");
        assert!(output.status.success(), "{output:?}");
    }
}

/// Frames that XDP on node A's uplink has passed as no IP: those with a tag inside.
fn not_ip(scene: &mut Scene) -> u64 {
    scene.lab.agent(NodeId::A).packets("uplink_xdp", "not_ip").expect("metrics")
}

/// The client knows the nodes' stations for good: nobody answers questions in another VLAN.
fn know_stations(scene: &Scene) {
    let lab = &scene.lab;
    let shown = lab.node(NodeId::A).run(&["ip", "-oneline", "link", "show", UPLINK]).expect("an interface");
    let mut words = shown.split_ascii_whitespace().skip_while(|word| *word != "link/ether");
    let station = words.nth(1).expect("an address");
    let line = |family: &Family| {
        let node = lab.node_ip(NodeId::A, *family);
        format!("neigh replace {node} lladdr {station} dev {UPLINK} nud permanent\n")
    };
    lab.client().ip(&FAMILIES.iter().map(line).collect::<String>()).expect("neighbours");
}

fn priority(xdp: XdpMode) {
    let mut scene = Scene::new(Layout::PointToPoint, &options(xdp, SocketLb::Host));
    let mut checks = Checks::new();
    tag_all(&scene, PRIORITY);
    for (beside, netns) in [(true, "beside the frame"), (false, "in the frame")] {
        tags_beside_frames(&scene, beside);
        let before = not_ip(&mut scene);
        let (lab, name) = (&scene.lab, |what: &str| format!("{what}, tag {netns}"));
        for family in FAMILIES.iter().copied() {
            let (client, asker) = (lab.client(), lab.plan().client_ip(family));
            let [a, b] = [NodeId::A, NodeId::B].map(|node| lab.node_ip(node, family));
            checks.answered(&name("NS1"), client, node_port(NEAR, a), &["a1"], Some(asker));
            checks.answered(&name("NS2"), client, node_port(FAR, a), &["b1"], Some(a));
            checks.answered(&name("NS2"), client, node_port(NEAR, b), &["a1"], Some(b));
            checks.refused(&name("R1"), client, node_port(EMPTY, a));
        }
        let visible = not_ip(&mut scene) - before;
        let expected = xdp == XdpMode::Native && !beside;
        checks.holds("tags", (visible > 100) == expected, || {
            format!("{netns}: XDP has seen {visible} frames that are no IP")
        });
    }
    checks.finish(&mut scene);
}

#[test]
fn priority_tags_change_nothing_through_xdp() {
    priority(XdpMode::Native);
}

#[test]
fn priority_tags_change_nothing_through_tc() {
    priority(XdpMode::Off);
}

/// A card or switch that lets frames of other VLANs through does not make the node answer there.
#[test]
fn another_vlan_is_not_answered() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    know_stations(&scene);
    let near = |family| node_port(NEAR, scene.lab.node_ip(NodeId::A, family));
    for family in FAMILIES.iter().copied() {
        checks.answered("without a tag", scene.lab.client(), near(family), &["a1"], None);
    }
    let before = not_ip(&mut scene);
    tag_all(&scene, FOREIGN);
    tags_beside_frames(&scene, false);
    for family in FAMILIES.iter().copied() {
        let (client, node) = (scene.lab.client(), scene.lab.node_ip(NodeId::A, family));
        for service in [NEAR, FAR, EMPTY] {
            checks.silent("VLAN 7", client, node_port(service, node));
        }
    }
    let arrived = not_ip(&mut scene) - before;
    checks.holds("tags", arrived > 0, || "no frame of VLAN 7 has come to the node".into());
    checks.finish(&mut scene);
}
