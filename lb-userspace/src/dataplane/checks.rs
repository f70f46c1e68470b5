//! What must be there before anything is loaded, each thing named when it is missing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::util::KernelVersion;
use caps::{CapSet, Capability};

use super::pin::{self, PinError};

/// What is missing, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The kernel is too old.
    #[error("this kernel is Linux {found}; Shunt needs 5.15 or newer")]
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

/// The oldest kernel the programs are made for.
const OLDEST: (u8, u8) = (5, 15);

/// Whether the kernel is this version or newer. One that cannot be told counts as new.
pub fn is_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().map_or(true, |current| current >= KernelVersion::new(major, minor, 0))
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

/// Refuses kernels before 5.15.
pub fn kernel() -> Result<(), CheckError> {
    if is_at_least(OLDEST.0, OLDEST.1) {
        return Ok(());
    }
    let found =
        fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "of unknown version".into());
    Err(CheckError::Kernel { found: found.trim().to_owned() })
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
