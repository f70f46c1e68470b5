//! `cargo xtask lint`: formatting, clippy, dependencies, and the rules of `tidy.rs`.

use std::process::Command;

use miette::{Result, miette};

use crate::setup::{self, Purpose, Toolchain, find_program};
use crate::{command, progress, repository, test, tidy};

/// Runs every check that needs no test to run.
pub fn lint() -> Result<()> {
    check(&setup::ensure(&[Purpose::Build])?)
}

/// The same with a toolchain that is known to be there. Every check runs, whatever the ones before it said.
pub fn check(toolchain: &Toolchain) -> Result<()> {
    let mut problems = Vec::new();
    let mut note = |name, result: Result<()>| {
        if let Err(report) = result {
            eprintln!("{report:?}");
            problems.push(name);
        }
    };
    let mut run = |name, command: &mut Command| note(name, progress::run(name, command));
    run("formatting", toolchain.cargo().args(["fmt", "--check"]));
    run("clippy", &mut clippy(toolchain));
    run("clippy of the kernel programs", &mut clippy_of_kernel_programs(toolchain));
    note("dependencies", dependencies());
    note("rules of this repository", tidy::tidy());
    if problems.is_empty() { Ok(()) } else { Err(miette!("lint found problems: {}", problems.join(", "))) }
}

fn clippy(toolchain: &Toolchain) -> Command {
    let mut cargo = toolchain.cargo();
    cargo
        .args(["clippy", "--quiet", "--workspace", "--exclude", "lb-ebpf", "--all-targets"])
        .args(test::features())
        .args(["--", "-D", "warnings"]);
    cargo
}

/// Alone: with the workspace's features its dependencies would bring in `std`. For the host: its code is the same.
fn clippy_of_kernel_programs(toolchain: &Toolchain) -> Command {
    let mut cargo = toolchain.cargo();
    cargo
        // It uses features of the compiler that the kernel build unlocks, too, and brings its own panic handler.
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["--config", "profile.dev.panic=\"abort\""])
        .args(["clippy", "--quiet", "--package", "lb-ebpf"])
        // Build scripts of many crates look at RUSTC_BOOTSTRAP; in the common folder everything would be rebuilt.
        .arg("--target-dir")
        .arg(repository::target().join("ebpf-lint"))
        .args(["--", "-D", "warnings"]);
    cargo
}

/// Licences, sources and bans of dependencies, when cargo-deny is here; it takes four minutes to compile, so the
/// continuous integration has it and a developer need not.
fn dependencies() -> Result<()> {
    if find_program("cargo-deny").is_none() {
        eprintln!(
            "  dependencies: NOT CHECKED here, cargo-deny is not installed; the GitHub workflow checks them (cargo install cargo-deny --locked)"
        );
        return Ok(());
    }
    let mut deny = Command::new("cargo");
    deny.current_dir(repository::root()).args(["deny", "check", "bans", "licenses", "sources"]);
    command::output(&mut deny)?;
    eprintln!("  dependencies: done");
    Ok(())
}
