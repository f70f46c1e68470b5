//! Where kube-apiserver, etcd and kubectl are.
//!
//! `KUBEBUILDER_ASSETS` names a folder with the three, as for envtest. Without it etcd and kubectl come from Debian's
//! packages and kube-apiserver is built from Debian's source package, once per machine. kube-proxy, for the tests that
//! compare with it, must be of the same release as the API server: it is taken from that folder if it is there, and
//! else both come from Debian's source package.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::api_server::version_of;
use super::debian_source;
use crate::setup::{Unavailable, find_program};
use crate::{command, repository};

/// Version of Debian's source package "kubernetes".
pub const DEBIAN_VERSION: &str = "v1.20.2";

pub(super) const API_SERVER: &str = "kube-apiserver";
const PROXY: &str = "kube-proxy";
/// What is built from the source package, all at once.
const BUILT: [&str; 2] = [API_SERVER, PROXY];

/// The programs of an API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    kube_apiserver: PathBuf,
    etcd: PathBuf,
    kubectl: PathBuf,
    /// Kubernetes 1.N.
    minor: u32,
    etcd_may_skip_sync: bool,
}

impl Assets {
    /// Finds the programs, and builds kube-apiserver when there is none (three minutes on two cores, once).
    pub fn find_or_build() -> Result<Self> {
        match env::var_os("KUBEBUILDER_ASSETS") {
            Some(folder) => Self::in_folder(Path::new(&folder)),
            None => {
                let kube_apiserver = cached(&[API_SERVER])?.join(API_SERVER);
                Self::new(
                    kube_apiserver,
                    installed("etcd", "etcd-server")?,
                    installed("kubectl", "kubernetes-client")?,
                )
            }
        }
    }

    /// The same, and the kube-proxy that belongs to this API server.
    pub fn with_kube_proxy() -> Result<(Self, PathBuf)> {
        Self::beside_kube_proxy(|| cached(&BUILT))
    }

    /// The same, if nothing needs to be built for it.
    pub fn found_with_kube_proxy() -> Result<(Self, PathBuf)> {
        Self::beside_kube_proxy(|| {
            let bin = cache_folder()?.join("bin");
            if BUILT.iter().all(|program| is_usable(&bin.join(program))) {
                return Ok(bin);
            }
            let names = BUILT.join(" and ");
            Err(Unavailable::new(format!("no {names} in {}; `cargo xtask twin` builds them", bin.display()))
                .into())
        })
    }

    fn beside_kube_proxy(built: impl FnOnce() -> Result<PathBuf>) -> Result<(Self, PathBuf)> {
        if let Some(folder) = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
            let proxy = folder.join(PROXY);
            if proxy.exists() {
                return Ok((Self::in_folder(&folder)?, proxy));
            }
            eprintln!("  no {PROXY} in {}: {DEBIAN_VERSION} of Debian's source package", folder.display());
        }
        let built = built()?;
        let assets = Self::new(
            built.join(API_SERVER),
            installed("etcd", "etcd-server")?,
            installed("kubectl", "kubernetes-client")?,
        )?;
        Ok((assets, built.join(PROXY)))
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let program = |name: &str| {
            let path = folder.join(name);
            if path.exists() {
                Ok(path)
            } else {
                Err(miette!(
                    "KUBEBUILDER_ASSETS is {}, but there is no {name} in it; it takes the folder that \
                     `setup-envtest use -p path` prints",
                    folder.display()
                ))
            }
        };
        Self::new(program(API_SERVER)?, program("etcd")?, program("kubectl")?)
    }

    fn new(kube_apiserver: PathBuf, etcd: PathBuf, kubectl: PathBuf) -> Result<Self> {
        let version = version_of(&kube_apiserver)?;
        let minor = minor_version(&version)
            .ok_or_else(|| miette!("{} says {version:?}, not its version", kube_apiserver.display()))?;
        let help = command::output(Command::new(&etcd).arg("--help"))?;
        let help = [help.stdout, help.stderr].concat();
        let etcd_may_skip_sync = String::from_utf8_lossy(&help).contains("unsafe-no-fsync");
        Ok(Self { kube_apiserver, etcd, kubectl, minor, etcd_may_skip_sync })
    }

    /// The API server.
    pub fn kube_apiserver(&self) -> &Path {
        &self.kube_apiserver
    }

    /// Its storage.
    pub fn etcd(&self) -> &Path {
        &self.etcd
    }

    /// The client.
    pub fn kubectl(&self) -> &Path {
        &self.kubectl
    }

    /// Whether the server is older than discovery.k8s.io/v1 (1.21).
    pub fn lacks_endpoint_slices(&self) -> bool {
        self.minor < 21
    }

    /// Whether both families at once must be asked for (before 1.21).
    pub fn lacks_dual_stack(&self) -> bool {
        self.minor < 21
    }

    pub(super) fn etcd_may_skip_sync(&self) -> bool {
        self.etcd_may_skip_sync
    }
}

fn installed(program: &str, package: &str) -> Result<PathBuf> {
    find_program(program).ok_or_else(|| {
        Unavailable::new(format!(
            "there is no {program} in PATH. On Debian: sudo apt-get install --no-install-recommends {package}; \
             elsewhere set KUBEBUILDER_ASSETS to the folder that `setup-envtest use -p path` prints"
        ))
        .into()
    })
}

/// The folder of programs built from Debian's source package. If one of these is missing, all that are are built now.
fn cached(programs: &[&str]) -> Result<PathBuf> {
    let folder = cache_folder()?;
    let bin = folder.join("bin");
    if programs.iter().all(|program| is_usable(&bin.join(program))) {
        return Ok(bin);
    }
    fs::create_dir_all(&bin).into_diagnostic().wrap_err_with(|| bin.display().to_string())?;
    let lock = File::create(folder.join("lock")).into_diagnostic()?;
    if lock.try_lock().is_err() {
        eprintln!("  waiting for another run that builds {} …", programs.join(" and "));
        lock.lock().into_diagnostic()?;
    }
    let missing: Vec<_> = BUILT.into_iter().filter(|program| !is_usable(&bin.join(program))).collect();
    if !missing.is_empty() {
        debian_source::build(&missing, &folder)?;
    }
    Ok(bin)
}

fn is_usable(program: &Path) -> bool {
    program.exists() && version_of(program).is_ok_and(|version| version.contains(DEBIAN_VERSION))
}

/// Shared by all clones on this machine.
fn cache_folder() -> Result<PathBuf> {
    Ok(repository::cache()?.join(format!("kube-{DEBIAN_VERSION}")))
}

/// `Kubernetes v1.20.2` → 20.
fn minor_version(text: &str) -> Option<u32> {
    text.trim().rsplit('v').next()?.split('.').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_version_is_read_from_what_the_server_says() {
        assert_eq!(minor_version("Kubernetes v1.20.2\n"), Some(20));
        assert_eq!(minor_version("Kubernetes v1.33.0-beta.1"), Some(33));
        assert_eq!(minor_version("no idea"), None);
    }

    #[test]
    fn a_folder_without_the_programs_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Assets::in_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no kube-apiserver") && error.contains("setup-envtest"), "{error}");
    }
}
