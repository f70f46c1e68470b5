//! The set-ups: a lab each, alike but for who balances.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lb_bench::kube_proxy;
use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::kube_proxy::{Cluster, Programs};
use super::services::{self, Entry, PORT};
use super::talk::{Client, Server};
use lb_lab::assembled::PASS;
use lb_lab::{AgentOptions, Family, Lab, NodeId, PodKind, SocketLb, UPLINK, XdpMode, poll_every};

/// Who balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Balancer {
    /// Nobody: clients ask the pod. No netfilter, no connection tracking.
    Direct,
    /// The same, with `XDP_PASS` on the uplinks of the nodes.
    DirectXdp,
    /// Rules in kube-proxy's iptables layout.
    Iptables,
    /// Rules in kube-proxy's nftables layout.
    Nftables,
    /// The real one, with iptables-legacy.
    KubeProxy,
    /// Shunt with tc alone for pods and the wire; socket hooks for the node's processes.
    ShuntTc,
    /// Shunt with socket hooks for all, and XDP on the uplinks.
    ShuntSockets,
}

impl Balancer {
    /// All.
    pub const ALL: [Self; 7] = [
        Self::Direct,
        Self::DirectXdp,
        Self::Nftables,
        Self::Iptables,
        Self::KubeProxy,
        Self::ShuntTc,
        Self::ShuntSockets,
    ];

    /// Whether nothing is translated.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::Direct | Self::DirectXdp)
    }

    /// Whether it is Shunt.
    pub fn is_shunt(self) -> bool {
        matches!(self, Self::ShuntTc | Self::ShuntSockets)
    }
}

/// From where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrafficPath {
    /// A pod to a ClusterIP with a pod of the same node.
    Pod,
    /// A client outside to a nodePort with a pod of that node.
    Near,
    /// A client outside to a nodePort with a pod of the other node.
    Far,
    /// A process of the node to a ClusterIP with a pod of the same node.
    Host,
}

impl TrafficPath {
    /// All.
    pub const ALL: [Self; 4] = [Self::Pod, Self::Near, Self::Far, Self::Host];

    /// The node of the pod that answers.
    pub fn node(self) -> NodeId {
        if self == Self::Far { NodeId::B } else { NodeId::A }
    }
}

impl fmt::Display for TrafficPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod to ClusterIP",
            Self::Near => "outside to nodePort, pod here",
            Self::Far => "outside to nodePort, pod of another node",
            Self::Host => "node to ClusterIP",
        })
    }
}

/// A balancer and how many Services it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setup {
    /// Who balances.
    pub balancer: Balancer,
    /// How many Services.
    pub services: usize,
}

impl Setup {
    /// The ways that say something about it.
    pub fn paths(self) -> &'static [TrafficPath] {
        match self.balancer {
            Balancer::DirectXdp => &[TrafficPath::Near, TrafficPath::Far],
            // The node's own processes are served alike in both set-ups.
            Balancer::ShuntSockets => &[TrafficPath::Pod, TrafficPath::Near, TrafficPath::Far],
            _ => &TrafficPath::ALL,
        }
    }

    /// A row's case.
    pub fn case(self, path: TrafficPath) -> String {
        let who = match (self.balancer, path) {
            (Balancer::Direct, _) => "direct to the pod",
            (Balancer::DirectXdp, _) => "direct to the pod, XDP_PASS on the uplinks",
            (Balancer::Iptables, _) => "iptables",
            (Balancer::Nftables, _) => "nftables",
            (Balancer::KubeProxy, _) => "kube-proxy",
            (Balancer::ShuntTc, TrafficPath::Host) | (Balancer::ShuntSockets, TrafficPath::Pod) => {
                "Shunt, socket hook"
            }
            (Balancer::ShuntTc, _) => "Shunt, tc",
            (Balancer::ShuntSockets, _) => "Shunt, XDP",
        };
        match (self.balancer.is_direct(), self.services) {
            (true, _) => format!("{path}: {who}"),
            (false, 1) => format!("{path}: {who}, 1 Service"),
            (false, count) => format!("{path}: {who}, {count} Services"),
        }
    }
}

/// What set-ups are made with.
#[derive(Debug)]
pub struct Means {
    /// The program of both ends.
    pub helper: PathBuf,
    /// The agent's.
    pub shunt: PathBuf,
    /// kube-proxy's and an API server's, where they are.
    pub kube: Option<Programs>,
    /// The API server, once it is needed.
    pub cluster: Option<Cluster>,
}

