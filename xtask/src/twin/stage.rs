//! The two labs and the API server between them.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use miette::{IntoDiagnostic, Result, WrapErr};

use super::ask::{Answers, How, Question, Questions};
use super::cases::{Case, OTHER_CLIENT, OUTSIDER, PODS, VISITOR};
use super::kube_proxy::{Duty, KubeProxy, Mode};
use super::objects;
use super::probes::{self, Asker, Probe};
use super::shape::Shape;
use super::verdict::Verdict;
use crate::kube::{ApiServer, Assets, Identity, Options};
use lb_lab::{
    AddressPlan, AgentOptions, Family, Lab, Layout, Netns, NodeId, PodKind, Process, Relay, Source, UPLINK,
    XdpMode, poll_every,
};

/// How long a change may take on all nodes.
const CHANGE: Duration = Duration::from_secs(30);
const PACE: Duration = Duration::from_millis(100);
/// Questions under way at a time, for each asker.
const AT_ONCE: usize = 48;
/// How long an answer may take, in milliseconds. A refusal by ICMP that comes while connect() is still busy is lost on
/// Linux, and the next SYN goes out a second later.
const PATIENCE: u64 = 1500;

/// One of the twins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// kube-proxy.
    KubeProxy,
    /// Shunt.
    Shunt,
}

/// Everything that runs.
pub struct Stage {
    proxies: Vec<KubeProxy>,
    server: ApiServer,
    // Dropped before the labs they lead into.
    _relays: Vec<Relay>,
    kube_proxy: Lab,
    shunt: Lab,
    helper: PathBuf,
    families: Vec<Family>,
    shape: Shape,
    mode: Mode,
    rounds: u32,
}

impl Stage {
    /// Starts the API server and makes both labs. No proxy runs yet. `helper` is the xtask program.
    pub fn build(
        assets: &Assets,
        families: &[Family],
        (shape, mode): (Shape, Mode),
        helper: &Path,
    ) -> Result<Self> {
        let both = Family::ALL.map(|family| AddressPlan::default().of(family).services.to_string());
        let options = Options { service_range: both.join(","), ..Options::default() };
        let server = ApiServer::start(assets, options)?;
        let port = server.url().rsplit(':').next().and_then(|port| port.parse().ok());
        let port: u16 = port.ok_or_else(|| miette::miette!("no port in {}", server.url()))?;
        let (kube_proxy, shunt) = (lab(shape, helper)?, lab(shape, helper)?);
        let mut relays = Vec::new();
        for lab in [&kube_proxy, &shunt] {
            for node in NodeId::ALL {
                relays.push(lab.relay(node, port).into_diagnostic()?);
            }
        }
        let helper = helper.to_owned();
        Ok(Self {
            proxies: Vec::new(),
            server,
            _relays: relays,
            kube_proxy,
            shunt,
            helper,
            families: families.to_vec(),
            shape,
            mode,
            rounds: 0,
        })
    }

    /// Brings the Services into the API server.
    pub fn create(&self, cases: &[Case]) -> Result<()> {
        let (services, status): (Vec<_>, Vec<_>) = cases.iter().map(objects::service).unzip();
        self.server.send(&services)?;
        self.server.send(&status.into_iter().flatten().collect::<Vec<_>>())?;
        let slices = |case| objects::create_slices(case, |pod, family| self.pod_address(pod, family));
        self.server.send(&cases.iter().flat_map(slices).collect::<Vec<_>>())
    }

    /// Changes the endpoints of Services that are there.
    pub fn change(&self, cases: &[Case]) -> Result<()> {
        let slices = |case| objects::change_slices(case, |pod, family| self.pod_address(pod, family));
        self.server.send(&cases.iter().flat_map(slices).collect::<Vec<_>>())
    }

    /// Deletes Services.
    pub fn delete(&self, cases: &[Case]) -> Result<()> {
        self.server.send(&cases.iter().flat_map(objects::delete).collect::<Vec<_>>())
    }

    /// Starts kube-proxy and Shunt on their nodes.
    pub fn start_proxies(&mut self, kube_proxy: &Path) -> Result<()> {
        let (nodes, status) = objects::nodes(self.shunt.plan(), &Family::ALL);
        self.server.send(&nodes)?;
        self.server.send(&status)?;
        let kubeconfig = self.server.kubeconfig(Identity::Admin);
        for node in NodeId::ALL {
            self.proxies.push(self.start_proxy(kube_proxy, node, &kubeconfig)?);
        }
        let source = Source::Kubernetes(self.server.kubeconfig(Identity::Agent));
        let (xdp, xdp_forward) = self.shape.xdp();
        let options = AgentOptions { source, xdp, xdp_forward, ..AgentOptions::default() };
        self.shunt.start_agents(&options).into_diagnostic()?;
        self.proxies.iter_mut().try_for_each(KubeProxy::await_ready)
    }

