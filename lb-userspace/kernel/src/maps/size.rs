//! How much memory maps take.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use crate::pin::{self, PinDir};
use crate::sys;

/// A pinned map, as the kernel counts it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapSize {
    /// Its name.
    pub name: String,
    /// Bytes it takes (before Linux 6.4 those it can take at most).
    pub bytes: u64,
    /// Entries it has room for.
    pub max_entries: u64,
}

/// Every pinned map, by name.
pub fn maps(pins: &PinDir) -> io::Result<Vec<MapSize>> {
    let mut sizes = Vec::new();
    for name in pin::entries(&pins.maps())? {
        let map = sys::obj_get(&pins.map(&name), true)?;
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
        let size = field(&text, "memlock:").zip(field(&text, "max_entries:"));
        let (bytes, max_entries) = size.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the kernel does not say the size of {name}"))
        })?;
        sizes.push(MapSize { name, bytes, max_entries });
    }
    sizes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(sizes)
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_read_from_what_the_kernel_says_of_a_map() {
        let text = "pos:\t0\nmap_type:\t2\nmax_entries:\t1\nmemlock:\t4288\nmap_id:\t7\n";
        assert_eq!((field(text, "memlock:"), field(text, "max_entries:")), (Some(4288), Some(1)));
        assert_eq!(field("pos:\t0\n", "memlock:"), None);
    }
}
