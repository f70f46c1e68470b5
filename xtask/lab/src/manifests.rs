//! Services and EndpointSlices as the manifests that agents and API servers take.
use std::net::IpAddr;

use serde_json::{Value, json};

use super::plan::{Family, NodeId};
use super::pod::Pod;

/// A Service to be.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    cluster_ips: Vec<IpAddr>,
    ports: Vec<Port>,
    external_ips: Vec<IpAddr>,
    balancers: Vec<IpAddr>,
    source_ranges: Vec<String>,
    restricted_everywhere: bool,
    external_local: bool,
    internal_local: bool,
    affinity_seconds: Option<u32>,
}

#[derive(Clone, Debug)]
struct Port {
    protocol: &'static str,
    port: u16,
    target: u16,
    node_port: Option<u16>,
}

/// An endpoint of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses, one of a family at most.
    pub addresses: Vec<IpAddr>,
    /// Its node, if it is a pod.
    pub node: Option<NodeId>,
    /// Takes new traffic.
    pub ready: bool,
    /// Still serves what it has; false only for a pod that is gone or broken.
    pub serving: bool,
    /// Being deleted.
    pub terminating: bool,
}

impl Endpoint {
    /// A ready endpoint that is not a pod.
    pub fn outside(address: impl Into<IpAddr>) -> Self {
        let addresses = vec![address.into()];
        Endpoint { addresses, node: None, ready: true, serving: true, terminating: false }
    }

    /// Adds an address of the other family.
    pub fn and(mut self, address: impl Into<IpAddr>) -> Self {
        self.addresses.push(address.into());
        self
    }

    /// Its address in a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }
}

impl From<&Pod> for Endpoint {
    fn from(pod: &Pod) -> Self {
        let addresses = Family::ALL.map(|family| pod.ip(family)).to_vec();
        Endpoint { addresses, node: Some(pod.node()), ready: true, serving: true, terminating: false }
    }
}

impl Service {
    /// A Service with a ClusterIP and no port yet.
    pub fn new(name: &str, cluster_ip: impl Into<IpAddr>) -> Self {
        Service {
            name: name.into(),
            cluster_ips: vec![cluster_ip.into()],
            ports: Vec::new(),
            external_ips: Vec::new(),
            balancers: Vec::new(),
            source_ranges: Vec::new(),
            restricted_everywhere: false,
            external_local: false,
            internal_local: false,
            affinity_seconds: None,
        }
    }

    /// Adds the ClusterIP of the other family.
    pub fn cluster_ip(mut self, address: impl Into<IpAddr>) -> Self {
        self.cluster_ips.push(address.into());
        self
    }

    /// Lets the API server choose the ClusterIP.
    pub fn any_cluster_ip(mut self) -> Self {
        self.cluster_ips.clear();
        self
    }

    /// Adds a TCP port that leads to `target` in the pods.
    pub fn tcp(self, port: u16, target: u16) -> Self {
        self.port("TCP", port, target, None)
    }

    /// Adds a UDP port that leads to `target` in the pods.
    pub fn udp(self, port: u16, target: u16) -> Self {
        self.port("UDP", port, target, None)
    }

    /// Adds a TCP port with a nodePort.
    pub fn tcp_node_port(self, port: u16, target: u16, node_port: u16) -> Self {
        self.port("TCP", port, target, Some(node_port))
    }

    /// Adds a UDP port with a nodePort.
    pub fn udp_node_port(self, port: u16, target: u16, node_port: u16) -> Self {
        self.port("UDP", port, target, Some(node_port))
    }

    /// Adds an SCTP port.
    pub fn sctp(self, port: u16, target: u16, node_port: Option<u16>) -> Self {
        self.port("SCTP", port, target, node_port)
    }

    fn port(mut self, protocol: &'static str, port: u16, target: u16, node_port: Option<u16>) -> Self {
        self.ports.push(Port { protocol, port, target, node_port });
        self
    }

    /// Adds an external IP.
    pub fn external_ip(mut self, address: impl Into<IpAddr>) -> Self {
        self.external_ips.push(address.into());
        self
    }

    /// Makes it a LoadBalancer with this address, besides those it has.
    pub fn balancer(mut self, address: impl Into<IpAddr>) -> Self {
        self.balancers.push(address.into());
        self
    }

    /// Its source ranges hold at all its addresses.
    pub fn restricted_everywhere(mut self) -> Self {
        self.restricted_everywhere = true;
        self
    }

    /// Adds a range to `loadBalancerSourceRanges`.
    pub fn source_range(mut self, range: impl ToString) -> Self {
        self.source_ranges.push(range.to_string());
        self
    }

    /// Sets externalTrafficPolicy to Local.
    pub fn external_local(mut self) -> Self {
        self.external_local = true;
        self
    }

