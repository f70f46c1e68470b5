//! Services and EndpointSlices as the manifests that agents and API servers take.
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::plan::NodeId;
use super::pod::Pod;

/// A Service to be.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    cluster_ip: Option<Ipv4Addr>,
    ports: Vec<Port>,
    external_ips: Vec<Ipv4Addr>,
    balancer: Option<Ipv4Addr>,
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
    /// Its address.
    pub address: Ipv4Addr,
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
    pub fn outside(address: Ipv4Addr) -> Self {
        Endpoint { address, node: None, ready: true, serving: true, terminating: false }
    }
}

impl From<&Pod> for Endpoint {
    fn from(pod: &Pod) -> Self {
        Endpoint { node: Some(pod.node()), ..Endpoint::outside(pod.address()) }
    }
}

impl Service {
    /// A Service with a ClusterIP and no port yet.
    pub fn new(name: &str, cluster_ip: Ipv4Addr) -> Self {
        Service {
            name: name.into(),
            cluster_ip: Some(cluster_ip),
            ports: Vec::new(),
            external_ips: Vec::new(),
            balancer: None,
            external_local: false,
            internal_local: false,
            affinity_seconds: None,
        }
    }

    /// Lets the API server choose the ClusterIP.
    pub fn any_cluster_ip(mut self) -> Self {
        self.cluster_ip = None;
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

    fn port(mut self, protocol: &'static str, port: u16, target: u16, node_port: Option<u16>) -> Self {
        self.ports.push(Port { protocol, port, target, node_port });
        self
    }

    /// Adds an external IP.
    pub fn external_ip(mut self, address: Ipv4Addr) -> Self {
        self.external_ips.push(address);
        self
    }

    /// Makes it a LoadBalancer with this address.
    pub fn balancer(mut self, address: Ipv4Addr) -> Self {
        self.balancer = Some(address);
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

    /// The Service object.
    pub fn object(&self) -> Value {
        let kind = match (self.balancer, self.ports.iter().any(|port| port.node_port.is_some())) {
            (Some(_), _) => "LoadBalancer",
            (None, true) => "NodePort",
            (None, false) => "ClusterIP",
        };
        let ports: Vec<Value> = self.ports.iter().map(Port::of_service).collect();
        let mut spec = json!({ "type": kind, "ports": ports });
        if let Some(address) = self.cluster_ip {
            spec["clusterIP"] = json!(address);
            spec["clusterIPs"] = json!([address]);
            spec["ipFamilies"] = json!(["IPv4"]);
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
        if let Some(seconds) = self.affinity_seconds {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": seconds } });
        }
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": "default" },
            "spec": spec,
        });
        if let Some(address) = self.balancer {
            object["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": address }] } });
        }
        object
    }

    /// The EndpointSlice with these endpoints.
    pub fn slice(&self, endpoints: &[Endpoint]) -> Value {
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-lab", self.name),
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": self.name },
            },
            "addressType": "IPv4",
            "ports": self.ports.iter().map(Port::of_slice).collect::<Vec<_>>(),
            "endpoints": endpoints.iter().map(Endpoint::object).collect::<Vec<_>>(),
        })
    }

    /// Both objects as one manifest file.
    pub fn manifest(&self, endpoints: &[Endpoint]) -> String {
        // JSON is YAML, and YAML files may hold several documents; the first line tells kubectl that it is one.
        format!("---\n{:#}\n---\n{:#}\n", self.object(), self.slice(endpoints))
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
    fn object(&self) -> Value {
        let mut object = json!({
            "addresses": [self.address],
            "conditions": { "ready": self.ready, "serving": self.serving, "terminating": self.terminating },
        });
        if let Some(node) = self.node {
            object["nodeName"] = json!(node.name());
        }
        object
    }
}
