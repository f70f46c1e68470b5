//! Packets a second that one core carries from wire to wire: the measuring part of `cargo xtask bench wire`. Prints one
//! JSON object a line.
//!
//! Root only. Frames are made, carried and counted in network namespaces of this process; no packet of this machine is
//! touched, and everything ends with the process.

mod agent;
mod case;
mod ground;
#[expect(dead_code, reason = "some of it is for programs alone, some for `packet`")]
#[path = "../../../lb-ebpf/src/floors/layout.rs"]
mod layout;
mod measure;
mod netfilter;
mod rows;
mod rules;
mod sent;
mod wire;

use std::time::Duration;

use clap::Parser;
use lb_bench::choice::Choice;
use miette::{IntoDiagnostic as _, Result};

use case::Case;
use measure::Plan;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    choice: Choice,
    /// Rounds, each of which measures every case once
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Milliseconds for a case in a round, about
    #[arg(long, default_value_t = 50)]
    milliseconds: u64,
    /// At most so many Services
    #[arg(long, default_value_t = u32::MAX)]
    services: u32,
    /// The CPU to measure on (default: the last)
    #[arg(long)]
    cpu: Option<usize>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let cpus = std::thread::available_parallelism().into_diagnostic()?.get();
    let fits = |case: &Case| case.carrier.services().is_none_or(|services| services <= arguments.services);
    let cases: Vec<_> = case::list(arguments.choice.all).into_iter().filter(fits).collect();
    let is_asked = |case: &Case| arguments.choice.holds(&case.to_string());
    let floors: Vec<_> = cases.iter().filter(|case| is_asked(case)).map(|case| case.floor()).collect();
    let chosen: Vec<_> = cases.into_iter().filter(|case| is_asked(case) || floors.contains(case)).collect();
    let time = Duration::from_millis(arguments.milliseconds);
    let plan = Plan { rounds: arguments.rounds, time, cpu: arguments.cpu.unwrap_or(cpus - 1), cpus };
    for row in rows::rows(&measure::measure(&chosen, &plan)?, arguments.choice.all) {
        println!("{}", serde_json::to_string(&row).into_diagnostic()?);
    }
    Ok(())
}
