//! The agent's flags, as given on the command line, in variables and in files.

use std::net::IpAddr;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use lb_control::network::forward::ForwardMode;
use lb_control::network::netfilter::HostRulesMode;
use lb_kernel::links::XdpMode;
use serde::Deserialize;

use super::config::ConfigError;
use super::kube_proxy::{self, Note};

/// Default of `--bpffs`.
pub const BPFFS: &str = "/sys/fs/bpf/shunt";

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

/// Whether XDP sends on by itself (`--xdp-forward`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpForward {
    /// Out of cards, where the host has no rules for what it forwards; never into a veth, a tap or a bridge
    #[default]
    Auto,
    /// Wherever it sits in the driver
    On,
    /// Nowhere: XDP translates and hands on, or tc does
    Off,
}

impl From<XdpForward> for ForwardMode {
    fn from(forward: XdpForward) -> Self {
        match forward {
            XdpForward::Auto => Self::Auto,
            XdpForward::On => Self::On,
            XdpForward::Off => Self::Off,
        }
    }
}

/// Who translates where the host has rules of its own that packets of Services have to meet (`--host-rules`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostRules {
    /// Netfilter, as long as there are such rules
    #[default]
    Auto,
    /// Netfilter, always
    Conntrack,
    /// Never netfilter: such rules do not see Services as with kube-proxy
    Ignore,
}

impl From<HostRules> for HostRulesMode {
    fn from(host_rules: HostRules) -> Self {
        match host_rules {
            HostRules::Auto => Self::Auto,
            HostRules::Conntrack => Self::Conntrack,
            HostRules::Ignore => Self::Ignore,
        }
    }
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

impl From<LogFormat> for lb_telemetry::logs::Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

/// Which clients are pods, who are not masqueraded on their way to a ClusterIP (`--detect-local-mode`).
/// kube-proxy's spelling is taken as well.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DetectLocalMode {
    /// Those inside --cluster-cidr
    #[value(alias = "ClusterCIDR")]
    #[serde(alias = "ClusterCIDR")]
    ClusterCidr,
    /// Those inside the podCIDRs of this Node
    #[value(alias = "NodeCIDR")]
    #[serde(alias = "NodeCIDR")]
    NodeCidr,
    /// Those behind a pod's interface; the ports of --pod-bridge-interface are such
    #[value(alias = "BridgeInterface")]
    #[serde(alias = "BridgeInterface")]
    BridgeInterface,
    /// Those behind a pod's interface; what --pod-interface-name-prefix begins is one
    #[value(alias = "InterfaceNamePrefix")]
    #[serde(alias = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

/// The agent's flags as given. The same names, without dashes in front, make up the file of `--config`.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct AgentArgs {
    /// Where Services come from [default: kubernetes where a kubeconfig or service account is found]
    #[arg(long, env = "SHUNT_SOURCE", value_enum, help_heading = "Source")]
    pub source: Option<SourceKind>,
    /// File or folder of Service, EndpointSlice, Endpoints and Node manifests, watched for changes
    #[arg(long, env = "SHUNT_MANIFESTS", value_name = "PATH", help_heading = "Source")]
    pub manifests: Option<PathBuf>,
    /// Kubeconfig of the API server [default: $KUBECONFIG, ~/.kube/config, the pod's service account]
    #[arg(long, env = "SHUNT_KUBECONFIG", value_name = "FILE", help_heading = "Source")]
    pub kubeconfig: Option<PathBuf>,
    /// Which externalIPs are served: all, none, or those in these networks [default: all]
    #[arg(long, env = "SHUNT_EXTERNAL_IPS", value_name = "all|none|CIDR,…", help_heading = "Source")]
    pub external_ips: Option<String>,

