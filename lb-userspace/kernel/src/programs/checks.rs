//! What must be there before anything is loaded, each thing named when it is missing.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};

use crate::pin::{self, PinError};

/// What is missing, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The kernel is too old.
    #[error("this kernel is Linux {found}; Shunt needs {OLDEST} or newer, so start a newer kernel")]
    Kernel {
        /// Its version.
        found: String,
    },
    /// Capabilities are missing.
    #[error(
        "missing {}: run as root, or grant what is missing (in Kubernetes: securityContext.capabilities.add)",
        names(missing)
    )]
    Capabilities {
        /// Which.
        missing: Vec<Capability>,
    },
    /// The capabilities cannot be read.
    #[error("cannot read this process's capabilities: {0}")]
    ReadCapabilities(String),
    /// The pin directory cannot be used.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// No cgroup2 mount.
    #[error(
        "no cgroup2 file system is mounted, and the socket hooks need one. Mount it \
         (`mount -t cgroup2 none /sys/fs/cgroup/unified`), name a cgroup with --cgroup, or do without: --socket-lb off"
    )]
    NoCgroup2,
    /// The path given is no cgroup.
    #[error("--cgroup {}: {reason}; name a folder of a cgroup2 mount", path.display())]
    Cgroup {
        /// The path given.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

fn names(capabilities: &[Capability]) -> String {
    capabilities.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A release of Linux.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Release {
    /// The first number.
    pub major: u32,
    /// The second one.
    pub minor: u32,
}

/// The oldest kernel that the programs are made for and tested on. Whatever else names it takes it from here.
pub const OLDEST: Release = Release { major: 6, minor: 1 };

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Release {
    /// From what `uname -r` says: `6.1.0-47-cloud-amd64`, `6.12-rc3`.
    fn parse(text: &str) -> Option<Self> {
        let (major, rest) = text.trim_start().split_once('.')?;
        let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        Some(Self { major: major.parse().ok()?, minor: rest[..end].parse().ok()? })
    }
}

/// Whether this is a real-time kernel (PREEMPT_RT), on which a program can be interrupted by another of its CPU. One that
/// cannot be told counts as one: that is safe everywhere.
pub fn is_realtime() -> bool {
    // (/sys/kernel/realtime is there in Debian's 6.12 and not in 7.3.)
    fs::read_to_string("/proc/sys/kernel/version").map_or(true, |version| names_realtime(&version))
}

/// `#1 SMP PREEMPT_RT Debian 7.3.4-1`.
fn names_realtime(version: &str) -> bool {
    version.split_whitespace().any(|word| word == "PREEMPT_RT" || word.starts_with("PREEMPT_{RT"))
}

/// Refuses kernels before [`OLDEST`].
pub fn kernel() -> Result<(), CheckError> {
    of_release(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default())
}

/// One that cannot be told counts as new: the kernel itself says what it does not take.
fn of_release(text: &str) -> Result<(), CheckError> {
    match Release::parse(text) {
        Some(release) if release < OLDEST => Err(CheckError::Kernel { found: text.trim().to_owned() }),
        _ => Ok(()),
    }
}

/// Refuses a process that lacks a capability the agent needs.
pub fn capabilities() -> Result<(), CheckError> {
    let needed = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];
    let held = caps::read(None, CapSet::Effective)
        .map_err(|error| CheckError::ReadCapabilities(error.to_string()))?;
    // CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON in the kernel's eyes.
    let admin = held.contains(&Capability::CAP_SYS_ADMIN);
    let has = |cap: &Capability| held.contains(cap) || (admin && *cap != Capability::CAP_NET_ADMIN);
    let missing: Vec<Capability> = needed.into_iter().filter(|cap| !has(cap)).collect();
    if missing.is_empty() { Ok(()) } else { Err(CheckError::Capabilities { missing }) }
}

/// Refuses a pin directory that is not on a bpffs.
pub fn bpffs(root: &Path) -> Result<(), CheckError> {
    Ok(pin::check_bpffs(root)?)
}

/// The cgroup the socket hooks attach to: the one given, else the root of the first cgroup2 mount.
pub fn cgroup(given: Option<&Path>) -> Result<PathBuf, CheckError> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let Some(path) = given else {
        return first_cgroup2(&mounts).ok_or(CheckError::NoCgroup2);
    };
    let reject = |reason: String| CheckError::Cgroup { path: path.to_owned(), reason };
    let fs = nix::sys::statfs::statfs(path).map_err(|errno| reject(io::Error::from(errno).to_string()))?;
    if fs.filesystem_type() != nix::sys::statfs::CGROUP2_SUPER_MAGIC {
        return Err(reject("it is not on a cgroup2 file system".to_owned()));
    }
    Ok(path.to_owned())
}

fn first_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        // Spaces in paths are written as \040.
        (kind == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cgroup2_mount_is_found_in_pure_and_hybrid_layouts() {
        let pure = "sysfs /sys sysfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(first_cgroup2(pure), Some("/sys/fs/cgroup".into()));
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(first_cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(first_cgroup2("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"), None);
    }

    #[test]
    fn releases_are_read_however_they_are_written() {
        let cases = [
            ("6.1.0-47-cloud-amd64\n", Some((6, 1))),
            ("6.6.87.2-microsoft-standard-WSL2", Some((6, 6))),
            ("6.12-rc3", Some((6, 12))),
            ("6.18", Some((6, 18))),
            ("10.0.1+", Some((10, 0))),
            ("5.10.0-33-amd64", Some((5, 10))),
            ("6.x", None),
            ("linux", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(major, minor)| Release { major, minor });
            assert_eq!(Release::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn older_kernels_are_refused_in_words() {
        for refused in ["5.10.0-33-amd64\n", "5.15.0-105-generic", "6.0.19", "4.18.0-553.el8_10.x86_64"] {
            let said = of_release(refused).expect_err(refused).to_string();
            assert!(
                said.contains(&format!("Linux {}; Shunt needs {OLDEST} or newer", refused.trim())),
                "{said}"
            );
        }
        for taken in ["6.1.0-47-cloud-amd64", "6.1-rc1", "6.12.117", "7.3.4", "no version at all"] {
            assert!(of_release(taken).is_ok(), "{taken}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        let error = CheckError::Capabilities { missing: vec![Capability::CAP_BPF, Capability::CAP_PERFMON] };
        assert!(error.to_string().starts_with("missing CAP_BPF, CAP_PERFMON"), "{error}");
    }

    #[test]
    fn a_realtime_kernel_says_so() {
        assert!(names_realtime("#1 SMP PREEMPT_RT Debian 7.3.4-1~bpo13+1 (2026-11-11)"));
        assert!(names_realtime("#1 SMP PREEMPT_{RT,LAZY} Debian 6.18.1"));
        assert!(!names_realtime("#1 SMP PREEMPT_DYNAMIC Debian 6.12.118-1 (2026-11-01)"));
    }

    #[test]
    fn a_plain_folder_is_no_cgroup() {
        let message = cgroup(Some(Path::new("/proc"))).expect_err("procfs").to_string();
        assert!(message.starts_with("--cgroup /proc: "), "{message}");
    }
}
