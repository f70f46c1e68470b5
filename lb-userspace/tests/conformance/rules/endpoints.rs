//! How EndpointSlices are read.

use lb_control::model::Family;

use crate::rule::{Row, Rule, Section, check};

/// EndpointSlices.
pub const SLICES: Section = Section {
    title: "EndpointSlices",
    rules: &[
        Rule {
            id: "2.1",
            text: "Only the first of an endpoint's addresses counts.",
            source: "pkg/proxy/endpointslicecache.go †",
            check: check!(first_address),
            tests: &["convert::endpoints_are_read_as_kube_proxy_reads_them"],
            differs: &[],
        },
        Rule {
            id: "2.2",
            text: "Ports without a name or a number (or with number 0) are skipped.",
            source: "pkg/proxy/endpointslicecache.go †",
            check: check!(half_ports),
            tests: &["convert::endpoints_are_read_as_kube_proxy_reads_them"],
            differs: &[],
        },
        Rule {
            id: "2.3",
            text: "A missing condition means: ready, serving, not terminating.",
            source: "pkg/proxy/endpointslicecache.go †",
            check: check!(missing_conditions),
            tests: &["convert::endpoints_are_read_as_kube_proxy_reads_them"],
            differs: &[],
        },
        Rule {
            id: "2.4",
            text: "Slices of another family than the frontend's do not count for it, and slices of host names not at all.",
            source: "pkg/proxy/endpointslicecache.go †",
            check: check!(other_families),
            tests: &["convert::a_slice_is_of_one_family"],
            differs: &[],
        },
        Rule {
            id: "2.5",
            text: "Endpoints belong to the port of the same Service, name and protocol.",
            source: "pkg/proxy/endpointslicecache.go †",
            check: check!(ports_by_name_and_protocol),
            tests: &["api_twin::every_client_gets_the_same_from_both"],
            differs: &[],
        },
        Rule {
            id: "2.6",
            text: "The same address and port in two slices is one endpoint; the one that is local wins.",
            source: "pkg/proxy/endpointslicecache.go †",
            check: check!(twice_is_once),
            tests: &["desired::endpoints_are_chosen_as_kube_proxy_chooses_them"],
            differs: &[],
        },
        Rule {
            id: "2.7",
            text: "An endpoint is local when its nodeName is this node's name.",
            source: "pkg/proxy/endpointslicecache.go †",
            check: check!(local_by_name),
            tests: &[
                "lab_paths::from_outside_with_native_xdp",
                "api_twin::every_client_gets_the_same_from_both",
            ],
            differs: &[],
        },
    ],
};

/// A slice of the Service `web` with these ports and endpoints.
fn slice(row: &Row, name: &str, ports: &str, endpoints: &str) -> String {
    let family = row.family.label();
    format!(
        "{{kind: EndpointSlice, metadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}, \
         addressType: {family}, ports: [{ports}], endpoints: [{endpoints}]}}"
    )
}

const HTTP: &str = "{name: http, port: 8080}, {name: dns, port: 8053, protocol: UDP}";

fn first_address(row: &mut Row) {
    let slice = slice(row, "web-1", HTTP, "{addresses: [$here1, $here2]}");
    let node = row.cluster().service("web", "{clusterIP: $vip1}").object(&slice).start();
    row.table(&node, &[("here9", "vip1:80", "here1")]);
}

fn half_ports(row: &mut Row) {
    let odd =
        slice(row, "web-1", "{name: http}, {name: http, port: 0}, {port: 8080}", "{addresses: [$here1]}");
    let mut node = row.cluster().service("web", "{clusterIP: $vip1}").object(&odd).start();
    row.table(&node, &[("here9", "vip1:80", "refused")]);
    node.apply(&slice(row, "web-2", HTTP, "{addresses: [$here2]}"));
    row.table(&node, &[("here9", "vip1:80", "here2")]);
    // A name may be empty, though: that of a port that has none.
    let nameless = slice(row, "web-1", "{name: \"\", port: 8080}", "{addresses: [$here1]}");
    let node =
        row.cluster().service("web", "{clusterIP: $vip1, ports: [{port: 80}]}").object(&nameless).start();
    row.table(&node, &[("here9", "vip1:80", "here1")]);
}

