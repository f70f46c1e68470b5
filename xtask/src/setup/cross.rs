//! Compiling for the architecture that this machine does not have: a C compiler and C library for it, and Rust's standard
//! library. That is rustup's, where a developer has added the target; else Debian's, of the very version of its rustc-web,
//! unpacked here and not installed: the machine knows no packages of another architecture.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr};

use super::toolchain::tools_folder;
use crate::architecture::Architecture;
use crate::debian::{PrivateApt, Suite, make_folder};
use crate::{command, progress};

const OTHER: Architecture = Architecture::OTHER;

/// The package with the C compiler.
pub const C_COMPILER_PACKAGE: &str = match OTHER {
    Architecture::Aarch64 => "gcc-aarch64-linux-gnu",
    Architecture::X86_64 => "gcc-x86-64-linux-gnu",
};
/// The package with the C library, and a file of it.
const C_LIBRARY: (&str, &str) = match OTHER {
    Architecture::Aarch64 => ("libc6-dev-arm64-cross", "/usr/aarch64-linux-gnu/lib/libc.a"),
    Architecture::X86_64 => ("libc6-dev-amd64-cross", "/usr/x86_64-linux-gnu/lib/libc.a"),
};
/// The package whose version the standard library must have, and the one with the library.
const COMPILER: &str = "rustc-web";
const LIBRARY: &str = "libstd-rust-web-dev";
/// Where they come from.
const SUITES: &[Suite] = &[Suite::Binary("bookworm-security"), Suite::Binary("bookworm")];

/// How programs for the other architecture are compiled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cross {
    /// Debian's compiler, and a folder with the library in place of its own; `None`: rustup's.
    debian: Option<(PathBuf, PathBuf)>,
}

/// What stands between this machine and programs for the other architecture. (The C compiler is a program like others.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Everything is there.
    Ready(Cross),
    /// This is missing.
    Lacking {
        /// Debian's compiler.
        compiler: bool,
        /// Its standard library for the other architecture.
        library: bool,
        /// The C library.
        c_library: bool,
    },
}

/// What was found on the machine; [`decide`] turns it into a way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// rustup's toolchain has the target.
    pub rustup_has_it: bool,
    /// /usr/bin/rustc is new enough.
    pub debian_compiler: bool,
    /// Where its library for the other architecture is unpacked.
    pub library: Option<PathBuf>,
    /// The C library is there.
    pub c_library: bool,
}

/// Chooses the way.
pub fn decide(facts: &Facts) -> Found {
    let way = if facts.rustup_has_it {
        Some(Cross::default())
    } else {
        let library = facts.library.clone().filter(|_| facts.debian_compiler);
        library.map(|library| Cross { debian: Some(("/usr/bin/rustc".into(), library)) })
    };
    match way {
        Some(cross) if facts.c_library => Found::Ready(cross),
        way => Found::Lacking {
            compiler: way.is_none() && !facts.debian_compiler,
            library: way.is_none(),
            c_library: !facts.c_library,
        },
    }
}

/// Looks around. `debian_compiler`: /usr/bin/rustc is new enough.
pub fn facts(debian_compiler: bool) -> Facts {
    let folder = |rustc: &mut Command| {
        let printed = rustc.args(["--print", "target-libdir", "--target", OTHER.target()]);
        command::stdout(printed).ok().map(|folder| PathBuf::from(folder.trim()))
    };
    let library = version().ok().map(|version| sysroot(&version));
    Facts {
        rustup_has_it: folder(&mut Command::new("rustc")).is_some_and(|folder| has_library(&folder)),
        debian_compiler,
        library: library.filter(|sysroot| has_library(&library_folder(sysroot))),
        c_library: Path::new(C_LIBRARY.1).exists(),
    }
}

fn has_library(folder: &Path) -> bool {
    let is_std = |name: String| name.starts_with("libstd-") && name.ends_with(".rlib");
    let mut files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.any(|file| is_std(file.file_name().to_string_lossy().into_owned()))
}

/// Of the installed compiler.
fn version() -> Result<String> {
    command::stdout(Command::new("dpkg-query").args(["--show", "--showformat", "${Version}", COMPILER]))
}

fn sysroot(version: &str) -> PathBuf {
    tools_folder().join(format!("rust-{}-{version}", OTHER.of_debian())).join("usr")
}

fn library_folder(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib").join(OTHER.target()).join("lib")
}

/// Lines that say what of it is missing.
pub fn lines(found: &Found) -> Vec<String> {
    let Found::Lacking { library, c_library, .. } = found else { return Vec::new() };
    let (target, debian) = (OTHER.target(), OTHER.of_debian());
    let library =
        library.then(|| format!("  Rust's standard library for {debian}: there is no target {target}"));
    let c_library = c_library.then(|| format!("  a C library for {debian}: it is linked into the programs"));
    library.into_iter().chain(c_library).collect()
}

/// Debian packages to install for it.
pub fn packages(found: &Found) -> Vec<&'static str> {
    let Found::Lacking { compiler, c_library, .. } = found else { return Vec::new() };
    let compiler = compiler.then_some(super::toolchain::COMPILER_PACKAGES).into_iter().flatten().copied();
    compiler.chain(c_library.then_some(C_LIBRARY.0)).collect()
}

