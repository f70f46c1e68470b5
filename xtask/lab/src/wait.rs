//! Awaiting a condition with a deadline.
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::error::{LabError, Result};

const PAUSE: Duration = Duration::from_millis(5);

/// Variable with the factor of [`patiently`].
pub const PATIENCE: &str = "SHUNT_PATIENCE";

/// How long this may take where everything takes longer, such as on an emulated machine, which says so by [`PATIENCE`].
pub fn patiently(usual: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| {
        let set = std::env::var(PATIENCE).ok();
        set.map_or(1, |text| text.parse().unwrap_or_else(|_| panic!("{PATIENCE} is no number: {text:?}")))
    });
    usual * *factor
}

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
    let within = patiently(within);
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
