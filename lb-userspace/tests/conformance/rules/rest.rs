//! Metrics, connections whose endpoint has gone, timing.

use lb_common::abi::ConfigFlags;
use lb_control::model::Kind;

use crate::rule::Difference::Explained;
use crate::rule::{Row, Rule, Section, check};

const FILE: &str = "pkg/proxy/metrics/metrics.go";

/// Metrics.
pub const METRICS: Section = Section {
    title: "Metrics",
    rules: &[
        Rule {
            id: "11.1",
            text: "127.0.0.1:10249 serves /metrics, /proxyMode and /healthz.",
            source: "cmd/kube-proxy/app/server.go",
            check: None,
            tests: &[
                "args::config::defaults_are_those_of_kube_proxy_where_it_has_them",
                "kernel_agent::metrics_have_kube_proxys_paths",
            ],
            differs: &[Explained("/proxyMode says shunt; /livez is there too")],
        },
        Rule {
            id: "11.2",
            text: "Names, labels and meaning of kubeproxy_… are those of metrics.go, as far as every mode has them.",
            source: FILE,
            check: check!(names),
            tests: &[
                "telemetry::metrics::names_and_labels_are_those_dashboards_know",
                "kernel_agent::metrics_have_kube_proxys_paths",
            ],
            differs: &[],
        },
        Rule {
            id: "11.3",
            text: "Metrics of one mode: iptables, nftables, and those of the conntrack reconciler.",
            source: FILE,
            check: None,
            tests: &[],
            differs: &[Explained("there are no such rules and no such reconciler; see shunt_… instead")],
        },
        Rule {
            id: "11.4",
            text: "Network programming latency runs from the annotation endpoints.kubernetes.io/last-change-trigger-time to \
                   the rules' being in force.",
            source: "pkg/proxy/endpointschangetracker.go",
            check: None,
            tests: &[
                "convert::the_time_of_the_trigger_is_read",
                "reconcile::facts::latency_runs_from_the_trigger_once",
                "telemetry::recorder::the_latency_has_kube_proxys_bounds",
            ],
            differs: &[],
        },
    ],
};

/// Connections.
pub const UDP: Section = Section {
    title: "Connections whose endpoint has gone",
    rules: &[
        Rule {
            id: "12.1",
            text: "UDP leaves an endpoint that serves no longer, whatever policy, topology or termination say; one that still \
                   serves keeps its flows.",
            source: "pkg/proxy/conntrack/cleanup.go",
            check: check!(udp_leaves),
            tests: &[
                "lab_udp::one_way_senders_leave_an_endpoint_that_is_gone",
                "lab_faults::datagrams_leave_an_endpoint_that_is_gone",
                "lab_udp::sockets_leave_an_endpoint_that_is_gone",
            ],
            differs: &[],
        },
        Rule {
            id: "12.2",
            text: "Also when no endpoint is left, and when the Service is deleted.",
            source: "pkg/proxy/conntrack/cleanup.go",
            check: check!(udp_without_endpoints),
            tests: &["lab_udp::one_way_senders_leave_an_endpoint_that_is_gone"],
            differs: &[],
        },
        Rule {
            id: "12.3",
            text: "A TCP connection is never cut, also not when its endpoint leaves the Service.",
            source: "pkg/proxy/conntrack/cleanup.go",
            check: check!(tcp_stays),
            tests: &[
                "lab_faults::connections_outlive_changes_and_the_agent",
                "lab_changes::connections_outlive_their_service",
            ],
            differs: &[],
        },
    ],
};

/// Timing and system settings.
pub const TIMING: Section = Section {
    title: "Timing and system settings",
    rules: &[
        Rule {
            id: "13.1",
            text: "minSyncPeriod 1 s, syncPeriod 30 s, a full sync every hour.",
            source: "pkg/proxy/apis/config/v1alpha1/defaults.go †",
            check: None,
            tests: &[
                "reconcile::run::changes_reach_the_store_and_the_status",
                "lab_faults::a_new_pod_is_served_at_once",
            ],
            differs: &[Explained(
                "a change is applied at once, or up to 20 ms after the one before; lists, not a clock, make the agent look at everything",
            )],
        },
        Rule {
            id: "13.2",
            text: "The API is asked with 5 queries a second, bursts of 10.",
            source: "pkg/proxy/apis/config/v1alpha1/defaults.go †",
            check: None,
            tests: &["api_agents::agents_follow_the_api_server_and_outlive_it"],
            differs: &[Explained(
                "a handful of watches, tried again with growing pauses; clientConnection.qps and burst have no meaning",
            )],
        },
        Rule {
            id: "13.3",
            text: "nf_conntrack_max is 32768 for each core (131072 at least), established connections end after 24 h, \
                   close_wait after 1 h.",
            source: "cmd/kube-proxy/app/server_linux.go",
            check: None,
            tests: &[
                "args::kube_proxy::what_has_no_meaning_is_listed_and_what_is_unknown_is_named",
                "fixtures::flows_are_forgotten_in_time_and_not_earlier",
            ],
            differs: &[Explained(
                "conntrack's settings are left alone; flows are kept in a table of our own (--flow-table-size)",
            )],
        },
        Rule {
            id: "13.4",
            text: "The Node's name is the host's, or hostnameOverride, without spaces around it and in small letters.",
            source: "staging/src/k8s.io/component-helpers/node/util/hostname.go †",
            check: None,
            tests: &[
                "args::config::a_nodes_name_is_written_as_the_kubelet_writes_it",
                "reconcile::a_name_that_no_node_has_is_told_until_one_has_it",
            ],
            differs: &[],
        },
        Rule {
            id: "13.5",
            text: "The API is asked through the proxy of HTTPS_PROXY, HTTP_PROXY and NO_PROXY as Go reads them, or the \
                   kubeconfig's proxy-url.",
            source: "staging/src/k8s.io/apimachinery/pkg/util/net/http.go †",
            check: None,
            tests: &[
                "source::kubernetes::proxy::no_proxy_is_read_as_go_reads_it",
                "source::kubernetes::access::a_proxy_comes_from_the_kubeconfig_or_from_the_environment",
                "source::kubernetes::client::an_http_proxy_is_asked_to_connect",
            ],
            differs: &[],
        },
    ],
};

