//! kube-proxy's own configuration file, said in our flags (`--kube-proxy-config`). Pure.
//!
//! | field of `KubeProxyConfiguration` | flag |
//! |---|---|
//! | `hostnameOverride` | `--node-name` |
//! | `bindAddress`, unless it means every address | `--node-ip` |
//! | `clientConnection.kubeconfig` | `--kubeconfig` |
//! | `clusterCIDR` | `--cluster-cidr` |
//! | `detectLocalMode` | `--detect-local-mode` |
//! | `detectLocal.bridgeInterface` | `--pod-bridge-interface` |
//! | `detectLocal.interfaceNamePrefix` | `--pod-interface-name-prefix` |
//! | `iptables.masqueradeAll`, with mode nftables `nftables.masqueradeAll` | `--masquerade-all` |
//! | `iptables.localhostNodePorts` | `--localhost-nodeports` |
//! | `nodePortAddresses`, with mode nftables `primary` by default | `--nodeport-addresses` |
//! | `healthzBindAddress` | `--healthz-bind-address` |
//! | `metricsBindAddress` | `--metrics-bind-address` |
//! | `logging.format` | `--log-format` |
//! | `logging.verbosity` of 4 and more | `--log-level debug` |
//!
//! What else kube-proxy knows ([`WITHOUT_MEANING`]) has nothing here to act on, and is listed in the log.

use std::net::IpAddr;

use clap::ValueEnum;
use serde_json::{Map, Value};

use super::agent::{AgentArgs, DetectLocalMode, LogFormat};

#[cfg(test)]
mod tests;

const GROUP: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";
/// Where kubeadm puts the configuration in its ConfigMap.
const KEY: &str = "config.conf";

/// kube-proxy's logs tell of each step from this verbosity on.
const VERBOSE: u64 = 4;

/// What of kube-proxy's configuration says nothing to this agent: there are no rules of netfilter or ipvs, no
/// connection tracking of the kernel's, no period at which everything is looked at again.
pub const WITHOUT_MEANING: [&str; 45] = [
    "bindAddressHardFail",
    "clientConnection.acceptContentTypes",
    "clientConnection.burst",
    "clientConnection.contentType",
    "clientConnection.qps",
    "configSyncPeriod",
    "conntrack.maxPerCore",
    "conntrack.min",
    "conntrack.tcpBeLiberal",
    "conntrack.tcpCloseWaitTimeout",
    "conntrack.tcpEstablishedTimeout",
    "conntrack.udpStreamTimeout",
    "conntrack.udpTimeout",
    "enableProfiling",
    "featureGates",
    "iptables.masqueradeBit",
    "iptables.minSyncPeriod",
    "iptables.snatNodeInternalIP",
    "iptables.syncPeriod",
    "ipvs.excludeCIDRs",
    "ipvs.minSyncPeriod",
    "ipvs.scheduler",
    "ipvs.strictARP",
    "ipvs.syncPeriod",
    "ipvs.tcpFinTimeout",
    "ipvs.tcpTimeout",
    "ipvs.udpTimeout",
    "logging.flushFrequency",
    "logging.options",
    "mode",
    "nftables.masqueradeBit",
    "nftables.minSyncPeriod",
    "nftables.syncPeriod",
    "oomScoreAdj",
    "portRange",
    "resourceContainer",
    "showHiddenMetricsForVersion",
    "udpIdleTimeout",
    "windowsRunAsService",
    "winkernel.enableDSR",
    "winkernel.forwardHealthCheckVip",
    "winkernel.networkName",
    "winkernel.rootHnsEndpointName",
    "winkernel.sourceVip",
    "metadata",
];

/// The file in our flags.
#[derive(Clone, Debug, Default)]
pub struct Mapped {
    /// The flags it amounts to.
    pub args: AgentArgs,
    /// What of it has no meaning here or is not known.
    pub notes: Vec<Note>,
}

/// Something that the reader of the log should know of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// In words.
    pub text: String,
    /// It looks like a mistake.
    pub doubtful: bool,
}

/// Says `text`, a `KubeProxyConfiguration` or a ConfigMap around one, in our flags. An error names the field.
pub fn map(text: &str) -> Result<Mapped, String> {
    let object = parse(text)?;
    if is(&object, "v1", "ConfigMap") {
        let inner = object.get("data").and_then(|data| data.get(KEY)).and_then(Value::as_str);
        let inner = inner
            .ok_or_else(|| format!("the ConfigMap has no data.{KEY} with kube-proxy's configuration"))?;
        let inner = parse(inner).map_err(|error| format!("data.{KEY}: {error}"))?;
        return configuration(inner).map_err(|error| format!("data.{KEY}: {error}"));
    }
    configuration(object)
}

