//! The lab's own programs: hidden subcommands of xtask, which the lab starts inside its namespaces.
use std::process::ExitCode;

use miette::{IntoDiagnostic, Result};

use super::{ownership, probe, server};

/// A hidden subcommand of xtask.
#[derive(Debug, clap::Subcommand)]
pub enum Program {
    /// Take down a lab when its owner ends
    #[command(hide = true)]
    LabKeeper {
        /// The lab's name
        lab: String,
    },
    /// Answer from inside a pod
    #[command(hide = true)]
    PodServer(server::ServerArgs),
    /// Ask from inside a place, and report as JSON
    #[command(hide = true)]
    Probe(probe::ProbeArgs),
}

impl Program {
    /// Runs it to its end.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Program::LabKeeper { lab } => ownership::keep(&lab)?,
            Program::PodServer(args) => server::serve(&args).into_diagnostic()?,
            Program::Probe(args) => probe::run(&args).into_diagnostic()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
