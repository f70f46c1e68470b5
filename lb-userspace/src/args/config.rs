//! The agent's configuration: the flags checked as a whole, before anything is opened.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::abi::{FlowReference, FlowSet4};
use lb_control::desired::ExternalIps;
use lb_control::network::addresses::{NodePortAddressError, NodePortAddresses};
use lb_control::network::classify::Selection;
use lb_control::network::forward::ForwardMode;
use lb_control::network::netfilter::HostRulesMode;
use lb_control::source;
use lb_kernel::links::XdpMode;
use wildmatch::WildMatch;

use super::agent::{AgentArgs, BPFFS, DetectLocalMode, LogFormat, SocketLb, SourceKind};

const HEALTHZ: &str = "0.0.0.0:10256";
const METRICS: &str = "127.0.0.1:10249";

/// The flow table's bounds: room for 4096 flows, and for 16 million.
const FLOW_SETS: std::ops::RangeInclusive<u64> = 1 << 9..=FlowReference::MAX_SETS as u64;

/// What is wrong with the configuration, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("--{flag} {}: {source}", path.display())]
    Read {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file has a mistake.
    #[error("--{flag} {}: {message}", path.display())]
    Parse {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, with the place.
        message: String,
    },
    /// A value is out of range or contradicts another.
    #[error("--{flag}{}: {message}", value.as_ref().map(|value| format!(" {value}")).unwrap_or_default())]
    Value {
        /// The flag.
        flag: &'static str,
        /// Its value, where it helps.
        value: Option<String>,
        /// What is wrong and what to do.
        message: String,
    },
}

fn bad(flag: &'static str, value: impl ToString, message: impl Into<String>) -> ConfigError {
    ConfigError::Value { flag, value: Some(value.to_string()), message: message.into() }
}

fn missing(flag: &'static str, message: &str) -> ConfigError {
    ConfigError::Value { flag, value: None, message: message.into() }
}

/// The agent's configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where Services come from.
    pub source: source::Config,
    /// Which externalIPs are served.
    pub external_ips: ExternalIps,
    /// This node's name.
    pub node_name: String,
    /// Which interfaces are served, and the node's addresses where given.
    pub selection: Selection,
    /// Which clients are not masqueraded on their way to a ClusterIP.
    pub detect_local: DetectLocal,
    /// Where pods' addresses are taken from, as far as flags say.
    pub pod_ranges: Vec<IpNet>,
    /// Every flow to a ClusterIP is masqueraded.
    pub masquerade_all: bool,
    /// Masquerade external flows to pods of this node too.
    pub masquerade_external: bool,
    /// Where ClusterIPs are taken from, as far as flags say.
    pub service_cidrs: Vec<IpNet>,
    /// How XDP is attached.
    pub xdp_mode: XdpMode,
    /// Whether XDP sends on by itself.
    pub xdp_forward: ForwardMode,
    /// Who translates where the host has rules of its own.
    pub host_rules: HostRulesMode,
    /// Which processes the socket hooks serve.
    pub socket_lb: SocketLb,
    /// Who stands in at new interfaces.
    pub keeper: Keeper,
    /// Where the socket hooks attach, when given.
    pub cgroup: Option<PathBuf>,
    /// The pin directory.
    pub bpffs: PathBuf,
    /// Sets of the IPv4 flow table when given, a power of two; the IPv6 one gets half as many.
    pub flow_sets: Option<NonZeroU32>,
    /// Seed of the flow hash and of the rings, when given.
    pub hash_seed: Option<u64>,
    /// Where the health server listens.
    pub healthz: Option<SocketAddr>,
    /// Where the metrics server listens.
    pub metrics: Option<SocketAddr>,
    /// How the log is written.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: String,
}

/// One network for each family at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ranges {
    /// IPv4.
    pub v4: Option<Ipv4Net>,
    /// IPv6.
    pub v6: Option<Ipv6Net>,
}

