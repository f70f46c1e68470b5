//! `cargo xtask build`: the release build of `shunt`.

use miette::Result;

/// Arguments of `cargo xtask build`.
#[derive(Debug, clap::Args)]
pub struct BuildArgs {}

/// Builds `shunt` for release.
pub fn build(args: BuildArgs) -> Result<()> {
    let _ = args;
    Ok(())
}
