use lb_common::abi::{Hook, Reason};
use lb_control::reconcile::{NoLocalEndpoints, Observer as _};

use super::*;
use crate::recorder::Question;

fn snapshot() -> Snapshot {
    let port = Port { namespace: "shop".into(), service: "web".into(), port: "http".into() };
    Snapshot {
        outcomes: vec![Outcome { hook: Hook::UplinkXdp, reason: Reason::NewFlow, count: 3 }],
        services: vec![(port, Traffic { flows: 1, packets: 2, bytes: 3 })],
        flows: [(("IPv4", "tcp", "established"), 5)].into(),
        maps: vec![Usage { map: "SERVICES4", entries: 1, capacity: 131_072 }],
        sizes: vec![MapSize { name: "SERVICES4".to_owned(), bytes: 2_097_152, max_entries: 131_072 }],
        problems: vec![(Severity::Warning, 1)],
        sync: Sync { succeeded: 7, failed: 1, last: 1_795_226_400.5, synced: true },
        troubles: 0,
        interfaces: 4,
        left_out: 1,
        host_rules: 2,
        kept: 4,
        sockets_destroyed: 2,
        connection_errors: 3,
    }
}

#[test]
fn names_and_labels_are_those_dashboards_know() {
    let recorder = Recorder::default();
    recorder.synced(Duration::from_micros(500), true);
    recorder.programmed(Family::V6, Duration::from_millis(300));
    recorder.changes(2, 3);
    recorder.queued(Duration::from_secs(1_795_226_400));
    recorder.answered(Question::Healthz, false);
    let no_local_endpoints = NoLocalEndpoints { internal: [1, 0], external: [0, 2] };
    let kube_proxy = KubeProxy { recorder, last_sync: 1_795_226_400.5, no_local_endpoints };
    let text = encode(snapshot(), kube_proxy);
    // Eighty buckets say nothing about names.
    let bucket = |line: &&str| line.contains("_bucket{") && !line.contains("+Inf");
    let lines: Vec<&str> = text.lines().filter(|line| !bucket(line)).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_port_without_a_name_goes_by_its_protocol() {
    assert_eq!(port_label("", 17), "udp");
    assert_eq!(port_label("http", 6), "http");
}
