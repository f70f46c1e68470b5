//! The real kube-proxy, and an API server that tells it of the Services.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use miette::{IntoDiagnostic, Result, miette};
use tempfile::TempDir;

use super::services::Entry;
use crate::kube::{ApiServer, Assets, Identity, Options, Request};
use crate::twin::kube_proxy::{Duty, KubeProxy, Mode, legacy_tools};
use crate::twin::objects;
use lb_lab::{AddressPlan, Family, Lab, NodeId};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
/// How long kube-proxy may take to write its rules for all Services.
const PATIENCE: Duration = Duration::from_secs(180);
/// Services that are sent at a time.
const AT_A_TIME: usize = 500;

/// The programs, if this machine has them all.
pub type Programs = (Assets, PathBuf);

/// An API server, and kube-proxy's program.
#[derive(Debug)]
pub struct Cluster {
    api: ApiServer,
    kube_proxy: PathBuf,
    tools: Option<PathBuf>,
    there: BTreeSet<String>,
    // Of `tools`.
    _folder: TempDir,
}

impl Cluster {
    /// Starts the API server.
    pub fn start((assets, kube_proxy): &Programs) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("shunt-bench-").tempdir().into_diagnostic()?;
        let tools = legacy_tools(folder.path())?;
        let api = ApiServer::start(assets, Options::default())?;
        let (nodes, status) = objects::nodes(&AddressPlan::default(), &[Family::V4]);
        api.send(&nodes)?;
        api.send(&status)?;
        Ok(Self { api, kube_proxy: kube_proxy.clone(), tools, there: BTreeSet::new(), _folder: folder })
    }

    /// Has kube-proxy write its rules for these Services, which hold those of earlier calls, on a lab's first node. It
    /// ends then: its rules stay, and what it does on the side falls into nobody's rounds.
    pub fn write_rules(&mut self, lab: &Lab, entries: &[Entry]) -> Result<()> {
        self.create(entries)?;
        let port = self.api.url().rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.ok_or_else(|| miette!("no port in {}", self.api.url()))?;
        let _relay = lab.relay(NodeId::A, port).into_diagnostic()?;
        let duty = Duty {
            program: &self.kube_proxy,
            kubeconfig: &self.api.kubeconfig(Identity::Admin),
            families: &[Family::V4],
            mode: Mode::Iptables,
            tools: self.tools.as_deref(),
        };
        let endpoints = entries.iter().map(|entry| entry.protocols().len()).sum();
        KubeProxy::start(duty, lab, NodeId::A)?.await_endpoints(endpoints, PATIENCE)
    }

    fn create(&mut self, entries: &[Entry]) -> Result<()> {
        let new: Vec<_> = entries.iter().filter(|entry| self.there.insert(entry.name.clone())).collect();
        for some in new.chunks(AT_A_TIME) {
            let requests = |entry: &&Entry| {
                let (service, endpoint) = entry.described();
                let slice = service.slice(&[endpoint]);
                [Request::create(SERVICES, service.object()), Request::create(SLICES, slice)]
            };
            self.api.send(&some.iter().flat_map(requests).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}
