//! A node with a packet filter of its own: packets of Services meet its rules as with kube-proxy, through netfilter's own translation.
mod lab_support;

use std::time::Duration;

use lab_support::{
    ALL, CHANGE, Checks, ECHO, EMPTY, FAMILIES, FAR, NEAR, Numbered, PACE, Scene, WEB, cluster_ip,
    eventually, node_port, options,
};
use lb_lab::{Family, Layout, NodeId, SocketLb, XdpMode, at, poll_every};

const TALKED: Numbered = Numbered(43);

/// NEAR's nodePorts are banned before DNAT, one of ALL's behind it, and what is forwarded has to be translated.
fn rules() -> String {
    let [web, echo] = [WEB, ECHO].map(|port| NEAR.node_port(port));
    let port = ALL.node_port(ECHO);
    format!(
        "table inet fw {{
          chain early {{ type filter hook prerouting priority -300; meta l4proto {{ tcp, udp }} th dport {{ {web}, {echo} }} counter drop; }}
          chain forward {{
            type filter hook forward priority 0; policy drop;
            icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
            meta l4proto tcp ct original proto-dst {port} counter drop
            meta l4proto udp ct original proto-dst {port} counter drop
            ct status dnat accept
            ct state established,related accept
          }}
        }}"
    )
}

fn load(scene: &Scene, rules: &str) {
    scene.lab.node(NodeId::A).run(&["nft", rules]).expect("nft");
}

fn says(scene: &mut Scene, words: &str) -> usize {
    scene.lab.agent(NodeId::A).log().matches(words).count()
}

fn has_table(scene: &Scene) -> bool {
    scene.lab.node(NodeId::A).run(&["nft", "list", "tables"]).expect("nft").contains("table inet shunt")
}

/// Packets at both of tc's hooks towards the node.
fn counted(scene: &mut Scene, reason: &str) -> u64 {
    let agent = scene.lab.agent(NodeId::A);
    ["uplink_ingress", "pod_ingress"].iter().map(|hook| agent.packets(hook, reason).expect("metrics")).sum()
}

/// The agent looks every ten seconds whether connections are left.
const FORGOTTEN: Duration = Duration::from_secs(30);
const BEGINS: &str = "netfilter translates new connections";
const ENDS: &str = "netfilter translates no new connections";

/// With rules as above.
fn rules_are_met(checks: &mut Checks, scene: &Scene, families: &[Family]) {
    let (client, visitor, host) = (scene.lab.client(), scene.pod("visitor"), scene.lab.node(NodeId::A));
    for family in families.iter().copied() {
        let node = scene.lab.node_ip(NodeId::A, family);
        checks.answered("allowed, masqueraded", client, node_port(FAR, node), &["b1"], Some(node));
        checks.answered("pod to its own node", visitor, cluster_ip(NEAR, family), &["a1"], None);
        checks.answered("pod to another node", visitor, cluster_ip(FAR, family), &["b1"], None);
        checks.answered("process of the node", host, cluster_ip(FAR, family), &["b1"], None);
        checks.refused("nobody serves", visitor, cluster_ip(EMPTY, family));
        checks.silent("banned before DNAT", client, node_port(NEAR, node));
        let report = client.udp(at(node, NEAR.node_port(ECHO)), 1).expect("a report");
        checks.holds("banned before DNAT, UDP", report.answered() == 0, || format!("{report:?}"));
        let web = client.http(at(node, ALL.node_port(WEB)), 10).expect("a report");
        checks.holds("allowed, every endpoint", web.answered() == 10, || format!("{web:?}"));
        for report in
            [client.tcp(at(node, ALL.node_port(ECHO)), 1), client.udp(at(node, ALL.node_port(ECHO)), 1)]
        {
            let report = report.expect("a report");
            checks.holds("banned by the original port", report.answered() == 0, || format!("{report:?}"));
        }
    }
}

