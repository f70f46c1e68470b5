//! Clients that stay with their endpoint.

use std::collections::BTreeSet;

use crate::rule::{Row, Rule, Section, check};
use crate::stage::Node;

/// Session affinity.
pub const AFFINITY: Section = Section {
    title: "Session affinity",
    rules: &[
        Rule {
            id: "8.1",
            text: "A client, by its address, stays with an endpoint at all addresses of a Service port; other ports and \
                   other clients are not concerned.",
            source: "pkg/proxy/iptables/proxier.go",
            check: check!(by_client_and_port),
            tests: &["lab_clients::a_client_keeps_its_pod_until_the_pod_or_the_time_is_gone"],
            differs: &[],
        },
        Rule {
            id: "8.2",
            text: "For 10800 seconds when the Service does not say, else 1 to 86400.",
            source: "pkg/apis/core/v1/defaults.go",
            check: check!(default_time),
            tests: &["convert::affinity_lasts_three_hours_when_not_said"],
            differs: &[],
        },
        Rule {
            id: "8.3",
            text: "Each new connection begins the time anew.",
            source: "pkg/proxy/iptables/proxier.go",
            check: check!(begins_anew),
            tests: &[
                "fixtures::a_client_with_affinity_stays_with_its_backend_for_a_time",
                "lab_clients::a_client_keeps_its_pod_until_the_pod_or_the_time_is_gone",
            ],
            differs: &[],
        },
        Rule {
            id: "8.4",
            text: "An endpoint that is no longer among those a client may have is forgotten; another is chosen and kept.",
            source: "pkg/proxy/iptables/proxier.go",
            check: check!(only_while_usable),
            tests: &["lab_clients::a_client_keeps_its_pod_until_the_pod_or_the_time_is_gone"],
            differs: &[],
        },
    ],
};

const FOUR: [&str; 4] = ["here1", "here2", "here3", "here4"];

fn sticky(row: &Row, more: &str) -> Node {
    row.cluster().everywhere(&format!("sessionAffinity: ClientIP, {more}")).endpoints("web", &FOUR).start()
}

fn by_client_and_port(row: &mut Row) {
    let node = sticky(row, "");
    let mut homes = BTreeSet::new();
    for number in 1..=12 {
        let client = format!("client{number}");
        let home = node.ask(&client, "vip1:80");
        row.equal("one endpoint", &FOUR.contains(&home.as_str()), &true);
        for to in ["ext1:80", "lb1:80", "node:30080"] {
            row.equal(&format!("{client} at {to}"), &node.ask(&client, to), &home);
        }
        homes.insert(home);
    }
    row.equal("clients are spread", &(homes.len() > 1), &true);
    // The socket hooks share it.
    let home = node.ask("process", "vip1:80");
    row.equal("a process", &FOUR.contains(&home.as_str()), &true);
    row.equal("a process elsewhere", &node.ask("process", "lb1:80"), &home);

    let two = row
        .cluster()
        .service(
            "web",
            "{clusterIP: $vip1, sessionAffinity: ClientIP, ports: [{name: http, port: 80}, {name: dns, port: 53, \
             protocol: UDP}]}",
        )
        .endpoints("web", &FOUR)
        .start();
    let differ = (1..=12).any(|number| {
        let client = format!("here{}", 10 + number);
        two.ask(&client, "vip1:80") != two.ask(&client, "vip1:53/UDP")
    });
    row.equal("another port, another choice", &differ, &true);
}

/// How many of twelve clients that have a home find another one a while later.
fn moved(node: &Node, seconds: u32) -> usize {
    let ask = |number: u16| {
        node.ask_port(&format!("client{number}"), 1000 + node.asked.replace(node.asked.get() + 1), "vip1:80")
    };
    let before: Vec<String> = (1..=12).map(ask).collect();
    node.tables.pass_seconds(seconds);
    (1..=12).map(ask).zip(before).filter(|(now, before)| now != before).count()
}

fn default_time(row: &mut Row) {
    for (config, seconds) in [
        ("", 10_800),
        ("sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}", 60),
        ("sessionAffinityConfig: {clientIP: {timeoutSeconds: 86400}}", 86_400),
    ] {
        row.equal("within the time", &moved(&sticky(row, config), seconds - 10), &0);
        row.equal("after the time", &(moved(&sticky(row, config), seconds + 10) > 0), &true);
    }
}

fn begins_anew(row: &mut Row) {
    let node = sticky(row, "sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}");
    let home = node.ask("client1", "vip1:80");
    for _ in 0..10 {
        node.tables.pass_seconds(50);
        row.equal("50 seconds later", &node.ask("client1", "vip1:80"), &home);
    }
}

fn only_while_usable(row: &mut Row) {
    let mut node = sticky(row, "externalTrafficPolicy: Local");
    for state in ["gone", "draining", "unready"] {
        node.endpoints("web", &FOUR);
        let home = node.ask("client1", "vip1:80");
        let changed: Vec<String> = FOUR
            .iter()
            .map(|name| if *name == home { format!("{name} {state}") } else { (*name).to_owned() })
            .collect();
        let changed: Vec<&str> = changed.iter().map(String::as_str).collect();
        node.endpoints("web", &changed);
        let next = node.ask("client1", "vip1:80");
        row.equal("another endpoint, one", &(next != home && FOUR.contains(&next.as_str())), &true);
        node.endpoints("web", &FOUR);
        row.equal("the other is kept", &node.ask("client1", "vip1:80"), &next);
    }
    // In the Cluster list, but not in the Local one.
    let mut node = row
        .cluster()
        .everywhere("sessionAffinity: ClientIP, externalTrafficPolicy: Local")
        .endpoints("web", &["there1"])
        .start();
    row.table(&node, &[("stranger1", "vip1:80", "there1 (sees node)")]);
    node.endpoints("web", &["there1", "here1"]);
    row.table(&node, &[("stranger1", "vip1:80", "there1 (sees node)"), ("stranger1", "lb1:80", "here1")]);
}