impl Ranges {
    /// The first network of each family.
    pub fn of(networks: &[IpNet]) -> Self {
        let v4 = |net: &IpNet| if let IpNet::V4(net) = net { Some(net.trunc()) } else { None };
        let v6 = |net: &IpNet| if let IpNet::V6(net) = net { Some(net.trunc()) } else { None };
        Self { v4: networks.iter().find_map(v4), v6: networks.iter().find_map(v6) }
    }

    /// No network at all.
    pub const fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

/// Who stands in for the agent at new interfaces (`--keeper`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Keeper {
    /// A process that the agent starts.
    #[default]
    Own,
    /// The one that listens at this socket.
    At(PathBuf),
    /// Nobody: they wait for the agent.
    Nobody,
}

/// Who is a pod, and so not masqueraded on the way to a ClusterIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DetectLocal {
    /// Nothing is known: nobody is foreign.
    Nobody,
    /// Who is inside.
    Ranges(Ranges),
    /// Who is inside the podCIDRs of our Node.
    NodeRanges,
    /// Who comes out of a pod's interface.
    Interface,
}

/// What the machine says where flags are silent.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The host name.
    pub host_name: String,
    /// A kubeconfig or a service account is there.
    pub kubernetes: bool,
}

impl Surroundings {
    /// Looks at this machine.
    pub fn read() -> Self {
        let host_name = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
        let exists = |path: PathBuf| path.exists();
        let kubernetes = std::env::var_os("KUBECONFIG").is_some()
            || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
            || std::env::var_os("HOME").is_some_and(|home| exists(Path::new(&home).join(".kube/config")));
        Self { host_name: host_name.unwrap_or_default(), kubernetes }
    }
}

impl AgentArgs {
    /// Checks everything as a whole. Opens nothing.
    pub fn validate(self, surroundings: &Surroundings) -> Result<Config, ConfigError> {
        let node_name = self.node_name(surroundings)?;
        let log_level = self.log_level.clone().unwrap_or_else(|| "info".to_owned());
        tracing_subscriber::EnvFilter::try_new(&log_level)
            .map_err(|error| bad("log-level", &log_level, error.to_string()))?;
        let external_ips = self.external_ips.as_deref().unwrap_or("all");
        let external_ips = external_ips.parse().map_err(|error: lb_control::desired::NetworkError| {
            bad("external-ips", external_ips, format!("{error}, or say all or none"))
        })?;
        let pod_interface = match self.pod_interface.as_deref() {
            Some("") => return Err(bad("pod-interface", "\"\"", "the pattern must not be empty")),
            pattern => pattern.map(WildMatch::new),
        };
        for name in &self.uplink {
            interface_name("uplink", Some(name))?;
        }
        Ok(Config {
            source: self.source(surroundings, &node_name)?,
            external_ips,
            node_name,
            selection: Selection {
                uplinks: self.uplink.clone(),
                pod_interface,
                pod_bridge: interface_name("pod-bridge-interface", self.pod_bridge_interface.as_deref())?,
                pod_prefix: interface_name(
                    "pod-interface-name-prefix",
                    self.pod_interface_name_prefix.as_deref(),
                )?,
                node_ips: self.node_ips()?,
                node_object_ips: Vec::new(),
                node_port_addresses: self.node_port_addresses()?,
            },
            detect_local: self.detect_local()?,
            pod_ranges: self.cluster_cidr.iter().chain(&self.pod_cidr).map(IpNet::trunc).collect(),
            masquerade_all: self.masquerade_all.unwrap_or(false),
            masquerade_external: self.masquerade_external.or(self.masquerade_all).unwrap_or(false),
            service_cidrs: self.service_cidr.iter().map(IpNet::trunc).collect(),
            xdp_mode: self.xdp_mode.unwrap_or_default(),
            xdp_forward: self.xdp_forward.unwrap_or_default().into(),
            host_rules: self.host_rules.unwrap_or_default().into(),
            socket_lb: self.socket_lb.unwrap_or_default(),
            keeper: self.keeper()?,
            cgroup: self.cgroup.clone(),
            bpffs: self.absolute_bpffs()?,
            flow_sets: self.flow_sets()?,
            hash_seed: self.hash_seed,
            healthz: listen("healthz-bind-address", self.healthz_bind_address.as_deref(), HEALTHZ)?,
            metrics: listen("metrics-bind-address", self.metrics_bind_address.as_deref(), METRICS)?,
            log_format: self.log_format.unwrap_or_default(),
            log_level,
        })
    }

