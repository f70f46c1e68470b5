//! How fast and how large the control side is: objects in, maps out. The measuring part of `cargo xtask bench sync`:
//! prints one JSON object a line.
//!
//! Root only: it loads the programs, attaches none, and pins into a bpffs that nobody else sees. Each case runs in a
//! process of its own, so that its memory is its own.

mod case;
mod memory;
mod objects;
mod pinned;
mod report;

use std::process::{Command, Stdio};

use clap::Parser;
use lb_bench::choice::Choice;
use miette::{IntoDiagnostic as _, Result, miette};

use case::Case;
use report::Figure;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    choice: Choice,
    /// Numbers of Services to measure in place of the usual cases
    #[arg(long, value_delimiter = ',')]
    services: Vec<usize>,
    /// Endpoints of each of them
    #[arg(long, value_delimiter = ',', default_value = "10")]
    endpoints: Vec<usize>,
    /// Endpoints replaced in a case
    #[arg(long, default_value_t = 1000)]
    changes: usize,
    /// How often a case is started
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measure this one in this process
    #[arg(long, hide = true, value_parser = Case::parse)]
    case: Option<Case>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(case) = &arguments.case {
        println!("{}", serde_json::to_string(&case::run(case)).into_diagnostic()?);
        return Ok(());
    }
    let cases = match arguments.services.as_slice() {
        [] => Case::usual(arguments.choice.all, arguments.changes),
        services => Case::all(services, &arguments.endpoints, arguments.changes),
    };
    for case in cases.iter().filter(|case| arguments.choice.holds(&case.name())) {
        let mut processes = Vec::new();
        for round in 0..arguments.rounds.max(1) {
            eprintln!("{}, start {} of {}", case.name(), round + 1, arguments.rounds);
            // One series of changes is enough; the others measure the start.
            processes.push(measure(&if round == 0 { case.clone() } else { case.without_changes() })?);
        }
        for figure in report::merged(&processes) {
            println!("{}", report::row(&case.name(), &figure));
        }
    }
    Ok(())
}

/// Runs one case in a process of its own.
fn measure(case: &Case) -> Result<Vec<Figure>> {
    let output = Command::new(std::env::current_exe().into_diagnostic()?)
        .args(["--case", &case.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .into_diagnostic()?;
    if !output.status.success() {
        return Err(miette!("{} ended with {}", case.name(), output.status));
    }
    serde_json::from_slice(&output.stdout).into_diagnostic()
}