    fn start_proxy(&self, program: &Path, node: NodeId, kubeconfig: &Path) -> Result<KubeProxy> {
        let families = &Family::ALL;
        let duty = Duty { program, kubeconfig, families, mode: self.mode, tools: None };
        KubeProxy::start(duty, &self.kube_proxy, node)
    }

    /// Waits until every node knows all that was sent so far: one more Service is sent, and everybody waits for it.
    pub fn settle(&mut self) -> Result<()> {
        self.rounds += 1;
        let last = Case::last(self.rounds);
        self.create(std::slice::from_ref(&last))?;
        let to =
            self.families.iter().map(|family| SocketAddr::new(last.cluster_ip(*family), last.ports[0].port));
        let to: Vec<_> = to.map(|to| Question { how: How::Tcp, to, before: None }).collect();
        for side in [Side::KubeProxy, Side::Shunt] {
            for node in NodeId::ALL {
                let what = format!("{side:?} of {node} to know the last Service");
                let netns = self.lab(side).node(node);
                let answered = || {
                    let questions = Questions {
                        from: None,
                        at_once: 2,
                        tries: 1,
                        hopeless: 1,
                        patience: 1000,
                        to: to.clone(),
                    };
                    let answers =
                        Asking::begin(&self.helper, netns, &questions).and_then(Asking::end).ok()?;
                    answers.iter().all(|answers| !answers.pods.is_empty()).then_some(())
                };
                poll_every(PACE, &what, CHANGE, answered).into_diagnostic().wrap_err_with(|| self.state())?;
            }
        }
        Ok(())
    }

    /// Asks the same of both sides, everything at once, and returns what came of each probe: kube-proxy's verdict, and
    /// Shunt's. Each probe is asked `rounds` times `tries`; more than one round means that it matters, and takes its time.
    pub fn ask(&self, probes: &[Probe], rounds: usize, tries: usize) -> Result<Vec<[Verdict; 2]>> {
        let (patience, hopeless) = if rounds > 1 { (2 * PATIENCE, 4) } else { (PATIENCE, 2) };
        let mut verdicts = vec![[Verdict::default(), Verdict::default()]; probes.len()];
        // One family after the other: too much at once, and answers get lost by the load alone.
        for family in Family::ALL {
            let mut asked = Vec::new();
            for (side, asker) in everybody() {
                let is_mine = |probe: &Probe| probe.asker == asker && probe.family() == family;
                let mine = (0..probes.len()).filter(|&index| is_mine(&probes[index]));
                let mine = mine.collect::<Vec<_>>().repeat(rounds);
                if mine.is_empty() {
                    continue;
                }
                let to = mine.iter().map(|&index| probes[index].question()).collect();
                let address = self.address_of(asker, family);
                let from = (asker == Asker::OtherClient).then_some(address);
                let questions = Questions { from, at_once: AT_ONCE, tries, hopeless, patience, to };
                let asking = Asking::begin(&self.helper, &self.netns(side, asker), &questions)?;
                asked.push((side, address, mine, asking));
            }
            for (side, address, mine, asking) in asked {
                for (index, answers) in mine.into_iter().zip(asking.end()?) {
                    verdicts[index][side as usize].add(Verdict::new(&answers, address));
                }
            }
        }
        Ok(verdicts)
    }

    /// What the proxies say, for a failure's message.
    pub fn state(&self) -> String {
        let mut text = String::new();
        for (node, proxy) in NodeId::ALL.iter().zip(&self.proxies) {
            text += &format!("--- kube-proxy of {node}\n{}\n", proxy.log());
        }
        for node in NodeId::ALL {
            text += &format!("--- shunt of {node}\n{}\n", self.shunt.agent_log(node));
        }
        text
    }

    /// Writes what the proxies have set up into files of this folder.
    pub fn save(&mut self, folder: &Path) -> Result<()> {
        for (at, node) in NodeId::ALL.into_iter().enumerate() {
            if let Some(proxy) = self.proxies.get(at) {
                put(folder, &format!("kube-proxy-{node}.rules"), &proxy.rules())?;
                put(folder, &format!("kube-proxy-{node}.log"), &proxy.log())?;
            }
            let shown = self.shunt.agent(node).shunt(&["get", "services", "-o", "wide"]).into_diagnostic()?;
            put(folder, &format!("shunt-{node}.services"), &(shown.stdout + &shown.stderr))?;
            put(folder, &format!("shunt-{node}.log"), &self.shunt.agent_log(node))?;
            put(
                folder,
                &format!("shunt-{node}.metrics"),
                &self.shunt.agent(node).metrics().into_diagnostic()?,
            )?;
        }
        Ok(())
    }

    /// Begins with Shunt anew, in this mode of XDP and without flows.
    pub fn restart_shunt(&mut self, xdp: XdpMode) -> Result<()> {
        self.shunt.clean_agents().into_diagnostic()?;
        let source = Source::Kubernetes(self.server.kubeconfig(Identity::Agent));
        self.shunt.start_agents(&AgentOptions { source, xdp, ..AgentOptions::default() }).into_diagnostic()
    }

