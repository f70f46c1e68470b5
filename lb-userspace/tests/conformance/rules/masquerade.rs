//! Whose address endpoints see.

use lb_common::abi::ConfigFlags;

use crate::rule::Difference::{Explained, Listed};
use crate::rule::{Row, Rule, Section, check};

const PROXIER: &str = "pkg/proxy/iptables/proxier.go";
const DETECTOR: &str = "pkg/proxy/util/localdetector.go";
const TWIN: &str = "api_twin::every_client_gets_the_same_from_both";

/// Masquerading.
pub const MASQUERADE: Section = Section {
    title: "Masquerade",
    rules: &[
        Rule {
            id: "6.1",
            text: "externalTrafficPolicy Cluster: whatever comes to an external, load balancer's or nodePort address is \
                   masqueraded.",
            source: PROXIER,
            check: check!(external),
            tests: &["lab_paths::from_outside_with_native_xdp", TWIN],
            differs: &[],
        },
        Rule {
            id: "6.2",
            text: "A pod of the cluster that comes to a ClusterIP keeps its address, but for masqueradeAll.",
            source: PROXIER,
            check: check!(cluster_ip),
            tests: &["lab_paths::from_pods", "fixtures::a_masqueraded_pod_gets_its_answers", TWIN],
            differs: &[],
        },
        Rule {
            id: "6.3",
            text: "A client at a ClusterIP that is not the cluster's, by the detector, is masqueraded.",
            source: PROXIER,
            check: check!(foreign),
            tests: &[
                "fixtures::a_client_outside_the_cluster_range_is_masqueraded_to_a_cluster_ip",
                "lab_paths::from_outside_with_native_xdp",
                TWIN,
            ],
            differs: &[],
        },
        Rule {
            id: "6.4",
            text: "An endpoint that comes to itself through a Service is masqueraded, always.",
            source: PROXIER,
            check: check!(hairpin),
            tests: &["lab_paths::from_pods", "fixtures::a_pod_that_reaches_itself_sees_the_node", TWIN],
            differs: &[],
        },
        Rule {
            id: "6.5",
            text: "Who is the cluster's: by range (ClusterCIDR, one for each family; NodeCIDR, the Node's), or by the \
                   interface traffic comes from (BridgeInterface, InterfaceNamePrefix).",
            source: DETECTOR,
            check: check!(detectors),
            tests: &[
                "args::config::who_is_local_is_what_the_mode_says",
                "fixtures::who_is_local_is_decided_by_range_or_by_interface_or_nobody_is_asked",
                "kernel_agent::the_pods_range_is_the_nodes",
            ],
            differs: &[],
        },
        Rule {
            id: "6.6",
            text: "With no detector configured nobody at a ClusterIP is masqueraded for where he comes from.",
            source: DETECTOR,
            check: check!(no_detector),
            tests: &["fixtures::who_is_local_is_decided_by_range_or_by_interface_or_nobody_is_asked"],
            differs: &[],
        },
        Rule {
            id: "6.7",
            text: "NodeCIDR waits up to five minutes for the Node's podCIDR.",
            source: "cmd/kube-proxy/app/server_linux.go",
            check: None,
            tests: &[
                "kernel_agent::the_pods_range_is_the_nodes",
                "app::attach::what_is_written_can_be_read_again",
            ],
            differs: &[Explained(
                "Services are served meanwhile, with nobody known as the cluster's; after five minutes a warning says so, and \
                 the range counts whenever it comes",
            )],
        },
        Rule {
            id: "6.8",
            text: "Packets to be masqueraded carry mark 0x4000, which is taken off in POSTROUTING; ports are drawn fully at \
                   random.",
            source: PROXIER,
            check: None,
            tests: &["fixtures::masquerading_ports_run_out_visibly_and_come_back"],
            differs: &[Explained(
                "no mark and no netfilter rule: the programs translate, with ports 10000 to 29999 drawn by a hash with a secret seed, and kept by a client port that is used again",
            )],
        },
        Rule {
            id: "6.9",
            text: "Marked packets and those of known connections are accepted for forwarding; packets that conntrack calls \
                   INVALID are dropped, unless it is told to be liberal.",
            source: PROXIER,
            check: None,
            tests: &["fixtures::a_connection_survives_a_reset_that_was_not_its_own"],
            differs: &[Explained(
                "no netfilter rule is added: what the node's FORWARD chain drops stays dropped, and packets outside of any \
                 connection are judged by the programs' own flow table",
            )],
        },
    ],
};

