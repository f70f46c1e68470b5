//! Two nodes with an agent each, a flood to one of them, and those who mean it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use serde_json::Value;

use super::counters::{self, Counters};
use super::queues;
use lb_lab::assembled::FLOOD_SINK;
use lb_lab::pod::TCP_PORT;
use lb_lab::{AgentOptions, FloodReport, HoldReport, Lab, LabError, Netns, NodeId, PodKind, Service};
use lb_lab::{UPLINK, at};

/// Connections that live through it.
const CONNECTIONS: u32 = 200;

/// Whose address is flooded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flooded {
    /// A nodePort with a pod of the same node.
    Near,
    /// A nodePort with a pod of another node: each flow needs a masquerading port as well.
    Far,
}

impl Flooded {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Near, Self::Far];

    const fn node_port(self) -> u16 {
        match self {
            Self::Near => 30_001,
            Self::Far => 30_002,
        }
    }

    const fn pod(self) -> (NodeId, &'static str) {
        match self {
            Self::Near => (NodeId::A, "near"),
            Self::Far => (NodeId::B, "far"),
        }
    }
}

impl fmt::Display for Flooded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Near => "nodePort with a pod here",
            Self::Far => "nodePort with a pod of another node",
        })
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The flood.
    pub flood: FloodReport,
    /// The connections to the same address.
    pub held: HoldReport,
    /// TCP segments that the client had to send again.
    pub sent_again: u64,
    /// What the node's XDP program made of packets, by reason.
    pub reasons: BTreeMap<String, u64>,
    /// SYNs of the flood that came out of the node: to the pod, or to the other node.
    pub passed_on: u64,
    /// What was lost on the way, by where: what interfaces and processors count, apart from the end of those SYNs.
    pub lost: Counters,
    /// The part of all processors' time in which they were not idle, from 0 to 1.
    pub busy: f64,
}

impl Outcome {
    /// The share of connections that have lived through it, from 0 to 1.
    pub fn kept(&self) -> f64 {
        let broken: u64 = self.held.broken.values().sum();
        1.0 - broken as f64 / self.held.connections.max(1) as f64
    }

    /// The share of new connections that were opened, from 0 to 1.
    pub fn opened(&self) -> f64 {
        let failed: u64 = self.held.not_opened.values().sum();
        self.held.opened as f64 / (self.held.opened + failed).max(1) as f64
    }

    /// SYNs of the flood that the node has made flows for.
    pub fn arrived(&self) -> u64 {
        let made = self.reasons.get("new_flow").copied().unwrap_or_default();
        made.saturating_sub(self.held.connections + self.held.opened)
    }
}

/// Programs to use, where not the usual ones.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// The xtask program, if it is not this one.
    pub helper: Option<PathBuf>,
    /// The agent.
    pub shunt: Option<PathBuf>,
    /// Who floods: `lb-userspace/benches/flood`. If not said, a raw socket of the client does, over the switch.
    pub sender: Option<PathBuf>,
}

/// Two nodes with an agent each, and the Services.
#[derive(Debug)]
pub struct Scene {
    lab: Lab,
    sender: Option<PathBuf>,
}

impl Scene {
    /// Makes it.
    ///
    /// # Errors
    /// The lab's.
    pub fn new(programs: Programs) -> lb_lab::Result<Self> {
        let mut builder = Lab::builder();
        if let Some(helper) = programs.helper {
            builder = builder.helper(helper);
        }
        let mut lab = builder.build()?;
        // (Before the programs: queues that are made later get none.)
        let node = lab.node(NodeId::A);
        queues::for_each_processor([(lab.wire(), lab.switch_port(NodeId::A)), (node, UPLINK)])?;
        for target in Flooded::ALL {
            let (port, (node, name)) = (target.node_port(), target.pod());
            lab.add_pod(node, name, PodKind::Web)?;
            let address = Ipv4Addr::new(10, 96, 0, 10 + (port % 10) as u8);
            let service = Service::new(name, address).tcp_node_port(port, TCP_PORT, port);
            lab.apply(&service, &[lab.pod(name).into()])?;
            // To answer each SYN, or but to carry it on, would be dearer than all the rest, and be measured in its place.
            let (netns, device) = sink(&lab, target);
            lab.attach_xdp(netns, device, &FLOOD_SINK)?;
        }
        lab.start_agents(&AgentOptions { program: programs.shunt, ..AgentOptions::default() })?;
        Ok(Self { lab, sender: programs.sender })
    }

