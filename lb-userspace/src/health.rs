//! /healthz and /livez over HTTP, and the small server they share with /metrics.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, error, info};

use crate::app::State;
use crate::reconcile::Status;

/// A change that has waited this long means the agent does not keep up (kube-proxy: twice its sync
/// period of 30 s).
const OVERDUE: Duration = Duration::from_secs(60);
/// Wait before another try to listen.
const RETRY: Duration = Duration::from_secs(5);
/// Longest time a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections served at once.
const CONNECTIONS: usize = 64;

/// What the health answers are made of.
#[derive(Clone, Debug)]
pub struct Health {
    status: watch::Receiver<Status>,
    attached: watch::Receiver<State>,
}

/// Which question is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// `/healthz`: should a load balancer send traffic to this node?
    Healthz,
    /// `/livez`: does the agent work? The Node object plays no part.
    Livez,
}

/// Body of an answer.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
struct Answer {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
}

impl Health {
    /// Answers from what the loops publish.
    pub const fn new(status: watch::Receiver<Status>, attached: watch::Receiver<State>) -> Self {
        Self { status, attached }
    }

    /// Whether the agent works.
    pub fn is_healthy(&self, now: Instant) -> bool {
        let status = self.status.borrow();
        is_healthy(&status, self.attached.borrow().started, now)
    }

    fn answer(&self, question: Question) -> (StatusCode, Answer) {
        let now = Instant::now();
        let status = self.status.borrow();
        let attached = self.attached.borrow().started;
        let healthy = match question {
            Question::Healthz => is_healthy(&status, attached, now),
            Question::Livez => is_alive(&status, attached, now),
        };
        let eligible = status.node.as_ref().is_none_or(|node| node.eligible);
        let wall = SystemTime::now();
        // While all is well the state is as fresh as the moment.
        let age =
            if healthy { Duration::ZERO } else { status.last_success.map_or(Duration::ZERO, |at| now - at) };
        let updated =
            if !healthy && status.last_success.is_none() { SystemTime::UNIX_EPOCH } else { wall - age };
        let good = healthy && (question == Question::Livez || eligible);
        let answer = Answer {
            last_updated: rfc3339(updated),
            current_time: rfc3339(wall),
            node_eligible: (question == Question::Healthz).then_some(eligible),
            healthy,
        };
        (if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, answer)
    }
}

fn is_healthy(status: &Status, attached: bool, now: Instant) -> bool {
    is_alive(status, attached, now) && status.last_success.is_some()
}

/// An agent whose source has not answered yet lives: starting it anew would not help, and what the maps
/// hold from before is served meanwhile.
fn is_alive(status: &Status, attached: bool, now: Instant) -> bool {
    let overdue = status.queued_since.is_some_and(|since| now.saturating_duration_since(since) > OVERDUE);
    attached && !overdue
}

/// A time as `2026-11-21T02:00:00Z`.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Civil date from days since 1970: https://howardhinnant.github.io/date_algorithms.html
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// An answer over HTTP.
pub type Reply = Response<Full<Bytes>>;

/// Answers to paths: none where there is nothing.
pub type Routes = Arc<dyn Fn(&str) -> Option<Reply> + Send + Sync>;

/// The paths of `--healthz-bind-address`.
pub fn routes(health: Health) -> Routes {
    Arc::new(move |path| health_reply(&health, path))
}

/// `/healthz` and `/livez`; none for other paths.
pub fn health_reply(health: &Health, path: &str) -> Option<Reply> {
    let question = match path {
        "/healthz" => Question::Healthz,
        "/livez" => Question::Livez,
        _ => return None,
    };
    let (status, answer) = health.answer(question);
    // Strings and booleans always make JSON.
    let body = serde_json::to_string(&answer).unwrap_or_default();
    Some(reply(status, "application/json", body))
}

