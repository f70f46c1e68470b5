//! Awaiting a condition with a deadline.
use std::time::{Duration, Instant};

use super::error::{LabError, Result};

const PAUSE: Duration = Duration::from_millis(5);

/// Looks until `check` gives a value. `what` names the awaited thing in the error.
pub fn poll<T>(what: &str, within: Duration, check: impl FnMut() -> Option<T>) -> Result<T> {
    poll_every(PAUSE, what, within, check)
}

/// Looks until `check` gives a value, with a pause after each look: for a look that is work to somebody.
pub fn poll_every<T>(
    pause: Duration,
    what: &str,
    within: Duration,
    mut check: impl FnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = check() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            return Err(LabError::Deadline { what: what.into(), within, detail: String::new() });
        }
        std::thread::sleep(pause);
    }
}