    /// Floods an address with `count` SYNs, while connections to it live and others are opened.
    ///
    /// # Errors
    /// The lab's.
    pub fn flood(&mut self, target: Flooded, rate: u32, count: u64) -> lb_lab::Result<Outcome> {
        let node = self.lab.node_address(NodeId::A);
        let to = SocketAddrV4::new(node, target.node_port());
        let reasons = self.reasons()?;
        let held = self.lab.client().hold(at(IpAddr::from(node), to.port()), CONNECTIONS)?;
        let (before, drops) = (self.sent_again()?, self.drops(target)?);
        let time = processors()?;
        let flood = self.send(to, rate, count)?;
        let busy = counters::busy(time, processors()?);
        let sent_again = self.sent_again()? - before;
        let held = held.finish()?;
        let mut lost = counters::grown(&drops, self.drops(target)?);
        let passed_on = lost.remove(SUNK).unwrap_or_default();
        let reasons = counters::grown(&reasons, self.reasons()?);
        Ok(Outcome { flood, held, sent_again, reasons, passed_on, lost, busy })
    }

    fn send(&self, to: SocketAddrV4, rate: u32, count: u64) -> lb_lab::Result<FloodReport> {
        let Some(sender) = &self.sender else { return self.lab.client().flood(to, rate, count) };
        // A flood comes in by interrupts, which wait for no program.
        let mut words: Vec<String> = ["chrt", "--fifo", "1"].map(str::to_owned).to_vec();
        words.push(sender.display().to_string());
        let pairs = [
            ("--interface", self.lab.switch_port(NodeId::A).to_owned()),
            ("--mac", ethernet_address(self.lab.node(NodeId::A))?),
            ("--to", to.to_string()),
            ("--rate", rate.to_string()),
            ("--count", count.to_string()),
            ("--bpffs", self.lab.bpffs(NodeId::A).display().to_string()),
        ];
        words.extend(pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        self.lab.wire().flood_by(&words)
    }

    /// What the node's XDP program has made of packets so far.
    fn reasons(&mut self) -> lb_lab::Result<BTreeMap<String, u64>> {
        self.lab.agent(NodeId::A).outcomes("uplink_xdp")
    }

    /// What was lost so far on the way of the flood, and of those who mean it.
    fn drops(&self, target: Flooded) -> lb_lab::Result<Counters> {
        let (client, wire, node) = (self.lab.client(), self.lab.wire(), self.lab.node(NodeId::A));
        let pod = self.lab.pod(target.pod().1);
        let sink = sink(&self.lab, target);
        let other = self.lab.switch_port(NodeId::B);
        let mut all = Counters::new();
        for (netns, device) in [
            (client, UPLINK),
            (wire, CLIENT_PORT),
            (wire, self.lab.switch_port(NodeId::A)),
            (wire, other),
            (node, UPLINK),
            (self.lab.node(NodeId::B), UPLINK),
            (self.lab.node(pod.node()), pod.device()),
            (pod.netns(), UPLINK),
        ] {
            let statistics = netns.run(&["ethtool", "-S", device])?;
            let is_sink = (netns.name(), device) == (sink.0.name(), sink.1);
            for (counter, value) in counters::of_interface(&statistics) {
                let name = if is_sink && counter == "rx xdp_drops" {
                    SUNK.to_owned()
                } else {
                    format!("{} {device}: {counter}", netns.name())
                };
                *all.entry(name).or_default() += value;
            }
            let link = link(netns, device)?;
            let refused = link["stats64"]["tx"]["dropped"].as_u64().unwrap_or_default();
            all.insert(format!("{} {device}: tx dropped", netns.name()), refused);
        }
        let text = read("/proc/net/softnet_stat")?;
        all.insert("backlog of a processor".into(), counters::backlog_drops(&text));
        Ok(all)
    }

    /// RetransSegs of the client.
    fn sent_again(&self) -> lb_lab::Result<u64> {
        let text = self.lab.client().run(&["cat", "/proc/net/snmp"])?;
        Ok(counters::segments_sent_again(&text).unwrap_or_default())
    }
}

/// The switch's end of the client's link.
const CLIENT_PORT: &str = "port0";
/// The name of what the sink has dropped.
const SUNK: &str = "sunk";

/// Where the flood ends: where it comes out of the node.
fn sink(lab: &Lab, target: Flooded) -> (&Netns, &'static str) {
    match target {
        Flooded::Near => (lab.pod(target.pod().1).netns(), UPLINK),
        Flooded::Far => (lab.wire(), lab.switch_port(NodeId::A)),
    }
}

fn ethernet_address(netns: &Netns) -> lb_lab::Result<String> {
    Ok(link(netns, UPLINK)?["address"].as_str().unwrap_or_default().to_owned())
}

/// An interface as `ip` describes it.
fn link(netns: &Netns, device: &str) -> lb_lab::Result<Value> {
    let text = netns.run(&["ip", "-json", "-statistics", "link", "show", "dev", device])?;
    let mut links: Value =
        serde_json::from_str(&text).map_err(|error| unreadable("what `ip` says of a link", error.into()))?;
    Ok(links[0].take())
}

fn processors() -> lb_lab::Result<counters::Processors> {
    Ok(counters::Processors::of(&read("/proc/stat")?))
}

fn read(path: &str) -> lb_lab::Result<String> {
    fs::read_to_string(path).map_err(|source| unreadable(path, source))
}

fn unreadable(what: &str, source: io::Error) -> LabError {
    LabError::Io { action: format!("read {what}"), source }
}
