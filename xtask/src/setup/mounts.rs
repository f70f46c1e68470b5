//! The file systems the agent needs: bpffs for pins, cgroup2 for the socket hooks.

use std::fs;
use std::path::Path;

use miette::{IntoDiagnostic, Result, WrapErr};
use nix::mount::{MsFlags, mount};

/// A file system that must be mounted somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mount {
    /// Pinned maps and links.
    Bpffs,
    /// Socket hooks.
    Cgroup2,
}

impl Mount {
    /// Type, and where it is mounted when it is missing.
    const fn place(self) -> (&'static str, &'static str) {
        match self {
            Self::Bpffs => ("bpf", "/sys/fs/bpf"),
            Self::Cgroup2 => ("cgroup2", "/run/shunt/cgroup2"),
        }
    }

    /// The commands that mount it.
    pub fn typed(self) -> String {
        let (kind, place) = self.place();
        match self {
            Self::Bpffs => format!("mount -t {kind} {kind} {place}"),
            Self::Cgroup2 => format!("mkdir -p {place} && mount -t {kind} {kind} {place}"),
        }
    }

    /// Mounts it (root).
    pub fn mount(self) -> Result<()> {
        let (kind, place) = self.place();
        if self == Self::Cgroup2 {
            fs::create_dir_all(place).into_diagnostic().wrap_err(place)?;
        }
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&Path>)
            .into_diagnostic()
            .wrap_err_with(|| self.typed())
    }
}

/// What is not mounted, from the text of `/proc/self/mountinfo`.
pub fn missing(mountinfo: &str) -> Vec<Mount> {
    let mounted = |mount: Mount| {
        let (kind, place) = mount.place();
        mountinfo.lines().any(|line| {
            // … mount point is the fifth field, the type comes first behind the dash.
            let Some((left, right)) = line.split_once(" - ") else { return false };
            let point = left.split(' ').nth(4);
            // Pins live at a fixed path; a cgroup2 is found wherever it is.
            right.split(' ').next() == Some(kind) && (mount == Mount::Cgroup2 || point == Some(place))
        })
    };
    [Mount::Bpffs, Mount::Cgroup2].into_iter().filter(|&mount| !mounted(mount)).collect()
}

/// What is not mounted on this machine.
pub fn missing_here() -> Result<Vec<Mount>> {
    let path = "/proc/self/mountinfo";
    Ok(missing(&fs::read_to_string(path).into_diagnostic().wrap_err(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CGROUP2: &str = "30 23 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_cgroup2_counts_wherever_it_is() {
        assert_eq!(missing(CGROUP2), [Mount::Bpffs]);
        assert_eq!(
            missing("29 23 0:25 / /sys/fs/cgroup rw shared:4 - cgroup cgroup rw\n"),
            [Mount::Bpffs, Mount::Cgroup2]
        );
    }

    #[test]
    fn a_bpffs_counts_only_at_its_usual_place() {
        let elsewhere = "40 23 0:31 / /tmp/bpf rw - bpf bpf rw\n";
        assert_eq!(missing(&format!("{CGROUP2}{elsewhere}")), [Mount::Bpffs]);
        let usual = "40 23 0:31 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n";
        assert!(missing(&format!("{CGROUP2}{usual}")).is_empty());
    }
}
