//! Builds Kubernetes programs from Debian's source package.
//!
//! Debian 12 has the source of Kubernetes 1.20.2 with all its dependencies, and packages only kubectl from it. It is
//! compiled with the Go 1.15 of Debian 11: what newer compilers make of its vendored reflect2 crashes. apt downloads
//! and verifies both, with a configuration of its own; nothing is installed and no root is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::assets::{API_SERVER, DEBIAN_VERSION};
use crate::debian::{PrivateApt, Suite, make_folder};
use crate::setup::Unavailable;
use crate::{command, debian, progress};

const SOURCE_SUITE: &str = "bookworm";
const GO_SUITE: &str = "bullseye";
const GO: &str = "golang-1.15";

/// Builds `cmd/PROGRAM` of each into `folder/bin`. Takes three minutes on two cores, and 3 GB in `folder` meanwhile.
pub fn build(programs: &[&str], folder: &Path) -> Result<()> {
    let names = programs.join(" and ");
    if !debian::is_here() {
        return Err(Unavailable::new(format!(
            "{names} is built from Debian's source package, and this is not Debian. Set KUBEBUILDER_ASSETS to a \
             folder with kube-apiserver, etcd and kubectl, such as `setup-envtest use -p path` prints, and with \
             kube-proxy of the same release"
        ))
        .into());
    }
    eprintln!("Building {names} {DEBIAN_VERSION} from Debian's source package, once for this machine");
    eprintln!("  (about 3 minutes, and 3 GB in {} meanwhile):", folder.display());
    let work = Work::begin(folder.join("work"))?;
    work.download()?;
    work.unpack()?;
    if programs.contains(&API_SERVER) {
        work.generate_openapi()?;
    }
    programs.iter().try_for_each(|program| work.compile(program, &folder.join("bin").join(program)))
}

/// A folder for downloads, sources and Go's cache; deleted at the end, also after a failure.
struct Work {
    folder: PathBuf,
}

impl Work {
    fn begin(folder: PathBuf) -> Result<Self> {
        // Left over when an earlier build was killed.
        if folder.exists() {
            fs::remove_dir_all(&folder).into_diagnostic().wrap_err_with(|| folder.display().to_string())?;
        }
        make_folder(&folder)?;
        Ok(Self { folder })
    }

    fn downloads(&self) -> PathBuf {
        self.folder.join("downloads")
    }

    fn go_root(&self) -> PathBuf {
        self.folder.join("go")
    }

    fn sources(&self) -> PathBuf {
        self.folder.join("path/src/k8s.io/kubernetes")
    }

    fn download(&self) -> Result<()> {
        // The programs are for the machine that runs this.
        let architecture = command::stdout(Command::new("dpkg").arg("--print-architecture"))?;
        let suites = [Suite::Source(SOURCE_SUITE), Suite::Binary(GO_SUITE)];
        let apt = PrivateApt::new(&self.folder.join("apt"), architecture.trim(), &suites)?;
        let downloads = self.downloads();
        make_folder(&downloads)?;
        progress::run("package lists", &mut apt.get(&downloads, &["update"]))?;
        let source = ["source", "--download-only", "--only-source", "kubernetes"];
        progress::run("download the source of Kubernetes", &mut apt.get(&downloads, &source))?;
        let go = ["download", &format!("{GO}-go"), &format!("{GO}-src")];
        progress::run("download Go 1.15", &mut apt.get(&downloads, &go))
    }

    fn unpack(&self) -> Result<()> {
        let step = progress::Step::begin("unpack");
        let began = std::time::Instant::now();
        let packages = self.folder.join("packages");
        make_folder(&packages)?;
        for package in self.downloaded(|name| name.starts_with(GO) && name.ends_with(".deb"))? {
            command::output(Command::new("dpkg-deb").arg("-x").arg(package).arg(&packages))?;
        }
        // Debian spreads Go over /usr/lib and /usr/share with links; following them gives one tree.
        let go = packages.join("usr/lib/go-1.15");
        command::output(
            Command::new("cp").args(["--recursive", "--dereference"]).arg(go).arg(self.go_root()),
        )?;

        make_folder(&self.sources())?;
        let archives =
            self.downloaded(|name| name.starts_with("kubernetes_") && name.contains(".orig.tar."))?;
        let archive =
            archives.first().ok_or_else(|| miette!("apt downloaded no source archive of kubernetes"))?;
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(self.sources()).args(["--strip-components=1", "-xf"]).arg(archive);
        command::output(&mut tar)?;
        step.done(began.elapsed());
        Ok(())
    }

