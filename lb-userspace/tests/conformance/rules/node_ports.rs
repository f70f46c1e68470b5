//! Where nodePorts are served.

use lb_control::model::Family;
use lb_control::network::addresses::{NodePortAddresses, node_addresses};
use lb_control::network::classify::Selection;
use lb_control::network::{Address, DefaultRoute, Link, Network};

use crate::names::address;
use crate::rule::Difference::{Explained, Listed};
use crate::rule::{Row, Rule, Section, check};
use crate::stage::Node;

const FILE: &str = "pkg/proxy/util/nodeport_addresses.go";

/// Addresses of nodePorts.
pub const NODE_PORTS: Section = Section {
    title: "Addresses of nodePorts",
    rules: &[
        Rule {
            id: "7.1",
            text: "Without a flag: every local address, 127.0.0.1 included (iptables mode).",
            source: FILE,
            check: check!(everywhere),
            tests: &[
                "network::addresses::node_ports_are_served_where_the_flag_says",
                "network::addresses::what_a_route_says_is_local_is_served",
                "kernel_agent::node_ports_follow_the_nodes_addresses",
                "kernel_agent::node_ports_follow_local_routes",
                "lab_changes::node_ports_follow_the_addresses_of_the_node",
                "lab_changes::node_ports_are_served_where_a_route_says_local",
            ],
            differs: &[],
        },
        Rule {
            id: "7.2",
            text: "With ranges: the addresses inside. Ranges of one family say nothing about the other.",
            source: FILE,
            check: check!(ranges),
            tests: &["network::addresses::node_ports_are_served_where_the_flag_says"],
            differs: &[],
        },
        Rule {
            id: "7.3",
            text: "primary: the addresses of the Node, one for each family (the default of nftables mode).",
            source: "cmd/kube-proxy/app/server_linux.go",
            check: check!(primary),
            tests: &[
                "network::addresses::primary_is_what_the_node_object_says",
                "args::kube_proxy::the_nftables_mode_has_its_own_words",
                "kernel_agent::node_ports_are_served_where_they_should_be",
            ],
            differs: &[],
        },
        Rule {
            id: "7.4",
            text: "No socket holds a nodePort.",
            source: PROXIER,
            check: None,
            tests: &["kernel_agent::no_socket_holds_a_node_port"],
            differs: &[],
        },
        Rule {
            id: "7.5",
            text: "127.0.0.1 only for processes of the node, and not with localhostNodePorts false; what comes from the wire \
                   for 127/8 is never let in.",
            source: PROXIER,
            check: check!(loopback),
            tests: &[
                "lab_paths::from_hosts",
                "lab_clients::addresses_that_no_network_carries_are_not_served",
            ],
            differs: &[Explained(
                "no route_localnet and no firewall rule: the socket hooks serve 127.0.0.1 without opening it",
            )],
        },
        Rule {
            id: "7.6",
            text: "::1 never.",
            source: PROXIER,
            check: check!(loopback6),
            tests: &["lab_paths::from_hosts"],
            differs: &[],
        },
        Rule {
            id: "7.7",
            text: "The words localhost, all and primary, alone or with ranges (nftables mode, alpha in 1.37); UDP on \
                   localhost is rejected there.",
            source: "pkg/proxy/nftables/proxier.go",
            check: check!(words),
            tests: &["network::addresses::node_ports_are_served_where_the_flag_says"],
            differs: &[Explained("UDP and SCTP work on localhost as well")],
        },
    ],
};

const PROXIER: &str = "pkg/proxy/iptables/proxier.go";

/// A node with two addresses on its uplink, whose first is the Node's.
fn network(family: Family) -> Network {
    let of = |name: &str, interface, global| Address {
        interface,
        address: address(family, name),
        prefix: if family == Family::V4 { 24 } else { 64 },
        global,
        primary: true,
        tentative: false,
        deprecated: false,
    };
    let link = |index, name: &str, loopback| Link {
        index,
        name: name.to_owned(),
        ethernet: true,
        loopback,
        ..Link::default()
    };
    Network {
        links: [(1, link(1, "lo", true)), (2, link(2, "eth0", false))].into(),
        addresses: vec![of("localhost", 1, false), of("node", 2, true), of("node2", 2, true)],
        default_routes: vec![DefaultRoute { family, by_rule: false, metric: 0, interface: 2, source: None }],
        ..Network::default()
    }
}

