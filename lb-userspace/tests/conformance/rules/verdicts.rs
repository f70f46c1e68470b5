//! What becomes of a client's first packet.

use lb_common::abi::ConfigFlags;
use lb_control::model::Kind;

use crate::rule::Difference::{Explained, Listed};
use crate::rule::{Row, Rule, Section, check};
use crate::stage::Node;

const PROXIER: &str = "pkg/proxy/iptables/proxier.go";
const NFTABLES: &str = "pkg/proxy/nftables/proxier.go";
const TWIN: &str = "api_twin::every_client_gets_the_same_from_both";

/// Verdicts.
pub const VERDICTS: Section = Section {
    title: "Verdicts",
    rules: &[
        Rule {
            id: "5.1",
            text: "No endpoint anywhere: a ClusterIP refuses.",
            source: PROXIER,
            check: check!(nobody_at_the_cluster_ip),
            tests: &[
                "fixtures::nobody_serves_is_said_at_once",
                "lab_paths::from_outside_with_native_xdp",
                "lab_paths::from_pods",
                "lab_paths::from_hosts",
                TWIN,
            ],
            differs: &[],
        },
        Rule {
            id: "5.2",
            text: "No endpoint anywhere: external, load balancer's and nodePort addresses refuse, whatever the policy.",
            source: PROXIER,
            check: check!(nobody_at_all),
            tests: &[
                "lab_paths::from_outside_with_native_xdp",
                "lab_paths::from_pods",
                "lab_paths::from_hosts",
                TWIN,
            ],
            differs: &[Listed("refused-on-the-node-itself")],
        },
        Rule {
            id: "5.3",
            text: "internalTrafficPolicy Local and no endpoint here: the ClusterIP drops; the other addresses go by \
                   externalTrafficPolicy.",
            source: PROXIER,
            check: check!(nobody_here_inside),
            tests: &["desired::policies_choose_the_lists_of_each_frontend", "lab_paths::from_pods"],
            differs: &[Listed("dropped-calls-fail-at-once")],
        },
        Rule {
            id: "5.4",
            text: "externalTrafficPolicy Local and no endpoint here: clients outside are dropped; the ClusterIP goes by \
                   internalTrafficPolicy.",
            source: PROXIER,
            check: check!(nobody_here_outside),
            tests: &["lab_paths::from_outside_with_native_xdp", TWIN],
            differs: &[],
        },
        Rule {
            id: "5.5",
            text: "Whoever is in none of loadBalancerSourceRanges is dropped at the load balancer's address, before \
                   anything is translated.",
            source: PROXIER,
            check: check!(source_ranges),
            tests: &["lab_clients::source_ranges_hold_for_load_balancer_addresses_alone", TWIN],
            differs: &[],
        },
        Rule {
            id: "5.6",
            text: "They never apply to ClusterIP, nodePort and external addresses.",
            source: PROXIER,
            check: check!(source_ranges_elsewhere),
            tests: &["lab_clients::source_ranges_hold_for_load_balancer_addresses_alone", TWIN],
            differs: &[],
        },
        Rule {
            id: "5.7",
            text: "Where a range holds an address of the node, the load balancer's address itself may come as a source: \
                   the node speaks from it.",
            source: PROXIER,
            check: check!(source_ranges_of_the_node),
            tests: &["desired::source_ranges_hold_for_load_balancer_addresses_alone"],
            differs: &[],
        },
        Rule {
            id: "5.8",
            text: "externalTrafficPolicy Local, first: a pod of the cluster, as the detector knows it, gets any endpoint \
                   and keeps its address.",
            source: PROXIER,
            check: check!(short_circuit_of_pods),
            tests: &["fixtures::the_local_policy_is_for_clients_of_elsewhere", "lab_paths::from_pods", TWIN],
            differs: &[],
        },
        Rule {
            id: "5.9",
            text: "externalTrafficPolicy Local, second: a process of the node gets any endpoint, from the node's address.",
            source: PROXIER,
            check: check!(short_circuit_of_hosts),
            tests: &["lab_paths::from_hosts", TWIN],
            differs: &[],
        },
        Rule {
            id: "5.10",
            text: "externalTrafficPolicy Local, third: everybody else gets endpoints of this node and keeps his address.",
            source: PROXIER,
            check: check!(the_local_policy),
            tests: &[
                "lab_paths::from_outside_with_native_xdp",
                "lab_programs::nginx_as_an_ingress_controller_routes_by_host_and_logs_the_client",
                TWIN,
            ],
            differs: &[],
        },
        Rule {
            id: "5.11",
            text: "A port that no Service has, at the ClusterIP of one, refuses.",
            source: NFTABLES,
            check: check!(unknown_ports),
            tests: &[
                "lab_paths::from_outside_with_native_xdp",
                "lab_paths::from_pods",
                "lab_paths::from_hosts",
                TWIN,
            ],
            differs: &[],
        },
        Rule {
            id: "5.12",
            text: "An address of a known ServiceCIDR that no Service has drops.",
            source: "pkg/proxy/nftables/README.md",
            check: check!(unallocated_addresses),
            tests: &[
                "reconcile::dual::ranges_of_cluster_ips_come_from_objects_and_flags",
                "lab_rules::unallocated_addresses_of_a_service_cidr_are_dropped",
            ],
            differs: &[],
        },
        Rule {
            id: "5.13",
            text: "All of this is for new connections; those there are go on.",
            source: PROXIER,
            check: check!(new_connections_only),
            tests: &[
                "lab_changes::connections_outlive_their_service",
                "lab_faults::connections_outlive_changes_and_the_agent",
            ],
            differs: &[],
        },
    ],
};

