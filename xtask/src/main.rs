//! `cargo xtask`: the one door for developers.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use miette::IntoDiagnostic;
use xtask::{bench, build, image, lint, run, setup, test, tidy, twin, vm};

/// Set up, build, test and try Shunt
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask run                  a lab with two nodes, live; Ctrl-C cleans up
  cargo xtask run -- agent --help  the agent on this machine itself
  cargo xtask test                 everything that must pass (root)
  cargo xtask test --host          the part that needs no root
  cargo xtask test --only lab      one stage
  cargo xtask vm --kernel 6.1      the programs and the agent on another kernel
  cargo xtask bench packet         nanoseconds a packet, beside floors (root)
  cargo xtask build                target/release/shunt
  cargo xtask build --arch aarch64 the same for 64-bit ARM, linked statically
  cargo xtask image                a container image for x86_64 and aarch64";

#[derive(Debug, Subcommand)]
enum Command {
    /// Set up what is missing, build, and show a lab of network namespaces at work
    Run(run::RunArgs),
    /// Run everything that must pass, set-up included
    Test(test::TestArgs),
    /// Run the tests against a real Kubernetes API server
    E2e,
    /// Build target/release/shunt and check what the kernel's verifier says
    Build(build::BuildArgs),
    /// Build the container image, as an OCI archive
    Image(image::ImageArgs),
    /// Measure, beside floors and other ways to do the same
    Bench(bench::BenchArgs),
    /// Install what this machine lacks
    Setup(setup::SetupArgs),
    /// Check formatting, clippy, dependencies and the rules of this repository
    Lint,
    /// Check the rules of this repository alone
    Tidy,
    /// Boot other kernels in virtual machines, and run agent and programs there
    Vm(vm::VmArgs),
    /// Be the first process of a virtual machine
    #[command(hide = true)]
    VmInit,
    /// Compare with the real kube-proxy: two labs side by side, one API server (root)
    Twin(twin::TwinArgs),
    /// Ask many addresses at once, and report as JSON
    #[command(hide = true)]
    TwinAsk,
    #[command(flatten)]
    Sockets(bench::sockets::Program),
    #[command(flatten)]
    Lab(lb_lab::Program),
}

fn main() -> ExitCode {
    // Commands and compiler messages stay as they are, to be read and pasted.
    let handler = Box::new(|_: &_| Box::new(miette::MietteHandlerOpts::new().wrap_lines(false).build()) as _);
    // Refused only when there is a handler already.
    let _ = miette::set_hook(handler);
    let done = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Test(args) => test::test(args),
        Command::E2e => test::test(test::TestArgs::only(test::Stage::Api)),
        Command::Build(args) => build::build(args).map(|()| ExitCode::SUCCESS),
        Command::Image(args) => image::image(&args).map(|()| ExitCode::SUCCESS),
        Command::Bench(args) => bench::bench(&args),
        Command::Setup(args) => setup::setup(args).map(|()| ExitCode::SUCCESS),
        Command::Lint => lint::lint().map(|()| ExitCode::SUCCESS),
        Command::Tidy => tidy::tidy().map(|()| ExitCode::SUCCESS),
        Command::Vm(args) => vm::vm(&args),
        Command::VmInit => vm::guest::run().map(|()| ExitCode::SUCCESS),
        Command::Twin(args) => twin::twin(&args),
        Command::TwinAsk => twin::ask::run().into_diagnostic().map(|()| ExitCode::SUCCESS),
        Command::Sockets(program) => program.run().into_diagnostic().map(|()| ExitCode::SUCCESS),
        Command::Lab(program) => program.run(),
    };
    done.unwrap_or_else(|report| {
        eprintln!("{report:?}");
        match report.downcast_ref::<setup::Unavailable>() {
            Some(_) => ExitCode::from(setup::Unavailable::EXIT_CODE),
            None => ExitCode::FAILURE,
        }
    })
}
