//! The node agent, run inside a lab node.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::error::{Doing, LabError, Result};
use super::netns::{Netns, Output, Process};
use super::wait::poll;
use crate::repository;

/// How long the agent may take to say that it is ready.
const READY: Duration = Duration::from_secs(60);
/// How long it may take to end after SIGTERM.
const END: Duration = Duration::from_secs(10);

/// `--xdp-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// As the agent thinks best.
    Auto,
    /// The driver's own.
    Native,
    /// The kernel's, on packets already in socket buffers.
    Generic,
    /// No XDP: tc alone.
    Off,
}

impl XdpMode {
    fn flag(self) -> &'static str {
        match self {
            XdpMode::Auto => "auto",
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
            XdpMode::Off => "off",
        }
    }
}

/// `--xdp-forward`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpForward {
    /// As the agent thinks best.
    Auto,
    /// XDP sends: the lab's wires take it, as a card's do.
    On,
}

impl XdpForward {
    fn flag(self) -> &'static str {
        match self {
            XdpForward::Auto => "auto",
            XdpForward::On => "on",
        }
    }
}

/// `--socket-lb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketLb {
    /// No socket hooks.
    Off,
    /// For the node's own processes.
    Host,
    /// For pods too.
    All,
}

impl SocketLb {
    fn flag(self) -> &'static str {
        match self {
            SocketLb::Off => "off",
            SocketLb::Host => "host",
            SocketLb::All => "all",
        }
    }
}

/// Where the agent gets its Services from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The lab's folder of manifests.
    Manifests,
    /// An API server, through this kubeconfig; see [`super::Lab::relay`].
    Kubernetes(PathBuf),
}

/// How an agent is to be run.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Where Services come from.
    pub source: Source,
    /// Mode of XDP on the uplink.
    pub xdp: XdpMode,
    /// Whether XDP sends on by itself.
    pub xdp_forward: XdpForward,
    /// Whom the socket hooks serve.
    pub socket_lb: SocketLb,
    /// More arguments.
    pub more: Vec<String>,
    /// The program, in place of [`shunt_program`]'s.
    pub program: Option<PathBuf>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        AgentOptions {
            source: Source::Manifests,
            xdp: XdpMode::Native,
            xdp_forward: XdpForward::On,
            socket_lb: SocketLb::Host,
            more: Vec::new(),
            program: None,
        }
    }
}

/// The `shunt` program to use: `SHUNT_BIN`, or the debug build.
pub fn shunt_program() -> Result<PathBuf> {
    let path = match std::env::var_os("SHUNT_BIN") {
        Some(path) => PathBuf::from(path),
        None => repository::target().join("debug/shunt"),
    };
    if path.is_file() {
        return Ok(path);
    }
    Err(LabError::Missing {
        problem: format!("there is no program {}", path.display()),
        remedy: "build it (`cargo build -p lb-userspace`), or name another with SHUNT_BIN".into(),
    })
}

/// The part of the command line that the lab decides.
#[derive(Clone, Debug)]
pub(super) struct Station {
    pub netns: Netns,
    pub bpffs: PathBuf,
    pub folder: PathBuf,
    pub manifests: PathBuf,
    pub flags: Vec<String>,
}

/// A node's agent: running, or ended and able to be started again.
#[derive(Debug)]
pub struct Agent {
    station: Station,
    options: AgentOptions,
    process: Option<Process>,
    starts: u32,
}

impl Agent {
    pub(super) fn new(station: Station, options: AgentOptions) -> Self {
        Agent { station, options, process: None, starts: 0 }
    }

