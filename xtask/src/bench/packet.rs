//! Nanoseconds a packet: `lb-userspace/benches/packet` measures, this builds and runs it.

use std::io::{BufRead, BufReader};
use std::process::Command;
use std::thread;

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use nix::unistd::geteuid;

use super::{Context, Row};
use crate::build;
use crate::command::{spawn_piped, typed};
use crate::progress::Step;

/// Builds the measuring program and runs it.
pub fn run(context: &Context<'_>, step: &Step) -> Result<Vec<Row>> {
    if !geteuid().is_root() {
        return Err(miette!("`bench packet` needs root: it loads BPF programs"));
    }
    run_program(context, step, "packet", &["--rounds", "5"])
}

/// Builds a bench target of lb-userspace and runs it. `quick`: its arguments for a short run.
pub fn run_program(context: &Context<'_>, step: &Step, name: &str, quick: &[&str]) -> Result<Vec<Row>> {
    step.detail("building");
    let mut cargo = context.toolchain.cargo();
    cargo.args(["build", "--release", "--package", "lb-userspace", "--features", "bench", "--bench", name]);
    let program = build::messages(&mut cargo)?
        .iter()
        .find_map(|message| build::executable(message, name, "bench"))
        .ok_or_else(|| miette!("cargo named no executable: {}", typed(&cargo)))?;
    let mut command = Command::new(program);
    if context.args.quick {
        command.args(quick);
    }
    if context.args.all {
        command.arg("--all");
    }
    rows(command.args(&context.args.only), step)
}

/// Runs a program that says on standard error what it is at, and prints rows.
fn rows(command: &mut Command, step: &Step) -> Result<Vec<Row>> {
    let mut child = spawn_piped(command)?;
    let stdout = child.stdout.take().ok_or_else(|| miette!("no standard output"))?;
    let stderr = child.stderr.take().ok_or_else(|| miette!("no standard error"))?;
    let printed = thread::spawn(move || BufReader::new(stdout).lines().collect::<std::io::Result<Vec<_>>>());
    let mut said = Vec::new();
    for line in BufReader::new(stderr).lines().map_while(std::io::Result::ok) {
        step.detail(&line);
        said.push(line);
    }
    let printed = printed.join().map_err(|_| miette!("reading its output failed"))?.into_diagnostic()?;
    let status = child.wait().into_diagnostic()?;
    if !status.success() {
        let last = said[said.len().saturating_sub(20)..].join("\n");
        return Err(miette!("{status} from: {}\n{last}", typed(command)));
    }
    let parse = |line: &String| serde_json::from_str(line).into_diagnostic().wrap_err_with(|| line.clone());
    printed.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::super::row::Target;
    use super::*;

    #[test]
    fn rows_are_read_from_what_is_printed() {
        let line = r#"{"case":"a","what":"time a packet","value":2.0,"low":1.5,"high":2.5,"unit":"ns","floor":"b","ratio":1.1,"target":{"atMost":1.2},"problem":null}"#;
        let script = format!("echo round 1 >&2; echo '{line}'");
        let found = rows(Command::new("sh").args(["-c", &script]), &Step::begin("a test")).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].target, found[0].is_met()), (Some(Target::AtMost(1.2)), Some(true)));
        let error = rows(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), &Step::begin("a test"));
        assert!(error.unwrap_err().to_string().contains("why"));
    }
}
