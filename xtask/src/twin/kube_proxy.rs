//! The real kube-proxy on a node of a lab.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use miette::{IntoDiagnostic, Result, WrapErr};
use serde_json::json;

use crate::setup::find_program;
use lb_lab::{Family, Lab, Netns, NodeId, Process, poll_every};

const READY: Duration = Duration::from_secs(20);
/// Between two looks at its rules, which take a while to tell when they are many.
const PACE: Duration = Duration::from_millis(250);
/// What tells the rules of each family.
const SAVE: [&str; 2] = ["iptables-save", "ip6tables-save"];
/// The tables of each family.
const TABLES: [[&str; 3]; 2] = [["table", "ip", "kube-proxy"], ["table", "ip6", "kube-proxy"]];

/// What it translates with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Rules of nftables, which look Services up in maps
    #[default]
    Nftables,
    /// Rules of iptables, one after the other
    Iptables,
}

impl Mode {
    /// As the configuration has it.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Nftables => "nftables",
            Mode::Iptables => "iptables",
        }
    }
}

/// A running kube-proxy; killed when dropped.
#[derive(Debug)]
pub struct KubeProxy {
    process: Process,
    netns: Netns,
    mode: Mode,
    /// Where it finds `iptables`.
    path: String,
}

/// What it is to do.
#[derive(Clone, Copy, Debug)]
pub struct Duty<'a> {
    /// The program.
    pub program: &'a Path,
    /// The way to the API server.
    pub kubeconfig: &'a Path,
    /// The families it serves.
    pub families: &'a [Family],
    /// What it translates with.
    pub mode: Mode,
    /// A folder where it finds `iptables` and the others, before it looks elsewhere.
    pub tools: Option<&'a Path>,
}

impl KubeProxy {
    /// Starts it on a node.
    pub fn start(duty: Duty<'_>, lab: &Lab, node: NodeId) -> Result<Self> {
        let netns = lab.node(node).clone();
        let text = configuration(lab, node, duty);
        let configuration = write(lab, node, "kube-proxy.json", &text)?;
        let (path, program) = (path(duty.tools), duty.program.display().to_string());
        let words = ["env", &path, &program, "--v=2", "--config", &configuration.display().to_string()];
        let process = netns.spawn(&words, &lab.folder().join(node.name()).join("kube-proxy.log"));
        Ok(Self { process: process.into_diagnostic()?, netns, mode: duty.mode, path })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until it has written its rules for the first time.
    pub fn await_ready(&mut self) -> Result<()> {
        self.await_rules(READY, |proxy| match proxy.mode {
            Mode::Iptables => {
                let saved = SAVE.map(|save| proxy.saved(&[save, "-t", "nat"]));
                saved.iter().all(|rules| rules.contains("-j KUBE-NODEPORTS"))
            }
            Mode::Nftables => {
                let tables = TABLES.map(|table| proxy.saved(&[&["nft", "list"], &table[..]].concat()));
                tables.iter().all(|rules| rules.contains("elements = {"))
            }
        })
    }

    /// Waits until its rules lead to so many endpoints of IPv4.
    pub fn await_endpoints(&mut self, count: usize, within: Duration) -> Result<()> {
        self.await_rules(within, |proxy| {
            proxy.saved(&[SAVE[0], "-t", "nat"]).matches("-j DNAT").count() >= count
        })
    }

    fn await_rules(&mut self, within: Duration, written: impl Fn(&Self) -> bool) -> Result<()> {
        let what = format!("the rules of kube-proxy in {}", self.netns.name());
        let mut ended = None;
        let written = poll_every(PACE, &what, within, || {
            ended = self.process.ended();
            (ended.is_some() || written(self)).then_some(())
        });
        if let Some(status) = ended {
            return Err(miette::miette!("kube-proxy ended at its start ({status}):\n{}", self.log()));
        }
        written.into_diagnostic().wrap_err_with(|| self.log())
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let log = self.process.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The rules it has written.
    pub fn rules(&self) -> String {
        match self.mode {
            Mode::Iptables => SAVE.map(|save| self.saved(&[save])).concat(),
            Mode::Nftables => self.saved(&["nft", "list", "ruleset"]),
        }
    }

    fn saved(&self, words: &[&str]) -> String {
        let words = [&["env", &self.path], words].concat();
        self.netns.exec(&words).map(|output| output.stdout).unwrap_or_default()
    }
}

/// A folder in which `iptables` and the others are those of iptables-legacy, whose tables kube-proxy of that time
/// is quickest with: its rules take nftables many times as long. `None`: this machine has them not.
pub fn legacy_tools(folder: &Path) -> Result<Option<PathBuf>> {
    let Some(program) = find_program("xtables-legacy-multi") else { return Ok(None) };
    for family in ["iptables", "ip6tables"] {
        for command in ["", "-save", "-restore"] {
            symlink(&program, folder.join(format!("{family}{command}"))).into_diagnostic()?;
        }
    }
    Ok(Some(folder.to_owned()))
}

/// The variable `PATH` with this folder in front.
pub fn path(tools: Option<&Path>) -> String {
    let usual = std::env::var("PATH").unwrap_or_default();
    tools.map_or_else(|| format!("PATH={usual}"), |tools| format!("PATH={}:{usual}", tools.display()))
}

fn write(lab: &Lab, node: NodeId, name: &str, text: &str) -> Result<PathBuf> {
    let file = lab.folder().join(node.name()).join(name);
    fs::write(&file, text).into_diagnostic().wrap_err_with(|| file.display().to_string())?;
    Ok(file)
}

/// The KubeProxyConfiguration; YAML takes JSON.
fn configuration(lab: &Lab, node: NodeId, duty: Duty<'_>) -> String {
    let Duty { kubeconfig, families, .. } = duty;
    let clusters: Vec<_> = families.iter().map(|family| lab.plan().of(*family).cluster.to_string()).collect();
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": duty.mode.name(),
        "clusterCIDR": clusters.join(","),
        "hostnameOverride": node.name(),
        // By nftables it would serve nodePorts at the node's first address alone.
        "nodePortAddresses": ["0.0.0.0/0", "::/0"],
        "bindAddress": lab.node_address(node),
        "healthzBindAddress": "0.0.0.0:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clientConnection": { "kubeconfig": kubeconfig },
        // The size of the connection table belongs to the machine, not to a namespace; it is left alone.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "24h",
            "tcpCloseWaitTimeout": "1h",
        },
        // (Zero would be taken for the default of a second.)
        "iptables": { "minSyncPeriod": "1ms", "syncPeriod": "30s" },
        "nftables": { "minSyncPeriod": "1ms", "syncPeriod": "30s" },
        "oomScoreAdj": 0,
    });
    format!("{configuration:#}\n")
}
