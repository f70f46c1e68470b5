//! Where the programs of virtual machines come from: this machine, or for another architecture Debian's packages, which are
//! unpacked and not installed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::architecture::Architecture;
use crate::debian::{PrivateApt, Suite, make_folder};
use crate::setup::find_program;
use crate::{command, progress, repository};

/// The packages with the programs that machines have.
const PACKAGES: &[&str] =
    &["bpftool", "curl", "dash", "ethtool", "iproute2", "mount", "nginx-light", "util-linux"];
const SUITES: &[Suite] =
    &[Suite::Binary("bookworm"), Suite::Binary("bookworm-updates"), Suite::Binary("bookworm-security")];
const FOLDERS: [&str; 4] = ["usr/bin", "usr/sbin", "bin", "sbin"];

/// A system with programs and libraries.
#[derive(Debug)]
pub enum Source {
    /// This machine.
    Here,
    /// A folder with one of another architecture.
    Unpacked(Architecture, PathBuf),
}

/// A file: its path in the virtual machine, and where its content is.
pub type Placed = (PathBuf, PathBuf);

impl Source {
    /// That of an architecture. Downloads and unpacks it, if that has not been done before.
    pub fn of(architecture: Architecture) -> Result<Self> {
        if architecture == Architecture::OWN {
            return Ok(Self::Here);
        }
        let shelf = repository::cache()?.join("programs");
        make_folder(&shelf)?;
        let lock = File::create(shelf.join("lock")).into_diagnostic()?;
        lock.lock().into_diagnostic()?;
        // Another list is another folder.
        let folder = shelf.join(format!("{}-{}", architecture.of_debian(), PACKAGES.join("-")));
        if !folder.exists() {
            unpack(architecture, &folder)?;
        }
        Ok(Self::Unpacked(architecture, folder))
    }

    /// A program that is started by name.
    pub fn program(&self, name: &str) -> Result<Placed> {
        match self {
            Self::Here => {
                let path = find_program(name).ok_or_else(|| miette!("there is no {name} in PATH"))?;
                Ok((path.clone(), path))
            }
            Self::Unpacked(_, root) => FOLDERS
                .iter()
                .map(|folder| Path::new(folder).join(name))
                .find(|path| root.join(path).exists())
                .map(|path| (Path::new("/").join(&path), root.join(path)))
                .ok_or_else(|| miette!("there is no {name} in {}", root.display())),
        }
    }

    /// What the dynamic linker would load for a program, itself included.
    pub fn libraries(&self, program: &Path) -> Result<Vec<Placed>> {
        match self {
            Self::Here => {
                let output = Command::new("ldd").arg(program).output().into_diagnostic().wrap_err("ldd")?;
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                if text.contains("not found") {
                    return Err(miette!("{} lacks a library:\n{text}", program.display()));
                }
                Ok(parse_ldd(&text).into_iter().map(|path| (path.clone(), path)).collect())
            }
            Self::Unpacked(architecture, root) => {
                let (mut seen, mut placed) = (BTreeSet::new(), Vec::new());
                collect(*architecture, root, program, &mut seen, &mut placed)?;
                Ok(placed)
            }
        }
    }

    /// A program that strips others.
    pub fn strip(&self) -> String {
        match self {
            Self::Here => "strip".into(),
            Self::Unpacked(architecture, _) => format!("{}-strip", architecture.of_gnu()),
        }
    }
}

/// The libraries that a file names, and those that they name.
fn collect(
    architecture: Architecture,
    root: &Path,
    file: &Path,
    seen: &mut BTreeSet<String>,
    placed: &mut Vec<Placed>,
) -> Result<()> {
    let gnu = architecture.of_gnu();
    let text = command::stdout(Command::new(format!("{gnu}-objdump")).arg("-p").arg(file))?;
    for name in needed(&text) {
        if !seen.insert(name.to_owned()) {
            continue;
        }
        // The linker itself is started by its path; the others it finds.
        let folders = [format!("lib/{gnu}"), format!("usr/lib/{gnu}"), "lib".into(), "lib64".into()];
        let folders = folders.iter().rev();
        let path = folders
            .map(|folder| Path::new(folder).join(name))
            .find(|path| root.join(path).exists())
            .ok_or_else(|| {
            miette!("{} needs {name}, which is not in {}", file.display(), root.display())
        })?;
        placed.push((Path::new("/").join(&path), root.join(&path)));
        collect(architecture, root, &root.join(&path), seen, placed)?;
    }
    Ok(())
}

/// The words that are paths in what ldd says; none for a program that needs no library.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    let paths =
        text.lines().filter_map(|line| line.split_ascii_whitespace().find(|word| word.starts_with('/')));
    paths.map(|path| PathBuf::from(path.trim_end_matches(':'))).collect()
}

/// The libraries in what `objdump -p` says.
fn needed(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.trim().strip_prefix("NEEDED").map(str::trim))
}

fn unpack(architecture: Architecture, folder: &Path) -> Result<()> {
    let debian = architecture.of_debian();
    let draft = folder.with_extension("draft");
    if draft.exists() {
        fs::remove_dir_all(&draft).into_diagnostic().wrap_err_with(|| draft.display().to_string())?;
    }
    make_folder(&draft)?;
    let apt = PrivateApt::new(&draft.join("apt"), debian, SUITES)?;
    progress::run(
        &format!("package lists for {debian}"),
        &mut apt.get(&draft, &["update", "--error-on=any"]),
    )?;
    // With what they depend on; nothing is installed.
    let mut words = vec!["install", "--download-only", "--yes", "--no-install-recommends"];
    words.extend(["-o", "Debug::NoLocking=true"]);
    words.extend(PACKAGES);
    progress::run(&format!("download programs for {debian}"), &mut apt.get(&draft, &words))?;
    let root = draft.join("root");
    make_folder(&root)?;
    let archives = draft.join("apt/cache/archives");
    for entry in fs::read_dir(&archives).into_diagnostic().wrap_err_with(|| archives.display().to_string())? {
        let file = entry.into_diagnostic()?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            command::output(Command::new("dpkg-deb").arg("-x").arg(file).arg(&root))?;
        }
    }
    fs::rename(&root, folder).into_diagnostic().wrap_err_with(|| folder.display().to_string())?;
    fs::remove_dir_all(&draft).into_diagnostic()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_linker_are_what_ldd_names() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected =
            ["/lib/x86_64-linux-gnu/libmnl.so.0", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse_ldd(text), expected);
        assert!(parse_ldd("\tstatically linked\n").is_empty());
    }

    #[test]
    fn the_libraries_of_another_architecture_are_what_objdump_names() {
        let text = "Dynamic Section:\n  NEEDED               libmnl.so.0\n  NEEDED               libc.so.6\n  INIT  0x1\n";
        assert_eq!(needed(text).collect::<Vec<_>>(), ["libmnl.so.0", "libc.so.6"]);
        assert_eq!(needed("ip: file format elf64-littleaarch64\n").count(), 0);
    }
}