const EXTERNAL: [&str; 3] = ["ext1:80", "lb1:80", "node:30080"];

fn nobody_at_the_cluster_ip(row: &mut Row) {
    for endpoints in [&[][..], &["here1 unready", "there1 gone"]] {
        let node = row
            .cluster()
            .service(
                "web",
                "{clusterIP: $vip1, ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}, \
                 {name: sig, port: 81, protocol: SCTP}]}",
            )
            .endpoints("web", endpoints)
            .start();
        for client in ["here9", "there9", "client1", "process"] {
            for port in ["vip1:80", "vip1:53/UDP", "vip1:81/SCTP"] {
                row.table(&node, &[(client, port, "refused")]);
            }
        }
    }
}

fn nobody_at_all(row: &mut Row) {
    for policy in ["Cluster", "Local"] {
        let node = row.cluster().everywhere(&format!("externalTrafficPolicy: {policy}")).start();
        for to in EXTERNAL {
            row.table(
                &node,
                &[("client1", to, "refused"), ("here9", to, "refused"), ("there9", to, "refused")],
            );
            row.table(&node, &[("process", to, "refused")]);
        }
    }
}

fn nobody_here_inside(row: &mut Row) {
    let node = row
        .cluster()
        .everywhere("internalTrafficPolicy: Local")
        .endpoints("web", &["there1", "here1 unready"])
        .start();
    row.table(&node, &[("here9", "vip1:80", "dropped"), ("client1", "vip1:80", "dropped")]);
    row.table(&node, &[("process", "vip1:80", "dropped")]);
    for to in EXTERNAL {
        row.table(
            &node,
            &[("client1", to, "there1 (sees node)"), ("here9", to, "there1"), ("process", to, "there1")],
        );
    }
}

fn nobody_here_outside(row: &mut Row) {
    for policy in ["", ", internalTrafficPolicy: Local"] {
        let node = row
            .cluster()
            .everywhere(&format!("externalTrafficPolicy: Local{policy}"))
            .endpoints("web", &["there1", "there2 draining"])
            .start();
        for to in EXTERNAL {
            row.table(&node, &[("client1", to, "dropped"), ("stranger1", to, "dropped")]);
        }
        let inside = if policy.is_empty() { "there1" } else { "dropped" };
        row.table(&node, &[("here9", "vip1:80", inside), ("process", "vip1:80", inside)]);
    }
}

const RANGES: &str = "loadBalancerSourceRanges: [$client1/host, $here1/net]";

fn source_ranges(row: &mut Row) {
    let node = row.cluster().everywhere(RANGES).endpoints("web", &["here1"]).start();
    row.table(
        &node,
        &[
            ("client1", "lb1:80", "here1"),
            ("client2", "lb1:80", "dropped"),
            ("here9", "lb1:80", "here1"),
            ("there9", "lb1:80", "dropped"),
            ("process", "lb1:80", "dropped"),
        ],
    );
    // Also where the policy is Local, and nobody is told more than that.
    let local = format!("{RANGES}, externalTrafficPolicy: Local");
    let node = row.cluster().everywhere(&local).endpoints("web", &["here1"]).start();
    row.table(&node, &[("client1", "lb1:80", "here1"), ("client2", "lb1:80", "dropped")]);
    let everybody = "loadBalancerSourceRanges: [0.0.0.0/0, \"::/0\"]";
    let node = row.cluster().everywhere(everybody).endpoints("web", &["here1"]).start();
    row.table(&node, &[("stranger1", "lb1:80", "here1")]);
}

fn source_ranges_elsewhere(row: &mut Row) {
    let node = row.cluster().everywhere(RANGES).endpoints("web", &["here1"]).start();
    for to in ["vip1:80", "ext1:80", "node:30080"] {
        row.table(&node, &[("client2", to, "here1"), ("process", to, "here1"), ("here9", to, "here1")]);
    }
}