    /// Sets internalTrafficPolicy to Local.
    pub fn internal_local(mut self) -> Self {
        self.internal_local = true;
        self
    }

    /// Sends a client to the same pod for so long after its last connection.
    pub fn affinity(mut self, seconds: u32) -> Self {
        self.affinity_seconds = Some(seconds);
        self
    }

    /// The Service's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The families of its ClusterIPs; IPv4 when the API server chooses.
    fn families(&self) -> Vec<Family> {
        match self.cluster_ips.as_slice() {
            [] => vec![Family::V4],
            ips => ips.iter().map(|ip| Family::of(*ip)).collect(),
        }
    }

    /// The Service object.
    pub fn object(&self) -> Value {
        let has_node_port = self.ports.iter().any(|port| port.node_port.is_some());
        let kind = match (self.balancers.as_slice(), has_node_port) {
            ([_, ..], _) => "LoadBalancer",
            ([], true) => "NodePort",
            ([], false) => "ClusterIP",
        };
        let ports: Vec<Value> = self.ports.iter().map(Port::of_service).collect();
        let mut spec = json!({ "type": kind, "ports": ports });
        if let Some(address) = self.cluster_ips.first() {
            spec["clusterIP"] = json!(address);
            spec["clusterIPs"] = json!(self.cluster_ips);
            spec["ipFamilies"] = self.families().into_iter().map(Family::name).collect();
        }
        if self.cluster_ips.len() > 1 {
            spec["ipFamilyPolicy"] = json!("RequireDualStack");
        }
        if !self.external_ips.is_empty() {
            spec["externalIPs"] = json!(self.external_ips);
        }
        if kind != "ClusterIP" || !self.external_ips.is_empty() {
            spec["externalTrafficPolicy"] = json!(if self.external_local { "Local" } else { "Cluster" });
        }
        if self.internal_local {
            spec["internalTrafficPolicy"] = json!("Local");
        }
        if !self.source_ranges.is_empty() {
            spec["loadBalancerSourceRanges"] = json!(self.source_ranges);
        }
        let mut annotations = serde_json::Map::new();
        if self.restricted_everywhere {
            annotations.insert("shunt.dev/source-ranges-at".to_owned(), json!("everywhere"));
        }
        if let Some(seconds) = self.affinity_seconds {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": seconds } });
        }
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": "default", "annotations": annotations },
            "spec": spec,
        });
        if !self.balancers.is_empty() {
            let ingress: Vec<Value> = self.balancers.iter().map(|ip| json!({ "ip": ip })).collect();
            object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        }
        object
    }

    /// The EndpointSlice with these endpoints, in the Service's first family.
    pub fn slice(&self, endpoints: &[Endpoint]) -> Value {
        self.slice_of(self.families()[0], endpoints)
    }

    /// The EndpointSlice of a family: these endpoints, as far as they have an address in it.
    pub fn slice_of(&self, family: Family, endpoints: &[Endpoint]) -> Value {
        // IPv4 was there first, and keeps its name.
        let suffix = if family == Family::V4 { "" } else { "-ipv6" };
        let endpoints: Vec<Value> = endpoints
            .iter()
            .filter_map(|endpoint| Some(endpoint.object(endpoint.address(family)?)))
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-lab{suffix}", self.name),
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": self.name },
            },
            "addressType": family.name(),
            "ports": self.ports.iter().map(Port::of_slice).collect::<Vec<_>>(),
            "endpoints": endpoints,
        })
    }

    /// All objects as one manifest file.
    pub fn manifest(&self, endpoints: &[Endpoint]) -> String {
        // JSON is YAML, and YAML files may hold several documents; the first line tells kubectl that it is one.
        let slices = self.families().into_iter().map(|family| self.slice_of(family, endpoints));
        std::iter::once(self.object()).chain(slices).map(|object| format!("---\n{object:#}\n")).collect()
    }
}

impl Port {
    fn name(&self) -> String {
        format!("{}-{}", self.protocol.to_lowercase(), self.port)
    }

    fn of_service(&self) -> Value {
        let mut port = json!({
            "name": self.name(), "protocol": self.protocol, "port": self.port, "targetPort": self.target,
        });
        if let Some(node_port) = self.node_port {
            port["nodePort"] = json!(node_port);
        }
        port
    }

    fn of_slice(&self) -> Value {
        json!({ "name": self.name(), "protocol": self.protocol, "port": self.target })
    }
}

impl Endpoint {
    fn object(&self, address: IpAddr) -> Value {
        let mut object = json!({
            "addresses": [address],
            "conditions": { "ready": self.ready, "serving": self.serving, "terminating": self.terminating },
        });
        if let Some(node) = self.node {
            object["nodeName"] = json!(node.name());
        }
        object
    }
}
