//! A lab of network namespaces: an outside client, two nodes with an agent each, pods with real servers.
//!
//! ```no_run
//! use lb_lab::{AgentOptions, Lab, NodeId, PodKind, Service, at, pod::HTTP_PORT};
//! let mut lab = Lab::builder().build()?;
//! lab.add_pod(NodeId::A, "web-1", PodKind::Web)?;
//! let address = std::net::Ipv4Addr::new(10, 96, 0, 10);
//! lab.apply(&Service::new("web", address).tcp(80, HTTP_PORT), &[lab.pod("web-1").into()])?;
//! lab.start_agent(NodeId::A, AgentOptions::default())?;
//! println!("{:?}", lab.node(NodeId::A).http(at(address, 80), 10)?.answers);
//! # Ok::<(), lb_lab::LabError>(())
//! ```
//!
//! All of a lab is gone when it is dropped, and also when its process ends in any other way; see [`ownership`].
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

mod agent;
mod ask;
pub mod assembled;
pub mod beyond;
pub mod demo;
mod error;
mod manifests;
mod netns;
pub mod ownership;
mod plan;
pub mod pod;
mod probe;
mod program;
mod relay;
pub mod repository;
mod server;
mod topology;
mod wait;

pub use agent::{Agent, AgentOptions, SocketLb, Source, XdpForward, XdpMode, shunt_program};
pub use ask::{Held, Live, Pressing, at};
pub use error::{LabError, Result};
pub use manifests::{Endpoint, Service};
pub use netns::{Netns, Output, Process};
pub use ownership::LabId;
pub use plan::{AddressPlan, Family, NodeId, Range, Ranges};
pub use pod::{Pod, PodKind};
pub use probe::{
    BulkReport, ConversationReport, FloodReport, HoldReport, PourReport, PressReport, Report, RunTime,
    SinkReport, StreamReport, TurnReport,
};
pub use program::Program;
pub use relay::Relay;
pub use topology::{Layout, UPLINK, Wire};
pub use wait::{PATIENCE, patiently, poll, poll_every};

use agent::Station;
use error::Doing;
use pod::Site;
use topology::Namespaces;

/// A running lab. Fields are dropped in order: what runs first, what it runs in last.
#[derive(Debug)]
pub struct Lab {
    agents: BTreeMap<NodeId, Agent>,
    pods: BTreeMap<String, Pod>,
    outside: Vec<Process>,
    distant: Option<Netns>,
    next_pod: BTreeMap<NodeId, u32>,
    namespaces: Namespaces,
    plan: AddressPlan,
    layout: Layout,
    wire: Wire,
    helper: PathBuf,
    claim: ownership::Claim,
}

/// What a lab is to be like.
#[derive(Clone, Debug)]
pub struct Builder {
    layout: Layout,
    wire: Wire,
    helper: Option<PathBuf>,
}

impl Builder {
    /// How pods hang on their nodes; point-to-point if not said.
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// What joins the nodes; like cards if not said.
    pub fn wire(mut self, wire: Wire) -> Self {
        self.wire = wire;
        self
    }

    /// The xtask program, which holds the lab's own programs; the running program if not said.
    pub fn helper(mut self, path: impl Into<PathBuf>) -> Self {
        self.helper = Some(path.into());
        self
    }

    /// Makes the lab: namespaces, links, control groups; no pods and no agents yet.
    pub fn build(self) -> Result<Lab> {
        let helper = match self.helper {
            Some(path) => path,
            None => std::env::current_exe().doing(|| "find this program's file".into())?,
        };
        let plan = AddressPlan::default();
        let claim = ownership::Claim::new(&helper)?;
        let id = claim.id();
        let root = id.cgroup()?;
        let netns = |name: &str, group: &str| -> Result<Netns> {
            let group = root.join(group);
            fs::create_dir_all(&group).doing(|| format!("make the control group {}", group.display()))?;
            Ok(Netns::new(name.into(), id.ip_name(name), group, helper.clone()))
        };
        let namespaces = Namespaces {
            wire: netns("wire", "wire")?,
            client: netns("client", "client")?,
            nodes: [netns(NodeId::A.name(), "node-a/host")?, netns(NodeId::B.name(), "node-b/host")?],
        };
        for node in NodeId::ALL {
            let bpffs = id.folder().join(node.name()).join("bpf");
            fs::create_dir_all(&bpffs).doing(|| format!("make the folder {}", bpffs.display()))?;
            mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
                .doing(|| format!("mount a bpf file system on {}", bpffs.display()))?;
        }
        let manifests = id.folder().join("manifests");
        fs::create_dir_all(&manifests).doing(|| format!("make the folder {}", manifests.display()))?;
        topology::build(&namespaces, &plan, (self.layout, self.wire), &id.folder())?;
        Ok(Lab {
            agents: BTreeMap::new(),
            pods: BTreeMap::new(),
            outside: Vec::new(),
            distant: None,
            next_pod: BTreeMap::new(),
            namespaces,
            plan,
            layout: self.layout,
            wire: self.wire,
            helper,
            claim,
        })
    }
}

