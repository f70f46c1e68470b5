//! A Go that can build the modules in `xtask/go`.
//!
//! Any Go from 1.21 on brings the release that a go.mod asks for, as a module, where it may (`GOTOOLCHAIN` other than `local`). Debian 12
//! has 1.19; its backports have one that is new enough to begin with, which is unpacked into the cache and not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr};

use crate::debian::{self, PrivateApt, Suite, make_folder};
use crate::setup::{Unavailable, find_program};
use crate::{command, progress, repository};

/// 1.N that the modules ask for.
const WANTED: u32 = 26;
/// The first 1.N that brings others.
const BRINGS_OTHERS: u32 = 21;
const SUITE: &str = "bookworm-backports";
const PACKAGE: &str = "golang-1.23";
const FOLDER: &str = "usr/lib/go-1.23";

/// A Go.
#[derive(Debug)]
pub struct Go {
    program: PathBuf,
}

impl Go {
    /// The machine's own if it will do, else one of Debian's.
    ///
    /// # Errors
    /// There is none, and this is not Debian; it cannot be downloaded.
    pub fn find_or_install() -> Result<Self> {
        if let Some(program) = find_program("go")
            && is_usable(&program)
        {
            return Ok(Self { program });
        }
        let root = repository::cache()?.join(PACKAGE);
        let program = root.join("bin/go");
        if !program.exists() {
            install(&root)?;
        }
        Ok(Self { program })
    }

    /// `go`, for a module. It takes nothing of what `go env -w` has set, and may bring the release that go.mod names.
    pub fn command(&self, module: &Path) -> Command {
        let mut go = Command::new(&self.program);
        go.current_dir(module).env("GOENV", "off").env("GOWORK", "off").env("GOFLAGS", "-modcacherw");
        go.env("CGO_ENABLED", "0").env_remove("GOROOT");
        if release(&self.program).is_none_or(|minor| minor < WANTED) {
            go.env("GOTOOLCHAIN", "auto");
        }
        go
    }
}

/// Whether it is of the release that is wanted, or may bring that.
fn is_usable(program: &Path) -> bool {
    let may_bring = || {
        let said = command::stdout(Command::new(program).args(["env", "GOTOOLCHAIN"])).unwrap_or_default();
        said.trim() != "local"
    };
    release(program).is_some_and(|minor| minor >= WANTED || minor >= BRINGS_OTHERS && may_bring())
}

/// 1.N of a program.
fn release(program: &Path) -> Option<u32> {
    // (Not in a folder with a go.mod, which would have it bring another.)
    let mut version = Command::new(program);
    version.arg("version").current_dir("/").env("GOTOOLCHAIN", "local");
    minor_release(&command::stdout(&mut version).ok()?)
}

/// `go version go1.26.8 linux/amd64` → 26.
fn minor_release(text: &str) -> Option<u32> {
    let numbers = text.split_ascii_whitespace().nth(2)?.strip_prefix("go1.")?;
    numbers.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn install(root: &Path) -> Result<()> {
    if !debian::is_here() {
        return Err(Unavailable::new(format!(
            "Kubernetes' programs are built with Go, and there is none in PATH that will do. Install Go 1.{WANTED}, or any from \
             1.{BRINGS_OTHERS} on that may download others (go env GOTOOLCHAIN), or set KUBEBUILDER_ASSETS to a folder with \
             kube-apiserver, etcd and kubectl, such as `setup-envtest use -p path` prints, and with kube-proxy of the same release"
        ))
        .into());
    }
    let draft = root.with_file_name(format!("{PACKAGE}.draft"));
    if draft.exists() {
        fs::remove_dir_all(&draft).into_diagnostic().wrap_err_with(|| draft.display().to_string())?;
    }
    let downloads = draft.join("downloads");
    make_folder(&downloads)?;
    let architecture = command::stdout(Command::new("dpkg").arg("--print-architecture"))?;
    let apt = PrivateApt::new(&draft.join("apt"), architecture.trim(), &[Suite::Binary(SUITE)])?;
    progress::run(&format!("package lists of {SUITE}"), &mut apt.get(&downloads, &["update"]))?;
    let packages = ["download", &format!("{PACKAGE}-go"), &format!("{PACKAGE}-src")];
    progress::run(&format!("download {PACKAGE}"), &mut apt.get(&downloads, &packages))?;
    for file in fs::read_dir(&downloads).into_diagnostic()? {
        let file = file.into_diagnostic()?.path();
        command::output(Command::new("dpkg-deb").arg("-x").arg(file).arg(draft.join("packages")))?;
    }
    // Debian spreads Go over /usr/lib and /usr/share with links; following them gives one tree.
    let mut copy = Command::new("cp");
    copy.args(["--recursive", "--dereference"])
        .arg(draft.join("packages").join(FOLDER))
        .arg(draft.join("go"));
    command::output(&mut copy)?;
    fs::rename(draft.join("go"), root).into_diagnostic().wrap_err_with(|| root.display().to_string())?;
    fs::remove_dir_all(&draft).into_diagnostic()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_what_go_says() {
        assert_eq!(minor_release("go version go1.26.8 linux/amd64\n"), Some(26));
        assert_eq!(minor_release("go version go1.27rc1 linux/arm64"), Some(27));
        assert_eq!(minor_release("go version devel +abc"), None);
    }

    #[test]
    fn every_module_asks_for_the_release_that_is_wanted() {
        for go_mod in [include_str!("../../go/kubernetes/go.mod"), include_str!("../../go/etcd/go.mod")] {
            assert!(go_mod.lines().any(|line| line == format!("go 1.{WANTED}.0")), "{go_mod}");
        }
    }
}
