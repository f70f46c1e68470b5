//! When to send how many.

use std::time::Duration;

/// Frames of a call, at most: a veth's ring has room for twice as many.
const MOST: u64 = 128;
/// At least, since each call of the kernel costs as much as several.
const FEWEST: u64 = 64;
/// After a time in which this program did not run it makes up for it, but at no more than so many times the rate.
const HASTE: u32 = 2;

/// So many in all, and so many a second.
pub struct Pace {
    /// A second.
    pub rate: u32,
    /// In all.
    pub count: u64,
}

impl Pace {
    /// How many to send now, since the flood's beginning and the last call's: `sent` were sent, `batch` of them in that call.
    /// None while too few are due.
    pub fn batch(&self, flood: Duration, sent: u64, batch: u32, call: Duration) -> Option<u32> {
        let left = self.count.saturating_sub(sent);
        let due = (flood.as_nanos() * u128::from(self.rate) / 1_000_000_000) as u64;
        let due = due.saturating_sub(sent).min(left);
        let rested = call >= Duration::from_secs(1) * batch / (HASTE * self.rate);
        (due >= FEWEST.min(left) && rested).then_some(due.min(MOST) as u32)
    }
}