fn firewall(xdp: XdpMode) {
    let mut scene = Scene::new(Layout::PointToPoint, &options(xdp, SocketLb::Host));
    let mut checks = Checks::new();
    let node = scene.lab.node(NodeId::A).clone();
    // What has ended, or is silent, is soon forgotten.
    for state in ["time_wait", "close", "last_ack", "close_wait", "fin_wait", "syn_sent", "syn_recv"] {
        node.sysctl(&format!("net.netfilter.nf_conntrack_tcp_timeout_{state}"), "2").expect("a sysctl");
    }
    for timeout in ["udp_timeout", "udp_timeout_stream"] {
        node.sysctl(&format!("net.netfilter.nf_conntrack_{timeout}"), "2").expect("a sysctl");
    }
    let to = at(scene.lab.node_ip(NodeId::A, FAMILIES[0]), FAR.node_port(ECHO));
    let before = scene.lab.client().hold(to, 4).expect("held connections");
    assert!(!has_table(&scene), "nobody needs it yet");

    load(&scene, &rules());
    eventually("netfilter to translate", || says(&mut scene, BEGINS) == 1);
    // Flows of our own table go on as they are, but those that only an established connection of conntrack's would let pass.
    drop(before);
    rules_are_met(&mut checks, &scene, FAMILIES);
    assert!(counted(&mut scene, "conntrack") > 0 && has_table(&scene));
    let metrics = scene.lab.agent(NodeId::A).metrics().expect("metrics");
    checks.holds("metric", metrics.lines().any(|line| line == "shunt_host_rules 0.0"), || metrics.clone());

    // A client port that is used again, over and over, right after its connection has ended.
    for _ in 0..3 {
        let report = scene.lab.client().udp_from_ports(to, 5, 20_000).expect("a report");
        checks.holds("ports used again", report.answered() == 5, || format!("{report:?}"));
        let bind = ["curl", "--silent", "--max-time", "3", "--noproxy", "*", "--local-port", "20500"];
        let url = format!("http://{}/", at(to.ip(), FAR.node_port(WEB)));
        let output = scene.lab.client().exec(&[&bind[..], &[url.as_str()]].concat()).expect("curl");
        // (The client's own TIME-WAIT: it may not bind.)
        let is_well = output.status.success() || output.status.code() == Some(45);
        checks.holds("port used again", is_well, || format!("{output:?}"));
    }

    // Firewalls begin with a flush of everything, our table included.
    load(&scene, "flush ruleset");
    load(&scene, &rules());
    eventually("our table to come back", || has_table(&scene));
    rules_are_met(&mut checks, &scene, &[Family::V6]);

    // The agent ends and begins; what was begun before goes on.
    let held = scene.lab.client().hold(to, 8).expect("held connections");
    scene.lab.agent(NodeId::A).stop().expect("an end");
    rules_are_met(&mut checks, &scene, &[Family::V4]);
    scene.lab.agent(NodeId::A).start().expect("a start");
    rules_are_met(&mut checks, &scene, &[Family::V6]);

    // A datagram never stays on an endpoint that is gone.
    let service = TALKED.service("talk");
    scene.lab.apply(&service, &[scene.endpoint("b1")]).expect("a manifest");
    let talked = at(to.ip(), TALKED.node_port(ECHO));
    eventually("the Service", || {
        scene.lab.client().udp(talked, 1).is_ok_and(|report| report.answered() == 1)
    });
    let mut talk = scene.lab.client().converse(talked, true).expect("a conversation");
    let mut reaches = |pod: &str| {
        let mut last = None;
        let reached = poll_every(PACE, "an answer", CHANGE, || {
            let report = talk.look().expect("a report");
            last = Some(report.clone());
            (report.last == pod).then_some(())
        });
        checks.holds("a conversation", reached.is_ok(), || format!("{pod} should answer last: {last:?}"));
    };
    reaches("b1");
    scene.lab.apply(&service, &[scene.endpoint("a1")]).expect("a manifest");
    reaches("a1");
    drop(talk);

    // Without rules the programs translate again, and netfilter ends what it has begun.
    load(&scene, "delete table inet fw");
    eventually("netfilter to translate no more", || says(&mut scene, ENDS) == 1);
    let known = counted(&mut scene, "forward");
    checks.answered("afterwards", scene.lab.client(), node_port(FAR, to.ip()), &["b1"], None);
    assert!(has_table(&scene), "connections are left");
    let report = held.finish().expect("a report");
    checks.holds("held connections", report.broken.is_empty() && report.echoed > 0, || format!("{report:?}"));
    let gone = poll_every(PACE, "our table to go", FORGOTTEN, || (!has_table(&scene)).then_some(()));
    checks.holds("our table", gone.is_ok(), || {
        format!("it stays: {}", node.run(&["cat", "/proc/net/nf_conntrack"]).unwrap_or_default())
    });
    checks.answered("at last", scene.lab.client(), node_port(FAR, to.ip()), &["b1"], None);
    checks.answered("at last", scene.lab.client(), node_port(NEAR, to.ip()), &["a1"], None);
    let xdp = scene.lab.agent(NodeId::A).packets("uplink_xdp", "forward").unwrap_or_default();
    checks.holds("the fast path", counted(&mut scene, "forward") + xdp > known, || {
        "nothing went it".to_owned()
    });
    checks.finish(&mut scene);
}

#[test]
fn rules_of_the_host_are_met() {
    firewall(XdpMode::Native);
}

#[test]
fn rules_of_the_host_are_met_without_xdp() {
    firewall(XdpMode::Off);
}

/// Pods of one bridge answer each other past netfilter, which could not give the answer its source back.
#[test]
fn pods_on_a_bridge_are_served_where_the_host_has_rules() {
    let mut scene = Scene::new(Layout::Bridge, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    let banned = NEAR.node_port(WEB);
    load(
        &scene,
        &format!(
            "table inet fw {{ chain early {{ type filter hook prerouting priority -300; tcp dport {banned} drop; }}; }}"
        ),
    );
    eventually("netfilter to translate", || says(&mut scene, BEGINS) == 1);
    for family in FAMILIES.iter().copied() {
        let node = scene.lab.node_ip(NodeId::A, family);
        checks.answered(
            "pod of the same bridge",
            scene.pod("visitor"),
            cluster_ip(NEAR, family),
            &["a1"],
            None,
        );
        checks.answered("pod of another node", scene.pod("visitor"), cluster_ip(FAR, family), &["b1"], None);
        checks.silent("banned", scene.lab.client(), node_port(NEAR, node));
        checks.answered("allowed", scene.lab.client(), node_port(FAR, node), &["b1"], Some(node));
    }
    // Nothing of ours stays behind, and the host's rules do.
    scene.lab.agent(NodeId::A).stop().expect("an end");
    let output = scene.lab.agent(NodeId::A).shunt(&["cleanup"]).expect("shunt cleanup");
    let said = format!("{output:?}");
    checks.holds("cleanup", said.contains("removed the table inet shunt"), || said.clone());
    let tables = scene.lab.node(NodeId::A).run(&["nft", "list", "tables"]).expect("nft");
    checks.holds("cleanup", tables.trim() == "table inet fw", || tables.clone());
    checks.finish(&mut scene);
}