fn parse(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

fn is(object: &Value, group: &str, kind: &str) -> bool {
    let text = |field: &str| object.get(field).and_then(Value::as_str);
    text("apiVersion") == Some(group) && text("kind") == Some(kind)
}

fn configuration(object: Value) -> Result<Mapped, String> {
    if !is(&object, GROUP, KIND) {
        let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or("none").to_owned();
        let (group, kind) = (text("apiVersion"), text("kind"));
        return Err(format!(
            "apiVersion {group}, kind {kind}: expected {GROUP}, {KIND}, or a v1 ConfigMap with it under {KEY}"
        ));
    }
    let Value::Object(fields) = object else { return Err("not an object".to_owned()) };
    let mut fields = Fields(fields);
    fields.take("apiVersion");
    fields.take("kind");
    // What follows from the mode is mapped; the mode itself is left in place, to be listed.
    let nftables = fields.0.get("mode").and_then(Value::as_str) == Some("nftables");
    let args = arguments(&mut fields, nftables)?;
    Ok(Mapped { args, notes: notes(fields.left()) })
}

fn arguments(fields: &mut Fields, nftables: bool) -> Result<AgentArgs, String> {
    let masquerade = [fields.boolean("iptables.masqueradeAll")?, fields.boolean("nftables.masqueradeAll")?];
    let mut args = AgentArgs {
        node_name: fields.text("hostnameOverride")?,
        kubeconfig: fields.text("clientConnection.kubeconfig")?.map(Into::into),
        pod_bridge_interface: fields.text("detectLocal.bridgeInterface")?,
        pod_interface_name_prefix: fields.text("detectLocal.interfaceNamePrefix")?,
        masquerade_all: masquerade[usize::from(nftables)],
        localhost_nodeports: fields.boolean("iptables.localhostNodePorts")?,
        nodeport_addresses: fields.list("nodePortAddresses")?,
        healthz_bind_address: fields.text("healthzBindAddress")?.map(|address| with_port(address, 10256)),
        metrics_bind_address: fields.text("metricsBindAddress")?.map(|address| with_port(address, 10249)),
        ..AgentArgs::default()
    };
    if nftables && args.nodeport_addresses.is_empty() {
        args.nodeport_addresses = vec!["primary".to_owned()];
    }
    if let Some(address) = fields.text("bindAddress")? {
        let address: IpAddr = parsed("bindAddress", &address, "an address")?;
        args.node_ip = Some(address).filter(|address| !address.is_unspecified()).into_iter().collect();
    }
    if let Some(networks) = fields.text("clusterCIDR")? {
        let network = |text: &str| parsed("clusterCIDR", text.trim(), "networks such as 10.244.0.0/16");
        args.cluster_cidr = networks.split(',').map(network).collect::<Result<_, _>>()?;
    }
    if let Some(mode) = fields.text("detectLocalMode")? {
        let modes = "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix";
        let known = DetectLocalMode::from_str(&mode, false);
        args.detect_local_mode = Some(known.map_err(|_| expected("detectLocalMode", &mode, modes))?);
    }
    if let Some(format) = fields.text("logging.format")? {
        let known = LogFormat::from_str(&format, false);
        args.log_format = Some(known.map_err(|_| expected("logging.format", &format, "text or json"))?);
    }
    let verbosity = fields.take("logging.verbosity").as_ref().and_then(Value::as_u64).unwrap_or(0);
    args.log_level = (verbosity >= VERBOSE).then(|| "debug".to_owned());
    Ok(args)
}

fn expected(field: &str, value: &str, what: &str) -> String {
    format!("{field} {value:?}: expected {what}")
}

fn parsed<T: std::str::FromStr>(field: &str, value: &str, what: &str) -> Result<T, String> {
    value.parse().map_err(|_| expected(field, value, what))
}

/// As kube-proxy takes it: an address alone means the usual port.
fn with_port(address: String, port: u16) -> String {
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => format!("{address}:{port}"),
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        Err(_) => address,
    }
}

/// What is left of an object while fields are taken out, by their dotted names.
struct Fields(Map<String, Value>);

impl Fields {
    fn take(&mut self, path: &str) -> Option<Value> {
        match path.split_once('.') {
            None => self.0.remove(path),
            Some((parent, field)) => self.0.get_mut(parent)?.as_object_mut()?.remove(field),
        }
    }

    /// An empty text is as good as none: it asks for the default.
    fn text(&mut self, path: &str) -> Result<Option<String>, String> {
        match self.take(path) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(other) => Err(format!("{path}: expected text, found {other}")),
        }
    }

    fn boolean(&mut self, path: &str) -> Result<Option<bool>, String> {
        match self.take(path) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(format!("{path}: expected true or false, found {other}")),
        }
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, String> {
        let wrong = |other: &Value| format!("{path}: expected a list of texts, found {other}");
        match self.take(path) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(|| wrong(item))).collect()
            }
            Some(other) => Err(wrong(&other)),
        }
    }

    /// Dotted names of what was not taken and says something.
    fn left(self) -> Vec<String> {
        let mut left = Vec::new();
        for (name, value) in self.0 {
            match value {
                Value::Object(fields) if !WITHOUT_MEANING.contains(&name.as_str()) => {
                    let says = fields.into_iter().filter(|(_, value)| !says_nothing(value));
                    left.extend(says.map(|(field, _)| format!("{name}.{field}")));
                }
                value if says_nothing(&value) => {}
                _ => left.push(name),
            }
        }
        left
    }
}

/// The value that a field has when nobody set it.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(says_nothing),
    }
}

fn notes(left: Vec<String>) -> Vec<Note> {
    let (known, unknown): (Vec<_>, Vec<_>) =
        left.into_iter().partition(|field| WITHOUT_MEANING.contains(&field.as_str()));
    let known = (!known.is_empty())
        .then(|| Note { text: format!("without meaning here: {}", known.join(", ")), doubtful: false });
    let unknown = (!unknown.is_empty()).then(|| {
        let text = format!("unknown to kube-proxy's {GROUP} and left out; misspelt? {}", unknown.join(", "));
        Note { text, doubtful: true }
    });
    known.into_iter().chain(unknown).collect()
}