impl Means {
    fn cluster(&mut self) -> Result<&mut Cluster> {
        let started = match self.cluster.take() {
            Some(cluster) => cluster,
            None => Cluster::start(self.kube.as_ref().ok_or_else(|| miette!("there is no kube-proxy"))?)?,
        };
        Ok(self.cluster.insert(started))
    }
}

/// A set-up that runs. Fields are dropped in order.
#[derive(Debug)]
pub struct Scene {
    /// What it is.
    pub setup: Setup,
    clients: Vec<(TrafficPath, Client)>,
    servers: [Server; 2],
    asked: [Entry; 2],
    lab: Lab,
}

impl Scene {
    /// Makes the lab, its pods and the balancer's rules; an agent is started, not awaited.
    pub fn build(setup: Setup, means: &mut Means) -> Result<Self> {
        let mut lab = Lab::builder().helper(&means.helper).build().into_diagnostic()?;
        lab.add_pod(NodeId::A, "asking", PodKind::Idle).into_diagnostic()?;
        let mut entry = |node: NodeId, name: &str| -> Result<Entry> {
            let pod = lab.add_pod(node, name, PodKind::Idle).into_diagnostic()?;
            Ok(Entry::asked(name, node, pod.address()))
        };
        let asked = [entry(NodeId::B, "far")?, entry(NodeId::A, "near")?];
        let start = |entry: &Entry| Server::start(&lab, lab.pod(&entry.name).netns(), &entry.name, PORT);
        let servers = [start(&asked[0])?, start(&asked[1])?];
        let netns = |path: TrafficPath| match path {
            TrafficPath::Pod => lab.pod("asking").netns(),
            TrafficPath::Near | TrafficPath::Far => lab.client(),
            TrafficPath::Host => lab.node(NodeId::A),
        };
        let clients = TrafficPath::ALL.iter().map(|path| Ok((*path, Client::start(netns(*path))?)));
        let clients = clients.collect::<Result<Vec<_>>>()?;
        let mut scene = Self { setup, clients, servers, asked, lab };
        scene.balance(means).wrap_err_with(|| scene.setup.case(TrafficPath::Pod))?;
        Ok(scene)
    }

    fn balance(&mut self, means: &mut Means) -> Result<()> {
        // Two are there in any case: one for each node's pod.
        let count = if self.setup.services == 1 { self.asked.len() } else { self.setup.services };
        let entries = services::all(&self.asked, count);
        match self.setup.balancer {
            Balancer::Direct => self.detour(),
            Balancer::DirectXdp => {
                self.detour()?;
                self.pass_on_uplinks()
            }
            Balancer::Iptables => {
                self.load_iptables(NodeId::A, &entries)?;
                self.load_iptables(NodeId::B, &self.asked)
            }
            Balancer::KubeProxy => {
                means.cluster()?.write_rules(&self.lab, &entries)?;
                self.load_iptables(NodeId::B, &self.asked)
            }
            Balancer::Nftables => {
                self.load_nftables(NodeId::A, &entries)?;
                self.load_nftables(NodeId::B, &self.asked)
            }
            Balancer::ShuntTc | Balancer::ShuntSockets => {
                for (name, text) in services::manifests(&entries) {
                    self.lab.apply_text(&name, &text).into_diagnostic()?;
                }
                let (xdp, socket_lb) = match self.setup.balancer {
                    Balancer::ShuntTc => (XdpMode::Off, SocketLb::Host),
                    _ => (XdpMode::Native, SocketLb::All),
                };
                let program = Some(means.shunt.clone());
                let options = AgentOptions { xdp, socket_lb, program, ..AgentOptions::default() };
                self.lab.start_agents(&options).into_diagnostic()
            }
        }
    }

    /// The way to the other node's pods leads through the first node and back, as with a nodePort.
    fn detour(&self) -> Result<()> {
        let (plan, lab) = (self.lab.plan(), &self.lab);
        let (first, second) = (lab.node_address(NodeId::A), lab.node(NodeId::B));
        for device in ["all", UPLINK] {
            lab.node(NodeId::A)
                .sysctl(&format!("net/ipv4/conf/{device}/send_redirects"), "0")
                .into_diagnostic()?;
        }
        let pods = plan.pods(NodeId::B);
        lab.client().ip(&format!("route replace {pods} via {first}")).into_diagnostic()?;
        second.ip(&format!("route add {}/32 via {first}", plan.client())).into_diagnostic()
    }

