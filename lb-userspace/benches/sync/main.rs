//! How fast and how large the control side is: objects in, maps out.
//!
//! `cargo bench -p lb-userspace --bench sync`, as root: it loads the programs, attaches none, and pins into a bpffs
//! that nobody else sees. Options: `--services N,N…`, `--endpoints N,N…`, `--changes N`, `--json`.
//! Each case runs in a process of its own, so that its memory is its own.

mod case;
mod memory;
mod objects;
mod place;
mod report;

use std::process::{Command, ExitCode, Stdio};

use case::Case;
use report::Row;

const CASE: &str = "--case";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(case) = value(&arguments, CASE).and_then(Case::parse) {
        for row in case::run(&case) {
            println!("{}", row.json());
        }
        return ExitCode::SUCCESS;
    }
    let changes = value(&arguments, "--changes").and_then(|text| text.parse().ok()).unwrap_or(1000);
    let asked = value(&arguments, "--services").map(numbers);
    let endpoints = value(&arguments, "--endpoints").map(numbers);
    let cases = match (asked, endpoints) {
        (None, None) => Case::usual(changes),
        (services, endpoints) => Case::all(
            &services.unwrap_or_else(|| vec![10_000]),
            &endpoints.unwrap_or_else(|| vec![10]),
            changes,
        ),
    };
    let json = arguments.iter().any(|argument| argument == "--json");
    let mut all_good = true;
    for case in cases {
        match measure(&case) {
            Ok(rows) if json => rows.iter().for_each(|row| println!("{}", row.json())),
            Ok(rows) => print!("{}", report::table(&case, &rows)),
            Err(error) => {
                eprintln!("{}: {error}", case.name());
                all_good = false;
            }
        }
    }
    if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn value<'a>(arguments: &'a [String], flag: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|argument| argument == flag)?;
    arguments.get(at + 1).map(String::as_str)
}

fn numbers(text: &str) -> Vec<usize> {
    text.split(',').filter_map(|number| number.parse().ok()).collect()
}

/// Runs one case in a process of its own.
fn measure(case: &Case) -> Result<Vec<Row>, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find itself: {error}"))?;
    let output = Command::new(program)
        .args([CASE, &case.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot start: {error}"))?;
    if !output.status.success() {
        return Err(format!("the case ended with {}", output.status));
    }
    String::from_utf8_lossy(&output.stdout).lines().map(Row::parse).collect()
}
