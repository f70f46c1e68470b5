//! What the lab tests share: a scene of pods and Services, and checks that collect all that is wrong.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod frames;
pub mod paths;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use lb_lab::pod::{HTTP_PORT, TCP_PORT, UDP_PORT};
use lb_lab::{
    AddressPlan, AgentOptions, Endpoint, Family, Lab, Layout, Netns, NodeId, PodKind, Report, Service,
    SocketLb, XdpMode, at, patiently, poll_every,
};

/// The families that paths are checked in.
pub const FAMILIES: &[Family] = &Family::ALL;

/// Service port that leads to HTTP in the pods.
pub const WEB: u16 = 5000;
/// Service port that leads to the echoes in the pods.
pub const ECHO: u16 = 5001;

/// How long an agent may take to carry out a change of its manifests.
pub const CHANGE: Duration = Duration::from_secs(5);
/// Between two looks that each open connections.
pub const PACE: Duration = Duration::from_millis(100);

/// A lab with its agents running and these Services:
///
/// | number | name | endpoints | policy |
/// |---|---|---|---|
/// | 1 | near | a1 | Cluster |
/// | 2 | far | b1 | Cluster |
/// | 3 | all | a1, a2, b1 | Cluster |
/// | 4 | local | a1, b1 | externalTrafficPolicy Local |
/// | 5 | elsewhere | b1 | externalTrafficPolicy Local |
/// | 6 | empty | none | Cluster |
/// | 7 | beyond | the client | Cluster |
/// | 8 | inner | b1 | internalTrafficPolicy Local |
/// | 9 | self | a2 | Cluster |
pub struct Scene {
    pub lab: Lab,
}

/// The Services of a scene, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered(pub u8);

pub const NEAR: Numbered = Numbered(1);
pub const FAR: Numbered = Numbered(2);
pub const ALL: Numbered = Numbered(3);
pub const LOCAL: Numbered = Numbered(4);
pub const ELSEWHERE: Numbered = Numbered(5);
pub const EMPTY: Numbered = Numbered(6);
pub const BEYOND: Numbered = Numbered(7);
pub const INNER: Numbered = Numbered(8);
pub const SELF: Numbered = Numbered(9);

impl Numbered {
    /// Its IPv4 ClusterIP.
    pub fn cluster_ip(self) -> Ipv4Addr {
        AddressPlan::default().v4.services.host(self.0.into())
    }

    pub fn cluster_ip_of(self, family: Family) -> IpAddr {
        AddressPlan::default().of(family).services.host(self.0.into())
    }

    pub fn external_ip_of(self, family: Family) -> IpAddr {
        AddressPlan::default().of(family).external.host(self.0.into())
    }

    pub fn balancer_of(self, family: Family) -> IpAddr {
        AddressPlan::default().of(family).external.host(100 + u32::from(self.0))
    }

    /// The nodePort of a Service port.
    pub fn node_port(self, port: u16) -> u16 {
        30000 + u16::from(self.0) * 10 + (port - WEB)
    }

    /// Of both families, with every kind of address.
    pub fn service(self, name: &str) -> Service {
        let service = self.single_stack(name).cluster_ip(self.cluster_ip_of(Family::V6));
        let service = service.external_ip(self.external_ip_of(Family::V6));
        Family::ALL.into_iter().fold(service, |service, family| service.balancer(self.balancer_of(family)))
    }

    /// Older API servers take one family, and no load balancer with two protocols.
    pub fn single_stack(self, name: &str) -> Service {
        Service::new(name, self.cluster_ip())
            .tcp_node_port(WEB, HTTP_PORT, self.node_port(WEB))
            .tcp_node_port(ECHO, TCP_PORT, self.node_port(ECHO))
            .udp_node_port(ECHO, UDP_PORT, self.node_port(ECHO))
            .external_ip(self.external_ip_of(Family::V4))
    }
}

impl Scene {
    pub fn new(layout: Layout, options: &AgentOptions) -> Scene {
        Scene::within(bare(layout), options)
    }

