//! What a SYN flood does to those who mean it: connections that are open, and new ones, in a lab of two nodes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use miette::{IntoDiagnostic, Result, miette};
use nix::unistd::geteuid;

use super::row::Target;
use super::{Context, Row};
use crate::build;
use crate::lab::pod::TCP_PORT;
use crate::lab::{AgentOptions, FloodReport, HoldReport, Lab, NodeId, PodKind, Service, at};
use crate::progress::Step;

/// SYNs a second.
const RATE: u32 = 200_000;
/// Connections that live through it.
const CONNECTIONS: u32 = 200;
/// The TCP window that the flood's SYNs announce, and no honest one does here.
const WINDOW: u16 = u16::MAX;

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
    /// Flows that the node has made: one for each SYN that arrived, and for each new connection.
    pub made: u64,
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
}

/// Two nodes with an agent each, and the Services.
#[derive(Debug)]
pub struct Scene {
    lab: Lab,
}

impl Scene {
    /// Makes it. `helper`: the xtask program, where that is not this one.
    ///
    /// # Errors
    /// The lab's.
    pub fn new(helper: Option<PathBuf>) -> crate::lab::Result<Self> {
        let mut builder = Lab::builder();
        if let Some(helper) = helper {
            builder = builder.helper(helper);
        }
        let mut lab = builder.build()?;
        for (target, node, name) in [(Flooded::Near, NodeId::A, "near"), (Flooded::Far, NodeId::B, "far")] {
            lab.add_pod(node, name, PodKind::Web)?;
            // To answer each SYN would be dearer than all the rest, and be measured in its place.
            let chain = "add chain netdev flood in { type filter hook ingress device \"eth0\" priority 0; }";
            let rule = format!("add rule netdev flood in tcp flags syn tcp window {WINDOW} drop");
            let rules = format!("add table netdev flood; {chain}; {rule}");
            let place = if node == NodeId::A { lab.pod(name).place() } else { lab.node(node) };
            place.run(&["nft", &rules])?;
            let port = target.node_port();
            let address = Ipv4Addr::new(10, 96, 0, 10 + (port % 10) as u8);
            let service = Service::new(name, address).tcp_node_port(port, TCP_PORT, port);
            lab.apply(&service, &[lab.pod(name).into()])?;
        }
        lab.start_agents(&AgentOptions::default())?;
        Ok(Self { lab })
    }

    /// Floods an address with `count` SYNs, while connections to it live and others are opened.
    ///
    /// # Errors
    /// The lab's.
    pub fn flood(&mut self, target: Flooded, rate: u32, count: u64) -> crate::lab::Result<Outcome> {
        let node = self.lab.node_address(NodeId::A);
        let made = self.made()?;
        let (client, port) = (self.lab.client(), target.node_port());
        let held = client.hold(at(IpAddr::from(node), port), CONNECTIONS)?;
        let before = self.sent_again()?;
        let flood = client.flood(SocketAddrV4::new(node, port), rate, count)?;
        let sent_again = self.sent_again()? - before;
        let held = held.finish()?;
        Ok(Outcome { flood, held, sent_again, made: self.made()? - made })
    }

    /// Flows made by the node's XDP program so far.
    fn made(&mut self) -> crate::lab::Result<u64> {
        self.lab.agent(NodeId::A).packets("uplink_xdp", "new_flow")
    }

    /// RetransSegs of the client.
    fn sent_again(&self) -> crate::lab::Result<u64> {
        let text = self.lab.client().run(&["cat", "/proc/net/snmp"])?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let mut columns = names.split(' ').zip(values.split(' '));
        let found = columns.find_map(|(name, value)| (name == "RetransSegs").then(|| value.parse().ok()));
        Ok(found.flatten().unwrap_or_default())
    }
}

/// Builds the agent, floods, and says what became of the connections.
pub fn run(context: &Context<'_>, step: &Step) -> Result<Vec<Row>> {
    if !geteuid().is_root() {
        return Err(miette!("`bench flood` needs root: it makes network namespaces"));
    }
    step.detail("building");
    build::shunt(&context.toolchain, &[])?;
    let count = u64::from(RATE) * if context.args.quick { 4 } else { 10 };
    let mut scene = Scene::new(None).into_diagnostic()?;
    let mut rows = Vec::new();
    for target in Flooded::ALL.into_iter().filter(|target| context.wants(&target.to_string())) {
        step.detail(&target.to_string());
        let outcome = scene.flood(target, RATE, count).into_diagnostic()?;
        rows.extend(described(target, &outcome, count));
    }
    Ok(rows)
}

fn described(target: Flooded, outcome: &Outcome, count: u64) -> Vec<Row> {
    let row = |what: &str, value: f64, unit: &str| Row {
        case: target.to_string(),
        what: what.into(),
        value,
        low: None,
        high: None,
        unit: unit.into(),
        floor: None,
        ratio: None,
        target: None,
        problem: None,
    };
    let share = |what: &str, share: f64, least: f64, all: &str| Row {
        ratio: Some(share),
        floor: Some(all.into()),
        target: Some(Target::AtLeast(least)),
        ..row(what, 100.0 * share, "%")
    };
    let slow = outcome.flood.sent < count || outcome.flood.rate() < u64::from(RATE) * 9 / 10;
    let mut rate = row("SYNs sent", outcome.flood.rate() as f64 / 1000.0, "k/s");
    rate.problem = slow.then(|| format!("{target}: only {} SYNs a second were sent", outcome.flood.rate()));
    vec![
        rate,
        share("SYNs that have arrived", outcome.made.min(count) as f64 / count as f64, 0.99, "those sent"),
        share("open connections that live on", outcome.kept(), 1.0, "those open before"),
        share("new connections that succeed", outcome.opened(), 0.99, "those tried"),
        row("new connections", outcome.held.opened as f64, ""),
        row("slowest new connection", outcome.held.slowest_open_micros as f64 / 1000.0, "ms"),
        row("lines echoed meanwhile", outcome.held.echoed as f64, ""),
        row("segments that the client sent again", outcome.sent_again as f64, ""),
    ]
}
