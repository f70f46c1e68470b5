//! The compiler and the linker for the kernel programs.
//!
//! `core` is compiled for the BPF target, so the compiler must come with its library sources. Two ways:
//! rustup's nightly with the component rust-src, or Debian's rustc-web, a current release with rust-web-src.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cross::{self, Cross};
use super::find_program;
use crate::architecture::Architecture;
use crate::{command, repository};

/// bpf-linker built here; it must know the LLVM of the compiler (22 in Debian's rustc-web 1.96).
pub const LINKER_VERSION: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";

/// Debian packages of the compiler.
pub const COMPILER_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];
/// Debian packages to build bpf-linker with.
pub const LINKER_PACKAGES: &[&str] = &["llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev", "g++"];

/// How the kernel programs are compiled on this machine (see lb-userspace/kernel/build.rs).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Toolchain {
    /// A release compiler with its library sources; `None`: rustup's nightly.
    pub rustc: Option<PathBuf>,
    /// The cargo that belongs to it.
    pub cargo: Option<PathBuf>,
    /// The folder of bpf-linker; `None`: it is in PATH.
    pub linker_folder: Option<PathBuf>,
    /// How programs for the other architecture are compiled, where that was asked for.
    pub cross: Option<Cross>,
}

impl Toolchain {
    /// Tells a cargo command, through its environment, how to compile the kernel programs.
    pub fn apply(&self, command: &mut Command) {
        for (name, value) in [
            ("LB_EBPF_RUSTC", &self.rustc),
            ("LB_EBPF_CARGO", &self.cargo),
            ("LB_EBPF_LINKER_DIR", &self.linker_folder),
        ] {
            if let Some(path) = value {
                command.env(name, path);
            }
        }
    }

    /// What compiles the kernel programs: `rustc 1.96.0`.
    pub fn compiler(&self) -> String {
        let mut rustc = match &self.rustc {
            Some(rustc) => Command::new(rustc),
            None => {
                let mut rustup = Command::new("rustup");
                let toolchain = env::var("LB_EBPF_TOOLCHAIN").unwrap_or_else(|_| "nightly".into());
                rustup.args(["run", &toolchain, "rustc"]).env("RUSTUP_AUTO_INSTALL", "0");
                rustup
            }
        };
        let version = command::stdout(rustc.arg("--version")).unwrap_or_default();
        version.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    /// A cargo command that can build the workspace, started in its root.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(repository::root());
        // Tests always unwind. With "abort" for the binaries every dependency would be compiled twice.
        cargo.args(["--config", "profile.dev.panic=\"unwind\""]);
        self.apply(&mut cargo);
        cargo
    }

    /// The same for programs that are linked statically, for any machine of this architecture. [`Purpose::Cross`] must
    /// have been asked for where it is not this machine's.
    ///
    /// [`Purpose::Cross`]: super::Purpose::Cross
    pub fn cargo_for(&self, architecture: Architecture) -> Command {
        let mut cargo = self.cargo();
        cross::apply(self.cross.as_ref(), architecture, &mut cargo);
        cargo
    }
}

/// What stands between this machine and a build of the kernel programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Everything is there.
    Ready(Toolchain),
    /// Debian's way is taken, and this is missing.
    Debian {
        /// No current compiler with sources under /usr.
        compiler: bool,
        /// No bpf-linker for it.
        linker: bool,
    },
}

/// What was found on the machine; [`decide`] turns it into a way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// `LB_EBPF_OBJ` is set: nothing is compiled.
    pub object: bool,
    /// `LB_EBPF_RUSTC` is set: the caller has chosen a compiler.
    pub compiler_chosen: bool,
    /// rustup's nightly (or `LB_EBPF_TOOLCHAIN`) has rust-src.
    pub nightly_with_sources: bool,
    /// bpf-linker is in PATH or in `LB_EBPF_LINKER_DIR`.
    pub linker_in_path: bool,
    /// That bpf-linker is the version built here.
    pub linker_matches: bool,
    /// /usr/bin/rustc is new enough and has its sources.
    pub debian_compiler: bool,
    /// The folder of the bpf-linker built here, when it is there.
    pub own_linker: Option<PathBuf>,
}

/// Chooses the way.
pub fn decide(facts: &Facts) -> Found {
    if facts.object || (facts.nightly_with_sources && facts.linker_in_path) {
        return Found::Ready(Toolchain::default());
    }
    if facts.compiler_chosen {
        let linker_folder = facts.own_linker.clone().filter(|_| !facts.linker_in_path);
        return if facts.linker_in_path || linker_folder.is_some() {
            Found::Ready(Toolchain { linker_folder, ..Toolchain::default() })
        } else {
            Found::Debian { compiler: false, linker: true }
        };
    }
    let linker = facts.own_linker.is_some() || facts.linker_matches;
    if !facts.debian_compiler || !linker {
        return Found::Debian { compiler: !facts.debian_compiler, linker: !linker };
    }
    Found::Ready(Toolchain {
        rustc: Some("/usr/bin/rustc".into()),
        cargo: Some("/usr/bin/cargo".into()),
        linker_folder: facts.own_linker.clone(),
        cross: None,
    })
}

