//! The walk through a Service as any tutorial does it, with kubectl on a real API server and curl. There is neither a
//! controller manager nor a kubelet: the lab makes the pods, and this test writes the EndpointSlice as they would.
mod lab_support;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use lab_support::{CHANGE, Scene, bare};
use lb_lab::pod::HTTP_PORT;
use lb_lab::{AgentOptions, Endpoint, Family, Layout, Netns, NodeId, PodKind, Relay, Source, at, poll};
use serde_json::{Value, json};
use xtask::command;
use xtask::kube::{ApiServer, Assets, Identity, Options};

/// kubectl returns, and within this time the change is in force.
const SOON: Duration = Duration::from_secs(1);
/// How long a refusal may take.
const AT_ONCE: Duration = Duration::from_millis(100);
/// A watch is taken up again after a pause that grows.
const AFTER_OUTAGE: Duration = Duration::from_secs(30);
/// Curls from each place after a change. That one of three pods gets none of them has a chance of 3 in 10 million.
const CURLS: u32 = 40;
/// The nodePort of the walk.
const NODE_PORT: u16 = 32000;

/// One way to ask for the Service.
struct Client {
    from: Netns,
    to: SocketAddr,
}

/// What curl said.
#[derive(Debug)]
struct Curl {
    /// Answers of each pod.
    answers: BTreeMap<String, u32>,
    /// How curl ended, if not well.
    failure: Option<String>,
}

impl Curl {
    fn all_well(&self, count: u32) -> bool {
        self.failure.is_none() && self.answers.values().sum::<u32>() == count
    }

    fn is_from_all(&self, pods: &[String]) -> bool {
        self.all_well(CURLS) && self.answers.keys().eq(pods)
    }
}

impl Client {
    /// So many requests with a connection each, up to the first that fails.
    fn curl(&self, count: u32) -> Curl {
        let url = format!("http://{}/[1-{count}]", self.to);
        let words = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "2", "--fail-early"];
        let output = self
            .from
            .exec(&[&words[..], &["--fail", "--header", "Connection: close", &url]].concat())
            .expect("curl");
        let mut answers = BTreeMap::new();
        for pod in output.stdout.lines().filter_map(|line| line.split_ascii_whitespace().next()) {
            *answers.entry(pod.to_owned()).or_default() += 1;
        }
        let failure =
            (!output.status.success()).then(|| format!("{}: {}", output.status, output.stderr.trim()));
        Curl { answers, failure }
    }

    /// Nothing if the connection is refused at once; else what curl said.
    fn refused(&self) -> Result<(), String> {
        // The time is curl's own: a busy machine takes a while to start it.
        let words =
            ["curl", "--verbose", "--noproxy", "*", "--max-time", "2", "--write-out", "%{time_total}"];
        let output = self
            .from
            .exec(&[&words[..], &[&format!("http://{}/", self.to)]].concat())
            .map_err(|error| error.to_string())?;
        let took = output.stdout.trim().parse().map(Duration::from_secs_f64);
        let refused = output.status.code() == Some(7) && output.stderr.contains("Connection refused");
        if refused && took.as_ref().is_ok_and(|took| *took < AT_ONCE) {
            return Ok(());
        }
        Err(format!("{self} is not refused at once: {output:?}"))
    }

    fn answers(&self) -> bool {
        let words = ["curl", "--silent", "--noproxy", "*", "--max-time", "0.3", "--output", "/dev/null"];
        let url = format!("http://{}/", self.to);
        self.from.exec(&[&words[..], &[&url]].concat()).expect("curl").status.success()
    }
}

impl Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.from.name(), self.to)
    }
}

/// The cluster, how far the walk has come, and the Service's addresses as they are now.
struct Walk {
    server: ApiServer,
    scene: Scene,
    _relays: Vec<Relay>,
    step: &'static str,
    /// The running pods, in the order of their names.
    pods: Vec<String>,
    started: u32,
    cluster_ip: Ipv4Addr,
    port: u16,
    node_port: Option<u16>,
}

impl Walk {
    fn begin() -> Walk {
        let assets = Assets::find_or_build().expect("programs of an API server");
        let server = ApiServer::start(&assets, Options::default()).expect("an API server");
        let port = server.url().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        let mut lab = bare(Layout::PointToPoint);
        let relay = |node: &NodeId| lab.relay(*node, port).expect("a way to the API server");
        let relays = NodeId::ALL.iter().map(relay).collect();
        for (node, name) in [(NodeId::A, "visitor-a"), (NodeId::B, "visitor-b")] {
            lab.add_pod(node, name, PodKind::Idle).expect("a pod");
        }
        lab.serve_outside("outsider", PodKind::Web).expect("servers outside");
        let source = Source::Kubernetes(server.kubeconfig(Identity::Agent));
        lab.start_agents(&AgentOptions { source, ..AgentOptions::default() }).expect("the agents");
        Walk {
            server,
            scene: Scene { lab },
            _relays: relays,
            step: "0, start",
            pods: Vec::new(),
            started: 0,
            cluster_ip: Ipv4Addr::UNSPECIFIED,
            port: 80,
            node_port: None,
        }
    }