    /// As kubelet and kube-proxy make a Node's name (`nodeutil.GetHostname`).
    fn node_name(&self, surroundings: &Surroundings) -> Result<String, ConfigError> {
        let name = self.node_name.as_ref().unwrap_or(&surroundings.host_name).trim().to_lowercase();
        match (name.is_empty(), &self.node_name) {
            (false, _) => Ok(name),
            (true, Some(given)) => Err(bad("node-name", format!("{given:?}"), "the name must not be empty")),
            (true, None) => Err(missing("node-name", "this host has no name; give that of its Node")),
        }
    }

    fn source(&self, surroundings: &Surroundings, node_name: &str) -> Result<source::Config, ConfigError> {
        let kind = match self.source {
            Some(kind) => kind,
            None if self.manifests.is_some() => SourceKind::Manifests,
            None if self.kubeconfig.is_some() || surroundings.kubernetes => SourceKind::Kubernetes,
            None => {
                return Err(missing(
                    "source",
                    "neither a kubeconfig nor a service account is here. Name one with --kubeconfig FILE, or read \
                     manifests: --source manifests --manifests PATH",
                ));
            }
        };
        match kind {
            SourceKind::Kubernetes if self.manifests.is_some() => {
                Err(missing("manifests", "not used with --source kubernetes: take one of the two away"))
            }
            SourceKind::Kubernetes => Ok(source::Config::Kubernetes {
                kubeconfig: self.kubeconfig.clone(),
                node_name: node_name.to_owned(),
                service_cidrs: self.service_cidr.iter().map(IpNet::trunc).collect(),
                identify: self.hash_seed.is_none(),
            }),
            SourceKind::Manifests => match &self.manifests {
                Some(path) => Ok(source::Config::Manifests {
                    path: path.clone(),
                    give_back_memory: lb_kernel::sys::give_back_memory,
                }),
                None => Err(missing("manifests", "--source manifests needs a file or folder to read")),
            },
        }
    }

    fn node_ips(&self) -> Result<Vec<IpAddr>, ConfigError> {
        let families = |v4: bool| self.node_ip.iter().filter(|ip| ip.is_ipv4() == v4).count();
        if families(true) > 1 || families(false) > 1 {
            return Err(missing("node-ip", "give one address for each family at most"));
        }
        let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let unusable =
            |ip: &IpAddr| ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local(ip);
        if let Some(ip) = self.node_ip.iter().find(|ip| unusable(ip)) {
            return Err(bad("node-ip", ip, "not an address other machines can reach"));
        }
        Ok(self.node_ip.clone())
    }

    fn node_port_addresses(&self) -> Result<NodePortAddresses, ConfigError> {
        let word = |word: &String| {
            word.parse()
                .map_err(|error: NodePortAddressError| bad("nodeport-addresses", word, error.to_string()))
        };
        let words: Vec<NodePortAddresses> =
            self.nodeport_addresses.iter().map(word).collect::<Result<_, _>>()?;
        let localhost = self.localhost_nodeports.unwrap_or(true);
        Ok(NodePortAddresses::all_of(words).with_localhost(localhost))
    }

