//! `shunt`: reads the command line, runs the command, ends with its code.

use std::process::ExitCode;

use clap::Parser;
use shunt::args::{Cli, Command};
use shunt::{app, cleanup, exit, get, keeper};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            let code = if message.use_stderr() { exit::USAGE } else { 0 };
            // Nothing is left to do when not even the message can be printed.
            let _ = message.print();
            return ExitCode::from(code);
        }
    };
    exit::report(match cli.command {
        Command::Agent(args) => app::agent(*args),
        Command::Get(args) => get::run(&args),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Keeper(args) => keeper::run(&args),
        Command::Debug(args) => get::debug::run(&args),
    })
}