/// What a person types where this program does not install it.
pub fn typed(found: &Found) -> Option<String> {
    matches!(found, Found::Lacking { library: true, .. })
        .then(|| format!("  rustup target add {}", OTHER.target()))
}

/// Downloads and unpacks the standard library of the compiler that is installed.
pub fn install_library() -> Result<()> {
    let version = version()?;
    let (sysroot, debian) = (sysroot(&version), OTHER.of_debian());
    // The folder above its `usr`, which is made as the last step.
    let shelf = sysroot.parent().map(PathBuf::from).unwrap_or_default();
    let draft = shelf.with_extension("draft");
    if draft.exists() {
        fs::remove_dir_all(&draft).into_diagnostic().wrap_err_with(|| draft.display().to_string())?;
    }
    let downloads = draft.join("downloads");
    make_folder(&downloads)?;
    let apt = PrivateApt::new(&draft.join("apt"), debian, SUITES)?;
    progress::run(&format!("package lists for {debian}"), &mut apt.get(&downloads, &["update"]))?;
    let package = format!("{LIBRARY}={version}");
    progress::run(&format!("download {package}"), &mut apt.get(&downloads, &["download", &package]))
        .wrap_err_with(|| {
            format!("Debian has another version by now. Type: apt-get update && apt-get install {COMPILER}")
        })?;
    for file in fs::read_dir(&downloads).into_diagnostic()? {
        let file = file.into_diagnostic()?.path();
        command::output(Command::new("dpkg-deb").arg("-x").arg(file).arg(draft.join("root")))?;
    }
    if shelf.exists() {
        fs::remove_dir_all(&shelf).into_diagnostic().wrap_err_with(|| shelf.display().to_string())?;
    }
    fs::rename(draft.join("root"), &shelf).into_diagnostic().wrap_err_with(|| shelf.display().to_string())?;
    fs::remove_dir_all(&draft).into_diagnostic()
}

/// Has a cargo command make programs that are linked statically, for this architecture.
pub fn apply(cross: Option<&Cross>, architecture: Architecture, cargo: &mut Command) {
    let target = architecture.target();
    let (upper, lower) = (target.to_uppercase().replace('-', "_"), target.replace('-', "_"));
    let mut flags = "-Ctarget-feature=+crt-static".to_owned();
    if let Some(cross) = cross.filter(|_| architecture == OTHER) {
        cargo.env(format!("CARGO_TARGET_{upper}_LINKER"), architecture.c_compiler());
        cargo.env(format!("CC_{lower}"), architecture.c_compiler());
        if let Some((rustc, sysroot)) = &cross.debian {
            cargo.env("RUSTC", rustc);
            flags += &format!(" --sysroot={}", sysroot.display());
        }
    }
    // They would be taken instead.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    // With a target, even the machine's own, cargo keeps these from what runs while compiling.
    cargo.env(format!("CARGO_TARGET_{upper}_RUSTFLAGS"), flags);
    cargo.env("CARGO_BUILD_TARGET", target);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(cross: Option<&Cross>, architecture: Architecture) -> Vec<(String, String)> {
        let mut cargo = Command::new("cargo");
        apply(cross, architecture, &mut cargo);
        let set = cargo.get_envs().filter_map(|(name, value)| Some((name, value?)));
        set.map(|(name, value)| (name.to_string_lossy().into(), value.to_string_lossy().into())).collect()
    }

    #[test]
    fn a_developers_target_is_used_as_it_is() {
        let facts = Facts { rustup_has_it: true, c_library: true, ..Facts::default() };
        let Found::Ready(cross) = decide(&facts) else { panic!("nothing is missing") };
        let set = environment(Some(&cross), OTHER);
        assert!(set.iter().all(|(name, _)| name != "RUSTC"), "{set:?}");
        assert!(set.iter().any(|(name, value)| name.ends_with("_LINKER") && value == OTHER.c_compiler()));
    }

    #[test]
    fn debians_compiler_gets_debians_library() {
        let there = Facts { debian_compiler: true, c_library: true, ..Facts::default() };
        let lacks = Found::Lacking { compiler: false, library: true, c_library: false };
        assert_eq!(decide(&there), lacks);
        assert_eq!(lines(&lacks).len(), 1);
        let Found::Ready(cross) = decide(&Facts { library: Some("/l/usr".into()), ..there }) else {
            panic!("nothing is missing")
        };
        let set = environment(Some(&cross), OTHER);
        assert!(set.contains(&("RUSTC".into(), "/usr/bin/rustc".into())), "{set:?}");
        let flags = set.iter().find(|(name, _)| name.ends_with("_RUSTFLAGS"));
        assert!(flags.is_some_and(|(_, flags)| flags.ends_with("+crt-static --sysroot=/l/usr")), "{set:?}");
    }

    #[test]
    fn a_bare_machine_gets_everything() {
        let found = decide(&Facts::default());
        assert_eq!(found, Found::Lacking { compiler: true, library: true, c_library: true });
        let packages = packages(&found);
        assert!(packages.contains(&COMPILER) && packages.contains(&C_LIBRARY.0), "{packages:?}");
    }

    #[test]
    fn the_machines_own_architecture_needs_no_other_compiler() {
        let cross = Cross { debian: Some(("/usr/bin/rustc".into(), "/l".into())) };
        let set = environment(Some(&cross), Architecture::OWN);
        assert_eq!(set.len(), 2, "{set:?}");
    }
}