    fn detect_local(&self) -> Result<DetectLocal, ConfigError> {
        for (flag, networks) in [("cluster-cidr", &self.cluster_cidr), ("pod-cidr", &self.pod_cidr)] {
            for v4 in [true, false] {
                let of_family = |net: &&IpNet| net.network().is_ipv4() == v4;
                if let Some(second) = networks.iter().filter(of_family).nth(1) {
                    return Err(bad(flag, second, "give one network for each family at most"));
                }
            }
        }
        let (cluster, pods) = (Ranges::of(&self.cluster_cidr), Ranges::of(&self.pod_cidr));
        Ok(match self.detect_local_mode {
            None | Some(DetectLocalMode::ClusterCidr) => {
                let ranges = Ranges { v4: cluster.v4.or(pods.v4), v6: cluster.v6.or(pods.v6) };
                if ranges.is_empty() { DetectLocal::Nobody } else { DetectLocal::Ranges(ranges) }
            }
            Some(DetectLocalMode::NodeCidr) if pods.is_empty() => DetectLocal::NodeRanges,
            Some(DetectLocalMode::NodeCidr) => DetectLocal::Ranges(pods),
            Some(DetectLocalMode::BridgeInterface) if self.pod_bridge_interface.is_none() => {
                return Err(missing(
                    "detect-local-mode bridge-interface",
                    "name the pods' bridge with --pod-bridge-interface",
                ));
            }
            Some(DetectLocalMode::InterfaceNamePrefix) if self.pod_interface_name_prefix.is_none() => {
                return Err(missing(
                    "detect-local-mode interface-name-prefix",
                    "say how the names of the pods' interfaces begin with --pod-interface-name-prefix",
                ));
            }
            Some(DetectLocalMode::BridgeInterface | DetectLocalMode::InterfaceNamePrefix) => {
                DetectLocal::Interface
            }
        })
    }

    fn keeper(&self) -> Result<Keeper, ConfigError> {
        match self.keeper.as_deref() {
            None | Some("on") => Ok(Keeper::Own),
            Some("off") => Ok(Keeper::Nobody),
            Some(path) if path.starts_with('/') => Ok(Keeper::At(path.into())),
            Some(other) => {
                Err(bad("keeper", other, "say on, off, or the absolute path of a keeper's socket"))
            }
        }
    }

    fn absolute_bpffs(&self) -> Result<PathBuf, ConfigError> {
        let path = self.bpffs.clone().unwrap_or_else(|| BPFFS.into());
        if path.is_absolute() { Ok(path) } else { Err(bad("bpffs", path.display(), "give an absolute path")) }
    }

    fn flow_sets(&self) -> Result<Option<NonZeroU32>, ConfigError> {
        let Some(size) = self.flow_table_size else { return Ok(None) };
        let set = size_of::<FlowSet4>() as u64;
        let sets = size.as_u64() / set;
        let rounded = if sets == 0 { 0 } else { 1_u64 << sets.ilog2() };
        if !FLOW_SETS.contains(&rounded) {
            let (least, most) = (ByteSize::b(FLOW_SETS.start() * set), ByteSize::b(FLOW_SETS.end() * set));
            return Err(bad("flow-table-size", size, format!("give a size from {least} to {most}")));
        }
        Ok(u32::try_from(rounded).ok().and_then(NonZeroU32::new))
    }
}

fn listen(flag: &'static str, given: Option<&str>, default: &str) -> Result<Option<SocketAddr>, ConfigError> {
    let text = given.unwrap_or(default);
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse().map_err(|_| bad(flag, text, "write ADDRESS:PORT, such as 0.0.0.0:10256"))?;
    Ok(Some(address))
}

fn interface_name(flag: &'static str, name: Option<&str>) -> Result<Option<String>, ConfigError> {
    match name {
        Some(name) if name.is_empty() || name.len() > 15 => {
            Err(bad(flag, format!("{name:?}"), "an interface's name has 1 to 15 bytes"))
        }
        name => Ok(name.map(str::to_owned)),
    }
}

#[cfg(test)]
mod tests;
