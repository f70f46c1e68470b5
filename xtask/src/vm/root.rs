//! What the virtual machines are made of: programs with the libraries they need, at the same paths, and the modules of a
//! kernel.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr};

use super::archive::Archive;
use super::modules::Module;
use super::plan::{MODULES, PLAN, Plan};
use super::source::Source;
use crate::command;

/// What the lab and the tests start by name. The shell has a path that is written into programs.
const PROGRAMS: &[&str] = &["ip", "ethtool", "bpftool", "nginx", "curl", "unshare", "mount", "chrt"];
const SHELL: &str = "/bin/sh";
const FOLDERS: &[&str] =
    &["/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/var/lib/nginx", "/var/log/nginx"];
/// nginx and others look up who root is.
const FILES: &[(&str, &str)] = &[
    ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("/etc/group", "root:x:0:\n"),
    ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
];

/// Writes the archive of everything but the kernel's: these programs and what the lab needs.
pub fn write_programs(
    source: &Source,
    file: &Path,
    work: &Path,
    own: &[&Path],
    folders: &[&Path],
) -> Result<()> {
    let mut archive = Archive::create(file).into_diagnostic().wrap_err_with(|| file.display().to_string())?;
    for folder in FOLDERS.iter().map(Path::new).chain(folders.iter().copied()) {
        archive.folder(folder).into_diagnostic()?;
    }
    for (path, text) in FILES {
        archive.file(Path::new(path), text.as_bytes()).into_diagnostic()?;
    }
    let mut programs = vec![(PathBuf::from(SHELL), source.program("sh")?.1)];
    for name in PROGRAMS {
        programs.push(source.program(name)?);
    }
    for path in own {
        // Most of a debug build is for debuggers.
        let stripped = work.join("stripped").join(path.file_name().unwrap_or_default());
        fs::create_dir_all(work.join("stripped")).into_diagnostic()?;
        command::output(Command::new(source.strip()).arg("-o").arg(&stripped).arg(path))?;
        programs.push((path.to_path_buf(), stripped));
    }
    for (path, content) in &programs {
        add(&mut archive, path, content)?;
        for (library, content) in source.libraries(content)? {
            add(&mut archive, &library, &content)?;
        }
    }
    archive.finish().into_diagnostic()?;
    Ok(())
}

fn add<W: io::Write>(archive: &mut Archive<W>, path: &Path, content: &Path) -> Result<()> {
    if archive.has(path) {
        return Ok(());
    }
    let bytes = fs::read(content).into_diagnostic().wrap_err_with(|| content.display().to_string())?;
    archive.file(path, &bytes).into_diagnostic()
}

/// Writes what a kernel is started with: its modules, what it is to do, and a copy of the programs.
pub fn write_initial(file: &Path, programs: &Path, modules: &[Module], plan: &Plan) -> Result<()> {
    let mut archive = Archive::create(file).into_diagnostic().wrap_err_with(|| file.display().to_string())?;
    archive.folder(Path::new(MODULES)).into_diagnostic()?;
    for (number, module) in modules.iter().enumerate() {
        let path = Path::new(MODULES).join(format!("{number:03}-{}.ko", module.name));
        archive.file(&path, &module.object).into_diagnostic()?;
    }
    let plan = serde_json::to_vec_pretty(plan).into_diagnostic()?;
    archive.file(Path::new(PLAN), &plan).into_diagnostic()?;
    let mut out = archive.finish().into_diagnostic()?;
    let mut programs = File::open(programs).into_diagnostic()?;
    io::copy(&mut programs, &mut out).into_diagnostic()?;
    io::Write::flush(&mut out).into_diagnostic()
}
