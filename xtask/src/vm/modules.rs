//! Modules of a kernel: which ones to load, in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::command;

/// What the agent, the tests and the lab use, where it is not in the kernel itself. Nothing in the virtual machine loads
/// a module when it is asked for.
pub const NEEDED: &[&str] = &[
    "veth",
    "bridge",
    "sch_ingress",
    "cls_bpf",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "dummy",
    "vxlan",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nf_conntrack_netlink",
];

/// Modules that look for another when they begin, without naming it: it comes before them, where it is not in the kernel itself.
const BEFORE: &[(&str, &str)] = &[("libcrc32c", "crc32c_generic")];

/// The modules of an unpacked kernel.
#[derive(Debug)]
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

/// A module, ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its object file.
    pub object: Vec<u8>,
}

impl Modules {
    /// Those below `lib/modules/VERSION`.
    pub fn find(folder: &Path) -> Result<Self> {
        let path = folder.join("modules.builtin");
        let built_in =
            fs::read_to_string(&path).into_diagnostic().wrap_err_with(|| path.display().to_string())?;
        let mut files = BTreeMap::new();
        collect(folder, &mut files)?;
        Ok(Self { files, built_in: built_in.lines().filter_map(name_of).collect() })
    }

    /// Which of these the kernel has neither as modules nor in itself.
    pub fn missing<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        let has = |name: &str| self.built_in.contains(name) || self.files.contains_key(name);
        names.iter().copied().filter(|name| !has(name)).collect()
    }

    /// These modules and what they depend on, each after its dependencies.
    pub fn in_order(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        names.iter().try_for_each(|name| self.add(name, &mut seen, &mut order))?;
        Ok(order)
    }

    fn add(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<Module>) -> Result<()> {
        if self.built_in.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let file = self.files.get(name).ok_or_else(|| miette!("the kernel has no module {name}"))?;
        let object = unpacked(file)?;
        for dependency in depends(&object) {
            self.add(&dependency, seen, order)?;
        }
        for (_, first) in
            BEFORE.iter().filter(|(after, first)| *after == name && self.files.contains_key(*first))
        {
            self.add(first, seen, order)?;
        }
        order.push(Module { name: name.into(), object });
        Ok(())
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).into_diagnostic().wrap_err_with(|| folder.display().to_string())?;
    for entry in entries {
        let entry = entry.into_diagnostic()?;
        let path = entry.path();
        if entry.file_type().into_diagnostic()?.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = path.to_str().and_then(name_of) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/net/sched/sch-ingress.ko.xz` → `sch_ingress`; nothing for other files.
fn name_of(path: &str) -> Option<String> {
    let (name, _) = path.rsplit('/').next()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn unpacked(file: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(file).into_diagnostic().wrap_err_with(|| file.display().to_string()),
    };
    Ok(command::output(Command::new(program).args(["--decompress", "--stdout"]).arg(file))?.stdout)
}

/// The modules that an object file names: its section .modinfo holds strings that end with NUL.
fn depends(object: &[u8]) -> Vec<String> {
    let mut strings = object.split(|byte| *byte == 0);
    let names = strings.find_map(|string| string.strip_prefix(b"depends=")).unwrap_or_default();
    let names = String::from_utf8_lossy(names);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(folder: &Path) -> Modules {
        for (path, depends) in [
            ("kernel/net/bridge/bridge.ko", "stp,llc"),
            ("kernel/net/802/stp.ko", "llc"),
            ("kernel/net/llc/llc.ko", ""),
            ("kernel/net/sched/sch-ingress.ko", ""),
        ] {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, format!("\x7fELF\0license=GPL\0depends={depends}\0name=it\0")).unwrap();
        }
        fs::write(folder.join("modules.builtin"), "kernel/net/ipv6/ipv6.ko\n").unwrap();
        Modules::find(folder).unwrap()
    }

    #[test]
    fn a_module_comes_after_what_it_depends_on_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let order = modules(folder.path()).in_order(&["bridge", "ipv6", "sch_ingress", "stp"]).unwrap();
        let names: Vec<_> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["llc", "stp", "bridge", "sch_ingress"]);
    }

    #[test]
    fn what_a_kernel_lacks_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(modules(folder.path()).missing(&["ipv6", "veth", "stp", "vxlan"]), ["veth", "vxlan"]);
    }
}