fn missing_conditions(row: &mut Row) {
    for (conditions, served) in [
        ("", true),
        (", conditions: {}", true),
        (", conditions: {ready: true}", true),
        (", conditions: {ready: false}", false),
        (", conditions: {ready: false, terminating: true}", true),
        (", conditions: {ready: false, serving: true}", false),
        (", conditions: {ready: false, serving: false, terminating: true}", false),
    ] {
        let slice = slice(row, "web-1", HTTP, &format!("{{addresses: [$here1]{conditions}}}"));
        let node = row.cluster().service("web", "{clusterIP: $vip1}").object(&slice).start();
        let found = node.ask("here9", "vip1:80");
        row.equal(conditions, found.as_str(), if served { "here1" } else { "refused" });
    }
}

fn other_families(row: &mut Row) {
    let other = match row.family {
        Family::V4 => "addressType: IPv6, endpoints: [{addresses: [\"2001:db8:f1::1\"]}]",
        Family::V6 => "addressType: IPv4, endpoints: [{addresses: [10.244.1.1]}]",
    };
    for rest in [other, "addressType: FQDN, endpoints: [{addresses: [pod.example]}]"] {
        let node = row
            .cluster()
            .service("web", "{clusterIP: $vip1}")
            .object(&format!(
                "{{kind: EndpointSlice, metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}, \
                 ports: [{HTTP}], {rest}}}"
            ))
            .start();
        row.table(&node, &[("here9", "vip1:80", "refused"), ("process", "vip1:80", "refused")]);
    }
}

fn ports_by_name_and_protocol(row: &mut Row) {
    let ports = "{name: dns, port: 8053, protocol: UDP}, {name: dns, port: 8054, protocol: TCP}, {name: web, port: 8080}";
    let slice = slice(row, "web-1", ports, "{addresses: [$here1]}");
    let node = row
        .cluster()
        .service(
            "web",
            "{clusterIP: $vip1, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns, port: 53, protocol: TCP}, \
             {name: http, port: 80}]}",
        )
        .object(&slice)
        .start();
    row.table(
        &node,
        &[
            ("here9", "vip1:53/UDP", "here1"),
            ("here9", "vip1:53", "here1:8054"),
            ("here9", "vip1:80", "refused"),
            ("process", "vip1:53/UDP", "here1"),
        ],
    );
}

fn twice_is_once(row: &mut Row) {
    let of_nobody = slice(row, "web-1", HTTP, "{addresses: [$here1]}");
    let of_this_node = slice(row, "web-2", HTTP, "{addresses: [$here1], nodeName: node-a}");
    for (first, second) in [(&of_nobody, &of_this_node), (&of_this_node, &of_nobody)] {
        let node = row
            .cluster()
            .everywhere("externalTrafficPolicy: Local, healthCheckNodePort: 32000")
            .object(first)
            .object(second)
            .start();
        row.table(&node, &[("here9", "vip1:80", "here1"), ("client1", "node:30080", "here1")]);
        row.equal("local endpoints", &node.local_ready("web"), &Some(1));
    }
}

fn local_by_name(row: &mut Row) {
    for (name, served) in
        [("node-a", "here1"), ("node-b", "dropped"), ("Node-A", "dropped"), ("\"\"", "dropped")]
    {
        let slice = slice(row, "web-1", HTTP, &format!("{{addresses: [$here1], nodeName: {name}}}"));
        let node = row.cluster().everywhere("externalTrafficPolicy: Local").object(&slice).start();
        row.table(&node, &[("client1", "node:30080", served)]);
    }
}
