//! etcd and kube-apiserver, started for one test or one lab.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::assets::Assets;
use super::credentials::{self, Identity, kubeconfig};
use super::program::Program;
use super::requests::{self, Request};
use super::writer::Writer;
use crate::command;

/// How long a start may take; two seconds on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(100);

/// Where and how the server listens.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address to listen on. An unspecified one listens on all addresses of its network namespace, so give such a
    /// server a namespace of its own.
    pub bind: IpAddr,
    /// Further addresses that clients use; they stand in the certificate.
    pub addresses: Vec<IpAddr>,
    /// The network namespace (of `ip netns`) to run in; `kubectl` then runs there, too. The loopback interface there
    /// must be up. `None`: this one.
    pub namespace: Option<String>,
    /// Range of ClusterIPs, or two with a comma: one a family.
    pub service_range: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bind: Ipv4Addr::LOCALHOST.into(),
            addresses: Vec::new(),
            namespace: None,
            service_range: "10.96.0.0/16".into(),
        }
    }
}

/// A real API server with RBAC, and etcd behind it. Both are killed and all data is deleted when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    // In this order when dropped: with etcd gone first, the server would only complain.
    server: Option<Program>,
    etcd: Program,
    ports: Ports,
    options: Options,
    assets: Assets,
    folder: TempDir,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    api: u16,
    etcd: u16,
    etcd_peer: u16,
}

impl ApiServer {
    /// Starts etcd and the API server, waits until it is ready, and applies deploy/base's namespace and RBAC.
    pub fn start(assets: &Assets, options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("shunt-api-").tempdir().into_diagnostic()?;
        let mut names = vec![Ipv4Addr::LOCALHOST.into(), options.bind];
        names.extend(&options.addresses);
        names.retain(|address: &IpAddr| !address.is_unspecified());
        credentials::write(folder.path(), &names)?;

        let ports = Ports::free()?;
        let etcd = start_etcd(assets, &options, ports, folder.path())?;
        let mut server = Self { server: None, etcd, ports, options, assets: assets.clone(), folder };
        for identity in Identity::ALL {
            server.write_kubeconfig(identity, &server.url(), &server.kubeconfig(identity))?;
        }
        server.start_again()?;
        server.apply(include_str!("../../../deploy/base/namespace.yaml"))?;
        server.apply(include_str!("../../../deploy/base/rbac.yaml"))?;
        Ok(server)
    }

    /// Ends the API server, not etcd: an outage where connections are refused.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Starts the API server after [`Self::stop`], on the same port and data, and waits until it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        let mut command = self.options.command(self.assets.kube_apiserver());
        command.args(api_server_arguments(&self.options, self.ports, self.folder.path()));
        self.server =
            Some(Program::start("kube-apiserver", &command, &self.folder.path().join("apiserver.log"))?);
        self.wait_for("readiness", |server| server.get_raw("/readyz").is_ok_and(|answer| answer == "ok"))
    }

    /// Suspends the API server: an outage where connections hang.
    pub fn pause(&self) -> Result<()> {
        self.running()?.signal(Signal::SIGSTOP)
    }

    /// Lets it go on after [`Self::pause`].
    pub fn resume(&self) -> Result<()> {
        self.running()?.signal(Signal::SIGCONT)
    }

    /// Process ids of the API server (when it runs) and etcd.
    pub fn process_ids(&self) -> Vec<u32> {
        self.server.iter().chain([&self.etcd]).map(Program::id).collect()
    }

    /// The address clients in the server's own namespace reach it under.
    pub fn url(&self) -> String {
        let bind = self.options.bind;
        self.url_at(if bind.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { bind })
    }

    /// The URL with another of its addresses.
    pub fn url_at(&self, address: IpAddr) -> String {
        format!("https://{}", SocketAddr::new(address, self.ports.api))
    }

    /// A kubeconfig file that uses [`Self::url`].
    pub fn kubeconfig(&self, identity: Identity) -> PathBuf {
        self.folder.path().join(format!("{}.kubeconfig", identity.name()))
    }

    /// Writes a kubeconfig file that uses another URL.
    pub fn write_kubeconfig(&self, identity: Identity, url: &str, path: &Path) -> Result<()> {
        let text = kubeconfig(identity, url, &self.folder.path().join("ca.crt"));
        fs::write(path, text).into_diagnostic().wrap_err_with(|| path.display().to_string())
    }

    /// A kubectl command; give it its arguments.
    pub fn kubectl(&self, identity: Identity) -> Command {
        let mut kubectl = self.options.command(self.assets.kubectl());
        kubectl.arg("--kubeconfig").arg(self.kubeconfig(identity)).arg("--request-timeout=10s");
        // kubectl caches what the server offers, by address: another server on the same port would get its answers.
        kubectl.arg("--cache-dir").arg(self.folder.path().join("kubectl-cache"));
        kubectl
    }

    /// `kubectl get --raw PATH` as administrator.
    pub fn get_raw(&self, path: &str) -> Result<String> {
        command::stdout(self.kubectl(Identity::Admin).args(["get", "--raw", path]))
    }

    /// Creates or changes the objects of this YAML text, as administrator.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let file = tempfile::NamedTempFile::new_in(self.folder.path()).into_diagnostic()?;
        fs::write(file.path(), yaml).into_diagnostic()?;
        command::output(self.kubectl(Identity::Admin).args(["apply", "-f"]).arg(file.path())).map(|_| ())
    }

    /// `kubectl delete` as administrator, for example `["service", "web"]`. Does not wait for finalizers.
    pub fn delete(&self, what: &[&str]) -> Result<()> {
        command::output(self.kubectl(Identity::Admin).args(["delete", "--wait=false"]).args(what)).map(|_| ())
    }

    /// Sends these requests as administrator, in no particular order, and waits for all answers.
    pub fn send(&self, requests: &[Request]) -> Result<()> {
        let folder = self.folder.path();
        requests::send(requests, &self.url(), &folder.join("ca.crt"), folder)
    }

    /// A writer of single objects, as administrator, that is ready when a request comes.
    pub fn writer(&self) -> Result<Writer> {
        let mut kubectl = self.options.command(self.assets.kubectl());
        kubectl.arg("--kubeconfig").arg(self.kubeconfig(Identity::Admin));
        Writer::start(kubectl, &self.folder.path().join("kubectl-proxy.log"))
    }

    fn running(&self) -> Result<&Program> {
        self.server.as_ref().ok_or_else(|| miette!("the API server is stopped"))
    }

    fn wait_for(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if condition(self) {
                return Ok(());
            }
            self.etcd.check()?;
            if let Some(server) = &mut self.server {
                server.check()?;
                if Instant::now() > deadline {
                    let waited = START_DEADLINE.as_secs();
                    return Err(miette!(
                        "no {what} of kube-apiserver after {waited} s. {}",
                        server.log_end()
                    ));
                }
            }
            thread::sleep(POLL);
        }
    }
}

