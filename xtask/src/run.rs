//! `cargo xtask run`: the demonstration lab, or the agent on this machine.

use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use comfy_table::{Cell, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::setup::{self, Purpose};
use crate::{progress, repository};
use lb_lab::demo::{Asker, Demo, DemoPath};
use lb_lab::{AgentOptions, Family, Lab, NodeId, Report, shunt_program};

/// Requests per path and round while the table is live.
const ROUND: u32 = 10;
/// Requests per path with `--check`.
const CHECK: u32 = 300;
/// Pause between two rounds.
const PAUSE: Duration = Duration::from_millis(500);

/// Arguments of `cargo xtask run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Make the lab, check that every Service answers, clean up and say so
    #[arg(long)]
    pub check: bool,

    /// Build `shunt` and run it on this machine with these arguments: `-- agent --source manifests …`
    #[arg(last = true, value_name = "SHUNT ARGUMENTS")]
    pub shunt: Vec<OsString>,
}

/// Sets up what is missing, builds, and runs the lab or the agent.
pub fn run(args: RunArgs) -> Result<ExitCode> {
    if !args.shunt.is_empty() {
        build(&[Purpose::Build])?;
        let program = shunt_program()?;
        let error = Command::new(&program).args(&args.shunt).exec();
        return Err(error).into_diagnostic().wrap_err_with(|| format!("cannot start {}", program.display()));
    }
    build(&[Purpose::Build, Purpose::Lab])?;
    let interrupt = interrupts()?;
    let demo = Demo::read(&repository::root().join("deploy/demo"))?;
    let lab = make_lab(&demo)?;
    let result = if args.check { check(&lab, &demo) } else { show(&lab, &demo, &interrupt) };
    let name = lab.id().as_str().to_owned();
    drop(lab);
    eprintln!("the lab {name} is gone");
    result
}

fn build(purposes: &[Purpose]) -> Result<()> {
    let toolchain = setup::ensure(purposes)?;
    if std::env::var_os("SHUNT_BIN").is_some() {
        return Ok(());
    }
    progress::run("building shunt", &mut crate::build::build_command(&toolchain))
}

/// Ctrl-C, SIGTERM and SIGHUP as messages; the second one ends the program at once, and the lab's keeper cleans up.
fn interrupts() -> Result<Receiver<()>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let handler = move || {
        if sender.try_send(()).is_err() {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler).into_diagnostic().wrap_err("cannot listen for Ctrl-C")?;
    Ok(receiver)
}

fn make_lab(demo: &Demo) -> Result<Lab> {
    eprintln!("  making a lab: a client outside, node-a, node-b, and the pods of deploy/demo …");
    let mut lab = Lab::builder().build()?;
    demo.set_up(&mut lab)?;
    lab.start_agents(&AgentOptions::default())?;
    Ok(lab)
}

fn check(lab: &Lab, demo: &Demo) -> Result<ExitCode> {
    let mut rows: Vec<Row> = demo.paths().iter().map(Row::new).collect();
    for row in &mut rows {
        row.ask(lab, CHECK)?;
    }
    println!("{}", table(&rows));
    let failed = rows.iter().filter(|row| !row.complaint().is_empty()).count();
    if failed == 0 {
        println!("all {} paths answered", rows.iter().map(|row| row.sums.len()).sum::<usize>());
        return Ok(ExitCode::SUCCESS);
    }
    for node in NodeId::ALL {
        eprintln!("--- log of the agent on {node}\n{}", lab.agent_log(node));
    }
    Err(miette!("{failed} of {} rows have failures", rows.len()))
}

fn show(lab: &Lab, demo: &Demo, interrupt: &Receiver<()>) -> Result<ExitCode> {
    let mut rows: Vec<Row> = demo.paths().iter().map(Row::new).collect();
    let hints = hints(lab)?;
    let style = ProgressStyle::with_template("{msg}").into_diagnostic()?;
    let screen = ProgressBar::new_spinner().with_style(style);
    loop {
        for row in &mut rows {
            if interrupt.try_recv().is_ok() {
                return Ok(end(&screen));
            }
            row.ask(lab, ROUND)?;
        }
        if screen.is_hidden() {
            println!("{}\n", table(&rows));
        } else {
            screen.set_message(format!("{}\n{hints}", table(&rows)));
            screen.tick();
        }
        match interrupt.recv_timeout(PAUSE) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(end(&screen)),
        }
    }
}

