use hyper::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use lb_control::model::Node;

use super::*;

fn health(status: Status, started: bool) -> Health {
    let attached = State { started, ..State::default() };
    Health::new(watch::channel(status).1, watch::channel(attached).1, false, Recorder::default())
}

fn working() -> Status {
    Status { last_success: Some(Instant::now()), ..Status::default() }
}

fn ask(health: &Health, question: Question) -> (u16, Answer) {
    let (status, answer) = health.answer(question, Instant::now(), SystemTime::now());
    (status.as_u16(), answer)
}

fn waiting(seconds: u64) -> Status {
    let ago = Instant::now().checked_sub(Duration::from_secs(seconds)).expect("machine is up for minutes");
    Status { queued_since: Some(ago), ..working() }
}

#[test]
fn a_change_that_waits_too_long_makes_it_unhealthy() {
    for (seconds, code) in [(0, 200), (59, 200), (61, 503)] {
        let health = health(waiting(seconds), true);
        assert_eq!(ask(&health, Question::Healthz).0, code, "{seconds} s");
        assert_eq!(ask(&health, Question::Livez).0, code, "{seconds} s");
        assert_eq!(health.is_keeping_up(), code == 200, "{seconds} s");
    }
}

#[test]
fn a_node_that_serves_nothing_yet_gets_no_traffic_but_is_alive() {
    let fresh = health(Status::default(), true);
    assert_eq!((ask(&fresh, Question::Healthz).0, ask(&fresh, Question::Livez).0), (503, 200));
    let (_, answer) = ask(&fresh, Question::Healthz);
    assert_eq!((answer.last_updated.as_str(), answer.status.len()), (NEVER, 0));
    let after_another = Health { took_over: true, ..fresh };
    assert_eq!(ask(&after_another, Question::Healthz).0, 200, "what the maps hold is served");
    let unattached = health(working(), false);
    assert_eq!((ask(&unattached, Question::Healthz).0, ask(&unattached, Question::Livez).0), (503, 503));
}

#[test]
fn a_node_about_to_go_gets_no_traffic_but_is_alive() {
    let node = Node { eligible: false, ..Node::default() };
    let health = health(Status { node: Some(node.into()), ..working() }, true);
    let (code, answer) = ask(&health, Question::Healthz);
    assert_eq!((code, answer.node_eligible, answer.healthy), (503, Some(false), true));
    assert_ne!(answer.last_updated, answer.current_time);
    let (code, answer) = ask(&health, Question::Livez);
    assert_eq!((code, answer.node_eligible), (200, None));
}

#[test]
fn the_bodies_are_kube_proxys() {
    let now = Instant::now();
    let wall = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_226_400_500);
    let ago = now.checked_sub(Duration::from_secs(90)).expect("machine is up for minutes");
    let body = |status, question| {
        let (_, answer) = health(status, true).answer(question, now, wall);
        serde_json::to_string(&answer).expect("JSON")
    };
    let good = Status { last_success: Some(ago), ..Status::default() };
    assert_eq!(
        body(good.clone(), Question::Healthz),
        r#"{"lastUpdated":"2026-11-21T02:00:00.5Z","currentTime":"2026-11-21T02:00:00.5Z","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"2026-11-21T01:58:30.5Z","healthy":true},"IPv6":{"lastUpdated":"2026-11-21T01:58:30.5Z","healthy":true}}}"#
    );
    assert_eq!(
        body(Status { queued_since: Some(ago), ..good }, Question::Livez),
        r#"{"lastUpdated":"2026-11-21T01:58:30.5Z","currentTime":"2026-11-21T02:00:00.5Z","healthy":false,"status":{"IPv4":{"lastUpdated":"2026-11-21T01:58:30.5Z","healthy":false},"IPv6":{"lastUpdated":"2026-11-21T01:58:30.5Z","healthy":false}}}"#
    );
}

#[test]
fn answers_carry_kube_proxys_headers_and_are_counted() {
    let health = health(working(), true);
    let recorder = health.recorder.clone();
    let routes = routes(health);
    for path in ["/healthz", "/livez"] {
        let reply = routes(path).expect("a known path");
        assert_eq!(reply.status(), StatusCode::OK);
        assert_eq!(reply.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(reply.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
    }
    assert!(routes("/").is_none());
    assert_eq!(recorder.answers(Question::Healthz), [(200, 1), (503, 0)]);
    assert_eq!(recorder.answers(Question::Livez), [(200, 1), (503, 0)]);
}

#[test]
fn times_are_written_as_go_does() {
    let at = |millis| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
    assert_eq!(at(0), "1970-01-01T00:00:00Z");
    assert_eq!(at(951_782_400_000), "2000-02-29T00:00:00Z");
    assert_eq!(at(1_795_226_400_120), "2026-11-21T02:00:00.12Z");
}