    fn step(&mut self, step: &'static str) {
        self.step = step;
        println!("step {step}");
    }

    /// Ends the walk with the step's name, what is wrong, and what the agents know.
    fn fail(&mut self, what: impl Display) -> ! {
        let state = self.scene.state();
        panic!("step {}: {what}\n{state}", self.step)
    }

    fn check(&mut self, condition: bool, otherwise: impl Display) {
        if !condition {
            self.fail(otherwise);
        }
    }

    fn kubectl(&mut self, words: &[&str]) -> String {
        match command::stdout(self.server.kubectl(Identity::Admin).args(words)) {
            Ok(text) => text,
            Err(error) => self.fail(format!("{error:?}")),
        }
    }

    /// `kubectl VERB -f` with this object in a file.
    fn kubectl_file(&mut self, verb: &str, object: &Value) {
        let file = self.scene.lab.folder().join("object.json");
        fs::write(&file, object.to_string()).expect("a file");
        // Controllers write what kubectl's own validation does not take, such as the null of an empty list.
        self.kubectl(&[verb, "--validate=false", "-f", &file.display().to_string()]);
    }

    /// Every way to the Service that should be open now.
    fn clients(&self) -> Vec<Client> {
        let lab = &self.scene.lab;
        let (node_a, node_b) = (lab.node(NodeId::A), lab.node(NodeId::B));
        let inside = at(self.cluster_ip, self.port);
        let mut clients: Vec<(&Netns, SocketAddr)> =
            [node_a, node_b, self.scene.pod("visitor-a"), self.scene.pod("visitor-b")]
                .map(|netns| (netns, inside))
                .into();
        if let Some(port) = self.node_port {
            let [a, b] = NodeId::ALL.map(|node| at(lab.node_address(node), port));
            let loopback = at(Ipv4Addr::LOCALHOST, port);
            clients.extend([(lab.client(), a), (lab.client(), b), (node_a, a), (node_b, b)]);
            clients.extend([(node_a, loopback), (node_b, loopback)]);
        }
        clients.into_iter().map(|(from, to)| Client { from: from.clone(), to }).collect()
    }

    /// What a kubelet does first when there should be so many pods: starts those that are missing.
    fn start_pods(&mut self, replicas: usize) {
        while self.pods.len() < replicas {
            self.started += 1;
            let name = format!("web-{}", self.started);
            let node = if self.started % 2 == 1 { NodeId::A } else { NodeId::B };
            self.scene.lab.add_pod(node, &name, PodKind::Web).expect("a pod");
            self.pods.push(name);
        }
    }