    fn pass_on_uplinks(&self) -> Result<()> {
        let program = self.lab.folder().join("pass.o").display().to_string();
        let words = ["ip", "link", "set", UPLINK, "xdp", "object", &program, "section", PASS.section];
        NodeId::ALL
            .into_iter()
            .try_for_each(|node| self.lab.node(node).run_loader(&words).map(drop).into_diagnostic())
    }

    /// What kube-proxy knows of all nodes.
    fn known(&self) -> kube_proxy::Node {
        kube_proxy::Node {
            cluster_cidr: Some(self.lab.plan().of(Family::V4).cluster.to_string()),
            addresses: NodeId::ALL.map(|node| self.lab.node_address(node)).into(),
        }
    }

    fn load_iptables(&self, node: NodeId, entries: &[Entry]) -> Result<()> {
        let rules = kube_proxy::iptables(&services::ports(entries), &self.known());
        self.load(node, &[rules], &["iptables-legacy-restore"])
    }

    fn load_nftables(&self, node: NodeId, entries: &[Entry]) -> Result<()> {
        self.load(node, &kube_proxy::nftables(&services::ports(entries), &self.known()), &["nft", "-f"])
    }

    /// Rules in parts. The second node only forwards, which takes no more than the Services that are asked.
    fn load(&self, node: NodeId, parts: &[String], command: &[&str]) -> Result<()> {
        let file = self.lab.folder().join("rules");
        let name = file.display().to_string();
        let words: Vec<_> = command.iter().copied().chain([name.as_str()]).collect();
        parts.iter().try_for_each(|part| {
            fs::write(&file, part).into_diagnostic()?;
            self.lab.node(node).run(&words).map(drop).into_diagnostic()
        })
    }

    /// The address to ask on a way.
    pub fn target(&self, path: TrafficPath) -> SocketAddr {
        let entry = self.entry(path);
        match (self.setup.balancer.is_direct(), path) {
            (true, _) => (entry.endpoint, PORT).into(),
            (false, TrafficPath::Pod | TrafficPath::Host) => entry.at_cluster_ip(),
            (false, TrafficPath::Near | TrafficPath::Far) => {
                (self.lab.node_address(NodeId::A), entry.node_port.unwrap_or_default()).into()
            }
        }
    }

    /// Who should answer on a way.
    pub fn name(&self, path: TrafficPath) -> String {
        self.entry(path).name.clone()
    }

    fn entry(&self, path: TrafficPath) -> &Entry {
        if path.node() == NodeId::B { &self.asked[0] } else { &self.asked[1] }
    }

    /// The two programs of a way.
    pub fn pair(&mut self, path: TrafficPath) -> Result<(&mut Client, &Server)> {
        let server = if path.node() == NodeId::B { &self.servers[0] } else { &self.servers[1] };
        let client = self.clients.iter_mut().find(|(of, _)| *of == path).map(|(_, client)| client);
        Ok((client.ok_or_else(|| miette!("no client for {path}"))?, server))
    }

    /// Waits until each way works.
    pub fn settle(&mut self) -> Result<()> {
        const LONG: Duration = Duration::from_secs(60);
        for path in self.setup.paths() {
            let (to, name) = (self.target(*path), self.name(*path));
            let what = format!("an answer on the way {}", self.setup.case(*path));
            let (client, _) = self.pair(*path)?;
            let mut said = String::new();
            poll_every(Duration::from_millis(100), &what, LONG, || {
                let report = client.ask(super::program::Deed::Connect, to, &name, 3).ok()?;
                said = report.wrong.unwrap_or_default();
                (report.right == 3).then_some(())
            })
            .into_diagnostic()
            .wrap_err(said)?;
        }
        Ok(())
    }

    /// What the node's programs have counted so far: (hook and reason, how often). Empty where Shunt is not.
    pub fn counters(&mut self) -> Result<Vec<(String, u64)>> {
        if !self.setup.balancer.is_shunt() {
            return Ok(Vec::new());
        }
        let text = self.lab.agent(NodeId::A).metrics().into_diagnostic()?;
        let counter = |line: &str| {
            let (labels, value) = line.strip_prefix("shunt_packets_total{")?.split_once("} ")?;
            Some((labels.replace(['"', ' '], ""), value.parse().ok()?))
        };
        Ok(text.lines().filter_map(counter).collect())
    }

    /// Connections that the node's kernel tracks.
    pub fn tracked(&self) -> Result<u64> {
        let count = ["cat", "/proc/sys/net/netfilter/nf_conntrack_count"];
        let text = self.lab.node(NodeId::A).run(&count).into_diagnostic()?;
        text.trim().parse().into_diagnostic()
    }
}