    /// This node's name, as nodeName of endpoints says it [default: the host name, in small letters]
    #[arg(long, env = "SHUNT_NODE_NAME", value_name = "NAME", help_heading = "Node")]
    pub node_name: Option<String>,
    /// This node's address, one for each family [default: the source of that family's default route]
    #[arg(long, env = "SHUNT_NODE_IP", value_name = "ADDRESS", value_delimiter = ',', help_heading = "Node")]
    pub node_ip: Vec<IpAddr>,
    /// The pods' addresses in the whole cluster, one network for each family: clients inside are not masqueraded
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
    /// Where ClusterIPs are taken from; repeatable: unused addresses inside are dropped [default: what the API says]
    #[arg(
        long,
        env = "SHUNT_SERVICE_CIDR",
        value_name = "CIDR",
        value_delimiter = ',',
        help_heading = "Node"
    )]
    pub service_cidr: Vec<IpNet>,
    /// Addresses nodePorts are served on: networks, primary, localhost, all [default: all]
    #[arg(
        long,
        env = "SHUNT_NODEPORT_ADDRESSES",
        value_name = "CIDR|primary,…",
        value_delimiter = ',',
        help_heading = "Node"
    )]
    pub nodeport_addresses: Vec<String>,
    /// Serve nodePorts on 127.0.0.1 and ::1 to the node's own processes; never from the wire [default: true]
    #[arg(
        long,
        env = "SHUNT_LOCALHOST_NODEPORTS",
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Node"
    )]
    pub localhost_nodeports: Option<bool>,

    /// Masquerade every flow: pods' to a ClusterIP too, and what --masquerade-external says
    #[arg(
        long,
        env = "SHUNT_MASQUERADE_ALL",
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Masquerade"
    )]
    pub masquerade_all: Option<bool>,
    /// Masquerade flows from outside to pods of this node too, as kube-proxy does; not with the policy Local
    #[arg(
        long,
        env = "SHUNT_MASQUERADE_EXTERNAL",
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Masquerade"
    )]
    pub masquerade_external: Option<bool>,
    /// Which clients are pods, and so not masqueraded on their way to a ClusterIP [default: cluster-cidr]
    #[arg(long, env = "SHUNT_DETECT_LOCAL_MODE", value_enum, help_heading = "Masquerade")]
    pub detect_local_mode: Option<DetectLocalMode>,
    /// Bridge whose ports are pods' interfaces; used with --detect-local-mode bridge-interface
    #[arg(long, env = "SHUNT_POD_BRIDGE_INTERFACE", value_name = "IFACE", help_heading = "Masquerade")]
    pub pod_bridge_interface: Option<String>,
    /// How names of pods' interfaces begin; used with --detect-local-mode interface-name-prefix
    #[arg(long, env = "SHUNT_POD_INTERFACE_NAME_PREFIX", value_name = "PREFIX", help_heading = "Masquerade")]
    pub pod_interface_name_prefix: Option<String>,

    /// Interface to the outside; repeatable [default: those with an address of the node or on the way of a route, and no pod's]
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
    /// Whether XDP sends on by itself what leaves the node again, past the host's own rules [default: auto]
    #[arg(long, env = "SHUNT_XDP_FORWARD", value_enum, help_heading = "Interfaces")]
    pub xdp_forward: Option<XdpForward>,
    /// Whether netfilter translates where the host's own rules have to be met [default: auto]
    #[arg(long, env = "SHUNT_HOST_RULES", value_enum, help_heading = "Interfaces")]
    pub host_rules: Option<HostRules>,
    /// Which processes connect to endpoints directly [default: host]
    #[arg(long, env = "SHUNT_SOCKET_LB", value_enum, help_heading = "Interfaces")]
    pub socket_lb: Option<SocketLb>,
    /// Who gives new pods and uplinks their programs while this agent is stopped, killed or slow, for ten minutes at most: a process
    /// beside it, nobody, or the `shunt keeper` at this socket [default: on]
    #[arg(long, env = "SHUNT_KEEPER", value_name = "on|off|PATH", help_heading = "Interfaces")]
    pub keeper: Option<String>,
    /// Where the socket hooks attach [default: the root of the cgroup2 mount]
    #[arg(long, env = "SHUNT_CGROUP", value_name = "PATH", help_heading = "Interfaces")]
    pub cgroup: Option<PathBuf>,

    /// Directory on a bpffs for maps and links [default: /sys/fs/bpf/shunt]
    #[arg(long, env = "SHUNT_BPFFS", value_name = "PATH", help_heading = "Kernel")]
    pub bpffs: Option<PathBuf>,
    /// Memory of the IPv4 flow table, e.g. 64MiB, rounded down to a power of two of sets; the IPv6 table holds half as
    /// many flows [default: 18MiB]
    #[arg(long, env = "SHUNT_FLOW_TABLE_SIZE", value_name = "BYTES", help_heading = "Kernel")]
    pub flow_table_size: Option<ByteSize>,
    /// Seed of the flow hash and the rings: the same on every node of a cluster, known to no client [default: from the UID
    /// of the Namespace kube-system; 0 with --source manifests. While flows live, that of a former agent stays in force]
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

    /// kube-proxy's configuration (KubeProxyConfiguration, or the ConfigMap around it); whatever else is given wins over it
    #[arg(long, env = "SHUNT_KUBE_PROXY_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub kube_proxy_config: Option<PathBuf>,
    /// YAML file with the same names; flags and variables win over it
    #[arg(long, env = "SHUNT_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

