//! The real agent in a node, with its Services from a file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lb_bench::kube_proxy::ServicePort;
use lb_common::abi::{Hook, Reason};
use lb_kernel::maps::{Access, Maps, counters};
use lb_kernel::pin::PinDir;
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::case::Aim;
use crate::ground::{BPFFS, FILES, Node, UPLINK, UPLINK2};
use crate::rules::{self, NODE};

/// How the node is called.
const NAME: &str = "here";
/// How long the agent may take to be ready.
const READY: Duration = Duration::from_secs(120);

/// A running agent; ends with this process, or earlier.
pub struct Agent {
    process: Child,
    maps: Maps,
    _folder: TempDir,
}

impl Agent {
    /// Starts it and waits until it says that it is ready. `name` and the number of Services are its own.
    pub fn start(node: &Node, services: u32, name: &str) -> Result<Self> {
        let folder = TempDir::new_in(FILES).into_diagnostic()?;
        let (manifests, log) = (folder.path().join("services.yaml"), folder.path().join("log"));
        fs::write(&manifests, manifest(services)).into_diagnostic()?;
        let bpffs = format!("{BPFFS}/{name}-{services}");
        let (out, err) = (File::create(&log).into_diagnostic()?, open(&log)?);
        // However this process ends, the agent ends with it, and with the agent its namespaces.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_shunt"), "agent"]);
        command.args(["--source", "manifests", "--node-name", NAME, "--node-ip", &NODE.to_string()]);
        command.args([
            "--uplink",
            UPLINK,
            "--uplink",
            UPLINK2,
            "--xdp-mode",
            "native",
            "--xdp-forward",
            "on",
            "--socket-lb",
            "off",
        ]);
        command.args([
            "--keeper",
            "off",
            "--healthz-bind-address",
            "",
            "--metrics-bind-address",
            "",
            "--bpffs",
            &bpffs,
        ]);
        command.arg("--manifests").arg(&manifests).stdin(Stdio::null()).stdout(out).stderr(err);
        let mut process = node.within(|| command.spawn().into_diagnostic().wrap_err("setpriv"))?;
        match await_ready(&mut process, &log).and_then(|()| {
            Maps::open(&PinDir::new(&bpffs), Access::Read).into_diagnostic().wrap_err("the agent's maps")
        }) {
            Ok(maps) => Ok(Self { process, maps, _folder: folder }),
            Err(error) => {
                end(&mut process);
                let log = fs::read_to_string(&log).unwrap_or_default();
                Err(error.wrap_err(format!("the agent with {services} Services:\n{log}")))
            }
        }
    }

    /// What packets from the wire have come to so far.
    pub fn outcomes(&self) -> Result<BTreeMap<Reason, u64>> {
        let outcomes = counters::outcomes(&self.maps).into_diagnostic()?;
        let of_uplinks = outcomes.into_iter().filter(|outcome| outcome.hook == Hook::UplinkXdp);
        Ok(of_uplinks.map(|outcome| (outcome.reason, outcome.count)).collect())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

fn end(process: &mut Child) {
    let _ = process.kill();
    let _ = process.wait();
}

fn open(path: &Path) -> Result<File> {
    File::options().append(true).open(path).into_diagnostic()
}

fn await_ready(process: &mut Child, log: &Path) -> Result<()> {
    let deadline = Instant::now() + READY;
    while Instant::now() < deadline {
        let text = fs::read_to_string(log).into_diagnostic()?;
        if text.lines().any(|line| line.split_ascii_whitespace().any(|word| word == "ready")) {
            return Ok(());
        }
        if let Some(status) = process.try_wait().into_diagnostic()? {
            return Err(miette!("it ended: {status}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(miette!("it was not ready after {READY:?}"))
}

/// The Services as a file: those that packets aim at (one, when there is but one), and others.
fn manifest(services: u32) -> String {
    let several = [(Aim::Back, "udp"), (Aim::Back, "tcp"), (Aim::Across, "udp"), (Aim::Here, "udp")];
    let aims = if services == 1 { &several[..1] } else { &several };
    let measured = aims.iter().map(|(aim, proto)| {
        (rules::measured(*aim, proto), if *aim == Aim::Here { NAME } else { "elsewhere" })
    });
    let fillers = (aims.len() as u32..services).map(|number| (rules::filler(number), "elsewhere"));
    let objects = measured.chain(fillers).flat_map(|(service, node)| objects(&service, node));
    objects.map(|object| format!("---\n{object}\n")).collect()
}

fn objects(service: &ServicePort, node: &str) -> [Value; 2] {
    let ServicePort { name, protocol, cluster_ip, port, external_ip, endpoints, target_port, .. } = service;
    let protocol = protocol.to_uppercase();
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|address| json!({ "addresses": [address], "conditions": { "ready": true }, "nodeName": node }))
        .collect();
    [
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "type": "ClusterIP",
                "clusterIP": cluster_ip,
                "clusterIPs": [cluster_ip],
                "ipFamilies": ["IPv4"],
                "externalIPs": external_ip.iter().collect::<Vec<_>>(),
                "ports": [{ "name": "p", "protocol": protocol, "port": port, "targetPort": target_port }],
            },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-1"),
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": name },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "p", "protocol": protocol, "port": target_port }],
            "endpoints": endpoints,
        }),
    ]
}
