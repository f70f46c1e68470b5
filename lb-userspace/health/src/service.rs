//! `healthCheckNodePort`: tells a load balancer which nodes have endpoints of a Service.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use lb_control::desired::HealthCheck;
use lb_control::model::{Problem, ServiceKey, Severity};
use lb_control::network::NodeAddresses;
use lb_control::reconcile::Status;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::info;

use super::Health;
use super::http::{self, Families, Reply, Routes};

/// Wait before another try to listen.
const RETRY: Duration = Duration::from_secs(5);
/// Reason of the Event, as kube-proxy has it.
const REASON: &str = "FailedToStartServiceHealthcheck";

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The ports wanted now, and who may not have his.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Wanted {
    ports: BTreeMap<ServiceKey, u16>,
    /// Loser and winner of a port.
    collisions: Vec<(ServiceKey, u16, ServiceKey)>,
}

/// Who gets which port: of two Services with one port the older, then the one whose name comes first.
fn wanted(checks: &BTreeMap<ServiceKey, HealthCheck>) -> Wanted {
    let mut ranked: Vec<_> = checks.iter().collect();
    ranked.sort_by_key(|(key, check)| (check.created.unwrap_or(i64::MAX), *key));
    let mut owners: BTreeMap<u16, &ServiceKey> = BTreeMap::new();
    let mut wanted = Wanted::default();
    for (key, check) in ranked {
        match owners.get(&check.port) {
            Some(owner) => wanted.collisions.push((key.clone(), check.port, (*owner).clone())),
            None => {
                owners.insert(check.port, key);
                wanted.ports.insert(key.clone(), check.port);
            }
        }
    }
    wanted
}

/// One Service's answers.
struct Server {
    port: u16,
    local_ready: Arc<AtomicU32>,
    /// Which listeners it has; all end with it.
    addresses: BTreeSet<IpAddr>,
    _tasks: JoinSet<()>,
}

/// The answers of all Services.
struct Servers {
    health: Health,
    node_name: String,
    open: BTreeMap<ServiceKey, Server>,
    failed: BTreeMap<ServiceKey, Problem>,
}

/// Serves the ports the status asks for until the agent ends. `problems` tells which could not be had.
pub async fn serve(
    health: Health,
    node_name: String,
    mut status: watch::Receiver<Status>,
    mut addresses: watch::Receiver<NodeAddresses>,
    problems: watch::Sender<Vec<Problem>>,
) {
    let mut servers = Servers { health, node_name, open: BTreeMap::new(), failed: BTreeMap::new() };
    let mut seen = None;
    loop {
        let checks = status.borrow_and_update().health_checks.clone();
        let listen: BTreeSet<IpAddr> = addresses.borrow_and_update().health_checks.iter().copied().collect();
        let now = (checks, listen);
        if seen.as_ref() != Some(&now) || !servers.failed.is_empty() {
            let reported = servers.apply(&now.0, &now.1);
            problems.send_if_modified(|before| {
                let changed = *before != reported;
                *before = reported;
                changed
            });
            seen = Some(now);
        }
        let retry = !servers.failed.is_empty();
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            changed = addresses.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if retry => {}
        }
    }
}

impl Servers {
    fn apply(
        &mut self,
        checks: &BTreeMap<ServiceKey, HealthCheck>,
        listen: &BTreeSet<IpAddr>,
    ) -> Vec<Problem> {
        let wanted = wanted(checks);
        // Ports are given up before others take them.
        self.open.retain(|key, server| {
            let stays = wanted.ports.get(key) == Some(&server.port) && server.addresses == *listen;
            if !stays {
                info!(service = %key, port = server.port, "health checks no longer answered");
            }
            stays
        });
        self.failed.clear();
        for (key, port) in &wanted.ports {
            let local_ready = checks.get(key).map_or(0, |check| check.local_ready);
            if let Some(server) = self.open.get(key) {
                server.local_ready.store(local_ready, Ordering::Relaxed);
                continue;
            }
            match self.start(key, *port, local_ready, listen) {
                Ok(server) => {
                    info!(service = %key, port, "health checks answered");
                    self.open.insert(key.clone(), server);
                }
                Err(error) => {
                    let problem = problem(key, &self.node_name, *port, &error.to_string());
                    self.failed.insert(key.clone(), problem);
                }
            }
        }
        let collisions = wanted.collisions.iter().map(|(loser, port, winner)| {
            problem(
                loser,
                &self.node_name,
                *port,
                &format!("Service {winner} has that port; give it another"),
            )
        });
        collisions.chain(self.failed.values().cloned()).collect()
    }

    fn start(
        &self,
        key: &ServiceKey,
        port: u16,
        local_ready: u32,
        listen: &BTreeSet<IpAddr>,
    ) -> io::Result<Server> {
        let count = Arc::new(AtomicU32::new(local_ready));
        let routes = routes(self.health.clone(), key.clone(), count.clone());
        let mut tasks = JoinSet::new();
        for listener in listeners(listen, port)? {
            tasks.spawn(http::accept(listener, routes.clone()));
        }
        Ok(Server { port, local_ready: count, addresses: listen.clone(), _tasks: tasks })
    }
}

