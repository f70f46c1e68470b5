//! Places of the lab: a network namespace and a control group, and running things there.
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::{Doing, LabError, Result};
use super::wait::{patiently, poll};

/// How long a command run to its end may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes its own pid to the control group named first, then becomes the command that follows.
const JOIN_AND_EXEC: &str = r#"echo $$ > "$0" && exec "$@""#;

/// A network namespace and a control group of the lab, with the means to run programs in both.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
    ip_name: String,
    cgroup: PathBuf,
    helper: PathBuf,
}

/// What a command left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Netns {
    pub(super) fn new(name: String, ip_name: String, cgroup: PathBuf, helper: PathBuf) -> Self {
        Netns { name, ip_name, cgroup, helper }
    }

    /// The place's name within its lab, such as `node-a` or `pod-web-1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace's name as `ip netns` shows it.
    pub fn ip_name(&self) -> &str {
        &self.ip_name
    }

    /// The control group that programs started here belong to.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Runs a closure on a thread of its own inside the namespace. The control group stays the caller's: what must
    /// pass socket hooks is a program started by [`Netns::spawn`].
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = netns_path(&self.ip_name);
        let handle = File::open(&path).doing(|| format!("open the network namespace {}", path.display()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&handle, CloneFlags::CLONE_NEWNET)
                    .doing(|| format!("enter the network namespace {}", path.display()))?;
                Ok(work())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A command that will join this place's control group; spawn it inside [`Netns::within`].
    fn command<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(JOIN_AND_EXEC).arg(self.cgroup.join("cgroup.procs")).args(words);
        command.stdin(Stdio::null());
        command
    }

    fn start(&self, mut command: Command, words: &str) -> Result<Child> {
        self.within(move || command.spawn())?.doing(|| format!("start `{words}` in {}", self.name))
    }

    /// Runs a program to its end and returns what it printed, whatever its exit code.
    pub fn exec<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<Output> {
        let shown = shown(words);
        let mut command = self.command(words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.start(command, &shown)?;
        let pid = pid_of(&child);
        let (done, result) = mpsc::channel();
        std::thread::spawn(move || done.send(child.wait_with_output()));
        match result.recv_timeout(patiently(PATIENCE)) {
            Ok(output) => {
                let output = output.doing(|| format!("wait for `{shown}`"))?;
                Ok(Output {
                    status: output.status,
                    stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                    stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
                })
            }
            Err(_) => {
                // The waiting thread reaps it.
                let _ = kill(pid, Signal::SIGKILL);
                Err(LabError::Deadline {
                    what: format!("the end of `{shown}`"),
                    within: PATIENCE,
                    detail: String::new(),
                })
            }
        }
    }

    /// Runs a program to its end and returns its standard output; a bad exit code is an error.
    pub fn run<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<String> {
        let output = self.exec(words)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(LabError::Command {
            command: format!("{} (in {})", shown(words), self.name),
            output: format!("{}{} ({})", output.stderr.trim(), output.stdout.trim(), output.status),
        })
    }

    /// Runs an `ip` or `tc` that loads a BPF program. They leave folders in the machine's bpffs, so they are shown one of
    /// their own, which goes with them.
    pub fn run_loader<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<String> {
        const OWN_BPFFS: &str = r#"mount -t bpf bpf /sys/fs/bpf && exec "$@""#;
        let mut line: Vec<&OsStr> =
            ["unshare", "--mount", "sh", "-c", OWN_BPFFS, "sh"].map(OsStr::new).to_vec();
        line.extend(words.iter().map(AsRef::as_ref));
        self.run(&line)
    }

    /// Starts a program whose output goes to `log`.
    pub fn spawn<S: AsRef<OsStr>>(&self, words: &[S], log: &Path) -> Result<Process> {
        let create = || fs::OpenOptions::new().create(true).append(true).open(log);
        let out = create().doing(|| format!("open {}", log.display()))?;
        let err = create().doing(|| format!("open {}", log.display()))?;
        let mut command = self.command(words);
        command.stdout(out).stderr(err);
        let child = self.start(command, &shown(words))?;
        Ok(Process { name: shown(words), child, log: Some(log.to_path_buf()) })
    }

    /// Starts a program with its standard input and output piped to the caller.
    pub fn spawn_piped<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<Process> {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = self.start(command, &shown(words))?;
        Ok(Process { name: shown(words), child, log: None })
    }

    /// The command line of one of xtask's own programs, such as `probe`.
    pub fn own_program(&self, words: &[&str]) -> Vec<String> {
        let mut line = vec![self.helper.display().to_string()];
        line.extend(words.iter().map(|word| (*word).to_owned()));
        line
    }

    /// Sets a sysctl of the namespace; `key` with dots or slashes, such as `net.ipv4.ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(if key.contains('/') {
            key.to_owned()
        } else {
            key.replace('.', "/")
        });
        self.within(|| fs::write(&path, value))?.doing(|| format!("set {key} to {value} in {}", self.name))
    }

    /// Runs `ip -batch` inside the namespace, one command a line.
    pub fn ip(&self, lines: &str) -> Result<()> {
        ip_batch(Some(&self.ip_name), lines)
    }
}