    pub fn within(mut lab: Lab, options: &AgentOptions) -> Scene {
        for (node, name) in [(NodeId::A, "a1"), (NodeId::A, "a2"), (NodeId::B, "b1")] {
            lab.add_pod(node, name, PodKind::Web).expect("a pod");
        }
        lab.add_pod(NodeId::A, "visitor", PodKind::Idle).expect("a pod");
        lab.serve_outside("outsider", PodKind::Web).expect("servers outside");
        let (a1, a2, b1) = (lab.pod("a1").into(), lab.pod("a2").into(), lab.pod("b1").into());
        let all: [Endpoint; 3] = [a1, a2, b1];
        let [a1, a2, b1] = all.clone();
        let [client, client6] = Family::ALL.map(|family| lab.plan().client_ip(family));
        let beyond = Endpoint::outside(client).and(client6);
        for (service, endpoints) in [
            (NEAR.service("near"), vec![a1.clone()]),
            (FAR.service("far"), vec![b1.clone()]),
            (ALL.service("all"), all.to_vec()),
            (LOCAL.service("local").external_local(), vec![a1, b1.clone()]),
            (ELSEWHERE.service("elsewhere").external_local(), vec![b1.clone()]),
            (EMPTY.service("empty"), vec![]),
            (BEYOND.service("beyond"), vec![beyond]),
            (INNER.service("inner").internal_local(), vec![b1]),
            (SELF.service("self"), vec![a2]),
        ] {
            lab.apply(&service, &endpoints).expect("a manifest");
        }
        lab.start_agents(options).expect("the agents");
        Scene { lab }
    }

    pub fn endpoint(&self, pod: &str) -> Endpoint {
        self.lab.pod(pod).into()
    }

    pub fn pod(&self, name: &str) -> &Netns {
        self.lab.pod(name).netns()
    }

    /// Both agents' logs and counters, for a failure's message.
    pub fn state(&mut self) -> String {
        let mut text = String::new();
        for node in NodeId::ALL {
            let agent = self.lab.agent(node);
            text += &format!("--- {node}: log\n{}\n", agent.log());
            for what in ["services", "backends", "flows", "interfaces"] {
                let shown = agent.shunt(&["get", what]).map(|output| output.stdout + &output.stderr);
                text += &format!(
                    "--- {node}: shunt get {what}\n{}\n",
                    shown.unwrap_or_else(|error| error.to_string())
                );
            }
            let metrics = agent.metrics().unwrap_or_else(|error| error.to_string());
            let moved = metrics.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
            text += &format!("--- {node}: metrics\n{}\n", moved.collect::<Vec<_>>().join("\n"));
        }
        text
    }
}

pub fn bare(layout: Layout) -> Lab {
    Lab::builder().layout(layout).helper(env!("CARGO_BIN_EXE_xtask")).build().expect("a lab")
}

/// Runs some checks on a fresh scene.
pub fn check(layout: Layout, options: &AgentOptions, parts: &[fn(&Scene, &mut Checks)]) {
    let mut scene = Scene::new(layout, options);
    let mut checks = Checks::new();
    parts.iter().for_each(|part| part(&scene, &mut checks));
    checks.finish(&mut scene);
}

pub fn options(xdp: XdpMode, socket_lb: SocketLb) -> AgentOptions {
    AgentOptions { xdp, socket_lb, ..AgentOptions::default() }
}

/// Looks until a condition holds, for as long as a change may take.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    poll_every(PACE, what, CHANGE, || condition().then_some(())).unwrap_or_else(|error| panic!("{error}"));
}

/// What a path should do, checked over TCP and UDP; what is wrong is collected.
pub struct Checks {
    wrong: Vec<String>,
    count: usize,
    next_port: u16,
}

/// The longest that a refusal may take.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Requests per check: fewer than the ICMP errors that Linux sends in a row.
const REQUESTS: u32 = 5;

impl Checks {
    pub fn new() -> Self {
        Checks { wrong: Vec::new(), count: 0, next_port: 10000 }
    }

