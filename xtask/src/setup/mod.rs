//! `cargo xtask setup`: finds out what this machine lacks for a purpose, and installs it.

mod apt;
mod cross;
mod mounts;
mod need;
mod toolchain;

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use miette::{IntoDiagnostic, Result, WrapErr};

use crate::{command, progress, repository};
use mounts::Mount;
use need::Need;
use toolchain::Found;
pub use toolchain::Toolchain;

/// What a machine is made ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Purpose {
    /// Compile the kernel programs and the agent
    Build,
    /// Run network namespaces with real clients and servers (needs root)
    Lab,
    /// Run the whole test suite (needs root)
    Test,
    /// Boot other kernels in virtual machines
    Vm,
    /// Compile for the other architecture: x86_64 or aarch64
    Cross,
}

/// Arguments of `cargo xtask setup`.
#[derive(Debug, clap::Args)]
pub struct SetupArgs {
    /// Make the machine ready for this only (default: all)
    #[arg(long = "for", value_name = "PURPOSE")]
    pub purposes: Vec<Purpose>,
}

/// Something is missing that this program cannot install here; the message says what to type.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("{message}")]
pub struct Unavailable {
    message: String,
}

impl Unavailable {
    /// `EX_UNAVAILABLE` of sysexits.h.
    pub const EXIT_CODE: u8 = 69;

    /// The message names what is missing and what to type.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// Installs what is missing and says so.
pub fn setup(args: SetupArgs) -> Result<()> {
    let all = [Purpose::Build, Purpose::Lab, Purpose::Test, Purpose::Vm, Purpose::Cross];
    let purposes = if args.purposes.is_empty() { &all[..] } else { &args.purposes };
    let began = Instant::now();
    ensure(purposes)?;
    eprintln!("everything is there ({:.1} s)", began.elapsed().as_secs_f64());
    Ok(())
}

/// Installs what is missing for these purposes, and says how to compile the kernel programs.
/// Quick and silent when nothing is missing.
pub fn ensure(purposes: &[Purpose]) -> Result<Toolchain> {
    if let Ok(toolchain) = Missing::look(purposes)?.into_toolchain() {
        return Ok(toolchain);
    }
    let _lock = lock()?;
    // Another run may have installed it while this one waited for the lock.
    let missing = match Missing::look(purposes)?.into_toolchain() {
        Ok(toolchain) => return Ok(toolchain),
        Err(missing) => missing,
    };
    missing.explain();
    missing.check_that_it_can_be_installed()?;
    missing.install()?;
    Missing::look(purposes)?.into_toolchain().map_err(|missing| {
        miette::miette!("still missing after the installation:\n{}", missing.lines().join("\n"))
    })
}

/// Waits until no other run installs anything.
fn lock() -> Result<File> {
    let path = repository::target().join("xtask-setup.lock");
    fs::create_dir_all(repository::target()).into_diagnostic()?;
    let file = File::create(&path).into_diagnostic().wrap_err_with(|| path.display().to_string())?;
    if file.try_lock().is_err() {
        eprintln!("  waiting for another `cargo xtask` that is installing …");
        file.lock().into_diagnostic().wrap_err_with(|| path.display().to_string())?;
    }
    Ok(file)
}

/// Looks for an executable file in PATH, and where a plain user's PATH does not lead.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| {
            file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

/// What this machine lacks.
struct Missing {
    programs: Vec<&'static Need>,
    mounts: Vec<Mount>,
    toolchain: Found,
    /// `None`: nobody asked for it.
    cross: Option<cross::Found>,
}

impl Missing {
    fn look(purposes: &[Purpose]) -> Result<Self> {
        let mounts_are_used = purposes.iter().any(|purpose| matches!(purpose, Purpose::Lab | Purpose::Test));
        let facts = toolchain::facts();
        let cross = || cross::decide(&cross::facts(facts.debian_compiler));
        Ok(Self {
            programs: need::missing(purposes, |program| find_program(program).is_some()),
            mounts: if mounts_are_used { mounts::missing_here()? } else { Vec::new() },
            cross: purposes.contains(&Purpose::Cross).then(cross),
            toolchain: toolchain::decide(&facts),
        })
    }