    fn downloaded(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.downloads()).into_diagnostic()?;
        let names = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        Ok(names
            .filter(|path| path.file_name().is_some_and(|name| wanted(&name.to_string_lossy())))
            .collect())
    }

    fn go(&self) -> Command {
        let mut go = Command::new(self.go_root().join("bin/go"));
        go.current_dir(self.sources())
            .env("GOROOT", self.go_root())
            .env("GOPATH", self.folder.join("path"))
            .env("GOCACHE", self.folder.join("cache"))
            .env("GO111MODULE", "off")
            // What `go env -w` has set for the machine's own Go (flags that this one does not know, another GOPROXY …).
            .env("GOENV", "off")
            .env_remove("GOFLAGS")
            .env("CGO_ENABLED", "0")
            .env_remove("GOTOOLDIR");
        go
    }

    /// Upstream's Makefile generates this file and the archive does not have it; the server needs it.
    fn generate_openapi(&self) -> Result<()> {
        let generator = self.folder.join("openapi-gen");
        let package = "./vendor/k8s.io/kube-openapi/cmd/openapi-gen";
        progress::run("compile openapi-gen", self.go().arg("build").arg("-o").arg(&generator).arg(package))?;

        let mut grep = Command::new("grep");
        grep.args(["-rl", "--include=*.go", "+k8s:openapi-gen=", "pkg", "staging/src"])
            .current_dir(self.sources());
        let packages = openapi_packages(&command::stdout(&mut grep)?);
        let go = self.go();
        let mut generate = Command::new(generator);
        generate
            .current_dir(self.sources())
            .args(["-O", "zz_generated.openapi", "-p", "k8s.io/kubernetes/pkg/generated/openapi"])
            .args(["--go-header-file", "hack/boilerplate/boilerplate.generatego.txt"])
            .arg("-r")
            .arg(self.folder.join("openapi-violations.txt"))
            .args(["-i", &packages.join(",")])
            .envs(go.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
        // The generator looks for `go` in PATH.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = [self.go_root().join("bin")].into_iter().chain(std::env::split_paths(&path));
        generate.env("PATH", std::env::join_paths(folders).into_diagnostic()?);
        progress::run("generate the OpenAPI description", &mut generate)
    }

    fn compile(&self, program: &str, destination: &Path) -> Result<()> {
        let built = self.folder.join(program);
        let mut go = self.go();
        go.args(["build", "-ldflags", &version_flags(), "-o"]).arg(&built).arg(format!("./cmd/{program}"));
        progress::run(&format!("compile {program}"), &mut go)?;
        // Same file system: it appears whole or not at all.
        fs::rename(&built, destination).into_diagnostic().wrap_err_with(|| destination.display().to_string())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("  cannot delete {}: {error}", self.folder.display());
        }
    }
}

/// Go packages to describe, from the files that ask for it.
fn openapi_packages(files: &str) -> Vec<String> {
    const NOT_THE_SERVERS: [&str; 7] = [
        "generated/openapi",
        "testdata",
        "/test/",
        "sample-apiserver",
        "code-generator",
        "gengo",
        "openapi-gen",
    ];
    let mut packages: Vec<_> = files
        .lines()
        .filter_map(|file| Some(file.rsplit_once('/')?.0))
        .map(|folder| match folder.strip_prefix("staging/src/") {
            Some(package) => format!("k8s.io/kubernetes/vendor/{package}"),
            None => format!("k8s.io/kubernetes/{folder}"),
        })
        .filter(|package| !NOT_THE_SERVERS.iter().any(|part| format!("{package}/").contains(part)))
        .collect();
    packages.sort();
    packages.dedup();
    packages
}

/// Linker flags that give the program its version.
fn version_flags() -> String {
    let mut flags = String::from("-s -w");
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for package in [package.to_owned(), format!("k8s.io/kubernetes/vendor/{package}")] {
            for setting in [
                format!("gitVersion={DEBIAN_VERSION}"),
                "gitMajor=1".into(),
                "gitMinor=20".into(),
                "gitTreeState=clean".into(),
            ] {
                flags += &format!(" -X {package}.{setting}");
            }
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_described_once_and_test_packages_not_at_all() {
        let files = "pkg/apis/a/types.go\npkg/apis/a/doc.go\nstaging/src/k8s.io/api/b/doc.go\npkg/x/testdata/y/doc.go\n";
        assert_eq!(
            openapi_packages(files),
            ["k8s.io/kubernetes/pkg/apis/a", "k8s.io/kubernetes/vendor/k8s.io/api/b"]
        );
    }
}
