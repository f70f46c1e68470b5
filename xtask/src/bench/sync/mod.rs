//! From an object's write to the first packet that obeys it, and what that costs.

use miette::{Result, miette};
use nix::unistd::geteuid;

use super::{Context, Row, packet};
use crate::progress::Step;

/// Measures the agent's library in a process of its own.
pub fn run(context: &Context<'_>, step: &Step) -> Result<Vec<Row>> {
    if !geteuid().is_root() {
        return Err(miette!("`bench sync` needs root: it loads BPF programs and makes network namespaces"));
    }
    let in_short = ["--changes", "300", "--rounds", "1"];
    packet::run_program(context, step, "sync", &in_short)
}
