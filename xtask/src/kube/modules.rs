//! Builds programs from the Go modules in `xtask/go`: Kubernetes' own and etcd, each of the release that its go.mod names.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use sha2::{Digest, Sha256};

use super::go::Go;
use crate::debian::make_folder;
use crate::{progress, repository};

/// A module whose programs are built together.
#[derive(Debug)]
pub struct Module {
    /// Its folder in `xtask/go`.
    folder: &'static str,
    /// The module that the programs come from.
    of: &'static str,
    /// Names of programs, and their packages in it.
    programs: &'static [(&'static str, &'static str)],
    /// How long it takes on two cores.
    takes: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
}

/// What an API server and its clients are made of.
pub const KUBERNETES: Module = Module {
    folder: "kubernetes",
    of: "k8s.io/kubernetes",
    programs: &[
        ("kube-apiserver", "cmd/kube-apiserver"),
        ("kubectl", "cmd/kubectl"),
        ("kube-proxy", "cmd/kube-proxy"),
    ],
    takes: "4 minutes on two cores, with 5 GB there meanwhile",
    go_mod: include_str!("../../go/kubernetes/go.mod"),
    go_sum: include_str!("../../go/kubernetes/go.sum"),
};

/// What it keeps its objects in.
pub const ETCD: Module = Module {
    folder: "etcd",
    of: "go.etcd.io/etcd/server/v3",
    programs: &[("etcd", "")],
    takes: "half a minute",
    go_mod: include_str!("../../go/etcd/go.mod"),
    go_sum: include_str!("../../go/etcd/go.sum"),
};

impl Module {
    /// The release that go.mod asks for, such as `v1.37.2`.
    ///
    /// # Errors
    /// go.mod does not say.
    pub fn version(&self) -> Result<&'static str> {
        let words = self.go_mod.lines().map(|line| line.trim().trim_start_matches("require "));
        let mut versions = words.filter_map(|line| line.strip_prefix(self.of)?.strip_prefix(' '));
        let version = versions.find_map(|rest| rest.split_ascii_whitespace().next());
        version.ok_or_else(|| miette!("xtask/go/{}/go.mod does not require {}", self.folder, self.of))
    }

    /// The folder that holds the programs. They are built if they are not there: once on a machine for what go.mod and go.sum say.
    ///
    /// # Errors
    /// No Go is to be had; something cannot be downloaded or compiled.
    pub fn built(&self) -> Result<PathBuf> {
        let bin = self.bin()?;
        if self.is_in(&bin) {
            return Ok(bin);
        }
        make_folder(&bin)?;
        let lock = File::create(beside(&bin, "lock")).into_diagnostic()?;
        if lock.try_lock().is_err() {
            eprintln!("  waiting for another run that builds {} …", self.names());
            lock.lock().into_diagnostic()?;
        }
        if !self.is_in(&bin) {
            self.build(&bin)?;
        }
        Ok(bin)
    }

    /// The same, if they are there.
    ///
    /// # Errors
    /// This machine has no place for a cache.
    pub fn found(&self) -> Result<Option<PathBuf>> {
        let bin = self.bin()?;
        Ok(self.is_in(&bin).then_some(bin))
    }

    /// Where all clones on this machine keep them.
    fn bin(&self) -> Result<PathBuf> {
        let hash = Sha256::new().chain_update(self.go_mod).chain_update(self.go_sum).finalize();
        let stamp: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Ok(repository::cache()?.join(format!("{}-{}-{stamp}", self.folder, self.version()?)))
    }

    fn is_in(&self, bin: &Path) -> bool {
        self.programs.iter().all(|(name, _)| bin.join(name).exists())
    }

    fn names(&self) -> String {
        self.programs.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    fn build(&self, bin: &Path) -> Result<()> {
        eprintln!("Building {} {}, once for this machine", self.names(), self.version()?);
        eprintln!("  (about {}):", self.takes);
        let work = Work::begin(beside(bin, "work"))?;
        let go = Go::find_or_install()?;
        let source = repository::root().join("xtask/go").join(self.folder);
        let run = |title: String, arguments: &[&str]| {
            let mut command = go.command(&source);
            command.env("GOMODCACHE", work.0.join("modules")).env("GOCACHE", work.0.join("cache"));
            progress::run(&title, command.args(arguments))
        };
        run(format!("download the modules of {}", self.of), &["mod", "download"])?;
        for (name, package) in self.programs {
            let built = work.0.join(name);
            let package = Path::new(self.of).join(package).display().to_string();
            let (package, flags) = (package.trim_end_matches('/'), self.linker_flags()?);
            let output = built.display().to_string();
            run(
                format!("compile {name}"),
                &["build", "-trimpath", "-ldflags", &flags, "-o", &output, package],
            )?;
            // The same file system: it appears whole or not at all.
            let place = bin.join(name);
            fs::rename(&built, &place).into_diagnostic().wrap_err_with(|| place.display().to_string())?;
        }
        Ok(())
    }

    /// Gives Kubernetes' programs their version, which else they do not know.
    fn linker_flags(&self) -> Result<String> {
        let version = self.version()?;
        let mut numbers = version.trim_start_matches('v').split('.');
        let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
            return Err(miette!("{version} is no version"));
        };
        let settings =
            [format!("gitVersion={version}"), format!("gitMajor={major}"), format!("gitMinor={minor}")];
        let set = settings.map(|setting| format!(" -X k8s.io/component-base/version.{setting}"));
        Ok(format!("-s -w{}", set.concat()))
    }
}

/// The path of a folder with something more at its end. (What follows a dot in it is no extension.)
fn beside(folder: &Path, more: &str) -> PathBuf {
    let mut path = folder.as_os_str().to_owned();
    path.push(format!(".{more}"));
    path.into()
}

/// A folder for modules and what is compiled of them; deleted at the end, also after a failure.
struct Work(PathBuf);

impl Work {
    fn begin(folder: PathBuf) -> Result<Self> {
        // Left over when an earlier build was killed.
        if folder.exists() {
            fs::remove_dir_all(&folder).into_diagnostic().wrap_err_with(|| folder.display().to_string())?;
        }
        make_folder(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("  cannot delete {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_what_go_mod_requires() {
        for module in [KUBERNETES, ETCD] {
            let version = module.version().unwrap();
            assert!(version.starts_with("v1.") || version.starts_with("v3."), "{version}");
            let sum = format!("{} {version} h1:", module.of);
            assert!(module.go_sum.contains(&sum), "go.sum knows it");
            for (_, package) in module.programs {
                let tool = format!("{}/{package}", module.of);
                let tool = tool.trim_end_matches('/');
                let is_tool = |line: &str| line.trim().trim_start_matches("tool ") == tool;
                assert!(module.go_mod.lines().any(is_tool), "{tool} is a tool in go.mod");
            }
        }
    }

    #[test]
    fn kubernetes_is_told_its_version() {
        let flags = KUBERNETES.linker_flags().unwrap();
        assert!(flags.contains("version.gitMinor=37"), "{flags}");
    }
}
