//! Where kube-apiserver, etcd, kubectl and kube-proxy are.
//!
//! They are built from their Go modules, once per machine ([`super::modules`]). `KUBEBUILDER_ASSETS` names a folder with others, as for
//! envtest. kube-proxy, for the tests that compare with it, must be of the same release as the API server: it is taken from that folder
//! if it is there, and else all come from the modules.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{Result, miette};

use super::api_server::version_of;
use super::modules::{ETCD, KUBERNETES};
use crate::command;
use crate::setup::Unavailable;

const API_SERVER: &str = "kube-apiserver";
const PROXY: &str = "kube-proxy";
/// Kubernetes 1.N from which on the server takes the arguments that it is given here.
const OLDEST: u32 = 24;

/// The programs of an API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    kube_apiserver: PathBuf,
    etcd: PathBuf,
    kubectl: PathBuf,
    etcd_may_skip_sync: bool,
}

impl Assets {
    /// Finds the programs, or builds them (four minutes on two cores, once).
    pub fn find_or_build() -> Result<Self> {
        match env::var_os("KUBEBUILDER_ASSETS") {
            Some(folder) => Self::in_folder(Path::new(&folder)),
            None => Self::in_folders(&KUBERNETES.built()?, &ETCD.built()?),
        }
    }

    /// The same, and the kube-proxy that belongs to this API server.
    pub fn with_kube_proxy() -> Result<(Self, PathBuf)> {
        if let Some(found) = Self::given_with_kube_proxy()? {
            return Ok(found);
        }
        let bin = KUBERNETES.built()?;
        Ok((Self::in_folders(&bin, &ETCD.built()?)?, bin.join(PROXY)))
    }

    /// The same, if nothing needs to be built for it.
    pub fn found_with_kube_proxy() -> Result<(Self, PathBuf)> {
        if let Some(found) = Self::given_with_kube_proxy()? {
            return Ok(found);
        }
        match (KUBERNETES.found()?, ETCD.found()?) {
            (Some(bin), Some(etcd)) => Ok((Self::in_folders(&bin, &etcd)?, bin.join(PROXY))),
            _ => Err(Unavailable::new("no kube-proxy has been built; `cargo xtask twin` does").into()),
        }
    }

    fn given_with_kube_proxy() -> Result<Option<(Self, PathBuf)>> {
        let Some(folder) = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else { return Ok(None) };
        let proxy = folder.join(PROXY);
        if proxy.exists() {
            return Ok(Some((Self::in_folder(&folder)?, proxy)));
        }
        let version = KUBERNETES.version()?;
        eprintln!("  no {PROXY} in {}: {version} is built, and its API server taken", folder.display());
        Ok(None)
    }

    fn in_folders(kubernetes: &Path, etcd: &Path) -> Result<Self> {
        Self::new(kubernetes.join(API_SERVER), etcd.join("etcd"), kubernetes.join("kubectl"))
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
        if minor < OLDEST {
            return Err(miette!(
                "{} is of Kubernetes 1.{minor}; it takes 1.{OLDEST} or newer",
                kube_apiserver.display()
            ));
        }
        let help = command::output(Command::new(&etcd).arg("--help"))?;
        let help = [help.stdout, help.stderr].concat();
        let etcd_may_skip_sync = String::from_utf8_lossy(&help).contains("unsafe-no-fsync");
        Ok(Self { kube_apiserver, etcd, kubectl, etcd_may_skip_sync })
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

    pub(super) fn etcd_may_skip_sync(&self) -> bool {
        self.etcd_may_skip_sync
    }
}

/// `Kubernetes v1.37.2` → 37.
fn minor_version(text: &str) -> Option<u32> {
    text.trim().rsplit('v').next()?.split('.').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_version_is_read_from_what_the_server_says() {
        assert_eq!(minor_version("Kubernetes v1.37.2\n"), Some(37));
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
