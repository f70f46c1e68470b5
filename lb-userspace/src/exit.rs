//! How the process ends: an error for people, and a code for scripts.

use std::process::ExitCode;

use lb_control::source::SourceError;
use lb_kernel::links::AttachError;
use lb_kernel::maps::OpenError;
use lb_kernel::net::watch::WatchError;
use lb_kernel::pin::PinError;
use lb_kernel::programs::checks::CheckError;
use lb_kernel::programs::load::LoadError;

use crate::args::ConfigError;

/// Everything a command can fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Something the machine must have is missing.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The pin directory cannot be used.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The programs cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A program cannot be attached or taken off.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A map cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The network cannot be read.
    #[error(transparent)]
    Network(#[from] WatchError),
    /// The source cannot start.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A map cannot be read or written.
    #[error("map {map}: {source}")]
    Map {
        /// Which.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The directory holds nothing of ours.
    #[error("{0}")]
    NothingThere(String),
    /// Something else of the system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// The exit code, after sysexits(3); `shunt --help` lists them.
    pub fn code(&self) -> u8 {
        const OTHER: u8 = 1;
        const UNAVAILABLE: u8 = 69;
        const NO_PERMISSION: u8 = 77;
        const BAD_CONFIG: u8 = 78;
        match self {
            Self::Config(_) | Self::Source(_) => BAD_CONFIG,
            Self::Check(CheckError::Capabilities { .. }) => NO_PERMISSION,
            Self::Check(CheckError::Cgroup { .. }) => BAD_CONFIG,
            Self::Check(_) | Self::Pins(_) | Self::NothingThere(_) => UNAVAILABLE,
            Self::Load(LoadError::Pins(_)) => UNAVAILABLE,
            Self::Open(error) if error.source.kind() == std::io::ErrorKind::PermissionDenied => NO_PERMISSION,
            Self::Open(_) => UNAVAILABLE,
            _ => OTHER,
        }
    }
}

/// Reports how a command ended on standard error, and makes its exit code.
pub fn report(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.code();
            // Long lines stay whole: a command in a message must survive being copied, and logs are
            // searched by line. The hook is set once a process, so it cannot be there already.
            let _ = miette::set_hook(Box::new(|_| {
                Box::new(miette::MietteHandlerOpts::new().wrap_lines(false).break_words(false).build())
            }));
            let report = miette::Report::msg(error.to_string());
            eprintln!("{report:?}");
            ExitCode::from(code)
        }
    }
}

/// Exit code of a command line that cannot be read.
pub const USAGE: u8 = 64;