/// An answer with a body.
pub fn reply(status: StatusCode, content_type: &'static str, body: String) -> Reply {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Listens on `address` and answers, for as long as the agent lives. While the port is taken it says so
/// and tries again; traffic does not wait for it.
pub async fn serve(address: SocketAddr, flag: &'static str, routes: Routes) {
    let mut told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(source) => {
                if !told {
                    error!(
                        "--{flag} {address}: cannot listen: {source}; trying again every {} s, traffic is served \
                         meanwhile. Is kube-proxy or another agent running? Choose another address with --{flag}",
                        RETRY.as_secs()
                    );
                }
                told = true;
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    info!(%address, "--{flag} answers");
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let routes = routes.clone();
                tokio::spawn(async move {
                    converse(stream, routes).await;
                    drop(permit);
                });
            }
            Err(source) => {
                // Out of descriptors, most likely: give others time to close theirs.
                debug!(%source, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, routes: Routes) {
    let service = service_fn(move |request| answer(request, routes.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(true)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(%error, "connection ended");
    }
}

fn answer(request: Request<Incoming>, routes: Routes) -> impl Future<Output = Result<Reply, Infallible>> {
    let reply = if matches!(*request.method(), Method::GET | Method::HEAD) {
        let found = routes(request.uri().path());
        found.unwrap_or_else(|| {
            reply(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "not found\n".into())
        })
    } else {
        reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", "GET only\n".into())
    };
    std::future::ready(Ok(reply))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Node;

    fn health(status: Status, started: bool) -> Health {
        let attached = State { started, ..State::default() };
        Health::new(watch::Sender::new(status).subscribe(), watch::Sender::new(attached).subscribe())
    }

    fn working() -> Status {
        Status { synced: true, last_success: Some(Instant::now()), ..Status::default() }
    }

    #[test]
    fn health_follows_attachment_sync_and_queue() {
        let now = Instant::now();
        assert!(is_healthy(&working(), true, now));
        assert!(!is_healthy(&working(), false, now));
        assert!(!is_healthy(&Status::default(), true, now));
        let queued = Status { queued_since: Some(now), ..working() };
        assert!(is_healthy(&queued, true, now + OVERDUE));
        assert!(!is_healthy(&queued, true, now + OVERDUE + Duration::from_secs(1)));
    }

    #[test]
    fn an_agent_without_an_answer_from_its_source_is_alive_and_not_healthy() {
        let health = health(Status::default(), true);
        assert_eq!(health.answer(Question::Livez).0, StatusCode::OK);
        assert_eq!(health.answer(Question::Healthz).0, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn a_node_about_to_go_gets_no_traffic_but_is_alive() {
        let node = Node { eligible: false, ..Node::default() };
        let health = health(Status { node: Some(node.into()), ..working() }, true);
        let (status, answer) = health.answer(Question::Healthz);
        assert_eq!(
            (status, answer.node_eligible, answer.healthy),
            (StatusCode::SERVICE_UNAVAILABLE, Some(false), true)
        );
        let (status, answer) = health.answer(Question::Livez);
        assert_eq!((status, answer.node_eligible), (StatusCode::OK, None));
    }

    #[test]
    fn the_body_has_the_names_load_balancers_read() {
        let reply = health_reply(&health(working(), true), "/healthz").expect("a known path");
        assert_eq!(reply.status(), StatusCode::OK);
        assert_eq!(reply.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(reply.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
        let (_, answer) = health(working(), true).answer(Question::Healthz);
        let value = serde_json::to_value(&answer).expect("JSON");
        let names: Vec<&str> = value.as_object().expect("object").keys().map(String::as_str).collect();
        assert_eq!(names, ["currentTime", "healthy", "lastUpdated", "nodeEligible"]);
        assert_eq!(answer.last_updated, answer.current_time);
        assert!(health_reply(&health(working(), true), "/other").is_none());
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        let at = |seconds| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_226_400), "2026-11-21T02:00:00Z");
    }
}
