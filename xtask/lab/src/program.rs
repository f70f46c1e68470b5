//! The lab's own programs: hidden subcommands of xtask, which the lab starts inside its namespaces.
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use miette::{IntoDiagnostic, Result, WrapErr};
use nix::sched::{CloneFlags, setns};

use super::{LabId, ownership, probe, server};

/// A subcommand of xtask that belongs to the lab; hidden unless people use it.
#[derive(Debug, clap::Subcommand)]
pub enum Program {
    /// Run a command in a place of the running lab: client, node-a, node-b, pod-NAME
    Enter(EnterArgs),
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

/// Arguments of `cargo xtask enter`.
#[derive(Debug, clap::Args)]
pub struct EnterArgs {
    /// The lab's name, if there is more than one
    #[arg(long)]
    lab: Option<String>,

    /// client, node-a, node-b, wire, or pod-NAME
    place: String,

    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command, in the place's network namespace and control group.
fn enter(args: &EnterArgs) -> Result<()> {
    let lab = match &args.lab {
        Some(name) => LabId::named(name),
        None => LabId::only()?,
    };
    let (netns, group) = lab.find_netns(&args.place)?;
    std::fs::write(group.join("cgroup.procs"), std::process::id().to_string())
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot enter the control group {}", group.display()))?;
    let handle =
        File::open(&netns).into_diagnostic().wrap_err_with(|| format!("cannot open {}", netns.display()))?;
    // This program has one thread here, so it moves as a whole.
    setns(handle, CloneFlags::CLONE_NEWNET)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot enter {}", netns.display()))?;
    let Some((program, rest)) = args.command.split_first() else { return Ok(()) };
    let error = Command::new(program).args(rest).exec();
    Err(error).into_diagnostic().wrap_err_with(|| format!("cannot start {}", program.display()))
}

impl Program {
    /// Runs it to its end.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Program::Enter(args) => enter(&args)?,
            Program::LabKeeper { lab } => ownership::keep(&lab)?,
            Program::PodServer(args) => server::serve(&args).into_diagnostic()?,
            Program::Probe(args) => probe::run(&args).into_diagnostic()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