    /// The three ways to ask at an address: TCP, UDP with connect, UDP with sendto.
    fn ask(
        &mut self,
        path: &str,
        from: &Netns,
        web: SocketAddr,
        echo: SocketAddr,
        check: impl Fn(&Report) -> bool,
    ) {
        let reports = [
            ("TCP", web, from.http(web, REQUESTS)),
            ("UDP", echo, from.udp_from_ports(echo, REQUESTS, self.fresh_ports())),
            ("UDP sendto", echo, from.udp_unconnected(echo, REQUESTS, self.fresh_ports())),
        ];
        for (protocol, to, report) in reports {
            self.count += 1;
            match report {
                Ok(report) if check(&report) => {}
                Ok(report) => self.note(path, from, format_args!("{to} {protocol}: {report:?}")),
                Err(error) => self.note(path, from, format_args!("{to} {protocol}: {error}")),
            }
        }
    }

    /// The first of some source ports that no other check uses.
    fn fresh_ports(&mut self) -> u16 {
        let first = self.next_port;
        self.next_port += REQUESTS as u16;
        first
    }

    fn note(&mut self, path: &str, from: &Netns, what: impl std::fmt::Display) {
        self.wrong.push(format!("{path}: from {} to {what}", from.name()));
    }

    /// Answers come from these pods, all of them seen from `client`.
    pub fn answered(
        &mut self,
        path: &str,
        from: &Netns,
        (address, web, echo): Target,
        pods: &[&str],
        client: Option<IpAddr>,
    ) {
        self.ask(path, from, at(address, web), at(address, echo), |report| {
            report.failures.is_empty()
                && report.answers.keys().all(|pod| pods.contains(&pod.as_str()))
                && client.is_none_or(|client| report.clients.keys().all(|seen| *seen == client))
        });
    }

    /// Refused, and at once. UDP clients without connect(2) are not told, so they are not asked.
    pub fn refused(&mut self, path: &str, from: &Netns, (address, web, echo): Target) {
        for (protocol, to, report) in [
            ("TCP", at(address, web), from.http(at(address, web), REQUESTS)),
            ("UDP", at(address, echo), from.udp(at(address, echo), REQUESTS)),
        ] {
            self.count += 1;
            let refused = report.as_ref().is_ok_and(|report| {
                report.failures.get("refused") == Some(&REQUESTS.into())
                    && Duration::from_micros(report.slowest_micros) < patiently(AT_ONCE)
            });
            if !refused {
                self.note(path, from, format_args!("{to} {protocol} is not refused at once: {report:?}"));
            }
        }
    }

    /// Not answered in any way.
    pub fn silent(&mut self, path: &str, from: &Netns, (address, web, _): Target) {
        self.count += 1;
        let curl = [
            "curl",
            "--silent",
            "--noproxy",
            "*",
            "--max-time",
            "0.7",
            &format!("http://{}/", at(address, web)),
        ];
        // 28: curl's exit code for a time-out.
        match from.exec(&curl) {
            Ok(output) if output.status.code() == Some(28) => {}
            Ok(output) => self.note(path, from, format_args!("{address}:{web} should be silent: {output:?}")),
            Err(error) => self.note(path, from, error),
        }
    }

    /// Anything else that must hold.
    pub fn holds(&mut self, path: &str, condition: bool, otherwise: impl FnOnce() -> String) {
        self.count += 1;
        if !condition {
            self.wrong.push(format!("{path}: {}", otherwise()));
        }
    }

    /// Fails with everything that was wrong, and with what the agents know.
    pub fn finish(self, scene: &mut Scene) {
        assert!(self.count > 0, "nothing was checked");
        if !self.wrong.is_empty() {
            let (wrong, count) = (self.wrong.join("\n"), self.count);
            panic!("{} of {count} checks failed:\n{wrong}\n{}", self.wrong.len(), scene.state());
        }
    }
}

/// An address, a TCP port and a UDP port.
pub type Target = (IpAddr, u16, u16);

/// A Service's ClusterIP with its ports.
pub fn cluster_ip(service: Numbered, family: Family) -> Target {
    (service.cluster_ip_of(family), WEB, ECHO)
}

/// A Service's nodePorts at an address.
pub fn node_port(service: Numbered, address: impl Into<IpAddr>) -> Target {
    (address.into(), service.node_port(WEB), service.node_port(ECHO))
}
