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

/// What the kubelet of that release sets up once and kube-proxy relies on (`pkg/kubelet/kubelet_network_linux.go`):
/// what is marked for dropping is dropped, and 127/8 is nobody else's.
const KUBELET_RULES: &str = r#"*nat
:KUBE-MARK-DROP - [0:0]
-A KUBE-MARK-DROP -j MARK --or-mark 0x8000
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A KUBE-FIREWALL -m comment --comment "kubernetes firewall for dropping marked packets" -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-FIREWALL -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-I OUTPUT -j KUBE-FIREWALL
-I INPUT -j KUBE-FIREWALL
COMMIT
"#;

/// A running kube-proxy in iptables mode; killed when dropped.
#[derive(Debug)]
pub struct KubeProxy {
    process: Process,
    netns: Netns,
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
    /// Before 1.21 it must be told that there are two families.
    pub dual_stack_is_new: bool,
    /// A folder where it finds `iptables` and the others, before it looks elsewhere.
    pub tools: Option<&'a Path>,
}

impl KubeProxy {
    /// Starts it on a node.
    pub fn start(duty: Duty<'_>, lab: &Lab, node: NodeId) -> Result<Self> {
        Self::prepare(lab, node, duty.tools)?;
        Self::launch(duty, lab, node)
    }

    /// Does the kubelet's part.
    pub fn prepare(lab: &Lab, node: NodeId, tools: Option<&Path>) -> Result<()> {
        let netns = lab.node(node);
        let path = path(tools);
        let rules = write(lab, node, "kubelet.rules", KUBELET_RULES)?;
        netns
            .run(&["env", &path, "iptables-restore", "--noflush", &rules.display().to_string()])
            .into_diagnostic()?;
        // 127/8 is a matter of IPv4.
        let of_v6 = KUBELET_RULES.lines().filter(|line| !line.contains("127.0.0.0/8"));
        let of_v6 = of_v6.map(|line| format!("{line}\n")).collect::<String>();
        let rules = write(lab, node, "kubelet.rules6", &of_v6)?;
        netns
            .run(&["env", &path, "ip6tables-restore", "--noflush", &rules.display().to_string()])
            .into_diagnostic()?;
        Ok(())
    }

    /// Starts it on a node that has been prepared.
    pub fn launch(duty: Duty<'_>, lab: &Lab, node: NodeId) -> Result<Self> {
        let netns = lab.node(node).clone();
        let text = configuration(lab, node, duty);
        let configuration = write(lab, node, "kube-proxy.json", &text)?;
        let (path, program) = (path(duty.tools), duty.program.display().to_string());
        let words = ["env", &path, &program, "--v=2", "--config", &configuration.display().to_string()];
        let process = netns.spawn(&words, &lab.folder().join(node.name()).join("kube-proxy.log"));
        Ok(Self { process: process.into_diagnostic()?, netns, path })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until it has written its rules for the first time.
    pub fn await_ready(&mut self) -> Result<()> {
        self.await_rules(READY, |proxy| {
            let saved = SAVE.map(|save| proxy.saved(&[save, "-t", "nat"]));
            saved.iter().all(|rules| rules.contains("-j KUBE-NODEPORTS"))
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
        SAVE.map(|save| self.saved(&[save])).concat()
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
    let must_say_two = duty.dual_stack_is_new && families.len() > 1;
    let clusters: Vec<_> = families.iter().map(|family| lab.plan().of(*family).cluster.to_string()).collect();
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": clusters.join(","),
        "featureGates": if must_say_two { json!({ "IPv6DualStack": true }) } else { json!({}) },
        "hostnameOverride": node.name(),
        "bindAddress": lab.node_address(node),
        "healthzBindAddress": "0.0.0.0:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        // Custom resources are not served as protobuf.
        "clientConnection": {
            "kubeconfig": kubeconfig,
            "contentType": "application/json",
            "acceptContentTypes": "application/json",
        },
        // The size of the connection table belongs to the machine, not to a namespace; it is left alone.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "24h",
            "tcpCloseWaitTimeout": "1h",
        },
        "iptables": { "masqueradeBit": 14, "masqueradeAll": false, "minSyncPeriod": "0s", "syncPeriod": "30s" },
        "oomScoreAdj": 0,
    });
    format!("{configuration:#}\n")
}
