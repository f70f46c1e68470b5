//! The two ends of a way, as processes: told what to do, put on a CPU, and their CPU time read.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ChildStdout;
use std::time::Duration;

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

use super::program::{Deed, Order, Report};
use lb_lab::{Lab, Netns, Process};

/// How long a server may take to listen.
const READY: Duration = Duration::from_secs(10);
/// How long an order may take, in milliseconds.
const PATIENCE: u16 = 30_000;

/// `sockets-server` in a pod; killed when dropped.
#[derive(Debug)]
pub struct Server(Process);

impl Server {
    /// Starts it and waits until it listens.
    pub fn start(lab: &Lab, netns: &Netns, name: &str, port: u16) -> Result<Self> {
        let words = netns.own_program(&["sockets-server", name, &port.to_string()]);
        let log = lab.folder().join(format!("{name}.log"));
        let mut process = netns.spawn(&words, &log).into_diagnostic()?;
        process.await_port("tcp", port, READY).into_diagnostic()?;
        Ok(Self(process))
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        pid(&self.0)
    }
}

/// `sockets-client` somewhere; killed when dropped.
#[derive(Debug)]
pub struct Client {
    process: Process,
    output: BufReader<ChildStdout>,
    orders: u64,
}

impl Client {
    /// Starts it.
    pub fn start(netns: &Netns) -> Result<Self> {
        let mut process = netns.spawn_piped(&netns.own_program(&["sockets-client"])).into_diagnostic()?;
        let output = process.child().stdout.take().ok_or_else(|| miette!("no standard output"))?;
        Ok(Self { process, output: BufReader::new(output), orders: 0 })
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        pid(&self.process)
    }

    /// Has it do something and waits for its report.
    pub fn ask(&mut self, deed: Deed, to: SocketAddr, name: &str, count: usize) -> Result<Report> {
        self.orders += 1;
        let order = Order { number: self.orders, deed, to, name: name.to_owned(), count };
        let line = serde_json::to_string(&order).into_diagnostic()?;
        let input = self.process.child().stdin.as_mut().ok_or_else(|| miette!("no standard input"))?;
        writeln!(input, "{line}").and_then(|()| input.flush()).into_diagnostic()?;
        loop {
            let mut ready = [PollFd::new(self.output.get_ref().as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::from(PATIENCE)).into_diagnostic()? == 0 {
                return Err(miette!("nothing was heard for {PATIENCE} ms of: {line}"));
            }
            let mut answer = String::new();
            self.output.read_line(&mut answer).into_diagnostic()?;
            let report: Report = serde_json::from_str(&answer).into_diagnostic().wrap_err(answer)?;
            // One to an order that was given up is no answer to this one.
            if report.number == order.number {
                return Ok(report);
            }
        }
    }
}

fn pid(process: &Process) -> Pid {
    // Linux pids fit in 22 bits.
    Pid::from_raw(process.pid() as i32)
}

/// CPU seconds of a process so far. What the kernel does in soft interrupts on its behalf, while it sends, is part of it.
pub fn cpu_seconds(pid: Pid) -> Result<f64> {
    let time = clock_getcpuclockid(pid).and_then(ClockId::now).into_diagnostic()?;
    Ok(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}

/// A CPU's thread for soft interrupts: what was too much to be done at once.
#[derive(Clone, Debug)]
pub struct SoftInterrupts(PathBuf);

impl SoftInterrupts {
    /// Finds it.
    pub fn of(cpu: usize) -> Result<Self> {
        let name = format!("ksoftirqd/{cpu}");
        let processes = fs::read_dir("/proc").into_diagnostic()?.flatten().map(|entry| entry.path());
        let mut named = processes
            .filter(|path| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name));
        named.next().map(|path| Self(path.join("schedstat"))).ok_or_else(|| miette!("there is no {name}"))
    }

    /// Seconds that it has run.
    pub fn seconds(&self) -> Result<f64> {
        let text = fs::read_to_string(&self.0).into_diagnostic()?;
        let nanoseconds: f64 = text.split(' ').next().unwrap_or_default().parse().into_diagnostic()?;
        Ok(nanoseconds / 1e9)
    }
}

/// The CPUs this program may use.
pub fn cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).into_diagnostic()?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or_default()).collect())
}

/// Puts all threads of a process on these CPUs.
pub fn pin(pid: Pid, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().try_for_each(|cpu| set.set(*cpu)).into_diagnostic()?;
    for entry in fs::read_dir(format!("/proc/{pid}/task")).into_diagnostic()?.flatten() {
        let thread = entry.file_name().to_string_lossy().parse().into_diagnostic()?;
        sched_setaffinity(Pid::from_raw(thread), &set).into_diagnostic()?;
    }
    Ok(())
}
