//! Builds of `shunt`, and what the kernel's verifier makes of its programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use comfy_table::{CellAlignment, Table, presets};
use miette::{IntoDiagnostic, Result, WrapErr, miette};
use nix::unistd::geteuid;
use serde::Deserialize;
use serde_json::Value;

use crate::architecture::Architecture;
use crate::command::{self, typed};
use crate::setup::{self, Purpose, Toolchain};

/// A program that takes the verifier further than this is treated as a mistake: the kernel's limit is a million, and
/// other kernels walk other paths.
pub const MOST_VERIFIED_INSTRUCTIONS: u32 = 250_000;

/// Arguments of `cargo xtask build`.
#[derive(Debug, clap::Args)]
pub struct BuildArgs {
    /// For any machine of this architecture: linked statically, as the image has it
    #[arg(long = "arch", value_enum)]
    architecture: Option<Architecture>,
}

/// Builds `shunt` for release, and shows what this kernel's verifier says of its programs.
pub fn build(args: BuildArgs) -> Result<()> {
    if let Some(architecture) = args.architecture {
        println!("{}", for_any_machine(architecture)?.display());
        return Ok(());
    }
    let toolchain = setup::ensure(&[Purpose::Build])?;
    let program = shunt(&toolchain, &["--release"])?;
    if geteuid().is_root() {
        println!("{}", verified(&program)?);
    } else {
        eprintln!(
            "not checked: what the kernel's verifier says. Type: sudo {} debug verifier",
            program.display()
        );
    }
    println!("{}", program.display());
    Ok(())
}

/// Builds the binary for release and for any machine of this architecture, and says where it is.
pub fn for_any_machine(architecture: Architecture) -> Result<PathBuf> {
    let purposes = [Purpose::Build, Purpose::Cross];
    let needed = if architecture == Architecture::OWN { &purposes[..1] } else { &purposes[..] };
    let mut cargo = setup::ensure(needed)?.cargo_for(architecture);
    select(&mut cargo);
    executable_of(cargo.arg("--release"))
}

/// Builds the binary with these further arguments of `cargo build`, and says where it is.
pub fn shunt(toolchain: &Toolchain, arguments: &[&str]) -> Result<PathBuf> {
    let mut cargo = build_command(toolchain);
    executable_of(cargo.args(arguments))
}

/// The same for any machine of this architecture. [`Purpose::Cross`] must have been asked for, if it is not this one's.
pub fn shunt_for(toolchain: &Toolchain, architecture: Architecture) -> Result<PathBuf> {
    let mut cargo = toolchain.cargo_for(architecture);
    select(&mut cargo);
    executable_of(&mut cargo)
}

fn executable_of(cargo: &mut Command) -> Result<PathBuf> {
    let messages = messages(cargo)?;
    messages
        .iter()
        .find_map(|message| executable(message, "shunt", "bin"))
        .ok_or_else(|| miette!("cargo named no executable: {}", typed(cargo)))
}

/// `cargo build` of the binary. The whole workspace is selected, as for the tests: dependencies then have the same
/// features in both, and are compiled once.
pub fn build_command(toolchain: &Toolchain) -> Command {
    let mut cargo = toolchain.cargo();
    select(&mut cargo);
    cargo
}

fn select(cargo: &mut Command) {
    cargo.args(["build", "--workspace", "--exclude", "lb-ebpf", "--bin", "shunt"]);
}

/// Runs a cargo command whose progress is shown as usual, and returns its JSON messages.
pub fn messages(cargo: &mut Command) -> Result<Vec<Value>> {
    cargo.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output =
        cargo.output().into_diagnostic().wrap_err_with(|| format!("cannot start: {}", typed(cargo)))?;
    if !output.status.success() {
        return Err(miette!("{} from: {}", output.status, typed(cargo)));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).into_diagnostic().wrap_err_with(|| line.to_owned()))
        .collect()
}

/// The executable in a message about this target.
pub fn executable(message: &Value, name: &str, kind: &str) -> Option<PathBuf> {
    let target = &message["target"];
    (target["name"] == name && target["kind"][0] == kind).then_some(())?;
    Some(message["executable"].as_str()?.into())
}

/// A line of `shunt debug verifier -o json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    /// Its name.
    pub program: String,
    /// What the verifier walked through.
    pub verified_instructions: Option<u32>,
    /// Of the program and each of its functions.
    pub stack_bytes: Option<String>,
    jited_bytes: Option<u32>,
}

/// Loads every program (root), and returns a table of what the verifier said. An error when a program is too much for it.
pub fn verified(shunt: &Path) -> Result<String> {
    let text = command::stdout(Command::new(shunt).args(["debug", "verifier", "--output", "json"]))?;
    let programs: Vec<Program> = serde_json::from_str(&text)
        .into_diagnostic()
        .wrap_err_with(|| format!("`shunt debug verifier --output json` says:\n{text}"))?;
    if programs.is_empty() {
        return Err(miette!("`shunt debug verifier` names no program"));
    }
    let table = table(&programs);
    match too_long(&programs).as_slice() {
        [] => Ok(table),
        names => Err(miette!(
            "{table}\nmore than {MOST_VERIFIED_INSTRUCTIONS} verified instructions: {}. Split the program, or bound \
             its loops more tightly",
            names.join(", ")
        )),
    }
}

fn table(programs: &[Program]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["PROGRAM", "VERIFIED INSTRUCTIONS", "STACK BYTES", "MACHINE CODE BYTES"]);
    // The kernel tells the count since 5.16, and the stack only in the verifier's log.
    let cell = |number: Option<u32>| number.map_or("-".into(), |number| number.to_string());
    for program in programs {
        let stack = program.stack_bytes.as_deref().unwrap_or("-").to_owned();
        let (instructions, code) = (cell(program.verified_instructions), cell(program.jited_bytes));
        table.add_row([program.program.clone(), instructions, stack, code]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn too_long(programs: &[Program]) -> Vec<String> {
    programs
        .iter()
        .filter(|program| {
            program.verified_instructions.is_some_and(|count| count > MOST_VERIFIED_INSTRUCTIONS)
        })
        .map(|program| program.program.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_at_the_limit_passes_and_one_above_is_named() {
        let text = r#"[
            {"program": "uplink_xdp", "verifiedInstructions": 250000, "jitedBytes": 9000, "translatedBytes": 12000},
            {"program": "pod_egress", "verifiedInstructions": 250001, "stackBytes": "480+0", "jitedBytes": 1},
            {"program": "connect4", "verifiedInstructions": null, "jitedBytes": 1}
        ]"#;
        let programs: Vec<Program> = serde_json::from_str(text).unwrap();
        assert_eq!(too_long(&programs), ["pod_egress"]);
        let table = table(&programs);
        assert!(table.contains("uplink_xdp") && table.contains("480+0"), "{table}");
    }

    #[test]
    fn an_executable_is_that_of_the_asked_target() {
        let message = serde_json::json!({
            "reason": "compiler-artifact",
            "target": { "name": "shunt", "kind": ["bin"] },
            "executable": "/t/debug/shunt"
        });
        assert_eq!(executable(&message, "shunt", "bin"), Some("/t/debug/shunt".into()));
        assert_eq!(executable(&message, "shunt", "lib"), None);
        assert_eq!(executable(&message, "xtask", "bin"), None);
    }
}
