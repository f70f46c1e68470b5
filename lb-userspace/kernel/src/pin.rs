//! Names in the pin directory, and the lock that keeps it to one agent.
//!
//! ```text
//! <bpffs>/v1/maps/SERVICES4          one file for each map
//! <bpffs>/v1/links/pod_ingress-17    one for each program on an interface, by its index
//! <bpffs>/v1/links/connect4          one for each socket program
//! <bpffs>/v1/filters/…               programs attached as clsact filters, on kernels before 6.6
//! <bpffs>/v1/qdiscs/17               an empty folder: the clsact qdisc of interface 17 is our making
//! <bpffs>/keeper                     an empty folder: the keeper's post
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lb_common::abi::ABI_VERSION;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

mod post;
pub use post::Post;

/// Why the pin directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// No bpffs there.
    #[error(
        "--bpffs {}: no bpffs is mounted there. Mount one: `mkdir -p {1}; mount -t bpf bpf {1}`; in a container, mount the \
         host's /sys/fs/bpf",
        path.display(),
        suggestion.display()
    )]
    NotBpffs {
        /// The path given.
        path: PathBuf,
        /// Where a bpffs would make it valid.
        suggestion: PathBuf,
    },
    /// The path cannot be made or read.
    #[error("--bpffs {}: {source}", path.display())]
    Io {
        /// The path at fault.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A dot in the path: bpffs reserves such names.
    #[error("--bpffs {}: the kernel allows no dot in the names below a bpffs mount; choose another name", .0.display())]
    Dot(PathBuf),
    /// Another agent has the directory.
    #[error(
        "--bpffs {}: in use by another agent{}, and one process at a time may change it. Stop that one, or name \
         another directory",
        path.display(),
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who has it, where the kernel tells.
        pid: Option<u32>,
    },
    /// A keeper that does not end when it is told to.
    #[error("--bpffs {}: its keeper is at work and does not end: end the process `shunt keeper --bpffs {0}`", .path.display())]
    Keeper {
        /// The directory.
        path: PathBuf,
    },
}

/// The pin directory of one layout version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinDir {
    root: PathBuf,
    version: u32,
}

impl PinDir {
    /// The directory of this release below `root` (the value of `--bpffs`). Touches nothing.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), version: ABI_VERSION }
    }

    /// Every version below `root`, oldest first.
    pub fn versions(root: &Path) -> io::Result<Vec<Self>> {
        let mut found: Vec<Self> = entries(root)?
            .into_iter()
            .filter_map(|name| name.strip_prefix('v')?.parse().ok())
            .map(|version| Self { root: root.to_owned(), version })
            .collect();
        found.sort_by_key(|dir| dir.version);
        Ok(found)
    }

    /// The value of `--bpffs`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Layout version.
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// `<bpffs>/v1`
    pub fn base(&self) -> PathBuf {
        self.root.join(format!("v{}", self.version))
    }

    /// Where maps are.
    pub fn maps(&self) -> PathBuf {
        self.base().join("maps")
    }

    /// Where a map is.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Where links are.
    pub fn links(&self) -> PathBuf {
        self.base().join("links")
    }

    /// Where the link of a program on an interface is.
    pub fn link(&self, program: &str, interface: u32) -> PathBuf {
        self.links().join(format!("{program}-{interface}"))
    }

    /// Where the link of a socket program is.
    pub fn socket_link(&self, program: &str) -> PathBuf {
        self.links().join(program)
    }

    /// Where programs are that hang on an interface as clsact filters.
    pub fn filters(&self) -> PathBuf {
        self.base().join("filters")
    }

    /// Where the program of a clsact filter is.
    pub fn filter(&self, program: &str, interface: u32) -> PathBuf {
        self.filters().join(format!("{program}-{interface}"))
    }

    /// Where such a program is before it takes its place, for no time at all.
    pub fn new_filter(&self) -> PathBuf {
        self.filters().join("new")
    }

    /// Where a folder for each interface is whose clsact qdisc we added.
    pub fn qdiscs(&self) -> PathBuf {
        self.base().join("qdiscs")
    }

    /// The folder that says we added the clsact qdisc of an interface.
    pub fn qdisc(&self, interface: u32) -> PathBuf {
        self.qdiscs().join(interface.to_string())
    }

    /// Makes the directories.
    pub fn create(&self) -> Result<(), PinError> {
        for dir in [self.maps(), self.links(), self.filters(), self.qdiscs()] {
            fs::create_dir_all(&dir).map_err(|source| PinError::Io { path: dir, source })?;
        }
        Ok(())
    }
}