/// A running program; killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Option<PathBuf>,
}

impl Process {
    /// Process id. It also names the process's namespace under `/proc`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, or nothing while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(pid_of(&self.child), signal).doing(|| format!("send {signal} to `{}`", self.name))
    }

    /// Asks it to end (SIGTERM) and waits for that.
    pub fn stop(&mut self, within: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended() {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        poll(&format!("`{}` to end after SIGTERM", self.name), within, || {
            self.child.try_wait().ok().flatten()
        })
    }

    /// Kills it (SIGKILL) and reaps it.
    pub fn kill(&mut self) -> ExitStatus {
        let _ = self.child.kill();
        self.child.wait().unwrap_or_else(|_| ExitStatus::from_raw(Signal::SIGKILL as i32))
    }

    /// What it has written to its log so far.
    pub fn log(&self) -> String {
        self.log.as_deref().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default()
    }

    /// Closes its standard input and returns the rest of its standard output.
    pub fn finish(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        if let Some(mut out) = self.child.stdout.take() {
            out.read_to_string(&mut text).doing(|| format!("read from `{}`", self.name))?;
        }
        let status = self.child.wait().doing(|| format!("wait for `{}`", self.name))?;
        if status.success() {
            Ok(text)
        } else {
            Err(LabError::Command { command: self.name.clone(), output: format!("{text} ({status})") })
        }
    }

    /// Waits until it listens on a port: `protocol` is `tcp` or `udp`.
    pub fn await_port(&mut self, protocol: &str, port: u16, within: Duration) -> Result<()> {
        let what = format!("`{}` to listen on {protocol} port {port}", self.name);
        let mut ended = None;
        let listening = poll(&what, within, || {
            ended = self.ended();
            (ended.is_some() || listens(self.pid(), protocol, port)).then_some(())
        });
        match (ended, listening) {
            (Some(status), _) => Err(LabError::Command {
                command: self.name.clone(),
                output: format!("ended at once ({status}): {}", self.log().trim()),
            }),
            (None, Ok(())) => Ok(()),
            (None, Err(LabError::Deadline { what, within, .. })) => {
                Err(LabError::Deadline { what, within, detail: format!("\n{}", self.log()) })
            }
            (None, Err(other)) => Err(other),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a socket in the namespace of `pid` listens on the port, from /proc/PID/net.
fn listens(pid: u32, protocol: &str, port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    ["", "6"].iter().any(|family| {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{protocol}{family}")).unwrap_or_default();
        table.lines().skip(1).any(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let local = fields.next().unwrap_or_default();
            let remote = fields.next().unwrap_or_default();
            local.ends_with(&suffix) && remote.ends_with(":0000")
        })
    })
}

fn pid_of(child: &Child) -> Pid {
    // Linux pids fit in 22 bits.
    Pid::from_raw(child.id() as i32)
}

fn shown<S: AsRef<OsStr>>(words: &[S]) -> String {
    words.iter().map(|word| word.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ")
}

pub(super) fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Runs `ip -batch`, inside a namespace or outside of all.
pub(super) fn ip_batch(ip_name: Option<&str>, lines: &str) -> Result<()> {
    use std::io::Write;
    let mut command = Command::new("ip");
    if let Some(name) = ip_name {
        command.args(["-n", name]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().doing(|| "start `ip` (package iproute2)".into())?;
    let text: String = lines.lines().map(|line| format!("{}\n", line.trim())).collect();
    if let Some(mut input) = child.stdin.take() {
        // A command that ends early closes its end; its error output says why.
        let _ = input.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().doing(|| "wait for `ip`".into())?;
    if output.status.success() {
        return Ok(());
    }
    Err(LabError::Command {
        command: format!("ip {} -batch", ip_name.map(|name| format!("-n {name}")).unwrap_or_default()),
        output: format!("{}\nof:\n{}", String::from_utf8_lossy(&output.stderr).trim(), text.trim()),
    })
}