    /// The EndpointSlice as the endpoint controller writes it, also when it is empty. A port without a name in the
    /// Service has an empty one here.
    fn slice(&self) -> Value {
        let endpoint = |name: &String| {
            let endpoint = Endpoint::from(self.scene.lab.pod(name));
            json!({
                "addresses": [endpoint.address(Family::V4)],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": endpoint.node.map(NodeId::name),
                "targetRef": { "kind": "Pod", "namespace": "default", "name": name },
            })
        };
        let mut slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "web-x7k2p",
                "namespace": "default",
                "labels": {
                    "kubernetes.io/service-name": "web",
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
            },
            "addressType": "IPv4",
            "ports": null,
            "endpoints": null,
        });
        if !self.pods.is_empty() {
            slice["ports"] = json!([{ "name": "", "protocol": "TCP", "port": HTTP_PORT }]);
            slice["endpoints"] = self.pods.iter().map(endpoint).collect();
        }
        slice
    }

    /// `kubectl scale`, and then what controllers and kubelets do. Where there are pods before and after, nobody may
    /// notice.
    fn scale(&mut self, replicas: usize, within: Duration) {
        let before = self.pods.len();
        self.kubectl(&["scale", "deployment", "web", &format!("--replicas={replicas}")]);
        self.start_pods(replicas);
        let gone = self.pods.split_off(replicas);
        let slice = self.slice();
        self.kubectl_file("replace", &slice);
        let changed = Instant::now();
        if replicas > 0 {
            self.settles(changed, within, before > 0);
        } else {
            self.refuses(changed);
        }
        for pod in gone {
            self.scene.lab.remove_pod(&pod).expect("the pod to go");
        }
        self.serves();
        println!("  {before} -> {replicas} pods: right from everywhere");
    }

    /// Waits until the answers of each way come from all pods and no other. `unbroken`: none may fail meanwhile.
    fn settles(&mut self, changed: Instant, within: Duration, unbroken: bool) {
        let mut slowest = Duration::ZERO;
        for client in self.clients() {
            let mut last = None;
            let right = poll("the right pods", within, || {
                let began = changed.elapsed();
                let curl = client.curl(CURLS);
                let (right, broken) = (curl.is_from_all(&self.pods), unbroken && !curl.all_well(CURLS));
                last = Some(curl);
                (right || broken).then_some((began, broken))
            });
            match right {
                Ok((began, false)) => slowest = slowest.max(began),
                Ok((_, true)) => self.fail(format!("{client} was interrupted by the change: {last:?}")),
                Err(_) => {
                    let pods = self.pods.join(", ");
                    self.fail(format!("{client} should be answered by {pods} within {within:?}: {last:?}"))
                }
            }
        }
        println!(
            "  all places get their answers from the right pods {} after the change",
            milliseconds(slowest)
        );
    }

    /// Each way is refused from some moment on.
    fn refuses(&mut self, changed: Instant) {
        for client in self.clients() {
            if poll("a refusal", CHANGE, || client.refused().ok()).is_err() {
                let said = client.refused();
                self.fail(format!("{client} should be refused: {said:?}"));
            }
        }
        println!("  refused everywhere {} after the change", milliseconds(changed.elapsed()));
    }

    /// Right now every curl is answered, by all pods; without pods each is refused at once.
    fn serves(&mut self) {
        for client in self.clients() {
            if self.pods.is_empty() {
                for _ in 0..3 {
                    if let Err(said) = client.refused() {
                        self.fail(said);
                    }
                }
            } else {
                let curl = client.curl(CURLS);
                let pods = self.pods.join(", ");
                self.check(
                    curl.is_from_all(&self.pods),
                    format!("{client} should be answered by {pods}: {curl:?}"),
                );
            }
        }
    }

    /// The first good answer of each way must come soon.
    fn first_answers(&mut self, changed: Instant) {
        for client in self.clients() {
            let first = poll("an answer", CHANGE, || client.curl(1).all_well(1).then(|| changed.elapsed()));
            match first {
                Ok(took) if took < SOON => println!("  first answer for {client}: {}", milliseconds(took)),
                Ok(took) => self.fail(format!("{client} was first answered after {took:?}")),
                Err(error) => {
                    let last = client.curl(1);
                    self.fail(format!("{client}: {error}: {last:?}"))
                }
            }
        }
    }

    /// None of these ways is answered any more, soon after the change.
    fn is_gone(&mut self, clients: &[Client], changed: Instant) {
        // All at once, because what is not answered takes curl's whole patience.
        let gone: Vec<_> = thread::scope(|scope| {
            let look = |client: &'_ Client| {
                poll("no answer", CHANGE, || {
                    let asked = changed.elapsed();
                    (!client.answers()).then_some(asked)
                })
            };
            let threads: Vec<_> = clients.iter().map(|client| scope.spawn(move || look(client))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a look")).collect()
        });
        let mut slowest = Duration::ZERO;
        for (client, gone) in clients.iter().zip(gone) {
            match gone {
                Ok(asked) if asked < SOON => slowest = slowest.max(asked),
                Ok(asked) => self.fail(format!("{client} was answered until {asked:?} after the change")),
                Err(_) => {
                    self.fail(format!("{client} is answered still, {:?} after the change", changed.elapsed()))
                }
            }
        }
        println!("  no answer at any of {} ways {} after the change", clients.len(), milliseconds(slowest));
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

#[test]
fn a_service_from_its_first_day_to_its_last() {
    let mut walk = Walk::begin();

    walk.step("1, a deployment behind a ClusterIP");
    walk.kubectl(&["create", "deployment", "web", "--image=nginx", "--replicas=3"]);
    walk.start_pods(3);
    let address =
        walk.kubectl(&["expose", "deployment", "web", "--port=80", "--output=jsonpath={.spec.clusterIP}"]);
    walk.cluster_ip = address.parse().unwrap_or_else(|_| walk.fail(format!("ClusterIP {address:?}")));
    let slice = walk.slice();
    walk.kubectl_file("create", &slice);
    walk.first_answers(Instant::now());
    walk.serves();

    walk.step("2, port 80 becomes 5000");
    let before = walk.clients();
    let patch = r#"[{ "op": "replace", "path": "/spec/ports/0/port", "value": 5000 }]"#;
    walk.kubectl(&["patch", "service", "web", "--type=json", "--patch", patch]);
    let changed = Instant::now();
    walk.port = 5000;
    walk.first_answers(changed);
    walk.is_gone(&before, changed);
    walk.serves();

    walk.step("3, a nodePort");
    let patch = format!(
        r#"{{ "spec": {{ "type": "NodePort", "ports": [{{ "port": 5000, "nodePort": {NODE_PORT} }}] }} }}"#
    );
    walk.kubectl(&["patch", "service", "web", "--patch", &patch]);
    let changed = Instant::now();
    walk.node_port = Some(NODE_PORT);
    walk.first_answers(changed);
    walk.serves();

    walk.step("4, scaled");
    for replicas in [1, 3, 0, 2] {
        walk.scale(replicas, CHANGE);
    }

    walk.step("5, endpoints by hand");
    without_a_selector(&mut walk);

    walk.step("6, deleted and made again");
    walk.kubectl(&["delete", "service", "web"]);
    let changed = Instant::now();
    let clients = walk.clients();
    walk.is_gone(&clients, changed);
    for client in clients.iter().filter(|client| client.to.port() == NODE_PORT) {
        if let Err(said) = client.refused() {
            walk.fail(said);
        }
    }
    let ports = json!([{ "protocol": "TCP", "port": 5000, "targetPort": HTTP_PORT, "nodePort": NODE_PORT }]);
    let overrides = json!({ "apiVersion": "v1", "spec": { "ports": ports } });
    let address = walk.kubectl(&[
        "expose",
        "deployment",
        "web",
        "--type=NodePort",
        "--port=5000",
        "--target-port=80",
        &format!("--overrides={overrides}"),
        "--output=jsonpath={.spec.clusterIP}",
    ]);
    let changed = Instant::now();
    walk.cluster_ip = address.parse().unwrap_or_else(|_| walk.fail(format!("ClusterIP {address:?}")));
    walk.first_answers(changed);
    walk.serves();

    walk.step("7, an API server that is away");
    walk.server.stop();
    let stopped = Instant::now();
    walk.serves();
    println!("  all answers without it");
    walk.server.start_again().expect("the API server again");
    println!("  the API server is back after {}", milliseconds(stopped.elapsed()));
    walk.serves();
    walk.scale(3, AFTER_OUTAGE);

    walk.step("8, nothing to complain of");
    let warnings = walk.kubectl(&[
        "get",
        "events",
        "--all-namespaces",
        "--field-selector=type=Warning",
        "--output=name",
    ]);
    walk.check(warnings.is_empty(), format!("there are Events: {warnings}"));
}

/// A Service without a selector, with an EndpointSlice that no controller made, for a server outside the cluster.
fn without_a_selector(walk: &mut Walk) {
    let port = json!([{ "protocol": "TCP", "port": 8080, "targetPort": HTTP_PORT }]);
    walk.kubectl_file(
        "apply",
        &json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "legacy", "namespace": "default" },
            "spec": { "ports": port },
        }),
    );
    walk.kubectl_file(
        "create",
        &json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "legacy-1",
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": "legacy" },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "", "protocol": "TCP", "port": HTTP_PORT }],
            "endpoints": [{ "addresses": [walk.scene.lab.plan().client()] }],
        }),
    );
    let changed = Instant::now();
    let address = walk.kubectl(&["get", "service", "legacy", "--output=jsonpath={.spec.clusterIP}"]);
    let address: Ipv4Addr = address.parse().unwrap_or_else(|_| walk.fail(format!("ClusterIP {address:?}")));
    for name in ["node-a", "node-b", "visitor-a", "visitor-b"] {
        let from = match name {
            "node-a" => walk.scene.lab.node(NodeId::A),
            "node-b" => walk.scene.lab.node(NodeId::B),
            pod => walk.scene.pod(pod),
        };
        let client = Client { from: from.clone(), to: at(address, 8080) };
        let right = |curl: &Curl| curl.all_well(5) && curl.answers.keys().eq(["outsider"]);
        if poll("the server outside", CHANGE, || right(&client.curl(5)).then_some(())).is_err() {
            let last = client.curl(5);
            walk.fail(format!("{client} should be answered by the server outside: {last:?}"));
        }
        println!("  {client}: {}", milliseconds(changed.elapsed()));
    }
}