fn end(screen: &ProgressBar) -> ExitCode {
    screen.abandon();
    eprintln!("\ncleaning up …");
    ExitCode::SUCCESS
}

/// One line of the table: a way to a Service, in each of its families.
struct Row<'a> {
    path: &'a DemoPath,
    sums: Vec<Report>,
}

impl<'a> Row<'a> {
    fn new(path: &'a DemoPath) -> Self {
        Row { path, sums: vec![Report::default(); path.to.len()] }
    }

    fn ask(&mut self, lab: &Lab, count: u32) -> Result<()> {
        for (to, sum) in self.path.to.iter().zip(&mut self.sums) {
            let report = self.path.ask(lab, *to, count)?;
            for (name, count) in report.answers {
                *sum.answers.entry(name).or_default() += count;
            }
            for (reason, count) in report.failures {
                *sum.failures.entry(reason).or_default() += count;
            }
            sum.median_micros = report.median_micros;
        }
        Ok(())
    }

    /// What is wrong, in the families where something is.
    fn complaint(&self) -> String {
        let shown = self.path.to.iter().zip(&self.sums).filter_map(|(to, sum)| {
            let complaint = self.path.complaint(sum)?;
            Some(format!("{}: {complaint}", Family::of(to.ip())))
        });
        shown.collect::<Vec<_>>().join("; ")
    }

    /// A figure of each family, IPv4 first.
    fn each(&self, figure: impl Fn(&Report) -> String) -> String {
        self.sums.iter().map(figure).collect::<Vec<_>>().join("/")
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "Service",
        "Asked from",
        "at IPv4",
        "and at IPv6",
        "Requests",
        "Answered by (% IPv4/IPv6)",
        "Median µs",
        "Trouble",
    ]);
    for row in rows {
        let from = match row.path.asker {
            Asker::Pod => "a pod on node-a",
            Asker::Host => "node-a itself",
            Asker::Outside => "outside",
        };
        let mut shares = String::new();
        for name in &row.path.endpoints {
            let _ = write!(shares, "{name} {}  ", row.each(|sum| format!("{:.0}", sum.share(name) * 100.0)));
        }
        let at = |index: usize| {
            let protocol = if row.path.dns { "/UDP" } else { "" };
            row.path.to.get(index).map(|to| format!("{to}{protocol}")).unwrap_or_default()
        };
        table.add_row([
            Cell::new(&row.path.service),
            Cell::new(from),
            Cell::new(at(0)),
            Cell::new(at(1)),
            Cell::new(row.sums.iter().map(|sum| sum.answered() + sum.failed()).sum::<u64>()),
            Cell::new(shares.trim()),
            Cell::new(row.each(|sum| sum.median_micros.to_string())),
            Cell::new(row.complaint()),
        ]);
    }
    table
}

fn hints(lab: &Lab) -> Result<String> {
    let shunt = shunt_program()?;
    let (shunt, bpffs) = (shunt.display(), lab.bpffs(NodeId::A));
    let (client, visitor) = (lab.client().ip_name(), lab.id().ip_name("pod-visitor"));
    let [node, node6] = Family::ALL.map(|family| lab.node_ip(NodeId::A, family));
    Ok(format!(
        "
Try in another terminal, as root:
  ip netns exec {client} curl http://{node}:32000/     from outside
  ip netns exec {client} curl http://[{node6}]:32000/    the same over IPv6
  ip netns exec {visitor} curl http://10.96.0.50:5000/ http://[fd00:96::50]:5000/    from a pod
  cargo xtask enter node-a curl http://127.0.0.1:32000/    from the node itself
  cargo xtask enter node-a {shunt} get services --bpffs {bpffs}    also: backends, flows, interfaces
  edit the files of {manifests}: the agents follow

Ctrl-C takes the lab down.",
        bpffs = bpffs.display(),
        manifests = lab.manifests().display(),
    ))
}
