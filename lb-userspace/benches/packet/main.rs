//! What a packet costs in each program, as `BPF_PROG_TEST_RUN` tells: the measuring part of
//! `cargo xtask bench packet`. Prints one JSON object a line.
//!
//! Root only. Nothing is attached: no packet of this machine is touched.

mod bed;
mod case;
mod kernel;
#[expect(dead_code, reason = "some of it is for programs alone, some for `wire`")]
#[path = "../../../lb-ebpf/src/floors/layout.rs"]
mod layout;
mod measure;
mod sandbox;

use std::path::PathBuf;

use clap::Parser;
use lb_bench::choice::Choice;
use miette::{IntoDiagnostic as _, Result, WrapErr as _};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    choice: Choice,
    /// Rounds, each of which measures every case once
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Packets of a case in a round; as many as it has flows at least
    #[arg(long, default_value_t = 100_000)]
    packets: u32,
    /// The CPU to measure on (default: the last)
    #[arg(long)]
    cpu: Option<usize>,
    /// Programs to measure in place of the agent's
    #[arg(long, value_name = "OBJECT")]
    object: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let cpus = std::thread::available_parallelism().into_diagnostic()?.get();
    let mut cpu = CpuSet::new();
    cpu.set(arguments.cpu.unwrap_or(cpus - 1)).into_diagnostic()?;
    sched_setaffinity(Pid::from_raw(0), &cpu).into_diagnostic().wrap_err("cannot stay on one CPU")?;
    sandbox::enter()?;
    let object = match &arguments.object {
        Some(path) => std::fs::read(path).into_diagnostic().wrap_err_with(|| path.display().to_string())?,
        None => lb_kernel::programs::load::OBJECT.to_vec(),
    };
    let cases = case::list(arguments.choice.all);
    let chosen = cases.into_iter().filter(|case| arguments.choice.holds(&case.name)).collect();
    for row in measure::measure(&object, chosen, arguments.rounds, arguments.packets)? {
        println!("{}", serde_json::to_string(&row).into_diagnostic()?);
    }
    Ok(())
}