/// The families of `metrics.go` that do not belong to one mode.
const NAMES: [&str; 14] = [
    "sync_proxy_rules_duration_seconds",
    "sync_full_proxy_rules_duration_seconds",
    "sync_partial_proxy_rules_duration_seconds",
    "network_programming_duration_seconds",
    "sync_proxy_rules_last_timestamp_seconds",
    "sync_proxy_rules_last_queued_timestamp_seconds",
    "sync_proxy_rules_endpoint_changes_pending",
    "sync_proxy_rules_endpoint_changes_total",
    "sync_proxy_rules_service_changes_pending",
    "sync_proxy_rules_service_changes_total",
    "sync_proxy_rules_no_local_endpoints_total",
    "proxy_healthz_total",
    "proxy_livez_total",
    "network_programming_duration_seconds_bucket",
];

/// What the metrics' own test has seen.
const SNAPSHOT: &str = include_str!(
    "../../../telemetry/src/metrics/snapshots/lb_telemetry__metrics__tests__names_and_labels_are_those_dashboards_know.snap"
);

fn names(row: &mut Row) {
    for name in NAMES {
        let samples = |line: &str| {
            let rest = line.strip_prefix("kubeproxy_").and_then(|line| line.strip_prefix(name));
            rest.is_some_and(|rest| rest.starts_with([' ', '{', '_']))
        };
        row.equal(name, &SNAPSHOT.lines().any(samples), &true);
    }
    let label = format!("ip_family=\"{}\"", row.family.label());
    row.equal(&label, &SNAPSHOT.contains(&label), &true);
    for label in
        ["traffic_policy=\"internal\"", "traffic_policy=\"external\"", "code=\"200\"", "code=\"503\""]
    {
        row.equal(label, &SNAPSHOT.contains(label), &true);
    }
}

const DNS: &str = "{type: LoadBalancer, clusterIP: $vip1, ingress: [{ip: $lb1}], \
                   ports: [{name: dns, port: 53, protocol: UDP, nodePort: 30053}]}";
const FRONTENDS: [&str; 3] = ["vip1:53/UDP", "lb1:53/UDP", "node:30053/UDP"];

fn udp_leaves(row: &mut Row) {
    let mut node = row.cluster().zone("a").flags(ConfigFlags::default()).service("web", DNS).start();
    for to in FRONTENDS {
        for client in ["client1", "here9"] {
            node.endpoints("web", &["here1"]);
            row.equal("first", node.ask_port(client, 9, to).as_str(), "here1");
            // Others are better, but this one serves.
            node.endpoints("web", &["here1 draining", "here2"]);
            row.equal("while it serves", node.ask_port(client, 9, to).as_str(), "here1");
            node.endpoints("web", &["here1 for-zone=b", "here2 for-zone=a"]);
            row.equal("while it is for another zone", node.ask_port(client, 9, to).as_str(), "here1");
            node.endpoints("web", &["here1 gone", "here2"]);
            row.equal("when it does not", node.ask_port(client, 9, to).as_str(), "here2");
            node.endpoints("web", &["here3"]);
            row.equal("when it is out of the list", node.ask_port(client, 9, to).as_str(), "here3");
        }
    }
}

fn udp_without_endpoints(row: &mut Row) {
    for to in FRONTENDS {
        let mut node = row.cluster().service("web", DNS).endpoints("web", &["here1"]).start();
        row.equal("first", node.ask_port("client1", 9, to).as_str(), "here1");
        node.endpoints("web", &[]);
        row.equal("without endpoints", node.ask_port("client1", 9, to).as_str(), "refused");
        node.endpoints("web", &["here2"]);
        row.equal("with another", node.ask_port("client1", 9, to).as_str(), "here2");
        node.delete(Kind::Service, "web");
        row.equal("without its Service", node.ask_port("client1", 9, to).as_str(), "passed");
    }
}

fn tcp_stays(row: &mut Row) {
    let mut node = row.cluster().everywhere("").endpoints("web", &["here1"]).start();
    for to in ["vip1:80", "lb1:80", "node:30080"] {
        node.endpoints("web", &["here1"]);
        row.equal("first", node.ask_port("client1", 9, to).as_str(), "here1");
        for endpoints in [&["here1"][..], &["here1 gone", "here2"], &["here2"], &[]] {
            node.endpoints("web", endpoints);
            row.equal("when its endpoint goes", node.go_on("client1", 9, to).as_str(), "here1");
        }
    }
}
