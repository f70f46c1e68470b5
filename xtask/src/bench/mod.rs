//! `cargo xtask bench`: how fast it is, beside floors and other ways to do the same.
//!
//! A sub-bench is a function that gives [`Row`]s. Everything else is the same for all: progress, table, JSON, the data
//! file in docs/performance, and the summary in docs/performance.md.

pub mod docs;
pub mod flood;
mod headlines;
mod machine;
mod maglev;
mod packet;
mod record;
mod report;
mod row;
pub mod sockets;
mod summary;
mod sync;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::ValueEnum;
use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::progress::Step;
use crate::setup::{self, Purpose, Toolchain};

use machine::Machine;
pub use row::Row;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Bench {
    /// Nanoseconds a packet, program by program (root)
    Packet,
    /// Packets a second of one core, from wire to wire, beside iptables and nftables (root)
    Wire,
    /// From an object's write to the packet that obeys it, beside kube-proxy (root)
    Sync,
    /// Rings: time to build, balance, disruption
    Maglev,
    /// Connections under a flood of SYNs (root)
    Flood,
    /// What a connection costs, from socket to socket (root)
    Sockets,
}

impl Bench {
    const ALL: [Self; 6] = [Self::Packet, Self::Wire, Self::Sockets, Self::Sync, Self::Maglev, Self::Flood];

    /// The name to type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Wire => "wire",
            Self::Sync => "sync",
            Self::Maglev => "maglev",
            Self::Flood => "flood",
            Self::Sockets => "sockets",
        }
    }

    fn run(self, context: &Context<'_>, step: &Step) -> Result<Vec<Row>> {
        match self {
            Self::Packet => packet::run(context, step),
            Self::Wire => wire::run(context, step),
            Self::Sync => sync::run(context, step),
            Self::Maglev => maglev::run(context, step),
            Self::Flood => flood::run(context, step),
            Self::Sockets => sockets::run(context, step),
        }
    }
}

/// How a table is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For machines
    Json,
}

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// What to measure (default: everything)
    pub benches: Vec<Bench>,

    /// A short run: few rounds, wide ranges
    #[arg(long, conflicts_with = "all")]
    pub quick: bool,

    /// Every combination, not the usual ones alone
    #[arg(long)]
    pub all: bool,

    /// Only cases whose name holds this (repeatable)
    #[arg(long, value_name = "PART OF A NAME")]
    pub only: Vec<String>,

    /// What is printed
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,

    /// Write the rows as JSON to this file as well
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the rows into docs/performance, and their summary into docs/performance.md
    #[arg(long, conflicts_with_all = ["quick", "only"])]
    pub write_docs: bool,

    /// Measure nothing; write the summary of what docs/performance has into docs/performance.md
    #[arg(long, exclusive = true)]
    pub summarize: bool,
}

/// What every sub-bench is given.
#[derive(Debug)]
pub struct Context<'a> {
    /// The command line.
    pub args: &'a BenchArgs,
    /// How to build.
    pub toolchain: Toolchain,
}

impl Context<'_> {
    /// Whether a case is to be measured.
    pub fn wants(&self, case: &str) -> bool {
        self.args.only.is_empty() || self.args.only.iter().any(|part| case.contains(part))
    }
}

/// Measures, and shows what came out. A row with a problem makes the command fail.
pub fn bench(args: &BenchArgs) -> Result<ExitCode> {
    if args.summarize {
        docs::summarize()?;
        return Ok(ExitCode::SUCCESS);
    }
    let benches = if args.benches.is_empty() { Bench::ALL.to_vec() } else { args.benches.clone() };
    let context = Context { args, toolchain: setup::ensure(&[Purpose::Build])? };
    let mut results = Vec::new();
    for bench in benches {
        let (began, step) = (Instant::now(), Step::begin(bench.name()));
        let rows = bench.run(&context, &step)?;
        step.done(began.elapsed());
        results.push((bench, rows));
    }
    let machine = Machine::here();
    let json = report::json(&machine, &results)?;
    match args.output {
        Output::Json => println!("{json}"),
        Output::Table => println!("{}", report::text(&machine, &results)),
    }
    if let Some(path) = &args.json {
        std::fs::write(path, json).into_diagnostic().wrap_err_with(|| path.display().to_string())?;
    }
    if args.write_docs {
        docs::write(&machine, args.all, &results)?;
    }
    let problems: Vec<_> =
        results.iter().flat_map(|(_, rows)| rows).filter_map(|row| row.problem.as_deref()).collect();
    if problems.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(miette!("{} rows did not measure what they should:\n{}", problems.len(), problems.join("\n")))
    }
}