/// All listeners or none.
fn listeners(addresses: &BTreeSet<IpAddr>, port: u16) -> io::Result<Vec<TcpListener>> {
    let mut found = Vec::new();
    let mut missing = None;
    for address in addresses {
        match http::listen(SocketAddr::new(*address, port), Families::Own) {
            Ok(listener) => found.push(listener),
            // The kernel has no IPv6, or the address has just gone: the others will do.
            Err(error) if http::is_not_here(&error) => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

fn routes(health: Health, key: ServiceKey, local_ready: Arc<AtomicU32>) -> Routes {
    Arc::new(move |_| Some(answer(&key, local_ready.load(Ordering::Relaxed), health.is_keeping_up())))
}

/// kube-proxy's answer, tabs and all.
fn answer(key: &ServiceKey, local_ready: u32, healthy: bool) -> Reply {
    let good = local_ready > 0 && healthy;
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": \
         {local_ready},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        key.namespace, key.name
    );
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut reply = http::reply(status, "application/json", body);
    reply.headers_mut().insert(WEIGHT, HeaderValue::from(local_ready));
    reply
}

fn problem(key: &ServiceKey, node: &str, port: u16, why: &str) -> Problem {
    let message =
        format!("node {node} failed to start healthcheck \"{key}\" on port {port}: {why}; trying again");
    Problem::of(&key.object(), Severity::Warning, "spec.healthCheckNodePort", message).because(REASON)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use http_body_util::BodyExt;
    use lb_kernel::links::State;
    use lb_telemetry::recorder::Recorder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    fn key(name: &str) -> ServiceKey {
        ServiceKey::new("shop", name)
    }

    fn check(port: u16, local_ready: u32, created: i64) -> HealthCheck {
        HealthCheck { port, local_ready, created: Some(created) }
    }

    async fn body(reply: Reply) -> String {
        let bytes = reply.into_body().collect().await.expect("in memory").to_bytes();
        String::from_utf8(bytes.to_vec()).expect("UTF-8")
    }

    #[tokio::test]
    async fn the_answer_is_kube_proxys() {
        let reply = answer(&key("web"), 3, true);
        assert_eq!(reply.status(), StatusCode::OK);
        assert_eq!(reply.headers()["content-type"], "application/json");
        assert_eq!(reply.headers()["x-content-type-options"], "nosniff");
        assert_eq!(reply.headers()[WEIGHT], "3");
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\
                        \"localEndpoints\": 3,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(body(reply).await, expected);
        for (local_ready, healthy) in [(0, true), (3, false), (0, false)] {
            let reply = answer(&key("web"), local_ready, healthy);
            assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE, "{local_ready} {healthy}");
            assert_eq!(reply.headers()[WEIGHT], local_ready.to_string());
        }
    }

    #[test]
    fn the_oldest_service_gets_a_contested_port() {
        let checks =
            [(key("a"), check(30000, 1, 9)), (key("b"), check(30000, 1, 5)), (key("c"), check(30001, 1, 7))];
        let wanted = wanted(&checks.into());
        assert_eq!(wanted.ports, [(key("b"), 30000), (key("c"), 30001)].into());
        assert_eq!(wanted.collisions, [(key("a"), 30000, key("b"))]);
    }

    async fn get(port: u16) -> Option<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        stream.write_all(b"GET /any/path HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn ports_follow_the_services() {
        let status = |checks: &[(ServiceKey, HealthCheck)]| Status {
            health_checks: Arc::new(checks.iter().cloned().collect()),
            ..Status::default()
        };
        // Taken by somebody else at first.
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = taken.local_addr().expect("bound").port();
        let (status_tx, status_rx) = watch::channel(status(&[(key("web"), check(port, 2, 1))]));
        let (_state, attached) = watch::channel(State { started: true, ..State::default() });
        let health = Health::new(status_rx.clone(), attached, false, Recorder::default());
        let listen = vec![Ipv4Addr::LOCALHOST.into()];
        let (_addresses, addresses) =
            watch::channel(NodeAddresses { health_checks: listen, ..NodeAddresses::default() });
        let (problems_tx, problems) = watch::channel(Vec::new());
        let task = tokio::spawn(serve(health, "n1".into(), status_rx, addresses, problems_tx));

        let reported = eventually("a problem", async || problems.borrow().first().cloned()).await;
        assert_eq!(reported.reason, Some(REASON));
        assert!(reported.message.contains(&port.to_string()), "{reported}");
        drop(taken);
        let text = eventually("an answer", async || get(port).await).await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("X-Load-Balancing-Endpoint-Weight: 2\r\n"), "{text}");
        eventually("no problem", async || problems.borrow().is_empty().then_some(())).await;

        status_tx.send_replace(status(&[(key("web"), check(port, 0, 1))]));
        eventually("503", async || get(port).await?.starts_with("HTTP/1.1 503").then_some(())).await;
        status_tx.send_replace(status(&[]));
        eventually("a closed port", async || get(port).await.is_none().then_some(())).await;
        task.abort();
    }
}