impl AgentArgs {
    /// Fills in from the files of `--config` and then `--kube-proxy-config` what neither flag nor variable says.
    /// Also what of kube-proxy's file has no meaning here, for the log.
    pub fn with_files(self) -> Result<(Self, Vec<Note>), ConfigError> {
        let read = |flag, path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                flag,
                path: path.clone(),
                source,
            })
        };
        let mut args = self;
        if let Some(path) = args.config.clone() {
            let text = read("config", &path)?;
            let file =
                if text.trim().is_empty() { Ok(Self::default()) } else { serde_saphyr::from_str(&text) };
            let failed = |error: serde_saphyr::Error| ConfigError::Parse {
                flag: "config",
                path,
                message: error.to_string(),
            };
            let file: Self = file.map_err(failed)?;
            args = args.or(file);
        }
        let Some(path) = args.kube_proxy_config.clone() else { return Ok((args, Vec::new())) };
        let text = read("kube-proxy-config", &path)?;
        let failed = |message| ConfigError::Parse { flag: "kube-proxy-config", path: path.clone(), message };
        let mut mapped = kube_proxy::map(&text).map_err(failed)?;
        // It lies in kube-proxy's own pod as a rule.
        if let Some(kubeconfig) = mapped.args.kubeconfig.take_if(|kubeconfig| !kubeconfig.exists()) {
            let text = format!("clientConnection.kubeconfig {}: not here, left out", kubeconfig.display());
            mapped.notes.push(Note { text, doubtful: false });
        }
        let of_file = |note: Note| Note {
            text: format!("--kube-proxy-config {}: {}", path.display(), note.text),
            ..note
        };
        let notes = mapped.notes.into_iter().map(of_file).collect();
        Ok((args.or(mapped.args), notes))
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
            service_cidr: list(self.service_cidr, other.service_cidr),
            nodeport_addresses: list(self.nodeport_addresses, other.nodeport_addresses),
            localhost_nodeports: self.localhost_nodeports.or(other.localhost_nodeports),
            masquerade_all: self.masquerade_all.or(other.masquerade_all),
            masquerade_external: self.masquerade_external.or(other.masquerade_external),
            detect_local_mode: self.detect_local_mode.or(other.detect_local_mode),
            pod_bridge_interface: self.pod_bridge_interface.or(other.pod_bridge_interface),
            pod_interface_name_prefix: self.pod_interface_name_prefix.or(other.pod_interface_name_prefix),
            uplink: list(self.uplink, other.uplink),
            pod_interface: self.pod_interface.or(other.pod_interface),
            xdp_mode: self.xdp_mode.or(other.xdp_mode),
            xdp_forward: self.xdp_forward.or(other.xdp_forward),
            host_rules: self.host_rules.or(other.host_rules),
            socket_lb: self.socket_lb.or(other.socket_lb),
            keeper: self.keeper.or(other.keeper),
            cgroup: self.cgroup.or(other.cgroup),
            bpffs: self.bpffs.or(other.bpffs),
            flow_table_size: self.flow_table_size.or(other.flow_table_size),
            hash_seed: self.hash_seed.or(other.hash_seed),
            healthz_bind_address: self.healthz_bind_address.or(other.healthz_bind_address),
            metrics_bind_address: self.metrics_bind_address.or(other.metrics_bind_address),
            log_format: self.log_format.or(other.log_format),
            log_level: self.log_level.or(other.log_level),
            kube_proxy_config: self.kube_proxy_config,
            config: self.config,
        }
    }
}
