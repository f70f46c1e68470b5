//! How much memory maps take.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use super::pin::{self, PinDir};
use super::sys;

/// Bytes of every pinned map, as the kernel counts them (before 6.4 those it can hold at most), by name.
pub fn bytes(pins: &PinDir) -> io::Result<Vec<(String, u64)>> {
    let mut sizes = Vec::new();
    for name in pin::entries(&pins.maps())? {
        let map = sys::obj_get(&pins.map(&name), true)?;
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
        let size = memlock(&text).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the kernel does not say the size of {name}"))
        })?;
        sizes.push((name, size));
    }
    sizes.sort_unstable();
    Ok(sizes)
}

fn memlock(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_read_from_what_the_kernel_says_of_a_map() {
        let text = "pos:\t0\nmap_type:\t2\nmax_entries:\t1\nmemlock:\t4288\nmap_id:\t7\n";
        assert_eq!(memlock(text), Some(4288));
        assert_eq!(memlock("pos:\t0\n"), None);
    }
}
