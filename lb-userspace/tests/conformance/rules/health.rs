//! What health checks are told.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use lb_control::model;
use lb_control::reconcile::Status;
use lb_health::Health;
use lb_kernel::links::State;
use lb_telemetry::recorder::{Question, Recorder};
use serde_json::Value;
use tokio::sync::watch;

use crate::rule::Difference::Explained;
use crate::rule::{Row, Rule, Section, check};

const PROXY: &str = "pkg/proxy/healthcheck/proxy_health.go";
const SERVICE: &str = "pkg/proxy/healthcheck/service_health.go";

/// `/healthz` and `/livez`.
pub const HEALTHZ: Section = Section {
    title: "/healthz and /livez",
    rules: &[
        Rule {
            id: "9.1",
            text: "0.0.0.0:10256 answers /healthz and /livez with 200 or 503, as application/json, nosniff.",
            source: PROXY,
            check: check!(headers),
            tests: &[
                "health::answers_carry_kube_proxys_headers_and_are_counted",
                "args::config::defaults_are_those_of_kube_proxy_where_it_has_them",
                "kernel_agent::load_balancers_learn_which_nodes_have_endpoints",
            ],
            differs: &[],
        },
        Rule {
            id: "9.2",
            text: "The body has lastUpdated, currentTime, nodeEligible (healthz alone), healthy, and status by family; \
                   lastUpdated is now while all is well.",
            source: PROXY,
            check: check!(body),
            tests: &[
                "health::the_bodies_are_kube_proxys",
                "health::times_are_written_as_go_does",
                "kernel_agent::load_balancers_learn_which_nodes_have_endpoints",
            ],
            differs: &[],
        },
        Rule {
            id: "9.3",
            text: "Unhealthy when a change has waited longer than twice syncPeriod.",
            source: PROXY,
            check: check!(overdue),
            tests: &["health::a_change_that_waits_too_long_makes_it_unhealthy"],
            differs: &[Explained("twice the default syncPeriod, 60 s: there is no syncPeriod to set")],
        },
        Rule {
            id: "9.4",
            text: "/healthz answers 503 when the Node is being deleted or has the taint ToBeDeletedByClusterAutoscaler; \
                   /livez does not care.",
            source: PROXY,
            check: check!(eligible),
            tests: &[
                "convert::a_node_about_to_go_is_not_eligible",
                "health::a_node_about_to_go_gets_no_traffic_but_is_alive",
                "api_agents::agents_follow_the_api_server_and_outlive_it",
            ],
            differs: &[],
        },
    ],
};

/// `healthCheckNodePort`.
pub const HEALTH_CHECKS: Section = Section {
    title: "healthCheckNodePort",
    rules: &[
        Rule {
            id: "10.1",
            text: "200 when the Service has ready endpoints on this node and the proxy is healthy, else 503, with their number \
                   in X-Load-Balancing-Endpoint-Weight, on any path.",
            source: SERVICE,
            check: check!(local_ready),
            tests: &[
                "health::service::the_answer_is_kube_proxys",
                "kernel_agent::load_balancers_learn_which_nodes_have_endpoints",
                "api_twin::every_client_gets_the_same_from_both",
            ],
            differs: &[],
        },
        Rule {
            id: "10.2",
            text: "The body, indented with tabs: service (namespace, name), localEndpoints, serviceProxyHealthy.",
            source: SERVICE,
            check: None,
            tests: &[
                "health::service::the_answer_is_kube_proxys",
                "kernel_agent::load_balancers_learn_which_nodes_have_endpoints",
            ],
            differs: &[],
        },
        Rule {
            id: "10.3",
            text: "It listens on every address, or on the node's addresses inside nodePortAddresses.",
            source: SERVICE,
            check: None,
            tests: &[
                "network::addresses::health_checks_answer_where_node_ports_do",
                "kernel_agent::load_balancers_learn_which_nodes_have_endpoints",
            ],
            differs: &[],
        },
        Rule {
            id: "10.4",
            text: "A port that cannot be had is the Event FailedToStartServiceHealthcheck.",
            source: SERVICE,
            check: None,
            tests: &["health::service::ports_follow_the_services"],
            differs: &[],
        },
    ],
};

fn health(status: Status) -> Health {
    let attached = State { started: true, ..State::default() };
    Health::new(watch::channel(status).1, watch::channel(attached).1, false, Recorder::default())
}

fn working() -> Status {
    Status { last_success: Some(Instant::now()), ..Status::default() }
}

/// Status and body.
fn ask(status: Status, question: Question) -> (u16, Value) {
    let reply = health(status).reply(question);
    let code = reply.status().as_u16();
    let runtime =
        tokio::runtime::Builder::new_current_thread().build().unwrap_or_else(|error| panic!("{error}"));
    let Ok(body) = runtime.block_on(reply.into_body().collect());
    let body = body.to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {body:?}")))
}

fn codes(status: &Status) -> [u16; 2] {
    [Question::Healthz, Question::Livez].map(|question| ask(status.clone(), question).0)
}

fn headers(row: &mut Row) {
    for question in [Question::Healthz, Question::Livez] {
        let reply = health(working()).reply(question);
        row.equal("status", &reply.status().as_u16(), &200);
        for (name, value) in [("content-type", "application/json"), ("x-content-type-options", "nosniff")] {
            let found = reply.headers().get(name).and_then(|value| value.to_str().ok());
            row.equal(name, &found, &Some(value));
        }
    }
}

fn body(row: &mut Row) {
    for (question, names) in [
        (Question::Healthz, &["currentTime", "healthy", "lastUpdated", "nodeEligible", "status"][..]),
        (Question::Livez, &["currentTime", "healthy", "lastUpdated", "status"]),
    ] {
        let (_, body) = ask(working(), question);
        let found: Vec<&str> =
            body.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        row.equal("fields", &found[..], names);
        row.equal("now", &body["lastUpdated"], &body["currentTime"]);
        row.equal("of the family", &body["status"][row.family.label()]["healthy"], &Value::Bool(true));
    }
}

fn overdue(row: &mut Row) {
    for (seconds, code) in [(59, 200), (61, 503)] {
        let Some(since) = Instant::now().checked_sub(Duration::from_secs(seconds)) else {
            row.wrong.push("the machine is up for less than a minute: ask again".to_owned());
            return;
        };
        row.equal("waiting", &codes(&Status { queued_since: Some(since), ..working() }), &[code, code]);
    }
}

fn eligible(row: &mut Row) {
    for (eligible, expected) in [(true, [200, 200]), (false, [503, 200])] {
        let node = model::Node { eligible, ..model::Node::default() };
        row.equal("codes", &codes(&Status { node: Some(node.into()), ..working() }), &expected);
    }
}

fn local_ready(row: &mut Row) {
    let check = "externalTrafficPolicy: Local, healthCheckNodePort: 32000";
    let count = |spec: &str, endpoints: &[&str]| {
        row.cluster().everywhere(spec).endpoints("web", endpoints).start().local_ready("web")
    };
    let found = [
        count(check, &["here1", "here2", "there1", "here3 draining", "here4 unready"]),
        count(check, &["there1", "here3 draining"]),
        count("healthCheckNodePort: 32000", &["here1"]),
    ];
    row.equal("local endpoints", &found, &[Some(2), Some(0), None]);
}
