//! The agent's side of its keeper: starts it, tells it what is in line, ends it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lb_kernel::channel::{Channel, Listening, Received};
use lb_kernel::pin::Post;
use lb_kernel::programs::load::Programs;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::args::config;
use crate::keeper::Orders;

/// How long a keeper may take to end.
pub const END: Duration = Duration::from_secs(2);

/// How long to wait before a keeper that has ended is replaced.
const RETRY: Duration = Duration::from_secs(5);

/// The keeper of this agent: none while it is ended or not wanted.
pub struct Keeper {
    root: PathBuf,
    who: config::Keeper,
    channel: Option<Listening>,
    /// The process, where it is the agent's own.
    child: Option<Child>,
    /// When to start one; none: there is one, or there is to be none.
    due: Option<Instant>,
    told: bool,
}

impl Keeper {
    /// Ends the keeper of an earlier agent at `root`. Ours starts when it is told something for the first time.
    pub fn in_place_of_an_earlier_one(root: &Path, who: config::Keeper) -> Self {
        match Post::clear(root, END) {
            Ok(true) => info!("an earlier agent's keeper has ended"),
            Ok(false) => {}
            Err(error) => warn!(%error, "cannot end an earlier agent's keeper"),
        }
        let due = (who != config::Keeper::Nobody).then(Instant::now);
        Self { root: root.to_owned(), who, channel: None, child: None, due, told: false }
    }

    /// When one has to be started.
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Ends when the keeper has ended.
    pub async fn ended(&self) {
        let Some(channel) = &self.channel else { return std::future::pending().await };
        while let Ok(Received::Message(..)) = channel.next().await {}
    }

    /// Takes in that it has ended.
    pub fn note_end(&mut self) {
        self.channel = None;
        let status = self.child.take().map(|mut child| child.wait());
        let status = status.and_then(Result::ok).map(|status| status.to_string()).unwrap_or_default();
        warn!(status, "the keeper has ended; it is tried again in {} s", RETRY.as_secs());
        self.due = Some(Instant::now() + RETRY);
    }

    /// Tells the keeper, and starts one where one is due. It is never waited for.
    pub fn tell(&mut self, orders: &Orders, programs: &Programs) {
        if self.due.is_some_and(|due| due <= Instant::now()) {
            match self.start() {
                Ok((child, channel)) => {
                    (self.child, self.channel) = (child, Some(channel));
                    (self.due, self.told) = (None, false);
                }
                Err(error) => {
                    warn!(%error, "there is no keeper now: interfaces that come while this agent does not run wait for it");
                    self.due = Some(Instant::now() + RETRY);
                }
            }
        }
        let Some(channel) = &self.channel else { return };
        let along = if self.told { Ok(Vec::new()) } else { programs.on_interfaces() };
        let sent = along.and_then(|along| channel.send(&orders.write()?, &along));
        match sent {
            Ok(sent) => self.told |= sent,
            // That it has ended is noticed elsewhere.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => warn!(%error, "cannot tell the keeper what is in line"),
        }
    }

    fn start(&self) -> io::Result<(Option<Child>, Listening)> {
        // (One of an agent that was killed at its own start may have come to the post since.)
        Post::clear(&self.root, END).map_err(io::Error::other)?;
        if let config::Keeper::At(path) = &self.who {
            return Ok((None, Channel::connect(path)?.listen()?));
        }
        let (own, other) = Channel::pair()?;
        let own = own.listen()?;
        let mut command = Command::new("/proc/self/exe");
        // Nothing of the agent's is held open there: not its output, not its environment.
        command.arg0("shunt").args(["keeper", "--bpffs"]).arg(&self.root).env_clear();
        command.envs(std::env::vars_os().filter(|(name, _)| name == "SHUNT_FORCE_CLSACT"));
        command.stdin(OwnedFd::from(other)).stdout(Stdio::null()).stderr(Stdio::null());
        Ok((Some(command.spawn()?), own))
    }
}

impl Drop for Keeper {
    /// An agent that ends as it should has no keeper any more; one that is killed does not come here.
    fn drop(&mut self) {
        if self.channel.is_none() {
            return;
        }
        let end = || Post::clear(&self.root, END);
        // One that has only just been started has not taken its post yet, and one that hangs does not look.
        let mut ended = end();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            ended = end();
        }
        if let Err(error) = ended {
            warn!(%error, "the keeper stays");
        }
    }
}