const EXTERNAL: [&str; 3] = ["ext1:80", "lb1:80", "node:30080"];

fn external(row: &mut Row) {
    let kept = Listed("client-address-kept");
    let mut node = row.cluster().everywhere("").endpoints("web", &["there1"]).start();
    for to in EXTERNAL {
        row.table(&node, &[("client1", to, "there1 (sees node)"), ("stranger1", to, "there1 (sees node)")]);
        row.table(&node, &[("there9", to, "there1 (sees node)")]);
        row.other(kept, &node, "here9", to, "there1 (sees node)", "there1");
    }
    node.endpoints("web", &["here1"]);
    for to in EXTERNAL {
        row.other(kept, &node, "client1", to, "here1 (sees node)", "here1");
        row.other(kept, &node, "here9", to, "here1 (sees node)", "here1");
        // The same pod may come to the same endpoint past this node, from the same port.
        row.table(&node, &[("there9", to, "here1 (sees node)")]);
    }
}

fn cluster_ip(row: &mut Row) {
    let node = row.cluster().everywhere("").endpoints("web", &["here1", "there1"]).start();
    row.table(&node, &[("here9", "vip1:80", "here1, there1"), ("there9", "vip1:80", "here1, there1")]);
    let all = ConfigFlags::LOCAL_RANGE.with(ConfigFlags::MASQUERADE_ALL);
    let node = row.cluster().flags(all).everywhere("").endpoints("web", &["here1", "there1"]).start();
    let seen = "here1 (sees node), there1 (sees node)";
    row.table(&node, &[("here9", "vip1:80", seen), ("client1", "vip1:80", seen)]);
}

fn foreign(row: &mut Row) {
    let mut node = row.cluster().everywhere("").endpoints("web", &["there1"]).start();
    row.table(
        &node,
        &[("client1", "vip1:80", "there1 (sees node)"), ("stranger1", "vip1:80", "there1 (sees node)")],
    );
    node.endpoints("web", &["here1"]);
    row.other(Listed("client-address-kept"), &node, "client1", "vip1:80", "here1 (sees node)", "here1");
}

fn hairpin(row: &mut Row) {
    for flags in [ConfigFlags::LOCAL_RANGE, ConfigFlags::LOCAL_INTERFACE, ConfigFlags::default()] {
        for policy in ["", "externalTrafficPolicy: Local, internalTrafficPolicy: Local"] {
            let node = row.cluster().flags(flags).everywhere(policy).endpoints("web", &["here1"]).start();
            for to in ["vip1:80", "ext1:80", "lb1:80", "node:30080"] {
                row.table(&node, &[("here1", to, "here1 (sees node)"), ("here2", to, "here1")]);
            }
        }
    }
}

fn detectors(row: &mut Row) {
    let of = |flags| row.cluster().flags(flags).everywhere("").endpoints("web", &["there1"]).start();
    let (range, interface) = (of(ConfigFlags::LOCAL_RANGE), of(ConfigFlags::LOCAL_INTERFACE));
    let seen = "there1 (sees node)";
    row.table(
        &range,
        &[("here9", "vip1:80", "there1"), ("there9", "vip1:80", "there1"), ("client1", "vip1:80", seen)],
    );
    // A pod of another node comes from the wire.
    row.table(
        &interface,
        &[("here9", "vip1:80", "there1"), ("there9", "vip1:80", seen), ("client1", "vip1:80", seen)],
    );
}

fn no_detector(row: &mut Row) {
    let node =
        row.cluster().flags(ConfigFlags::default()).everywhere("").endpoints("web", &["here1"]).start();
    for client in ["here9", "there9", "client1", "stranger1"] {
        row.table(&node, &[(client, "vip1:80", "here1")]);
    }
}