impl Options {
    /// A command in the chosen namespace.
    fn command(&self, program: &Path) -> Command {
        let Some(namespace) = &self.namespace else { return Command::new(program) };
        let mut ip = Command::new("ip");
        ip.args(["netns", "exec", namespace]).arg(program);
        ip
    }
}

impl Ports {
    /// Three ports that are free now, in this namespace; in a namespace of its own nearly all are.
    fn free() -> Result<Self> {
        // All are held until all are known, so that they differ.
        let hold = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let held =
            [hold(), hold(), hold()].into_iter().collect::<std::io::Result<Vec<_>>>().into_diagnostic()?;
        let mut ports = Vec::new();
        for listener in &held {
            ports.push(listener.local_addr().into_diagnostic()?.port());
        }
        Ok(Self { api: ports[0], etcd: ports[1], etcd_peer: ports[2] })
    }
}

fn start_etcd(assets: &Assets, options: &Options, ports: Ports, folder: &Path) -> Result<Program> {
    let client = format!("http://127.0.0.1:{}", ports.etcd);
    let peer = format!("http://127.0.0.1:{}", ports.etcd_peer);
    let mut command = options.command(assets.etcd());
    command.arg("--data-dir").arg(folder.join("etcd"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}")]);
    if assets.etcd_may_skip_sync() {
        command.arg("--unsafe-no-fsync");
    }
    Program::start("etcd", &command, &folder.join("etcd.log"))
}

fn api_server_arguments(options: &Options, ports: Ports, folder: &Path) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    vec![
        format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd),
        format!("--bind-address={}", options.bind),
        // Nobody is to find it by the Service default/kubernetes; and it would not advertise a loopback address.
        "--endpoint-reconciler-type=none".into(),
        format!("--secure-port={}", ports.api),
        format!("--cert-dir={}", file("certificates")),
        format!("--tls-cert-file={}", file("tls.crt")),
        format!("--tls-private-key-file={}", file("tls.key")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--authorization-mode=RBAC".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-signing-key-file={}", file("accounts.key")),
        format!("--service-account-key-file={}", file("accounts.pub")),
        format!("--service-cluster-ip-range={}", options.service_range),
        // No controller makes the ServiceAccounts that this plugin asks for.
        "--disable-admission-plugins=ServiceAccount".into(),
    ]
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
        // A failed test is explained by what the server said.
        if thread::panicking() {
            eprintln!("etcd: {}", self.etcd.log_end());
        }
    }
}

/// Standard output of `program --version`.
pub(super) fn version_of(program: &Path) -> Result<String> {
    command::stdout(Command::new(program).arg("--version").stdin(Stdio::null()))
}
