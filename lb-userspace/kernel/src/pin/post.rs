//! The post of the one keeper of a pin directory: a folder beside the pins that it holds a lock of.
//!
//! Who wants the keeper to end takes the folder away and waits for the lock. That needs no signal, no process id and no
//! socket, so it works from other containers and for keepers of other releases.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::PinError;

/// The folder's name below the value of `--bpffs`.
const NAME: &str = "keeper";
/// Between two looks at the lock.
const PACE: Duration = Duration::from_millis(1);

/// Held by the keeper of a pin directory, until somebody has taken the folder away.
#[derive(Debug)]
pub struct Post {
    path: PathBuf,
    lock: Flock<File>,
    news: Inotify,
}

impl Post {
    /// Takes the post at `root`, the value of `--bpffs`, which must exist.
    ///
    /// # Errors
    /// There is a keeper already ([`PinError::Keeper`]), or the folder cannot be made.
    pub fn take(root: &Path) -> Result<Self, PinError> {
        let path = root.join(NAME);
        let failed = |source| PinError::Io { path: path.clone(), source };
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let news = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|errno| failed(errno.into()))?;
        // (Of a folder that is open its own watch tells nothing.)
        news.add_watch(root, AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM)
            .map_err(|errno| failed(errno.into()))?;
        let lock = match Flock::lock(File::open(&path).map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Err(PinError::Keeper { path: root.to_owned() }),
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        Ok(Self { path, lock, news })
    }

    /// Readable when something has gone from the pin directory: see [`Self::is_held`]. What is read there says no more.
    pub fn news(&self) -> io::Result<OwnedFd> {
        self.news.as_fd().try_clone_to_owned()
    }

    /// Whether the folder is still there.
    pub fn is_held(&self) -> bool {
        let same = |own: fs::Metadata| {
            fs::metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == (own.dev(), own.ino()))
        };
        self.lock.metadata().is_ok_and(same)
    }

    /// Ends the keeper of `root`, if there is one, and waits until it is at work no more. Whether there was one.
    ///
    /// # Errors
    /// It has not ended within `patience` ([`PinError::Keeper`]), or the folder cannot be removed.
    pub fn clear(root: &Path, patience: Duration) -> Result<bool, PinError> {
        let path = root.join(NAME);
        let failed = |source| PinError::Io { path: path.clone(), source };
        let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let mut folder = match File::open(&path) {
            Ok(folder) => folder,
            Err(error) if is_gone(&error) => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        match fs::remove_dir(&path) {
            Err(error) if !is_gone(&error) => return Err(failed(error)),
            _ => {}
        }
        let until = Instant::now() + patience;
        let mut had_one = false;
        loop {
            match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
                Ok(_) => return Ok(had_one),
                Err((same, Errno::EWOULDBLOCK)) if Instant::now() < until => folder = same,
                Err((_, Errno::EWOULDBLOCK)) => return Err(PinError::Keeper { path: root.to_owned() }),
                Err((_, errno)) => return Err(failed(errno.into())),
            }
            had_one = true;
            std::thread::sleep(PACE);
        }
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        if self.is_held() {
            // (What stays is an empty folder: no keeper holds its lock.)
            let _ = fs::remove_dir(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn there_is_one_keeper_until_it_is_told_to_end() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(!Post::clear(dir.path(), SHORT).expect("nobody"));
        let post = Post::take(dir.path()).expect("free");
        assert!(matches!(Post::take(dir.path()), Err(PinError::Keeper { .. })));
        assert!(post.is_held());
        assert!(matches!(Post::clear(dir.path(), SHORT), Err(PinError::Keeper { .. })), "it does not listen");
        let news = post.news().expect("a descriptor");
        let mut fds = [PollFd::new(news.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::ZERO).expect("poll"), 1, "it is told");
        assert!(!post.is_held());
        // The next one does not wait for it, and it takes nothing away from that one.
        let next = Post::take(dir.path()).expect("free");
        drop(post);
        assert!(next.is_held());
        let listening = std::thread::spawn(move || {
            while next.is_held() {
                std::thread::yield_now();
            }
        });
        assert!(Post::clear(dir.path(), Duration::from_secs(20)).expect("ended"));
        listening.join().expect("ended");
    }

    #[test]
    fn who_ends_by_himself_leaves_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        drop(Post::take(dir.path()).expect("free"));
        assert!(!dir.path().join(NAME).exists());
        fs::create_dir(dir.path().join(NAME)).expect("as one that was killed leaves it");
        assert!(!Post::clear(dir.path(), SHORT).expect("nobody"));
        assert!(!dir.path().join(NAME).exists());
    }
}
