//! The agent's flags, and what becomes of them: checked as a whole before anything is opened.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use ipnet::{IpNet, Ipv4Net};
use lb_common::abi::FlowSet4;
use serde::Deserialize;
use wildmatch::WildMatch;

use crate::dataplane::links::XdpMode;
use crate::desired::ExternalIps;
use crate::net::classify::Selection;
use crate::source;

/// Default of `--bpffs`.
pub const BPFFS: &str = "/sys/fs/bpf/shunt";
const HEALTHZ: &str = "0.0.0.0:10256";
const METRICS: &str = "127.0.0.1:10249";

/// The flow table's bounds: room for 4096 flows, and for 64 million.
const FLOW_SETS: std::ops::RangeInclusive<u64> = 1 << 9..=1 << 23;

/// Where Services come from (`--source`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// The Kubernetes API.
    Kubernetes,
    /// A file or folder of manifests, watched.
    Manifests,
}

/// Which processes the socket hooks serve (`--socket-lb`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketLb {
    /// None: their packets are not translated.
    Off,
    /// Those in the node's own network namespace.
    #[default]
    Host,
    /// Those of pods too.
    All,
}

/// How the log is written (`--log-format`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The agent's flags as given. The same names, without dashes in front, make up the file of `--config`.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct AgentArgs {
    /// Where Services come from [default: kubernetes where a kubeconfig or service account is found]
    #[arg(long, env = "SHUNT_SOURCE", value_enum, help_heading = "Source")]
    pub source: Option<SourceKind>,
    /// File or folder of Service, EndpointSlice and Node manifests, watched for changes
    #[arg(long, env = "SHUNT_MANIFESTS", value_name = "PATH", help_heading = "Source")]
    pub manifests: Option<PathBuf>,
    /// Kubeconfig of the API server [default: $KUBECONFIG, ~/.kube/config, the pod's service account]
    #[arg(long, env = "SHUNT_KUBECONFIG", value_name = "FILE", help_heading = "Source")]
    pub kubeconfig: Option<PathBuf>,
    /// Which externalIPs are served: all, none, or those in these networks [default: all]
    #[arg(long, env = "SHUNT_EXTERNAL_IPS", value_name = "all|none|CIDR,…", help_heading = "Source")]
    pub external_ips: Option<String>,

    /// This node's name, as nodeName of endpoints says it [default: the host name]
    #[arg(long, env = "SHUNT_NODE_NAME", value_name = "NAME", help_heading = "Node")]
    pub node_name: Option<String>,
    /// This node's address, one for each family [default: the source of the default route]
    #[arg(long, env = "SHUNT_NODE_IP", value_name = "ADDRESS", value_delimiter = ',', help_heading = "Node")]
    pub node_ip: Vec<IpAddr>,
    /// The pods' addresses in the whole cluster: clients inside are not masqueraded
    #[arg(
        long,
        env = "SHUNT_CLUSTER_CIDR",
        value_name = "CIDR",
        value_delimiter = ',',
        help_heading = "Node"
    )]
    pub cluster_cidr: Vec<IpNet>,
    /// The pods' addresses on this node; stands in for --cluster-cidr when that is not given
    #[arg(long, env = "SHUNT_POD_CIDR", value_name = "CIDR", value_delimiter = ',', help_heading = "Node")]
    pub pod_cidr: Vec<IpNet>,

    /// Interface to the outside; repeatable [default: those with the node IPs and default routes]
    #[arg(
        long,
        env = "SHUNT_UPLINK",
        value_name = "IFACE",
        value_delimiter = ',',
        help_heading = "Interfaces"
    )]
    pub uplink: Vec<String>,
    /// Host-side interfaces of pods, with * and ? [default: every veth whose peer is in another namespace]
    #[arg(long, env = "SHUNT_POD_INTERFACE", value_name = "PATTERN", help_heading = "Interfaces")]
    pub pod_interface: Option<String>,
    /// How XDP hangs on uplinks [default: auto]
    #[arg(long, env = "SHUNT_XDP_MODE", value_enum, help_heading = "Interfaces")]
    pub xdp_mode: Option<XdpMode>,
    /// Which processes connect to endpoints directly [default: host]
    #[arg(long, env = "SHUNT_SOCKET_LB", value_enum, help_heading = "Interfaces")]
    pub socket_lb: Option<SocketLb>,
    /// Where the socket hooks attach [default: the root of the cgroup2 mount]
    #[arg(long, env = "SHUNT_CGROUP", value_name = "PATH", help_heading = "Interfaces")]
    pub cgroup: Option<PathBuf>,

    /// Directory on a bpffs for maps and links [default: /sys/fs/bpf/shunt]
    #[arg(long, env = "SHUNT_BPFFS", value_name = "PATH", help_heading = "Kernel")]
    pub bpffs: Option<PathBuf>,
    /// Memory of the flow table, e.g. 64MiB; rounded down to a power of two of sets [default: 18MiB]
    #[arg(long, env = "SHUNT_FLOW_TABLE_SIZE", value_name = "BYTES", help_heading = "Kernel")]
    pub flow_table_size: Option<ByteSize>,
    /// Seed of the flow hash and the rings, the same on every node of a cluster [default: 0]
    #[arg(long, env = "SHUNT_HASH_SEED", value_name = "NUMBER", help_heading = "Kernel")]
    pub hash_seed: Option<u64>,

    /// Where /healthz and /livez answer; "" for nowhere [default: 0.0.0.0:10256]
    #[arg(
        long,
        env = "SHUNT_HEALTHZ_BIND_ADDRESS",
        value_name = "ADDRESS:PORT",
        help_heading = "Observation"
    )]
    pub healthz_bind_address: Option<String>,
    /// Where /metrics, /healthz and /proxyMode answer; "" for nowhere [default: 127.0.0.1:10249]
    #[arg(
        long,
        env = "SHUNT_METRICS_BIND_ADDRESS",
        value_name = "ADDRESS:PORT",
        help_heading = "Observation"
    )]
    pub metrics_bind_address: Option<String>,
    /// How the log is written [default: text]
    #[arg(long, env = "SHUNT_LOG_FORMAT", value_enum, help_heading = "Observation")]
    pub log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, trace, or target=level,… [default: info]
    #[arg(long, env = "SHUNT_LOG_LEVEL", value_name = "LEVEL", help_heading = "Observation")]
    pub log_level: Option<String>,

    /// YAML file with the same names; flags and variables win over it
    #[arg(long, env = "SHUNT_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// What is wrong with the configuration, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("--config {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file has a mistake.
    #[error("--config {}: {message}", path.display())]
    Parse {
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
    /// Clients inside are not masqueraded on their way to a ClusterIP.
    pub cluster_cidr: Option<Ipv4Net>,
    /// How XDP is attached.
    pub xdp_mode: XdpMode,
    /// Which processes the socket hooks serve.
    pub socket_lb: SocketLb,
    /// Where the socket hooks attach, when given.
    pub cgroup: Option<PathBuf>,
    /// The pin directory.
    pub bpffs: PathBuf,
    /// Sets of the flow table when given, a power of two.
    pub flow_sets: Option<NonZeroU32>,
    /// Seed of the flow hash and of the rings.
    pub hash_seed: u64,
    /// Where the health server listens.
    pub healthz: Option<SocketAddr>,
    /// Where the metrics server listens.
    pub metrics: Option<SocketAddr>,
    /// How the log is written.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: String,
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
    /// Fills in from the file of `--config` what neither flag nor variable says.
    pub fn with_file(self) -> Result<Self, ConfigError> {
        let Some(path) = self.config.clone() else { return Ok(self) };
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let file = if text.trim().is_empty() { Ok(Self::default()) } else { serde_saphyr::from_str(&text) };
        let file: Self = file.map_err(|error| ConfigError::Parse { path, message: error.to_string() })?;
        Ok(self.or(file))
    }

    fn or(self, other: Self) -> Self {
        fn list<T>(own: Vec<T>, other: Vec<T>) -> Vec<T> {
            if own.is_empty() { other } else { own }
        }
        Self {
            source: self.source.or(other.source),
            manifests: self.manifests.or(other.manifests),
            kubeconfig: self.kubeconfig.or(other.kubeconfig),
            external_ips: self.external_ips.or(other.external_ips),
            node_name: self.node_name.or(other.node_name),
            node_ip: list(self.node_ip, other.node_ip),
            cluster_cidr: list(self.cluster_cidr, other.cluster_cidr),
            pod_cidr: list(self.pod_cidr, other.pod_cidr),
            uplink: list(self.uplink, other.uplink),
            pod_interface: self.pod_interface.or(other.pod_interface),
            xdp_mode: self.xdp_mode.or(other.xdp_mode),
            socket_lb: self.socket_lb.or(other.socket_lb),
            cgroup: self.cgroup.or(other.cgroup),
            bpffs: self.bpffs.or(other.bpffs),
            flow_table_size: self.flow_table_size.or(other.flow_table_size),
            hash_seed: self.hash_seed.or(other.hash_seed),
            healthz_bind_address: self.healthz_bind_address.or(other.healthz_bind_address),
            metrics_bind_address: self.metrics_bind_address.or(other.metrics_bind_address),
            log_format: self.log_format.or(other.log_format),
            log_level: self.log_level.or(other.log_level),
            config: self.config,
        }
    }

    /// Checks everything as a whole. Opens nothing.
    pub fn validate(self, surroundings: &Surroundings) -> Result<Config, ConfigError> {
        let node_name = self.node_name.clone().unwrap_or_else(|| surroundings.host_name.clone());
        if node_name.is_empty() {
            return Err(bad("node-name", "\"\"", "the name must not be empty"));
        }
        let log_level = self.log_level.clone().unwrap_or_else(|| "info".to_owned());
        tracing_subscriber::EnvFilter::try_new(&log_level)
            .map_err(|error| bad("log-level", &log_level, error.to_string()))?;
        let external_ips = self.external_ips.as_deref().unwrap_or("all");
        let external_ips = external_ips.parse().map_err(|error: crate::desired::NetworkError| {
            bad("external-ips", external_ips, format!("{error}, or say all or none"))
        })?;
        let pod_interface = match self.pod_interface.as_deref() {
            Some("") => return Err(bad("pod-interface", "\"\"", "the pattern must not be empty")),
            pattern => pattern.map(WildMatch::new),
        };
        if let Some(name) = self.uplink.iter().find(|name| name.is_empty() || name.len() > 15) {
            return Err(bad("uplink", format!("{name:?}"), "an interface's name has 1 to 15 bytes"));
        }
        Ok(Config {
            source: self.source(surroundings, &node_name)?,
            external_ips,
            node_name,
            selection: Selection { uplinks: self.uplink.clone(), pod_interface, node_ips: self.node_ips()? },
            cluster_cidr: self.cluster_cidr()?,
            xdp_mode: self.xdp_mode.unwrap_or_default(),
            socket_lb: self.socket_lb.unwrap_or_default(),
            cgroup: self.cgroup.clone(),
            bpffs: self.absolute_bpffs()?,
            flow_sets: self.flow_sets()?,
            hash_seed: self.hash_seed.unwrap_or(0),
            healthz: listen("healthz-bind-address", self.healthz_bind_address.as_deref(), HEALTHZ)?,
            metrics: listen("metrics-bind-address", self.metrics_bind_address.as_deref(), METRICS)?,
            log_format: self.log_format.unwrap_or_default(),
            log_level,
        })
    }

    fn source(&self, surroundings: &Surroundings, node_name: &str) -> Result<source::Config, ConfigError> {
        let missing = |flag, message: &str| ConfigError::Value { flag, value: None, message: message.into() };
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
            }),
            SourceKind::Manifests => match &self.manifests {
                Some(path) => Ok(source::Config::Manifests { path: path.clone() }),
                None => Err(missing("manifests", "--source manifests needs a file or folder to read")),
            },
        }
    }

    fn node_ips(&self) -> Result<Vec<Ipv4Addr>, ConfigError> {
        let families = |v4: bool| self.node_ip.iter().filter(|ip| ip.is_ipv4() == v4).count();
        if families(true) > 1 || families(false) > 1 {
            return Err(ConfigError::Value {
                flag: "node-ip",
                value: None,
                message: "give one address for each family at most".into(),
            });
        }
        let unusable = |ip: &IpAddr| ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
        if let Some(ip) = self.node_ip.iter().find(|ip| unusable(ip)) {
            return Err(bad("node-ip", ip, "not an address other machines can reach"));
        }
        Ok(self
            .node_ip
            .iter()
            .filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None })
            .collect())
    }

    fn cluster_cidr(&self) -> Result<Option<Ipv4Net>, ConfigError> {
        let v4 = |nets: &[IpNet]| {
            nets.iter()
                .filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None })
                .collect::<Vec<_>>()
        };
        for (flag, nets) in [("cluster-cidr", &self.cluster_cidr), ("pod-cidr", &self.pod_cidr)] {
            if let [_, second, ..] = v4(nets)[..] {
                return Err(bad(flag, second, "give one network for each family at most"));
            }
        }
        Ok(v4(&self.cluster_cidr).first().or(v4(&self.pod_cidr).first()).map(Ipv4Net::trunc))
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

#[cfg(test)]
mod tests;