    /// Starts it and waits until it says that it is ready.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.await_ready()
    }

    /// Starts it without waiting.
    pub fn launch(&mut self) -> Result<()> {
        self.starts += 1;
        let log = self.station.folder.join(format!("agent-{}.log", self.starts));
        let mut words = vec![self.program()?.display().to_string(), "agent".into()];
        words.extend(self.station.flags.iter().cloned());
        let pairs = [
            ("--xdp-mode", self.options.xdp.flag()),
            ("--xdp-forward", self.options.xdp_forward.flag()),
            ("--socket-lb", self.options.socket_lb.flag()),
        ];
        words.extend(pairs.iter().flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()]));
        match &self.options.source {
            Source::Manifests => {
                words.extend(["--source", "manifests", "--manifests"].map(str::to_owned));
                words.push(self.station.manifests.display().to_string());
            }
            Source::Kubernetes(file) => {
                words.extend(["--source", "kubernetes", "--kubeconfig"].map(str::to_owned));
                words.push(file.display().to_string());
            }
        }
        words.extend(self.options.more.iter().cloned());
        self.process = Some(self.station.netns.spawn(&words, &log)?);
        Ok(())
    }

    /// Waits until the agent says that it is ready.
    pub fn await_ready(&mut self) -> Result<()> {
        let name = self.station.netns.name().to_owned();
        let Some(process) = &mut self.process else { return Err(not_running(&name)) };
        let mut ended = None;
        let ready = poll(&format!("the agent of {name} to say that it is ready"), READY, || {
            ended = process.ended();
            (ended.is_some() || process.log().lines().any(says_ready)).then_some(())
        });
        match (ended, ready) {
            (Some(status), _) => Err(LabError::Command {
                command: format!("shunt agent (in {name})"),
                output: format!("ended at its start ({status}):\n{}", tail(&process.log())),
            }),
            (None, Err(LabError::Deadline { what, within, .. })) => {
                Err(LabError::Deadline { what, within, detail: format!("\n{}", tail(&process.log())) })
            }
            (None, result) => result,
        }
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Ends it with SIGTERM and waits for that.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        match self.process.take() {
            Some(mut process) => process.stop(END),
            None => Err(not_running(self.station.netns.name())),
        }
    }

    /// Has the system give it no time any more (SIGSTOP).
    pub fn suspend(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Has it go on (SIGCONT).
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match &self.process {
            Some(process) => process.signal(signal),
            None => Err(not_running(self.station.netns.name())),
        }
    }

    /// Process ids of the keepers at its pins, this agent's and those that agents left which were killed.
    pub fn keepers(&self) -> Result<Vec<u32>> {
        let words = format!("\0keeper\0--bpffs\0{}\0", self.station.bpffs.display());
        let processes = std::fs::read_dir("/proc").doing(|| "list /proc".into())?.flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_keeper = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&words))
        };
        Ok(pids.filter(is_keeper).collect())
    }

    /// Its process id, when it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    fn program(&self) -> Result<PathBuf> {
        self.options.program.clone().map_or_else(shunt_program, Ok)
    }

    /// The log of the running agent.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// How it should be run at its next start.
    pub fn options_mut(&mut self) -> &mut AgentOptions {
        &mut self.options
    }

    /// The folder of its pins.
    pub fn bpffs(&self) -> &Path {
        &self.station.bpffs
    }

    /// Runs `shunt WORDS --bpffs …` on the node.
    pub fn shunt(&self, words: &[&str]) -> Result<Output> {
        let mut line = vec![self.program()?.display().to_string()];
        line.extend(words.iter().map(|word| (*word).to_owned()));
        line.extend(["--bpffs".into(), self.station.bpffs.display().to_string()]);
        self.station.netns.exec(&line)
    }

    /// Its metrics page.
    pub fn metrics(&self) -> Result<String> {
        self.station.netns.http_get("http://127.0.0.1:10249/metrics")
    }

    /// Packets that had this reason at this hook so far, by their names on the metrics page.
    pub fn packets(&self, hook: &str, reason: &str) -> Result<u64> {
        Ok(self.outcomes(hook)?.get(reason).copied().unwrap_or_default())
    }

    /// Packets at this hook so far, by reason.
    pub fn outcomes(&self, hook: &str) -> Result<BTreeMap<String, u64>> {
        let name = format!("shunt_packets_total{{hook=\"{hook}\",reason=\"");
        let metrics = self.metrics()?;
        let lines = metrics.lines().filter_map(|line| line.strip_prefix(&name)?.split_once("\"} "));
        lines
            .map(|(reason, value)| {
                let value = value.parse().map_err(std::io::Error::other);
                Ok((reason.to_owned(), value.doing(|| format!("read the metric {name}{reason}"))?))
            })
            .collect()
    }
}

fn not_running(node: &str) -> LabError {
    LabError::Missing {
        problem: format!("the agent of {node} does not run"),
        remedy: "start it first".into(),
    }
}

/// Whether a log line, plain or JSON, is the agent's announcement.
fn says_ready(line: &str) -> bool {
    line.contains("\"message\":\"ready\"") || line.split_ascii_whitespace().any(|word| word == "ready")
}

/// The end of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
