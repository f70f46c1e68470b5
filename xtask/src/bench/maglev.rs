//! Rings: time to build, balance, disruption. `lb-userspace/benches/maglev.rs` measures, this builds and runs it.

use miette::Result;

use super::{Context, Row, packet};
use crate::progress::Step;

/// Builds the measuring program and runs it.
pub fn run(context: &Context<'_>, step: &Step) -> Result<Vec<Row>> {
    packet::run_program(context, step, "maglev", &["--rounds", "5"])
}