fn source_ranges_of_the_node(row: &mut Row) {
    for (ranges, verdict) in [("$node/host", "here1"), ("$client1/host", "dropped")] {
        let spec = format!("loadBalancerSourceRanges: [{ranges}]");
        let node = row.cluster().everywhere(&spec).endpoints("web", &["here1"]).start();
        row.table(&node, &[("process@lb1", "lb1:80", verdict), ("process@node", "lb1:80", verdict)]);
        row.table(&node, &[("process@lb2", "lb1:80", "dropped")]);
    }
}

fn short_circuit_of_pods(row: &mut Row) {
    let mut node = row
        .cluster()
        .everywhere("externalTrafficPolicy: Local")
        .endpoints("web", &["here1", "there1"])
        .start();
    for to in EXTERNAL {
        row.table(&node, &[("here9", to, "here1, there1")]);
    }
    // A pod of another node that comes to this one: the answer of an endpoint elsewhere would pass this node by.
    let why = || Listed("local-policy-and-pods-of-other-nodes");
    row.other(why(), &node, "there9", "node:30080", "here1, or unanswered", "here1");
    node.endpoints("web", &["there1"]);
    row.other(why(), &node, "there9", "node:30080", "unanswered", "dropped");
    // Without a detector there is no short circuit in kube-proxy; a pod of this node is known by its interface here.
    let why = Explained(
        "without a configured detector (ClusterCIDR mode, no range known) pods of this node are still known as such, by \
         the interface they come from",
    );
    let node = row
        .cluster()
        .flags(ConfigFlags::default())
        .everywhere("externalTrafficPolicy: Local")
        .endpoints("web", &["here1", "there1"])
        .start();
    row.other(why, &node, "here9", "node:30080", "here1", "here1, there1");
    row.table(&node, &[("there9", "node:30080", "here1")]);
}

fn short_circuit_of_hosts(row: &mut Row) {
    let mut node = row
        .cluster()
        .everywhere("externalTrafficPolicy: Local")
        .endpoints("web", &["here1", "there1"])
        .start();
    for to in EXTERNAL {
        row.table(&node, &[("process", to, "here1, there1")]);
    }
    node.endpoints("web", &["there1"]);
    row.table(&node, &[("process", "lb1:80", "there1"), ("client1", "lb1:80", "dropped")]);
}

fn the_local_policy(row: &mut Row) {
    let node = row
        .cluster()
        .everywhere("externalTrafficPolicy: Local")
        .endpoints("web", &["here1", "here2", "there1", "here3 draining"])
        .start();
    for to in EXTERNAL {
        row.table(&node, &[("client1", to, "here1, here2"), ("stranger1", to, "here1, here2")]);
    }
}

fn unknown_ports(row: &mut Row) {
    let mut node = row.cluster().everywhere("").endpoints("web", &["here1"]).start();
    for client in ["here9", "client1", "process"] {
        row.table(&node, &[(client, "vip1:81", "refused"), (client, "vip1:80/UDP", "refused")]);
        // Other addresses may be somebody's own.
        row.table(&node, &[(client, "ext1:81", "passed"), (client, "node:81", "passed")]);
    }
    node.delete(Kind::Service, "web");
    row.table(&node, &[("here9", "vip1:81", "passed")]);
}

fn unallocated_addresses(row: &mut Row) {
    let range = "{kind: ServiceCIDR, metadata: {name: kubernetes}, spec: {cidrs: [$vip0/net]}}";
    let node = row.cluster().object(range).everywhere("").endpoints("web", &["here1"]).start();
    for client in ["here9", "client1", "process"] {
        row.table(
            &node,
            &[(client, "vip9:80", "dropped"), (client, "vip1:80", "here1"), (client, "there9:80", "passed")],
        );
    }
    let node = row.cluster().everywhere("").endpoints("web", &["here1"]).start();
    row.table(&node, &[("here9", "vip9:80", "passed")]);
}

fn new_connections_only(row: &mut Row) {
    let mut node = row.cluster().start();
    for to in ["lb1:80", "vip1:80"] {
        node.service("web", EVERYWHERE);
        node.endpoints("web", &["here1"]);
        row.equal("first", node.ask_port("client1", 9, to).as_str(), "here1");
        let changes: [fn(&mut Node); 4] = [
            |_| {},
            |node| node.endpoints("web", &["here1 gone", "here2"]),
            |node| node.service("web", "{clusterIP: $vip2}"),
            |node| node.delete(Kind::Service, "web"),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            change(&mut node);
            row.equal(&format!("after change {number}"), node.go_on("client1", 9, to).as_str(), "here1");
        }
        row.equal("a new one", node.ask_port("client1", 10, to).as_str(), "passed");
    }
}

const EVERYWHERE: &str =
    "{type: LoadBalancer, clusterIP: $vip1, ingress: [{ip: $lb1}], ports: [{name: http, port: 80}]}";
