//! The demonstration: the manifests of `deploy/demo`, the pods they name, and the ways to reach them.
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::error::{Doing, LabError, Result};
use super::{AddressPlan, Family, Lab, NodeId, PodKind, Report, at};

/// The pod that asks from inside.
const VISITOR: &str = "visitor";

/// Manifest files and what follows from them.
#[derive(Debug)]
pub struct Demo {
    files: Vec<(String, String)>,
    pods: Vec<PodSpec>,
    outside: Vec<String>,
    paths: Vec<DemoPath>,
}

#[derive(Debug)]
struct PodSpec {
    name: String,
    node: NodeId,
    address: Ipv4Addr,
    kind: PodKind,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A pod on node-a.
    Pod,
    /// A process of node-a itself.
    Host,
    /// The client outside.
    Outside,
}

/// One way to reach one Service, in every family it has.
#[derive(Clone, Debug)]
pub struct DemoPath {
    /// The Service's name.
    pub service: String,
    /// Who asks.
    pub asker: Asker,
    /// Which addresses are asked, one of a family.
    pub to: Vec<SocketAddr>,
    /// Whether it is a DNS query; an HTTP request otherwise.
    pub dns: bool,
    /// Who may answer.
    pub endpoints: Vec<String>,
}

impl DemoPath {
    /// Asks one of the addresses so many times.
    pub fn ask(&self, lab: &Lab, to: SocketAddr, count: u32) -> Result<Report> {
        let netns = match self.asker {
            Asker::Pod => lab.pod(VISITOR).netns(),
            Asker::Host => lab.node(NodeId::A),
            Asker::Outside => lab.client(),
        };
        if self.dns { netns.dns(to, count) } else { netns.http(to, count) }
    }

    /// What is wrong with the answers, if anything.
    pub fn complaint(&self, report: &Report) -> Option<String> {
        if let Some((reason, count)) = report.failures.iter().next() {
            return Some(format!("{count} × {reason}"));
        }
        let stranger = report.answers.keys().find(|name| !self.endpoints.contains(name));
        stranger.map(|name| format!("answered by {name}, which is none of its endpoints"))
    }
}

