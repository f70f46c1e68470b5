//! Packets a second of one core, from wire to wire: `lb-userspace/benches/wire` measures, this builds and runs it.

use miette::{Result, miette};
use nix::unistd::geteuid;

use super::{Context, Row, packet};
use crate::progress::Step;

/// Builds the measuring program and runs it.
pub fn run(context: &Context<'_>, step: &Step) -> Result<Vec<Row>> {
    if !geteuid().is_root() {
        return Err(miette!("`bench wire` needs root: it makes network namespaces and loads BPF programs"));
    }
    packet::run_program(context, step, "wire", &["--rounds", "3", "--services", "1000"])
}
