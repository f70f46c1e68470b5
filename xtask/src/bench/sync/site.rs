//! A node with one of the two proxies, a client pod, and a place where all endpoints are.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::objects::{CLUSTER_IPS, ENDPOINTS};
use super::prober::Server;
use crate::kube::{ApiServer, Identity};
use crate::twin::kube_proxy::{Duty, KubeProxy, Mode, path};
use lb_lab::{AgentOptions, Family, Lab, Netns, NodeId, PodKind, Relay, Source};

const NODE: NodeId = NodeId::A;
/// The address of the pod that answers for all.
const ANY_ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// How long a proxy may take to come to rest.
const CALM: Duration = Duration::from_secs(120);

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The agent.
    Shunt,
    /// kube-proxy in iptables mode.
    KubeProxy,
}

impl Side {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shunt => "Shunt",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

/// How it is known that a proxy has nothing to do.
struct Rest {
    /// Time since the last change.
    least: Duration,
    /// A span of time,
    look: Duration,
    /// and less processor time in it than this.
    little: Duration,
}

impl Side {
    const fn rest(self) -> Rest {
        let millis = Duration::from_millis;
        match self {
            Self::Shunt => Rest { least: millis(0), look: millis(100), little: millis(5) },
            // Its limiter gives two syncs at once, then one a second: two are to be there.
            Self::KubeProxy => Rest { least: millis(2200), look: millis(300), little: millis(6) },
        }
    }
}

/// The programs of both.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `shunt`.
    pub shunt: PathBuf,
    /// `kube-proxy`.
    pub kube_proxy: PathBuf,
    /// Where kube-proxy finds `iptables`; `None`: where everybody does.
    pub tools: Option<PathBuf>,
}

/// A lab for one side. Fields are dropped in order: what runs first, what it runs in last.
pub struct Site {
    side: Side,
    kube_proxy: Option<KubeProxy>,
    server: Server,
    _relay: Relay,
    lab: Lab,
    programs: Programs,
    kubeconfig: PathBuf,
}

impl Site {
    /// Makes the lab; nothing is started in it but the server of the endpoints.
    pub fn build(side: Side, api: &ApiServer, programs: &Programs) -> Result<Self> {
        let mut lab = Lab::builder().build().into_diagnostic()?;
        lab.add_pod(NODE, "client", PodKind::Idle).into_diagnostic()?;
        lab.add_pod(NODE, "server", PodKind::Idle).into_diagnostic()?;
        let pod = lab.pod("server");
        pod.netns().ip(&format!("route add local {ENDPOINTS} dev lo")).into_diagnostic()?;
        let node = lab.node(NODE);
        // One neighbour for all: the kernel keeps a thousand.
        let ways = format!(
            "route add {ENDPOINTS} via {} dev {} onlink\nroute add blackhole {CLUSTER_IPS}",
            pod.address(),
            pod.device()
        );
        node.ip(&ways).into_diagnostic()?;
        // Refusals are told every time.
        for key in ["net.ipv4.icmp_ratelimit", "net.ipv4.conf.all.accept_redirects"] {
            node.sysctl(key, "0").into_diagnostic()?;
        }
        let server = Server::start(pod.netns(), ANY_ENDPOINT)?;
        let port = api.url().rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.ok_or_else(|| miette!("no port in {}", api.url()))?;
        let _relay = lab.relay(NODE, port).into_diagnostic()?;
        let identity = if side == Side::Shunt { Identity::Agent } else { Identity::Admin };
        let kubeconfig = api.kubeconfig(identity);
        Ok(Self { side, kube_proxy: None, server, _relay, lab, programs: programs.clone(), kubeconfig })
    }

    /// Ends what runs and takes away what it has left, and what it needs comes back.
    pub fn clear(&mut self) -> Result<()> {
        match self.side {
            Side::Shunt => self.lab.clean_agents().into_diagnostic(),
            Side::KubeProxy => {
                self.kube_proxy = None;
                let tools = self.programs.tools.as_deref();
                let empty = self.lab.folder().join("empty.rules");
                fs::write(&empty, "*nat\nCOMMIT\n*filter\nCOMMIT\n*mangle\nCOMMIT\n").into_diagnostic()?;
                let empty = empty.display().to_string();
                for restore in ["iptables-restore", "ip6tables-restore"] {
                    let words = ["env", &path(tools), restore, &empty];
                    self.lab.node(NODE).run(&words).into_diagnostic()?;
                }
                Ok(())
            }
        }
    }