// The few fields of the manifests that matter here.

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceManifest {
    metadata: Metadata,
    spec: ServiceSpec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ServiceSpec {
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<IpAddr>,
    ports: Vec<ServicePort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServicePort {
    #[serde(default = "tcp")]
    protocol: String,
    port: u16,
    node_port: Option<u16>,
}

#[derive(Deserialize)]
struct SliceManifest {
    metadata: Metadata,
    ports: Vec<SlicePort>,
    endpoints: Vec<EndpointManifest>,
}

#[derive(Deserialize)]
struct SlicePort {
    port: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointManifest {
    addresses: Vec<IpAddr>,
    node_name: Option<String>,
    target_ref: Option<Metadata>,
}

fn tcp() -> String {
    "TCP".into()
}

impl Demo {
    /// Reads every `.yaml` file of a folder.
    pub fn read(folder: &Path) -> Result<Demo> {
        let entries = fs::read_dir(folder).doing(|| format!("list {}", folder.display()))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        paths.sort();
        let (mut services, mut slices, mut files) = (Vec::new(), Vec::new(), Vec::new());
        for path in &paths {
            let text = fs::read_to_string(path).doing(|| format!("read {}", path.display()))?;
            let wrong = |error: &dyn std::fmt::Display| LabError::Missing {
                problem: format!("{} is not a manifest the demonstration can use: {error}", path.display()),
                remedy: "compare it with `git diff`, or see `kubectl explain service.spec`".into(),
            };
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| wrong(&error))?;
            for document in documents {
                match document["kind"].as_str() {
                    Some("Service") => services.push(
                        serde_json::from_value::<ServiceManifest>(document).map_err(|error| wrong(&error))?,
                    ),
                    Some("EndpointSlice") => slices.push(
                        serde_json::from_value::<SliceManifest>(document).map_err(|error| wrong(&error))?,
                    ),
                    _ => {}
                }
            }
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            files.push((name, text));
        }
        let mut demo = Demo { files, pods: Vec::new(), outside: Vec::new(), paths: Vec::new() };
        for service in &services {
            demo.add_service(service, &slices);
        }
        Ok(demo)
    }

    fn add_service(&mut self, service: &ServiceManifest, slices: &[SliceManifest]) {
        let name = &service.metadata.name;
        let label =
            |slice: &&SliceManifest| slice.metadata.labels.get("kubernetes.io/service-name") == Some(name);
        let mut endpoints = Vec::new();
        for slice in slices.iter().filter(label) {
            let kind =
                if slice.ports.iter().any(|port| port.port == 53) { PodKind::Dns } else { PodKind::Web };
            for endpoint in &slice.endpoints {
                let name = self.add_endpoint(endpoint, kind, name);
                // Once for each family it is in.
                if !endpoints.contains(&name) {
                    endpoints.push(name);
                }
            }
        }
        let plan = AddressPlan::default();
        let families: Vec<Family> = service.spec.cluster_ips.iter().map(|ip| Family::of(*ip)).collect();
        let of_each = |address: &dyn Fn(Family) -> IpAddr| families.iter().map(|it| address(*it)).collect();
        for port in &service.spec.ports {
            let dns = port.protocol == "UDP";
            if !dns && port.port == 53 {
                continue;
            }
            let mut path = |asker: Asker, addresses: Vec<IpAddr>, port: u16| {
                let (service, endpoints) = (name.clone(), endpoints.clone());
                let to = addresses.into_iter().map(|address| at(address, port)).collect();
                self.paths.push(DemoPath { service, asker, to, dns, endpoints });
            };
            path(Asker::Pod, service.spec.cluster_ips.clone(), port.port);
            path(Asker::Host, service.spec.cluster_ips.clone(), port.port);
            if let Some(node_port) = port.node_port {
                path(Asker::Host, of_each(&Family::loopback), node_port);
                for node in NodeId::ALL {
                    path(Asker::Outside, of_each(&|family| plan.node_ip(node, family)), node_port);
                }
            }
        }
    }

    /// Takes note of what must run for an endpoint, and returns the name it will answer with.
    fn add_endpoint(&mut self, endpoint: &EndpointManifest, kind: PodKind, service: &str) -> String {
        let node = NodeId::ALL.into_iter().find(|node| Some(node.name()) == endpoint.node_name.as_deref());
        match (&endpoint.target_ref, node, endpoint.addresses.first()) {
            (Some(pod), Some(node), Some(address)) => {
                let known = self.pods.iter().any(|known| known.name == pod.name);
                // The lab gives the pod its IPv6 address by the IPv4 one.
                if let (false, IpAddr::V4(address)) = (known, *address) {
                    self.pods.push(PodSpec { name: pod.name.clone(), node, address, kind });
                }
                pod.name.clone()
            }
            _ => {
                if !self.outside.iter().any(|known| known == service) {
                    self.outside.push(service.to_owned());
                }
                service.to_owned()
            }
        }
    }

    /// Makes the pods in a lab and applies the manifests.
    pub fn set_up(&self, lab: &mut Lab) -> Result<()> {
        lab.add_pod(NodeId::A, VISITOR, PodKind::Idle)?;
        for pod in &self.pods {
            lab.add_pod_at(pod.node, &pod.name, pod.kind, pod.address)?;
        }
        for name in &self.outside {
            lab.serve_outside(name, PodKind::Web)?;
        }
        self.files.iter().try_for_each(|(name, text)| lab.apply_text(name, text))
    }

    /// The ways to ask.
    pub fn paths(&self) -> &[DemoPath] {
        &self.paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demonstration_has_every_kind_of_path() {
        let demo = Demo::read(&crate::repository::root().join("deploy/demo")).unwrap();
        assert_eq!(demo.pods.iter().filter(|pod| pod.kind == PodKind::Web).count(), 3);
        assert_eq!(demo.outside, ["warehouse"]);
        let local = demo.paths.iter().find(|path| path.to[0] == at(Ipv4Addr::LOCALHOST, 32000)).unwrap();
        assert_eq!((local.service.as_str(), local.asker), ("web-public", Asker::Host));
        assert_eq!(local.endpoints, ["web-1", "web-2", "web-3"]);
        assert!(demo.paths.iter().any(|path| path.dns && path.asker == Asker::Outside));
        assert!(demo.paths.iter().any(|path| path.to[0].port() == 5000 && path.asker == Asker::Pod));
        assert!(demo.paths.iter().all(|path| path.to.len() == 2 && path.to[1].is_ipv6()));
    }

    #[test]
    fn the_demonstrations_addresses_are_those_of_the_lab() {
        let folder = crate::repository::root().join("deploy/demo");
        let demo = Demo::read(&folder).unwrap();
        let plan = AddressPlan::default();
        let text: String = demo.files.iter().map(|(_, text)| text.as_str()).collect();
        for pod in &demo.pods {
            let number = plan.pods(pod.node).index(pod.address);
            for family in Family::ALL {
                let address = plan.pods_of(pod.node, family).host(number).to_string();
                assert!(text.contains(&address), "{} is not at {address}", pod.name);
            }
        }
    }
}