/// Looks around.
pub fn facts() -> Facts {
    let own = tools_folder().join("bin");
    let linker = env::var_os("LB_EBPF_LINKER_DIR")
        .map(|folder| Path::new(&folder).join("bpf-linker"))
        .filter(|path| path.exists())
        .or_else(|| find_program("bpf-linker"));
    Facts {
        object: env::var_os("LB_EBPF_OBJ").is_some(),
        compiler_chosen: env::var_os("LB_EBPF_RUSTC").is_some(),
        nightly_with_sources: has_sources(nightly().as_deref()),
        linker_in_path: linker.is_some(),
        linker_matches: linker.is_some_and(|path| says(&path, LINKER_VERSION)),
        debian_compiler: Path::new("/usr/bin/cargo").exists()
            && has_sources(Some(Path::new("/usr")))
            && release(Path::new("/usr/bin/rustc")).is_some_and(|release| release >= (1, 95)),
        own_linker: says(&own.join("bpf-linker"), LINKER_VERSION).then_some(own),
    }
}

/// Where `cargo install` puts bpf-linker.
pub fn tools_folder() -> PathBuf {
    repository::target().join("tools")
}

/// The command that builds bpf-linker.
pub fn install_linker() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(tools_folder())
        .env("LLVM_PREFIX", LLVM)
        .env("RUSTFLAGS", format!("-L native={LLVM}/lib"))
        .env_remove("CARGO_TARGET_DIR");
    cargo
}

/// The sysroot of rustup's nightly. Never lets rustup install one.
fn nightly() -> Option<PathBuf> {
    let toolchain = env::var("LB_EBPF_TOOLCHAIN").unwrap_or_else(|_| "nightly".into());
    let mut rustc = Command::new("rustup");
    rustc.args(["run", &toolchain, "rustc", "--print", "sysroot"]).env("RUSTUP_AUTO_INSTALL", "0");
    Some(PathBuf::from(command::stdout(&mut rustc).ok()?.trim()))
}

fn has_sources(sysroot: Option<&Path>) -> bool {
    sysroot.is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists())
}

fn says(program: &Path, version: &str) -> bool {
    command::stdout(Command::new(program).arg("--version"))
        .is_ok_and(|text| text.split_whitespace().any(|word| word == version))
}

fn release(rustc: &Path) -> Option<(u32, u32)> {
    parse_release(&command::stdout(Command::new(rustc).arg("--version")).ok()?)
}

/// `rustc 1.96.0 (…)` → (1, 96).
fn parse_release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_developers_nightly_is_used_as_it_is() {
        let facts = Facts { nightly_with_sources: true, linker_in_path: true, ..Facts::default() };
        assert_eq!(decide(&facts), Found::Ready(Toolchain::default()));
    }

    #[test]
    fn a_nightly_without_sources_does_not_count() {
        let facts = Facts { linker_in_path: true, ..Facts::default() };
        assert_eq!(decide(&facts), Found::Debian { compiler: true, linker: true });
    }

    #[test]
    fn a_linker_of_another_version_does_not_serve_debians_compiler() {
        let facts = Facts { debian_compiler: true, linker_in_path: true, ..Facts::default() };
        assert_eq!(decide(&facts), Found::Debian { compiler: false, linker: true });
    }

    #[test]
    fn debians_way_names_compiler_cargo_and_linker() {
        let facts = Facts { debian_compiler: true, own_linker: Some("/t/bin".into()), ..Facts::default() };
        let Found::Ready(toolchain) = decide(&facts) else { panic!("nothing is missing") };
        let mut command = Command::new("true");
        toolchain.apply(&mut command);
        let set: Vec<_> = command.get_envs().map(|(name, value)| (name.to_str(), value.unwrap())).collect();
        assert_eq!(
            set,
            [
                (Some("LB_EBPF_CARGO"), "/usr/bin/cargo".as_ref()),
                (Some("LB_EBPF_LINKER_DIR"), "/t/bin".as_ref()),
                (Some("LB_EBPF_RUSTC"), "/usr/bin/rustc".as_ref()),
            ]
        );
    }

    #[test]
    fn the_callers_own_choice_is_left_alone() {
        let facts = Facts { compiler_chosen: true, own_linker: Some("/t/bin".into()), ..Facts::default() };
        let Found::Ready(toolchain) = decide(&facts) else { panic!("nothing is missing") };
        assert_eq!((toolchain.rustc, toolchain.linker_folder), (None, Some("/t/bin".into())));
    }

    #[test]
    fn a_release_is_read_from_what_rustc_says() {
        assert_eq!(parse_release("rustc 1.96.0 (ac68faa20 2026-05-25)"), Some((1, 96)));
        assert_eq!(parse_release("rustc"), None);
    }
}
