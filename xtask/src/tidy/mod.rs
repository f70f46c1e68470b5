//! Rules of this repository that neither the compiler nor clippy knows.

mod modules;
mod rules;
mod source;

use std::fs;
use std::path::Path;
use std::time::Instant;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::setup::Toolchain;
use crate::{command, progress, repository, test};
use rules::Problem;
use source::Source;

/// Folders with Rust code of ours.
const PACKAGES: [&str; 5] = ["lb-bench", "lb-common", "lb-ebpf", "lb-userspace", "xtask"];

/// Checks every rule and reports all that is broken.
pub fn tidy() -> Result<()> {
    let began = Instant::now();
    let step = progress::Step::begin("rules of this repository");
    let root = repository::root();
    let mut sources = Vec::new();
    for package in PACKAGES {
        read(&root, &root.join(package), &mut sources)?;
    }
    let mut problems: Vec<_> = sources.iter().flat_map(rules::of_a_file).collect();
    problems.extend(rules::of_exceptions(&sources));
    for package in test::PACKAGES {
        let manifest = format!("{package}/Cargo.toml");
        let text = fs::read_to_string(root.join(&manifest)).into_diagnostic().wrap_err(manifest.clone())?;
        problems.extend(rules::of_root_tests(&manifest, &text, &sources));
    }
    for without in &rules::WITHOUT {
        problems.extend(rules::of_dependencies(without, &dependencies(without)?));
    }
    if problems.is_empty() {
        step.done(began.elapsed());
        return Ok(());
    }
    problems.sort();
    let lines: Vec<_> = problems.iter().map(Problem::to_string).collect();
    Err(miette!("{} rules of this repository are broken:\n{}", lines.len(), lines.join("\n")))
}

/// Reads every `.rs` file below a folder.
fn read(root: &Path, folder: &Path, sources: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(folder).into_diagnostic().wrap_err_with(|| folder.display().to_string())? {
        let path = entry.into_diagnostic()?.path();
        if path.is_dir() {
            read(root, &path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text =
                fs::read_to_string(&path).into_diagnostic().wrap_err_with(|| path.display().to_string())?;
            let relative = path.strip_prefix(root).unwrap_or(&path);
            sources.push(Source::new(&relative.to_string_lossy(), &text));
        }
    }
    Ok(())
}

/// The names of the libraries that a package depends on.
fn dependencies(without: &rules::Without) -> Result<String> {
    let mut tree = Toolchain::default().cargo();
    tree.args(["tree", "--package", without.package, "--edges", without.edges]);
    command::stdout(tree.args(["--prefix", "none", "--format", "{lib}"]))
}