/// A node with `--nodeport-addresses` and `--localhost-nodeports`.
fn node(row: &Row, words: &[&str], localhost: bool) -> Node {
    let words = words.iter().map(|word| word.parse().unwrap_or_else(|error| panic!("{word}: {error}")));
    let selection = Selection {
        node_object_ips: vec![address(row.family, "node")],
        node_port_addresses: NodePortAddresses::all_of(words).with_localhost(localhost),
        ..Selection::default()
    };
    let addresses = node_addresses(&network(row.family), &selection);
    row.cluster()
        .addresses(addresses)
        .service(
            "web",
            "{type: NodePort, clusterIP: $vip1, ports: [{name: http, port: 80, nodePort: 30080}, \
                 {name: dns, port: 53, protocol: UDP, nodePort: 30053}]}",
        )
        .endpoints("web", &["here1"])
        .start()
}

const SERVED: &str = "here1";

fn everywhere(row: &mut Row) {
    let node = node(row, &[], true);
    for to in ["node:30080", "node2:30080"] {
        row.table(&node, &[("client1", to, SERVED), ("here9", to, SERVED), ("process", to, SERVED)]);
    }
    row.table(&node, &[("client1", "stranger1:30080", "passed"), ("client1", "vip1:30080", "refused")]);
    if row.family == Family::V4 {
        row.table(&node, &[("process", "localhost:30080", SERVED)]);
    }
}

fn ranges(row: &mut Row) {
    let own = format!("{}/{}", address(row.family, "node2"), if row.family == Family::V4 { 32 } else { 128 });
    let (v4, v6) = ("203.0.113.0/24", "2001:db8:3::/48");
    let (foreign, nothing_here) = if row.family == Family::V4 { (v6, v4) } else { (v4, v6) };
    let of_own = node(row, &[&own], true);
    row.table(&of_own, &[("client1", "node:30080", "passed"), ("client1", "node2:30080", SERVED)]);
    row.table(&of_own, &[("process", "localhost:30080", "passed")]);
    let of_foreign = node(row, &[foreign], true);
    row.table(&of_foreign, &[("client1", "node:30080", SERVED), ("client1", "node2:30080", SERVED)]);
    let of_both = node(row, &[foreign, nothing_here], true);
    row.table(&of_both, &[("client1", "node:30080", "passed"), ("process", "node2:30080", "passed")]);
}

fn primary(row: &mut Row) {
    let node = node(row, &["primary"], true);
    row.table(&node, &[("client1", "node:30080", SERVED), ("client1", "node2:30080", "passed")]);
    row.table(&node, &[("process", "localhost:30080", "passed")]);
}

fn loopback(row: &mut Row) {
    let (with, without) = (node(row, &[], true), node(row, &[], false));
    // Never from the wire or from a pod.
    for client in ["client1", "here9"] {
        row.table(&with, &[(client, "localhost:30080", "passed")]);
    }
    if row.family == Family::V4 {
        row.table(
            &with,
            &[("process", "localhost:30080", SERVED), ("process", "localhost:30053/UDP", SERVED)],
        );
    }
    row.table(&without, &[("process", "localhost:30080", "passed"), ("process", "node:30080", SERVED)]);
}

fn loopback6(row: &mut Row) {
    if row.family == Family::V6 {
        let node = node(row, &[], true);
        row.other(Listed("node-port-of-loopback"), &node, "process", "localhost:30080", "passed", SERVED);
    }
}

fn words(row: &mut Row) {
    let localhost = node(row, &["localhost"], true);
    row.table(&localhost, &[("process", "localhost:30080", SERVED), ("client1", "node:30080", "passed")]);
    let all = node(row, &["all"], true);
    row.table(&all, &[("process", "localhost:30080", SERVED), ("client1", "node2:30080", SERVED)]);
    let both = node(row, &["localhost", "primary"], true);
    row.table(&both, &[("process", "localhost:30080", SERVED), ("client1", "node:30080", SERVED)]);
    row.table(&both, &[("client1", "node2:30080", "passed"), ("process", "localhost:30053/UDP", SERVED)]);
}
