//! Which endpoints take new connections.

use crate::rule::{Row, Rule, Section, check};

/// The choice of endpoints.
pub const SELECTION: Section = Section {
    title: "Choice of endpoints",
    rules: &[
        Rule {
            id: "4.1",
            text: "Policy Cluster: endpoints that are ready, as far as topology allows.",
            source: "pkg/proxy/topology.go",
            check: check!(cluster_list),
            tests: &[
                "desired::endpoints_are_chosen_as_kube_proxy_chooses_them",
                "api_twin::every_client_gets_the_same_from_both",
            ],
            differs: &[],
        },
        Rule {
            id: "4.2",
            text: "With none of those: every endpoint anywhere that serves while it terminates, whatever topology says.",
            source: "pkg/proxy/topology.go",
            check: check!(cluster_fallback),
            tests: &[
                "desired::endpoints_are_chosen_as_kube_proxy_chooses_them",
                "api_twin::every_client_gets_the_same_from_both",
            ],
            differs: &[],
        },
        Rule {
            id: "4.3",
            text: "Policy Local: endpoints of this node that are ready; with none of those, those of this node that \
                   serve while they terminate. Topology plays no part.",
            source: "pkg/proxy/topology.go",
            check: check!(local_list),
            tests: &[
                "desired::topology::hints_leave_the_local_list_alone",
                "api_twin::every_client_gets_the_same_from_both",
            ],
            differs: &[],
        },
        Rule {
            id: "4.4",
            text: "Each list falls back by itself, whatever the other holds.",
            source: "pkg/proxy/topology.go",
            check: check!(independent_fallbacks),
            tests: &[
                "desired::endpoints_are_chosen_as_kube_proxy_chooses_them",
                "lab_rules::lists_fall_back_to_terminating_endpoints_each_by_itself",
            ],
            differs: &[],
        },
        Rule {
            id: "4.5",
            text: "A Service has endpoints as long as some endpoint anywhere is ready, or serves while it terminates.",
            source: "pkg/proxy/topology.go",
            check: check!(any_endpoints),
            tests: &[
                "reconcile::an_empty_list_refuses_or_drops",
                "lab_rules::lists_fall_back_to_terminating_endpoints_each_by_itself",
            ],
            differs: &[],
        },
        Rule {
            id: "4.6",
            text: "If every ready endpoint has hints for nodes and one of them names this node, those for this node serve.",
            source: "pkg/proxy/topology.go",
            check: check!(hints_for_nodes),
            tests: &[
                "desired::topology::hints_narrow_the_cluster_list",
                "lab_rules::hints_lead_to_the_endpoints_that_are_meant_for_this_node",
            ],
            differs: &[],
        },
        Rule {
            id: "4.7",
            text: "Otherwise, if every ready endpoint has hints for zones and one of them names this node's zone, those for \
                   this zone serve.",
            source: "pkg/proxy/topology.go",
            check: check!(hints_for_zones),
            tests: &[
                "desired::topology::hints_narrow_the_cluster_list",
                "reconcile::dual::hints_follow_the_zone_of_our_node",
                "lab_rules::hints_lead_to_the_endpoints_that_are_meant_for_this_node",
            ],
            differs: &[],
        },
        Rule {
            id: "4.8",
            text: "Otherwise hints do not count.",
            source: "pkg/proxy/topology.go",
            check: check!(hints_that_do_not_count),
            tests: &[
                "desired::topology::hints_narrow_the_cluster_list",
                "lab_rules::hints_lead_to_the_endpoints_that_are_meant_for_this_node",
            ],
            differs: &[],
        },
        Rule {
            id: "4.9",
            text: "Hints alone decide; spec.trafficDistribution is not read.",
            source: "pkg/proxy/topology.go",
            check: check!(traffic_distribution),
            tests: &[],
            differs: &[],
        },
    ],
};

fn cluster_list(row: &mut Row) {
    let endpoints = ["here1", "there1", "here2 unready", "here3 draining", "there3 draining", "there4 gone"];
    let node = row.cluster().everywhere("").endpoints("web", &endpoints).start();
    row.table(
        &node,
        &[
            ("here9", "vip1:80", "here1, there1"),
            ("process", "vip1:80", "here1, there1"),
            ("there9", "vip1:80", "here1, there1"),
            ("client1", "lb1:80", "here1, there1 (sees node)"),
        ],
    );
}

