//! What can go wrong in the lab, in words for whoever started it.
use std::io;
use std::time::Duration;

/// A failure while building, using or taking down a lab.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum LabError {
    /// A command ended with an error.
    #[error("`{command}` failed: {output}")]
    Command {
        /// The command line as it was run.
        command: String,
        /// What it printed, trimmed.
        output: String,
    },
    /// The operating system refused something.
    #[error("cannot {action}")]
    Io {
        /// What was tried, as a verb phrase.
        action: String,
        /// Why it was refused.
        source: io::Error,
    },
    /// Something awaited did not happen in time.
    #[error("waited {} ms in vain for {what}{detail}", within.as_millis())]
    Deadline {
        /// What was awaited.
        what: String,
        /// How long it was awaited.
        within: Duration,
        /// More about it, such as the end of a log, starting with a newline; or nothing.
        detail: String,
    },
    /// Something the lab needs is missing.
    #[error("{problem}")]
    Missing {
        /// What is missing.
        problem: String,
        /// What to do about it.
        #[help]
        remedy: String,
    },
}

/// Result of a lab operation.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

/// Adds what was being done to an I/O error.
pub(super) trait Doing<T> {
    /// Names the action that failed, as a verb phrase such as "write /proc/x".
    fn doing(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| LabError::Io { action: action(), source: source.into() })
    }
}