/// A pinned attachment, from its file name: program and, for those on interfaces, the index.
pub fn parse_link(name: &str) -> (&str, Option<u32>) {
    match name.rsplit_once('-') {
        Some((program, index)) => match index.parse() {
            Ok(index) => (program, Some(index)),
            Err(_) => (name, None),
        },
        None => (name, None),
    }
}

/// Names in a directory, sorted; none when it is not there.
pub fn entries(dir: &Path) -> io::Result<Vec<String>> {
    let reader = match fs::read_dir(dir) {
        Ok(reader) => reader,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in reader {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Checks that `root` lies on a bpffs; it need not exist yet.
pub fn check_bpffs(root: &Path) -> Result<(), PinError> {
    let existing = root.ancestors().find(|path| path.exists()).unwrap_or(root);
    let is_bpffs = statfs(existing)
        .map(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
        .map_err(|errno| PinError::Io { path: existing.to_owned(), source: errno.into() })?;
    if !is_bpffs {
        // The usual place is the mount point /sys/fs/bpf; elsewhere the directory itself can be one.
        let standard = Path::new("/sys/fs/bpf");
        let suggestion = if root.starts_with(standard) { standard } else { root };
        return Err(PinError::NotBpffs { path: root.to_owned(), suggestion: suggestion.to_owned() });
    }
    let below = root.strip_prefix(existing).unwrap_or(root);
    if below.components().any(|part| part.as_os_str().to_string_lossy().contains('.')) {
        return Err(PinError::Dot(root.to_owned()));
    }
    Ok(())
}

/// Held by the one agent that may change a pin directory; freed by the kernel when the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock of `root`, which must exist.
    ///
    /// The directory itself is locked, not a file beside it: whoever sees the same pins sees the same
    /// lock, in whatever mount namespace or container.
    pub fn take(root: &Path) -> Result<Self, PinError> {
        let io = |source| PinError::Io { path: root.to_owned(), source };
        let file = File::open(root).map_err(io)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((file, Errno::EWOULDBLOCK)) => {
                let inode = file.metadata().map_err(io)?.ino();
                let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
                Err(PinError::InUse { path: root.to_owned(), pid: holder(&locks, inode) })
            }
            Err((_, errno)) => Err(io(errno.into())),
        }
    }
}

/// The pid that /proc/locks names for an inode.
fn holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, id, ..] = fields[..] else { return None };
        (id.rsplit(':').next()?.parse() == Ok(inode)).then(|| pid.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_read_from_proc() {
        let locks = "1: POSIX  ADVISORY  WRITE 700 00:1a:99 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 812 00:1f:42 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 813 00:1f:42 0 EOF\n";
        assert_eq!(holder(locks, 42), Some(812));
        assert_eq!(holder(locks, 99), None);
    }

    #[test]
    fn a_link_file_names_program_and_interface() {
        assert_eq!(parse_link("pod_ingress-17"), ("pod_ingress", Some(17)));
        assert_eq!(parse_link("connect4"), ("connect4", None));
        assert_eq!(parse_link("odd-name"), ("odd-name", None));
    }

    #[test]
    fn a_directory_that_is_no_bpffs_is_refused_with_the_mount_command() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = dir.path().join("shunt");
        let message = check_bpffs(&root).expect_err("a plain directory").to_string();
        assert!(message.contains(&format!("mount -t bpf bpf {}", root.display())), "{message}");
    }

    #[test]
    fn a_second_lock_on_a_directory_is_refused_and_names_the_first() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = Lock::take(dir.path()).expect("free");
        let message = Lock::take(dir.path()).expect_err("taken").to_string();
        assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
        drop(first);
        Lock::take(dir.path()).expect("free again");
    }
}