fn cluster_fallback(row: &mut Row) {
    let endpoints =
        ["here1 unready", "here3 draining for-zone=b", "there3 draining for-zone=b", "there4 gone"];
    let node = row.cluster().zone("a").everywhere("").endpoints("web", &endpoints).start();
    row.table(&node, &[("here9", "vip1:80", "here3, there3"), ("process", "node:30080", "here3, there3")]);
}

const LOCAL: &str = "externalTrafficPolicy: Local, internalTrafficPolicy: Local";

fn local_list(row: &mut Row) {
    let mut node = row
        .cluster()
        .zone("a")
        .everywhere(LOCAL)
        .endpoints("web", &["here1 for-zone=b", "here2 draining for-zone=b", "there1 for-zone=a"])
        .start();
    row.table(&node, &[("here9", "vip1:80", "here1"), ("client1", "node:30080", "here1")]);
    node.endpoints("web", &["here1 unready", "here2 draining for-zone=b", "there1 for-zone=a"]);
    row.table(&node, &[("here9", "vip1:80", "here2"), ("client1", "node:30080", "here2")]);
}

fn independent_fallbacks(row: &mut Row) {
    let mut node = row
        .cluster()
        .everywhere("externalTrafficPolicy: Local")
        .endpoints("web", &["here1 draining", "there1"])
        .start();
    // Ready ones for the Cluster list, one that terminates for the Local list.
    row.table(&node, &[("here9", "vip1:80", "there1"), ("client1", "lb1:80", "here1")]);
    node.endpoints("web", &["here1 draining", "there1 draining"]);
    row.table(&node, &[("here9", "vip1:80", "here1, there1"), ("client1", "lb1:80", "here1")]);
}

fn any_endpoints(row: &mut Row) {
    for (endpoints, verdict) in [
        (&["there1"][..], "dropped"),
        (&["there1 draining"], "dropped"),
        (&["there1 unready"], "refused"),
        (&["there1 gone", "there2 unready"], "refused"),
        (&[], "refused"),
    ] {
        let node = row.cluster().everywhere(LOCAL).endpoints("web", endpoints).start();
        row.table(&node, &[("here9", "vip1:80", verdict), ("client1", "node:30080", verdict)]);
    }
}

fn hints_for_nodes(row: &mut Row) {
    let mut node = row
        .cluster()
        .zone("a")
        .everywhere("")
        .endpoints("web", &["here1 for-node=node-b for-zone=a", "there1 for-node=node-a for-zone=b"])
        .start();
    row.table(&node, &[("here9", "vip1:80", "there1"), ("client1", "lb1:80", "there1 (sees node)")]);
    // One without a hint, but it is not ready.
    node.endpoints("web", &["here1 for-node=node-b", "there1 for-node=node-a", "here2 draining"]);
    row.table(&node, &[("here9", "vip1:80", "there1")]);
}

fn hints_for_zones(row: &mut Row) {
    let endpoints =
        ["here1 for-zone=a", "here2 for-zone=b", "there1 for-zone=a for-node=node-b", "there2 draining"];
    let mut node = row.cluster().zone("a").everywhere("").endpoints("web", &endpoints).start();
    row.table(&node, &[("here9", "vip1:80", "here1, there1"), ("process", "lb1:80", "here1, there1")]);
    // The hints of all nodes are for others: those of zones decide.
    node.endpoints("web", &["here1 for-node=node-b for-zone=b", "there1 for-node=node-b for-zone=a"]);
    row.table(&node, &[("here9", "vip1:80", "there1")]);
}

fn hints_that_do_not_count(row: &mut Row) {
    let both = "here1, there1";
    for endpoints in [
        ["here1 for-zone=a", "there1"],
        ["here1 for-zone=b", "there1 for-zone=c"],
        ["here1 for-node=node-a", "there1"],
        ["here1 for-node=node-b", "there1 for-node=node-b"],
    ] {
        let node = row.cluster().zone("a").everywhere("").endpoints("web", &endpoints).start();
        row.table(&node, &[("here9", "vip1:80", both)]);
    }
    // A node whose zone is not known.
    let node =
        row.cluster().everywhere("").endpoints("web", &["here1 for-zone=a", "there1 for-zone=b"]).start();
    row.table(&node, &[("here9", "vip1:80", both)]);
}

fn traffic_distribution(row: &mut Row) {
    for distribution in ["PreferClose", "PreferSameNode", "PreferSameZone"] {
        let node = row
            .cluster()
            .zone("a")
            .everywhere(&format!("trafficDistribution: {distribution}"))
            .endpoints("web", &["here1", "there1"])
            .start();
        row.table(&node, &[("here9", "vip1:80", "here1, there1")]);
    }
}