    /// The toolchain, when nothing at all is missing.
    fn into_toolchain(self) -> std::result::Result<Toolchain, Box<Self>> {
        match self {
            Self {
                programs,
                mounts,
                toolchain: Found::Ready(toolchain),
                cross: cross @ (None | Some(cross::Found::Ready(_))),
            } if programs.is_empty() && mounts.is_empty() => {
                let cross = match cross {
                    Some(cross::Found::Ready(cross)) => Some(cross),
                    _ => None,
                };
                Ok(Toolchain { cross, ..toolchain })
            }
            missing => Err(Box::new(missing)),
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> =
            self.programs.iter().map(|need| format!("  {}: {}", need.program, need.why)).collect();
        if let Found::Debian { compiler, linker } = self.toolchain {
            if compiler {
                lines.push("  a Rust compiler with its library sources: compiles `core` for BPF".into());
            }
            if linker {
                lines.push(format!("  bpf-linker {}: links the kernel programs", toolchain::LINKER_VERSION));
            }
        }
        lines.extend(self.cross.iter().flat_map(cross::lines));
        lines.extend(self.mounts.iter().map(|mount| match mount {
            Mount::Bpffs => "  bpffs at /sys/fs/bpf: keeps maps and programs when the agent restarts".into(),
            Mount::Cgroup2 => "  a cgroup2 mount: the socket hooks attach to it".into(),
        }));
        lines
    }

    fn explain(&self) {
        eprintln!("This machine lacks:\n{}", self.lines().join("\n"));
    }

    /// Debian packages to install.
    fn packages(&self) -> Vec<&'static str> {
        let mut packages: Vec<_> = self.programs.iter().map(|need| need.package).collect();
        if let Found::Debian { compiler, linker } = self.toolchain {
            packages.extend(compiler.then_some(toolchain::COMPILER_PACKAGES).into_iter().flatten());
            packages.extend(linker.then_some(toolchain::LINKER_PACKAGES).into_iter().flatten());
        }
        let more = self.cross.iter().flat_map(cross::packages);
        for package in more {
            if !packages.contains(&package) {
                packages.push(package);
            }
        }
        packages
    }

    fn check_that_it_can_be_installed(&self) -> Result<()> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let reason = if !is_debian_12(&release) {
            "packages are installed on Debian 12 only; elsewhere, install what has these names there"
        } else if !nix::unistd::geteuid().is_root() && self.needs_root() {
            "installing needs root"
        } else {
            return Ok(());
        };
        Err(Unavailable::new(format!("{reason}. Type:\n{}", self.typed(is_debian_12(&release)).join("\n")))
            .into())
    }

    fn needs_root(&self) -> bool {
        !self.packages().is_empty() || !self.mounts.is_empty()
    }

    /// The commands that install everything.
    fn typed(&self, debian_12: bool) -> Vec<String> {
        let mut lines = Vec::new();
        let packages =
            if debian_12 { self.packages() } else { self.programs.iter().map(|need| need.package).collect() };
        if !packages.is_empty() {
            lines.push("  sudo apt-get update".into());
            lines.push(format!("  sudo {}", command::typed(&apt::install_command(&packages))));
        }
        if let Found::Debian { linker, .. } = self.toolchain {
            if !debian_12 {
                lines.push("  rustup toolchain install nightly --component rust-src".into());
                lines.push("  cargo install bpf-linker".into());
            } else if linker {
                lines.push(format!("  {}", command::typed(&toolchain::install_linker())));
            }
        }
        lines.extend(self.cross.iter().filter_map(cross::typed));
        lines.extend(self.mounts.iter().map(|mount| format!("  sudo sh -c '{}'", mount.typed())));
        lines
    }

    fn install(&self) -> Result<()> {
        eprintln!("Installing:");
        let packages = self.packages();
        if !packages.is_empty() {
            eprintln!("  {}", packages.join(" "));
            apt::install(&packages)?;
        }
        if matches!(self.toolchain, Found::Debian { linker: true, .. }) {
            progress::run("cargo install bpf-linker", &mut toolchain::install_linker())?;
        }
        if matches!(self.cross, Some(cross::Found::Lacking { library: true, .. })) {
            cross::install_library()?;
        }
        for mount in &self.mounts {
            eprintln!("  {}", mount.typed());
            mount.mount()?;
        }
        Ok(())
    }
}

fn is_debian_12(os_release: &str) -> bool {
    let has = |wanted: &str| os_release.lines().any(|line| line.replace('"', "") == wanted);
    has("ID=debian") && has("VERSION_ID=12")
}

#[cfg(test)]
mod tests;
