//! Which Services count, and what their fields mean.

use lb_control::model::{Family, Kind};

use crate::rule::{Row, Rule, Section, check};

/// Which Services are served at all.
pub const WHICH: Section = Section {
    title: "Which Services",
    rules: &[
        Rule {
            id: "1.1",
            text: "A Service with the label service.kubernetes.io/service-proxy-name is left alone, whatever the label's \
                   value.",
            source: "cmd/kube-proxy/app/server.go",
            check: check!(labelled_services),
            tests: &["api_twin::every_client_gets_the_same_from_both"],
            differs: &[],
        },
        Rule {
            id: "1.2",
            text: "An EndpointSlice with the label service.kubernetes.io/headless is left alone, whatever the value.",
            source: "cmd/kube-proxy/app/server.go",
            check: check!(labelled_slices),
            tests: &["convert::slices_of_others_are_left_alone_in_silence"],
            differs: &[],
        },
        Rule {
            id: "1.3",
            text: "A Service whose clusterIP is empty or None is skipped, and so is one of type ExternalName even with a \
                   clusterIP.",
            source: "pkg/proxy/util/utils.go",
            check: check!(without_cluster_ip),
            tests: &["api_twin::every_client_gets_the_same_from_both"],
            differs: &[],
        },
        Rule {
            id: "1.4",
            text: "EndpointSlices join a Service by the label kubernetes.io/service-name, so slices made by hand serve.",
            source: "pkg/proxy/endpointslicecache.go †",
            check: check!(slices_made_by_hand),
            tests: &["api_walk::a_service_from_its_first_day_to_its_last"],
            differs: &[],
        },
        Rule {
            id: "1.5",
            text: "Nothing is programmed until Services and EndpointSlices have both been listed.",
            source: "pkg/proxy/iptables/proxier.go",
            check: check!(nothing_before_the_lists),
            tests: &[
                "source::kubernetes::synced_comes_once_after_all_lists_and_a_relist_is_a_reset",
                "reconcile::nothing_is_touched_before_everything_is_listed",
            ],
            differs: &[],
        },
    ],
};

/// What a Service's fields mean.
pub const FIELDS: Section = Section {
    title: "Fields of a Service",
    rules: &[
        Rule {
            id: "3.1",
            text: "One clusterIP of each family counts; a family without one is not served at all.",
            source: "pkg/proxy/serviceport.go",
            check: check!(one_cluster_ip),
            tests: &[
                "reconcile::dual::a_dual_stack_service_is_one_port_with_rings_of_each_family",
                "api_twin::every_client_gets_the_same_from_both",
            ],
            differs: &[],
        },
        Rule {
            id: "3.2",
            text: "externalIPs and loadBalancerSourceRanges count for their own family; a family no range speaks of is \
                   open; blanks around a range are no part of it.",
            source: "pkg/proxy/serviceport.go",
            check: check!(fields_by_family),
            tests: &["lab_clients::source_ranges_hold_for_load_balancer_addresses_alone"],
            differs: &[],
        },
        Rule {
            id: "3.3",
            text: "Addresses of status.loadBalancer.ingress are served when ipMode is missing or VIP. With ipMode Proxy \
                   traffic goes out to the real load balancer.",
            source: "pkg/proxy/serviceport.go",
            check: check!(ip_mode),
            tests: &[
                "convert::every_field_is_read",
                "lab_rules::lists_fall_back_to_terminating_endpoints_each_by_itself",
            ],
            differs: &[],
        },
        Rule {
            id: "3.4",
            text: "internalTrafficPolicy Local is for the ClusterIP, externalTrafficPolicy Local for nodePort, external \
                   and load balancer's addresses: each chooses its own list of endpoints.",
            source: "pkg/proxy/serviceport.go",
            check: check!(lists_by_policy),
            tests: &[
                "desired::policies_choose_the_lists_of_each_frontend",
                "api_twin::every_client_gets_the_same_from_both",
            ],
            differs: &[],
        },
    ],
};

fn labelled_services(row: &mut Row) {
    for label in
        ["service.kubernetes.io/service-proxy-name: other", "service.kubernetes.io/service-proxy-name: \"\""]
    {
        let mut node = row
            .cluster()
            .object(&format!(
                "{{kind: Service, metadata: {{name: web, labels: {{{label}}}}}, \
                 spec: {{clusterIP: $vip1, ports: [{{name: http, port: 80}}]}}}}"
            ))
            .endpoints("web", &["here1"])
            .start();
        row.table(&node, &[("here9", "vip1:80", "passed"), ("process", "vip1:80", "passed")]);
        node.service("web", "{clusterIP: $vip1}");
        row.table(&node, &[("here9", "vip1:80", "here1")]);
    }
}

fn labelled_slices(row: &mut Row) {
    for label in ["service.kubernetes.io/headless: other", "service.kubernetes.io/headless: \"\""] {
        let family = row.family.label();
        let node = row
            .cluster()
            .service("web", "{clusterIP: $vip1}")
            .endpoints("web", &["here1"])
            .object(&format!(
                "{{kind: EndpointSlice, metadata: {{name: other, labels: {{{label}, kubernetes.io/service-name: web}}}}, \
                 addressType: {family}, ports: [{{name: http, port: 8080}}], endpoints: [{{addresses: [$there1]}}]}}"
            ))
            .start();
        row.table(&node, &[("here9", "vip1:80", "here1")]);
    }
}

