//! What this process and its maps take.

use std::fs;
use std::time::Duration;

use lb_kernel::maps::size;
use lb_kernel::pin::PinDir;
use nix::time::{ClockId, clock_gettime};

const MIB: f64 = 1024.0 * 1024.0;

/// A line of `/proc/self/status`, in MiB.
pub fn status(field: &str) -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// The peak is what is resident now, from now on.
pub fn forget_peak() -> std::io::Result<()> {
    fs::write("/proc/self/clear_refs", "5")
}

/// Processor time of this process.
pub fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// MiB of each pinned map, as the kernel counts them, the largest first.
pub fn maps(pins: &PinDir) -> std::io::Result<Vec<(String, f64)>> {
    let sizes = size::maps(pins)?.into_iter();
    let mut maps: Vec<_> = sizes.map(|map| (map.name, map.bytes as f64 / MIB)).collect();
    maps.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    Ok(maps)
}
