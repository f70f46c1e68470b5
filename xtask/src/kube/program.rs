//! A server that this process started, and that never outlives it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::typed;

/// Lines of the log that an error shows.
const SHOWN_LINES: usize = 15;

/// A running server. Killed and waited for when dropped.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts the server; what it prints goes to the end of `log`.
    pub fn start(name: &'static str, command: &Command, log: &Path) -> Result<Self> {
        let open = || File::options().create(true).append(true).open(log);
        let (stdout, stderr) = (open().into_diagnostic()?, open().into_diagnostic()?);
        // The kernel kills it should this process end without running destructors.
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        bound.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let child = spawn_from_lasting_thread(bound)
            .into_diagnostic()
            .wrap_err_with(|| format!("cannot start: {}", typed(command)))?;
        Ok(Self { name, child, log: log.into() })
    }

    /// An error with the end of the log, when the server has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait().into_diagnostic()? {
            None => Ok(()),
            Some(status) => Err(miette!("{} ended with {status}. {}", self.name, self.log_end())),
        }
    }

    /// The last lines of the log.
    pub fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        format!("Its last words:\n{}", lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n"))
    }

    /// Its process id; valid while this value lives, because nobody else waits for the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).into_diagnostic()?;
        kill(Pid::from_raw(pid), signal)
            .into_diagnostic()
            .wrap_err_with(|| format!("{signal} to {}", self.name))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Test data: no graceful end is wanted. SIGKILL also ends a stopped process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts the command from a thread that lives as long as this process: the kernel ties "parent death" to the
/// thread that started the child, and a test's thread ends with the test.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in jobs {
                // The one who asked may have gone.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (answer, answered) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts programs has ended");
    spawner.lock().map_err(|_| gone())?.send((command, answer)).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}
