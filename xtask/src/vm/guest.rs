//! `xtask vm-init`: the first process of a virtual machine, and the one that carries out the plan.
//!
//! The first process only makes the place, reaps what others leave behind, and switches the machine off.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use nix::errno::Errno;
use nix::kmod::init_module;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::wait;
use nix::unistd::{Pid, getpid};

use super::plan::{Event, MODULES, PLAN, Plan, Step};

const MOUNTS: &[(&str, &str)] = &[
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("tracefs", "/sys/kernel/tracing"),
];
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a program's output is awaited after its end.
const LAST_WORDS: Duration = Duration::from_secs(10);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs in the virtual machine only.
pub fn run() -> Result<()> {
    if getpid().as_raw() != 1 {
        return carry_out();
    }
    let result = be_the_first_process();
    if let Err(report) = &result {
        // To the console, which the host keeps.
        println!("{report:?}");
    }
    reboot(RebootMode::RB_POWER_OFF).into_diagnostic().map(|_| ())
}

fn be_the_first_process() -> Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).into_diagnostic().wrap_err_with(|| (*place).to_owned())?;
        mount(Some(*kind), *place, Some(*kind), MsFlags::empty(), None::<&str>)
            .into_diagnostic()
            .wrap_err_with(|| format!("mount {kind} on {place}"))?;
    }
    load_modules()?;
    let this = std::env::current_exe().into_diagnostic()?;
    let mut worker = Command::new(this);
    worker.arg("vm-init").env_clear().envs([("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8")]);
    let worker = Pid::from_raw(worker.spawn().into_diagnostic().wrap_err("start the worker")?.id() as i32);
    loop {
        match wait() {
            Ok(status) if status.pid() == Some(worker) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).into_diagnostic(),
        }
    }
}

/// In the order of their names.
fn load_modules() -> Result<()> {
    let entries = fs::read_dir(MODULES).into_diagnostic().wrap_err(MODULES)?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let object = fs::read(&file).into_diagnostic()?;
        match init_module(&object, c"") {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(miette!("load the module {}: {error}", file.display())),
        }
    }
    Ok(())
}

/// The way to the host.
#[derive(Clone)]
struct Events(Arc<Mutex<File>>);

impl Events {
    fn tell(&self, event: &Event) -> Result<()> {
        let line = serde_json::to_string(event).into_diagnostic()?;
        let mut file = self.0.lock().map_err(|_| miette!("a thread has failed"))?;
        writeln!(file, "{line}").into_diagnostic()
    }
}

fn carry_out() -> Result<()> {
    let plan = fs::read_to_string(PLAN).into_diagnostic().wrap_err(PLAN)?;
    let plan: Plan = serde_json::from_str(&plan).into_diagnostic().wrap_err(PLAN)?;
    let device = OpenOptions::new().write(true).open(&plan.events).into_diagnostic();
    let events = Events(Arc::new(Mutex::new(device.wrap_err_with(|| plan.events.display().to_string())?)));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").into_diagnostic()?.trim().to_owned();
    events.tell(&Event::Booted { kernel, seconds: uptime() })?;
    for step in &plan.steps {
        let began = Instant::now();
        let (success, status) = match carry_out_step(step, &events) {
            Ok(Some(status)) => (status.success(), status.to_string()),
            Ok(None) => (false, format!("killed after {} s", step.seconds)),
            Err(report) => (false, format!("{report:?}")),
        };
        let (part, seconds) = (step.part.clone(), began.elapsed().as_secs_f64());
        events.tell(&Event::Ended { part, success, status, seconds })?;
    }
    events.tell(&Event::Done)
}

/// Nothing if the time was not enough.
fn carry_out_step(step: &Step, events: &Events) -> Result<Option<ExitStatus>> {
    let mut command = Command::new(&step.program);
    command.args(&step.arguments).envs(&step.environment).current_dir(&step.folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot start {}", step.program.display()))?;
    let readers = [
        child.stdout.take().map(|pipe| forward(pipe, step, false, events)),
        child.stderr.take().map(|pipe| forward(pipe, step, true, events)),
    ];
    let status = wait_for(&mut child, Duration::from_secs(step.seconds))?;
    // What it has started may hold the pipes open for longer.
    let deadline = Instant::now() + LAST_WORDS;
    while readers.iter().flatten().any(|reader| !reader.is_finished()) && Instant::now() < deadline {
        thread::sleep(PAUSE);
    }
    Ok(status)
}

fn wait_for(child: &mut Child, within: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + within;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().into_diagnostic()? {
            return Ok(Some(status));
        }
        thread::sleep(PAUSE);
    }
    child.kill().into_diagnostic()?;
    child.wait().into_diagnostic()?;
    Ok(None)
}

fn forward(
    pipe: impl Read + Send + 'static,
    step: &Step,
    error: bool,
    events: &Events,
) -> thread::JoinHandle<()> {
    let (part, events) = (step.part.clone(), events.clone());
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(std::io::Result::ok) {
            let text = String::from_utf8_lossy(&line).into_owned();
            if events.tell(&Event::Line { part: part.clone(), error, text }).is_err() {
                return;
            }
        }
    })
}

fn uptime() -> f64 {
    let text = fs::read_to_string(Path::new("/proc/uptime")).unwrap_or_default();
    text.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default()
}