    /// The clients, address and port, of the flows that Shunt has on a node.
    pub fn flow_clients(&mut self, node: NodeId) -> Result<Vec<SocketAddr>> {
        let shown = self.shunt.agent(node).shunt(&["get", "flows", "-o", "json"]).into_diagnostic()?;
        let flows: serde_json::Value =
            serde_json::from_str(&shown.stdout).into_diagnostic().wrap_err_with(|| shown.stderr.clone())?;
        let clients = flows.as_array().into_iter().flatten().map(|flow| {
            flow["client"].as_str().unwrap_or_default().parse().into_diagnostic().wrap_err("a flow's client")
        });
        clients.collect()
    }

    /// One of the labs.
    pub fn lab(&self, side: Side) -> &Lab {
        match side {
            Side::KubeProxy => &self.kube_proxy,
            Side::Shunt => &self.shunt,
        }
    }

    fn netns(&self, side: Side, asker: Asker) -> Netns {
        let lab = self.lab(side);
        match asker {
            Asker::Client | Asker::OtherClient => lab.client().clone(),
            Asker::Pod(name, _) => lab.pod(name).netns().clone(),
            Asker::Host(node) => lab.node(node).clone(),
        }
    }

    fn address_of(&self, asker: Asker, family: Family) -> IpAddr {
        probes::address_of(asker, family, |pod, family| self.pod_address(pod, family))
    }

    /// A pod's address, the same in both labs.
    pub fn pod_address(&self, pod: &str, family: Family) -> IpAddr {
        match pod {
            OUTSIDER => self.shunt.plan().client_ip(family),
            pod => self.shunt.pod(pod).ip(family),
        }
    }
}

fn put(folder: &Path, name: &str, text: &str) -> Result<()> {
    let file = folder.join(name);
    std::fs::write(&file, text).into_diagnostic().wrap_err_with(|| file.display().to_string())
}

/// Refusals by ICMP are told every time, and nobody listens to who knows a shorter way.
const SETTINGS: [(&str, &str); 7] = [
    ("net.ipv4.icmp_ratelimit", "0"),
    ("net.ipv4.icmp_msgs_per_sec", "100000"),
    ("net.ipv4.icmp_msgs_burst", "100000"),
    ("net.ipv6.icmp.ratelimit", "0"),
    ("net.ipv4.conf.all.accept_redirects", "0"),
    ("net.ipv4.conf.eth0.accept_redirects", "0"),
    ("net.ipv6.conf.eth0.accept_redirects", "0"),
];

/// Everybody who asks, on both sides.
fn everybody() -> impl Iterator<Item = (Side, Asker)> {
    [Side::KubeProxy, Side::Shunt].into_iter().flat_map(|side| Asker::ALL.map(|asker| (side, asker)))
}

/// A lab with all that the probes need, and no proxy.
fn lab(shape: Shape, helper: &Path) -> Result<Lab> {
    let builder = Lab::builder().layout(Layout::PointToPoint).wire(shape.wire());
    let mut lab = builder.helper(helper).build().into_diagnostic()?;
    for (name, node) in PODS {
        lab.add_pod(node, name, PodKind::Web).into_diagnostic()?;
    }
    lab.add_pod(NodeId::A, VISITOR, PodKind::Idle).into_diagnostic()?;
    lab.serve_outside(OUTSIDER, PodKind::Web).into_diagnostic()?;
    for family in Family::ALL {
        let ranges = lab.plan().of(family);
        // IPv6: without duplicate address detection, which takes a second, and never a source by itself.
        let second = if family == Family::V6 { "nodad preferred_lft 0" } else { "" };
        let other = ranges.wire.host_with_prefix(OTHER_CLIENT);
        lab.client().ip(&format!("addr add {other} dev {UPLINK} {second}")).into_diagnostic()?;
    }
    shape.change(&lab)?;
    let namespaces = [lab.client(), lab.node(NodeId::A), lab.node(NodeId::B)];
    for netns in namespaces.into_iter().chain(lab.pods().map(|pod| pod.netns())) {
        for (key, value) in SETTINGS {
            netns.sysctl(key, value).into_diagnostic()?;
        }
    }
    Ok(lab)
}

/// Questions that are being asked.
struct Asking(Process);

impl Asking {
    fn begin(helper: &Path, netns: &Netns, questions: &Questions) -> Result<Self> {
        let helper = helper.display().to_string();
        let mut process = netns.spawn_piped(&[helper.as_str(), "twin-ask"]).into_diagnostic()?;
        let text = serde_json::to_string(questions).into_diagnostic()?;
        if let Some(mut input) = process.child().stdin.take() {
            input.write_all(text.as_bytes()).into_diagnostic()?;
        }
        Ok(Self(process))
    }

    fn end(self) -> Result<Vec<Answers>> {
        serde_json::from_str(&self.0.finish().into_diagnostic()?).into_diagnostic()
    }
}