impl Lab {
    /// Begins the description of a lab.
    pub fn builder() -> Builder {
        Builder { layout: Layout::PointToPoint, wire: Wire::Cards, helper: None }
    }

    /// The lab's name.
    pub fn id(&self) -> &LabId {
        self.claim.id()
    }

    /// The folder of everything the lab writes.
    pub fn folder(&self) -> PathBuf {
        self.id().folder()
    }

    /// The folder of manifests that the agents watch.
    pub fn manifests(&self) -> PathBuf {
        self.folder().join("manifests")
    }

    /// The lab's addresses.
    pub fn plan(&self) -> &AddressPlan {
        &self.plan
    }

    /// The client outside.
    pub fn client(&self) -> &Netns {
        &self.namespaces.client
    }

    /// The segment between client and nodes: a namespace with a bridge.
    pub fn wire(&self) -> &Netns {
        &self.namespaces.wire
    }

    /// The switch's end of a node's uplink, in [`Lab::wire`].
    pub fn switch_port(&self, node: NodeId) -> &'static str {
        topology::switch_port(node)
    }

    /// Puts an XDP program on a device of a place, in place of the one that is there.
    pub fn attach_xdp(&self, netns: &Netns, device: &str, program: &assembled::Assembled<'_>) -> Result<()> {
        topology::attach_xdp(
            netns,
            device,
            program,
            &self.folder().join(format!("{}-{device}.o", netns.name())),
        )
    }

    /// Takes a node's uplink away and makes it anew, with its addresses and routes: another card in the place of one that broke.
    pub fn remake_uplink(&self, node: NodeId) -> Result<()> {
        topology::remake_uplink(&self.namespaces, node, &self.plan, self.wire, &self.folder())?;
        // The new card has another Ethernet address, which the others would learn in time.
        let addresses = Family::ALL.map(|family| self.node_ip(node, family));
        let forget = addresses.map(|address| format!("neigh flush to {address}\n")).concat();
        let others = NodeId::ALL.into_iter().filter(|other| *other != node).map(|other| self.node(other));
        others.chain([self.client()]).try_for_each(|netns| netns.ip(&forget))
    }

    /// A node: what runs there is a host process.
    pub fn node(&self, node: NodeId) -> &Netns {
        self.namespaces.node(node)
    }

    /// A node's IPv4 address.
    pub fn node_address(&self, node: NodeId) -> Ipv4Addr {
        self.plan.node(node)
    }

    /// A node's address in a family.
    pub fn node_ip(&self, node: NodeId, family: Family) -> IpAddr {
        self.plan.node_ip(node, family)
    }

    /// A pod by its name.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods.get(name).unwrap_or_else(|| panic!("the lab has no pod {name}"))
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// Makes a pod, starts its servers and waits until they listen.
    pub fn add_pod(&mut self, node: NodeId, name: &str, kind: PodKind) -> Result<&Pod> {
        let number = self.next_pod.entry(node).or_insert(2);
        let address = self.plan.pods(node).host(*number);
        *number += 1;
        self.add_pod_at(node, name, kind, address)
    }

    /// Makes a pod with an IPv4 address of choice, as when a new pod gets the address of one that is gone. The IPv6
    /// address goes with it.
    pub fn add_pod_at(&mut self, node: NodeId, name: &str, kind: PodKind, address: Ipv4Addr) -> Result<&Pod> {
        if self.pods.contains_key(name) {
            return Err(LabError::Missing {
                problem: format!("there is a pod {name} already"),
                remedy: "remove it first, or choose another name".into(),
            });
        }
        let id = self.id();
        let group = self.node_cgroup(node)?.join("pods").join(name);
        fs::create_dir_all(&group).doing(|| format!("make the control group {}", group.display()))?;
        let ip_name = id.ip_name(&format!("pod-{name}"));
        let netns = Netns::new(format!("pod-{name}"), ip_name, group, self.helper.clone());
        let folder = self.folder().join(node.name()).join("pods").join(name);
        // An address is in use once at a time, so its last 16 bits make the interface's name unique on the node.
        let device = format!("veth{:04x}", u32::from(address) & 0xffff);
        let address6 = self.plan.v6.pods(node).host(self.plan.v4.pods(node).index(address));
        let addresses = [address.into(), address6.into()];
        let on = (node, self.namespaces.node(node));
        topology::attach_pod(on, &netns, &device, addresses, &self.plan, self.layout)?;
        let _servers = Site { netns: &netns, folder: &folder, name, addresses }.start(kind)?;
        let pod = Pod { name: name.into(), node, address, address6, device, netns, _servers };
        Ok(self.pods.entry(name.to_owned()).or_insert(pod))
    }

    /// Starts servers at the client: endpoints outside the cluster, at [`AddressPlan::client`].
    pub fn serve_outside(&mut self, name: &str, kind: PodKind) -> Result<()> {
        let folder = self.folder().join("client").join(name);
        let addresses = Family::ALL.map(|family| self.plan.client_ip(family));
        let site = Site { netns: &self.namespaces.client, folder: &folder, name, addresses };
        self.outside.extend(site.start(kind)?);
        Ok(())
    }

    /// Starts servers of a node's own: endpoints at its address, as pods of the host's network have it.
    pub fn serve_at(&mut self, node: NodeId, name: &str, kind: PodKind) -> Result<()> {
        let folder = self.folder().join("nodes").join(name);
        let addresses = Family::ALL.map(|family| self.plan.node_ip(node, family));
        let site = Site { netns: self.namespaces.node(node), folder: &folder, name, addresses };
        self.outside.extend(site.start(kind)?);
        Ok(())
    }

    /// Makes a client behind a narrow link, with servers of its own; see [`beyond`].
    pub fn add_distant_client(&mut self, name: &str, kind: PodKind) -> Result<()> {
        let netns = |name: &str| -> Result<Netns> {
            let group = self.id().cgroup()?.join(name);
            fs::create_dir_all(&group).doing(|| format!("make the control group {}", group.display()))?;
            Ok(Netns::new(name.into(), self.id().ip_name(name), group, self.helper.clone()))
        };
        let (hop, distant) = (netns("hop")?, netns("distant")?);
        beyond::build(&self.namespaces.client, &hop, &distant, &self.plan)?;
        let folder = self.folder().join("distant");
        let addresses = Family::ALL.map(|family| self.plan.distant_ip(family));
        let servers = Site { netns: &distant, folder: &folder, name, addresses }.start(kind)?;
        self.outside.extend(servers);
        self.distant = Some(distant);
        Ok(())
    }

    /// The client behind the narrow link.
    ///
    /// # Panics
    /// If it has not been made.
    pub fn distant(&self) -> &Netns {
        self.distant.as_ref().unwrap_or_else(|| panic!("the lab has no distant client"))
    }

    /// Kills a pod's servers and removes its namespace, as a container runtime does.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let Some(pod) = self.pods.remove(name) else { return Ok(()) };
        let (netns, device, node) = (pod.netns.clone(), pod.device.clone(), pod.node);
        let addresses = Family::ALL.map(|family| pod.ip(family));
        ownership::kill_group(netns.cgroup())?;
        drop(pod);
        ownership::remove_group(netns.cgroup())?;
        // Deleting the namespace alone would remove the link at some later time.
        self.node(node).ip(&format!("link del {device}"))?;
        netns::ip_batch(None, &format!("netns del {}", netns.ip_name()))?;
        if self.layout == Layout::Bridge {
            // In life the next pod with this address announces itself when its port forwards.
            let forget = addresses.map(|address| format!("neigh flush to {address}\n")).concat();
            self.node(node).ip(&forget)?;
            let mut neighbours = self.pods.values().filter(|pod| pod.node == node);
            neighbours.try_for_each(|pod| pod.netns.ip(&forget))?;
        }
        Ok(())
    }

    /// Writes a Service and its EndpointSlice into the folder of manifests, in place of what was there under its name.
    pub fn apply(&self, service: &Service, endpoints: &[Endpoint]) -> Result<()> {
        self.apply_text(service.name(), &service.manifest(endpoints))
    }

    /// Writes a manifest file; it appears complete or not at all.
    pub fn apply_text(&self, name: &str, text: &str) -> Result<()> {
        let (draft, file) = (self.folder().join("draft"), self.manifest_file(name));
        fs::write(&draft, text).doing(|| format!("write {}", draft.display()))?;
        fs::rename(&draft, &file).doing(|| format!("write {}", file.display()))
    }

    /// Removes a manifest file.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        let file = self.manifest_file(name);
        fs::remove_file(&file).doing(|| format!("remove {}", file.display()))
    }

    fn manifest_file(&self, name: &str) -> PathBuf {
        self.manifests().join(format!("{name}.yaml"))
    }

    /// Starts a node's agent and waits until it is ready. An agent that runs already is killed.
    pub fn start_agent(&mut self, node: NodeId, options: AgentOptions) -> Result<()> {
        self.prepare_agent(node, options)?.start()
    }

    /// Makes a node's agent without starting it. An agent that runs already is killed.
    pub fn prepare_agent(&mut self, node: NodeId, options: AgentOptions) -> Result<&mut Agent> {
        let agent = Agent::new(self.station(node)?, options);
        self.agents.insert(node, agent);
        Ok(self.agent(node))
    }

    /// Starts both agents.
    pub fn start_agents(&mut self, options: &AgentOptions) -> Result<()> {
        for node in NodeId::ALL {
            let mut agent = Agent::new(self.station(node)?, options.clone());
            agent.launch()?;
            self.agents.insert(node, agent);
        }
        self.agents.values_mut().try_for_each(Agent::await_ready)
    }

    /// A node's agent.
    ///
    /// # Panics
    /// If none has been started.
    pub fn agent(&mut self, node: NodeId) -> &mut Agent {
        self.agents.get_mut(&node).unwrap_or_else(|| panic!("no agent was started on {node}"))
    }

    /// The log of a node's agent so far; empty if none was started.
    pub fn agent_log(&self, node: NodeId) -> String {
        self.agents.get(&node).map(Agent::log).unwrap_or_default()
    }

    /// Ends both agents and runs `shunt cleanup` on both nodes.
    pub fn clean_agents(&mut self) -> Result<()> {
        for (node, agent) in &mut self.agents {
            agent.kill();
            let output = agent.shunt(&["cleanup"])?;
            if !output.status.success() {
                return Err(LabError::Command {
                    command: format!("shunt cleanup (in {node})"),
                    output: format!("{}{}", output.stderr, output.stdout),
                });
            }
        }
        self.agents.clear();
        Ok(())
    }

    /// Makes 127.0.0.1:`port` of this machine answer at the same address in a node, as long as the result lives.
    pub fn relay(&self, node: NodeId, port: u16) -> Result<Relay> {
        Relay::start(self.node(node), port)
    }

    /// The folder of a node's pins.
    pub fn bpffs(&self, node: NodeId) -> PathBuf {
        self.folder().join(node.name()).join("bpf/shunt")
    }

    /// The control group of a node: its own processes and its pods.
    pub fn node_cgroup(&self, node: NodeId) -> Result<PathBuf> {
        Ok(self.id().cgroup()?.join(node.name()))
    }

    fn station(&self, node: NodeId) -> Result<Station> {
        let show = |path: &Path| path.display().to_string();
        let bpffs = self.bpffs(node);
        let mut flags: Vec<(&str, String)> = vec![
            ("--node-name", node.name().into()),
            ("--uplink", UPLINK.into()),
            ("--bpffs", show(&bpffs)),
            ("--cgroup", show(&self.node_cgroup(node)?)),
            ("--healthz-bind-address", "0.0.0.0:10256".into()),
            ("--metrics-bind-address", "127.0.0.1:10249".into()),
        ];
        for family in Family::ALL {
            flags.push(("--node-ip", self.node_ip(node, family).to_string()));
            flags.push(("--pod-cidr", self.plan.pods_of(node, family).to_string()));
            flags.push(("--cluster-cidr", self.plan.of(family).cluster.to_string()));
        }
        Ok(Station {
            netns: self.node(node).clone(),
            bpffs,
            folder: self.folder().join(node.name()),
            manifests: self.manifests(),
            flags: flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect(),
        })
    }
}