fn without_cluster_ip(row: &mut Row) {
    let external_name = "type: ExternalName, externalName: example.org, clusterIP: $vip1";
    for spec in ["clusterIP: None", "clusterIP: \"\"", external_name] {
        let node = row
            .cluster()
            .service("web", &format!("{{{spec}, externalIPs: [$ext1]}}"))
            .endpoints("web", &["here1"])
            .start();
        row.table(&node, &[("here9", "vip1:80", "passed"), ("client1", "ext1:80", "passed")]);
    }
}

fn slices_made_by_hand(row: &mut Row) {
    let family = row.family.label();
    let slice = |name: &str, service: &str| {
        format!(
            "{{kind: EndpointSlice, metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {service}}}}}, \
             addressType: {family}, ports: [{{name: http, port: 8080}}], endpoints: [{{addresses: [$stranger1]}}]}}"
        )
    };
    let mut node = row
        .cluster()
        .service("web", "{clusterIP: $vip1}")
        .object(&slice("web-of-another-name", "web"))
        .object(&slice("web-2", "other"))
        .start();
    row.table(&node, &[("here9", "vip1:80", "stranger1")]);
    node.delete(Kind::EndpointSlice, "web-of-another-name");
    row.table(&node, &[("here9", "vip1:80", "refused")]);
}

fn nothing_before_the_lists(row: &mut Row) {
    let mut node = row.cluster().service("web", "{clusterIP: $vip1}").begin();
    row.equal("entries before", &node.entries(), &0);
    row.table(&node, &[("here9", "vip1:80", "passed")]);
    node.endpoints("web", &["here1"]);
    row.equal("entries before", &node.entries(), &0);
    node.sync();
    row.table(&node, &[("here9", "vip1:80", "here1")]);
}

fn one_cluster_ip(row: &mut Row) {
    let node = row
        .cluster()
        .service("web", "{clusterIP: $vip1, clusterIPs: [$vip1, $vip2]}")
        .endpoints("web", &["here1"])
        .start();
    row.table(&node, &[("here9", "vip1:80", "here1"), ("here9", "vip2:80", "passed")]);
    let foreign = foreign_vip(row);
    let node = row
        .cluster()
        .service("web", &format!("{{clusterIP: \"{foreign}\", externalIPs: [$ext1]}}"))
        .endpoints("web", &["here1"])
        .start();
    row.table(&node, &[("client1", "ext1:80", "passed")]);
}

/// A ClusterIP of the other family.
fn foreign_vip(row: &Row) -> &'static str {
    if row.family == Family::V4 { "fd00::1" } else { "10.96.0.1" }
}

fn fields_by_family(row: &mut Row) {
    let (foreign_range, foreign_ip) = match row.family {
        Family::V4 => ("2001:db8:77::/64", "2001:db8:77::1"),
        Family::V6 => ("10.77.0.0/16", "10.77.0.1"),
    };
    let node = |ranges: &str| {
        let spec = format!(
            "{{type: LoadBalancer, clusterIP: $vip1, externalIPs: [$ext1, \"{foreign_ip}\"], ingress: [{{ip: $lb1}}], \
             loadBalancerSourceRanges: [{ranges}]}}"
        );
        row.cluster().service("web", &spec).endpoints("web", &["here1"]).start()
    };
    let open = node(&format!("\"{foreign_range}\""));
    let closed = node(&format!("\"{foreign_range}\", $client1/host"));
    let blanks =
        node(if row.family == Family::V4 { "\" 203.0.113.0/24 \"" } else { "\" 2001:db8:3::/64 \"" });
    row.table(&open, &[("client1", "lb1:80", "here1"), ("client1", "ext1:80", "here1")]);
    for node in [closed, blanks] {
        row.table(&node, &[("client1", "lb1:80", "here1"), ("stranger1", "lb1:80", "dropped")]);
    }
}

fn ip_mode(row: &mut Row) {
    let node = row
        .cluster()
        .service(
            "web",
            "{type: LoadBalancer, clusterIP: $vip1, ingress: \
             [{ip: $lb1}, {ip: $lb2, ipMode: VIP}, {ip: $lb3, ipMode: Proxy}, {hostname: lb.example}]}",
        )
        .endpoints("web", &["here1"])
        .start();
    for client in ["client1", "here9", "process"] {
        row.table(
            &node,
            &[(client, "lb1:80", "here1"), (client, "lb2:80", "here1"), (client, "lb3:80", "passed")],
        );
    }
}

fn lists_by_policy(row: &mut Row) {
    let node =
        |policies: &str| row.cluster().everywhere(policies).endpoints("web", &["here1", "there1"]).start();
    let both = "here1, there1";
    let node_internal = node("internalTrafficPolicy: Local");
    let node_external = node("externalTrafficPolicy: Local");
    let node_both = node("internalTrafficPolicy: Local, externalTrafficPolicy: Local");
    row.table(&node_internal, &[("here9", "vip1:80", "here1"), ("process", "vip1:80", "here1")]);
    row.table(&node_external, &[("here9", "vip1:80", both), ("client1", "node:30080", "here1")]);
    row.table(&node_both, &[("here9", "vip1:80", "here1"), ("client1", "lb1:80", "here1")]);
    row.table(&node_internal, &[("client1", "node:30080", "here1, there1 (sees node)")]);
    row.table(&node_internal, &[("process", "node:30080", both)]);
}