    /// Starts the proxy. Does not wait for anything.
    pub fn launch(&mut self) -> Result<()> {
        let kubeconfig = self.kubeconfig.clone();
        match self.side {
            Side::Shunt => {
                let options = AgentOptions {
                    source: Source::Kubernetes(kubeconfig),
                    program: Some(self.programs.shunt.clone()),
                    ..AgentOptions::default()
                };
                let agent = self.lab.prepare_agent(NODE, options).into_diagnostic()?;
                agent.launch().into_diagnostic()
            }
            Side::KubeProxy => {
                let duty = Duty {
                    program: &self.programs.kube_proxy,
                    kubeconfig: &kubeconfig,
                    families: &[Family::V4],
                    mode: Mode::Iptables,
                    tools: self.programs.tools.as_deref(),
                };
                self.kube_proxy = Some(KubeProxy::start(duty, &self.lab, NODE)?);
                Ok(())
            }
        }
    }

    /// The pod that asks.
    pub fn client(&self) -> &Netns {
        self.lab.pod("client").netns()
    }

    /// What the proxy has said, for a failure's message.
    pub fn log(&self) -> String {
        match &self.kube_proxy {
            Some(proxy) => proxy.log(),
            None => {
                let log = self.lab.agent_log(NODE);
                let lines: Vec<_> = log.lines().collect();
                lines[lines.len().saturating_sub(20)..].join("\n")
            }
        }
    }

    /// Processor time of the proxy and all it has started, since the lab is there.
    pub fn processor_time(&self) -> Result<Duration> {
        let file = self.lab.node(NODE).cgroup().join("cpu.stat");
        let text =
            fs::read_to_string(&file).into_diagnostic().wrap_err_with(|| file.display().to_string())?;
        used(&text).ok_or_else(|| miette!("{} does not say usage_usec", file.display()))
    }

    /// Waits until the proxy has little to do after a change at `since`.
    pub fn settle(&self, since: Instant) -> Result<()> {
        let Rest { least, look, little } = self.side.rest();
        thread::sleep(least.saturating_sub(since.elapsed()));
        let deadline = Instant::now() + CALM;
        let mut before = self.processor_time()?;
        loop {
            thread::sleep(look);
            let now = self.processor_time()?;
            if now.saturating_sub(before) < little {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(miette!("{} does not come to rest in {CALM:?}", self.side.name()));
            }
            before = now;
        }
    }

    /// The most memory that was resident at a time, in MiB.
    pub fn peak_memory(&mut self) -> Result<f64> {
        self.status("VmHWM")
    }

    fn status(&mut self, field: &str) -> Result<f64> {
        let pid = match &self.kube_proxy {
            Some(proxy) => Some(proxy.pid()),
            None => self.lab.agent(NODE).pid(),
        };
        let file = format!("/proc/{}/status", pid.ok_or_else(|| miette!("nothing runs"))?);
        let text = fs::read_to_string(&file).into_diagnostic().wrap_err_with(|| file.clone())?;
        mebibytes(&text, field).ok_or_else(|| miette!("{file} does not say {field}"))
    }

    /// Bytes of the agent's maps in MiB, as the agent says.
    pub fn map_memory(&mut self) -> Result<Option<f64>> {
        if self.side == Side::KubeProxy {
            return Ok(None);
        }
        let metrics = self.lab.agent(NODE).metrics().into_diagnostic()?;
        Ok(map_bytes(&metrics).map(|bytes| bytes / (1024.0 * 1024.0)))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.stop(self.lab.pod("server").netns());
    }
}

/// `usage_usec 1234` of a control group's cpu.stat.
fn used(text: &str) -> Option<Duration> {
    let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    line.trim().parse().ok().map(Duration::from_micros)
}

/// A line of /proc/PID/status.
fn mebibytes(text: &str, field: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

/// The sum over the maps of a metrics page.
fn map_bytes(metrics: &str) -> Option<f64> {
    let lines = metrics.lines().filter(|line| line.starts_with("shunt_map_bytes{"));
    let bytes: Vec<f64> = lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    (!bytes.is_empty()).then(|| bytes.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_and_the_agents_figures_are_read() {
        assert_eq!(used("usage_usec 1500\nuser_usec 1000\n"), Some(Duration::from_micros(1500)));
        assert_eq!(mebibytes("Name:\tshunt\nVmHWM:\t   2048 kB\n", "VmHWM"), Some(2.0));
        let metrics = "# HELP x\nshunt_map_bytes{map=\"RINGS\"} 100\nshunt_map_bytes{map=\"A\"} 50.0\nb 1\n";
        assert_eq!(map_bytes(metrics), Some(150.0));
        assert_eq!(map_bytes("b 1\n"), None);
    }
}
