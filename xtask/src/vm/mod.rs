//! `cargo xtask vm`: agent and programs on the kernels that clusters run, each in a virtual machine.
//!
//! Kernels come from Debian's packages ([`kernels`]). A machine gets its kernel's modules and programs of this machine
//! ([`root`]), boots ([`machine`]), runs the parts one after the other ([`parts`], [`guest`]) and tells what came of
//! them ([`plan`], [`report`]). What the verifier says is held against a committed file ([`figures`]).

mod archive;
mod figures;
pub mod guest;
mod kernel;
mod kernels;
mod machine;
mod modules;
mod parts;
mod plan;
mod report;
mod root;
mod source;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::architecture::Architecture;
use crate::setup::{self, Purpose};
use crate::test::{Built, Tally};
use crate::{progress, repository};
use figures::Figures;
use kernel::Wanted;
use kernels::{Kernel, Store};
use machine::{Acceleration, Boot, Machine};
use modules::{Modules, NEEDED};
use parts::Part;
pub use parts::Programs;
use plan::{Event, Plan};
use report::Report;
use source::Source;

/// How long a kernel may take until the first program is started, on the machine itself.
const BOOT: Duration = Duration::from_secs(10);

/// Arguments of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub struct VmArgs {
    /// Series of kernels, newest for the highest there is, with -rt for real-time builds
    #[arg(long = "kernel", value_name = "SERIES", value_delimiter = ',', default_values_t = Wanted::MATRIX)]
    kernels: Vec<Wanted>,

    /// Architecture of the machines
    #[arg(long = "arch", value_enum, default_value = "x86_64")]
    architecture: Architecture,

    /// Machines at a time; one for each CPU if not said
    #[arg(long)]
    jobs: Option<usize>,

    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<String>,

    /// Keep what the machines were made of, to look at
    #[arg(long)]
    keep: bool,

    /// Write what the verifier says into docs/kernels.md
    #[arg(long)]
    write: bool,
}

/// Runs the parts on the kernels and shows what came of it.
pub fn vm(args: &VmArgs) -> Result<ExitCode> {
    let began = Instant::now();
    let foreign = args.architecture != Architecture::OWN;
    let purposes = [Purpose::Build, Purpose::Vm, Purpose::Cross];
    let toolchain = setup::ensure(&purposes[..if foreign { 3 } else { 2 }])?;
    let programs = if foreign {
        Built::programs_for(&toolchain, args.architecture)?
    } else {
        Built::build(&toolchain)?.programs()
    };
    let tally = run(args, &programs)?;
    let passed = tally.failed == 0;
    println!("\n{}", tally.line(passed, began.elapsed()));
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The files of tests that virtual machines run.
pub fn tests() -> impl Iterator<Item = &'static str> {
    Part::tests()
}

/// The stage of `cargo xtask test`: everything, or the part that is this file of tests. Machines of another architecture take
/// a build and six minutes of their own, and are asked for: `cargo xtask vm --arch`.
pub fn stage(programs: &Programs, file: Option<&str>) -> Result<Tally> {
    let only: Vec<_> = file.into_iter().flat_map(Part::of_file).map(str::to_owned).collect();
    let args = VmArgs {
        kernels: Wanted::MATRIX.into(),
        architecture: Architecture::OWN,
        jobs: None,
        only,
        keep: false,
        write: false,
    };
    run(&args, programs)
}

fn run(args: &VmArgs, programs: &Programs) -> Result<Tally> {
    let parts = Part::select(&args.only)?;
    let work = Work::begin(args.keep)?;
    let mut store = Store::open(args.architecture)?;
    let kernels: Vec<_> = args.kernels.iter().map(|wanted| (*wanted, store.kernel(*wanted))).collect();
    // Others may download now.
    drop(store);
    let machine = Machine { architecture: args.architecture, acceleration: Acceleration::Emulation };
    let source = Source::of(args.architecture)?;
    let step = progress::Step::begin("programs for virtual machines");
    let began = Instant::now();
    let archive = work.folder.join("programs.cpio");
    let (files, folders) = programs.files(&parts)?;
    root::write_programs(&source, &archive, &work.folder, &files, &folders)?;
    step.done(began.elapsed());
    let bench = Bench {
        machine: decide(machine, &kernels, programs, &archive, &work.folder)?,
        programs,
        parts: &parts,
        archive: &archive,
        folder: &work.folder,
    };

    let jobs = args.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let reports = in_parallel(kernels, jobs, |(wanted, kernel)| bench.check(wanted, kernel));
    println!("\n{}", summary(&reports));
    let mut tally = reports.iter().fold(Tally::default(), |total, report| total + report.tally);
    for problem in reports.iter().flat_map(|report| &report.problems) {
        println!("\n{problem}");
    }
    let columns =
        reports.into_iter().filter_map(|it| Some((figures::name(&it.kernel, &it.version), it.column?)));
    let now = Figures { compiler: setup::ensure(&[Purpose::Build])?.compiler(), columns: columns.collect() };
    if !now.columns.is_empty() {
        println!("\nverified instructions / bytes of stack\n{}", now.table());
        let committed = Committed::read()?;
        if args.write {
            committed.renew(&now.of_the_matrix())?;
        } else if let Err(report) = committed.hold(&now.of_the_matrix()) {
            println!("\n{report:?}");
            tally.failed += 1;
        }
    }
    Ok(tally)
}

/// KVM if a machine boots with it. It may be there and not work: in a virtual machine, say.
fn decide(
    machine: Machine,
    kernels: &[(Wanted, Result<Kernel>)],
    programs: &Programs,
    archive: &Path,
    folder: &Path,
) -> Result<Machine> {
    let fast = Machine { acceleration: Acceleration::Kvm, ..machine };
    let Some(kernel) = kernels.iter().find_map(|(_, kernel)| kernel.as_ref().ok()) else {
        return Ok(machine);
    };
    if !fast.may_have_kvm() {
        return Ok(machine);
    }
    let bench = Bench { machine: fast, programs, parts: &[], archive, folder };
    let outcome = bench.boot(kernel, &folder.join("kvm"), &[], |_| {})?;
    if outcome.complete().is_ok() {
        return Ok(fast);
    }
    eprintln!("  no virtual machine boots with KVM here: they are emulated, which takes longer");
    Ok(machine)
}

/// Where machines are started, and what they run.
struct Bench<'a> {
    machine: Machine,
    programs: &'a Programs,
    parts: &'a [Part],
    archive: &'a Path,
    folder: &'a Path,
}

impl Bench<'_> {
    /// Boots a kernel and runs every part that is for it.
    fn check(&self, wanted: Wanted, kernel: Result<Kernel>) -> Report {
        let label = wanted.label(self.machine.architecture);
        let mut report = Report { kernel: label.clone(), ..Report::default() };
        let kernel = match kernel {
            Ok(kernel) => kernel,
            Err(error) => {
                report.fail(format!("{error:?}"));
                return report;
            }
        };
        report.version.clone_from(&kernel.version);
        let began = Instant::now();
        let folder = self.folder.join(wanted.to_string());
        let outcome = self.boot(&kernel, &folder, self.parts, |event| match event {
            Event::Booted { kernel, seconds } => eprintln!("  {label}: {kernel} is up after {seconds:.1} s"),
            Event::Ended { part, status, seconds, .. } => {
                eprintln!("  {label}: {part}: {status} after {seconds:.1} s");
            }
            Event::Line { .. } | Event::Done => {}
        });
        report.took = began.elapsed();
        match outcome {
            Ok(outcome) => {
                self.parts.iter().for_each(|part| report.add(part, &outcome.events));
                if let Err(error) = outcome.complete() {
                    report.fail(format!("{error:?}"));
                }
            }
            Err(error) => report.fail(format!("{error:?}")),
        }
        report
    }

    fn boot(
        &self,
        kernel: &Kernel,
        folder: &Path,
        parts: &[Part],
        watch: impl FnMut(&Event),
    ) -> Result<machine::Outcome> {
        fs::create_dir_all(folder).into_diagnostic().wrap_err_with(|| folder.display().to_string())?;
        let acceleration = self.machine.acceleration;
        let steps: Result<Vec<_>> = parts.iter().map(|part| part.step(self.programs, acceleration)).collect();
        let plan = Plan { events: self.machine.events().into(), steps: steps? };
        let modules = Modules::find(&kernel.modules)?.in_order(NEEDED)?;
        let initial = folder.join("initial.cpio");
        root::write_initial(&initial, self.archive, &modules, &plan)?;
        let parts: u64 = parts.iter().map(|part| part.seconds(acceleration)).sum();
        let within = BOOT * acceleration.patience() + Duration::from_secs(parts);
        let init = &self.programs.xtask;
        let outcome = self
            .machine
            .boot(&Boot { image: &kernel.image, initial: &initial, init, folder, within }, watch)?;
        // It is as large as all programs together.
        let _ = fs::remove_file(&initial);
        Ok(outcome)
    }
}

/// Works on all of them, so many at a time, the last first: the newest kernels take longest. Results are in the order
/// of what was given.
fn in_parallel<T: Send, R: Send>(work: Vec<T>, jobs: usize, each: impl Fn(T) -> R + Sync) -> Vec<R> {
    let queue: Mutex<VecDeque<_>> = Mutex::new(work.into_iter().enumerate().collect());
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    // A panic of another thread ends the scope anyway.
                    let Some((index, item)) = queue.lock().ok().and_then(|mut queue| queue.pop_back()) else {
                        return;
                    };
                    let result = each(item);
                    if let Ok(mut results) = results.lock() {
                        results.push((index, result));
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_default();
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

fn summary(reports: &[Report]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["KERNEL", "VERSION", "SECONDS TO LOAD", "PASSED", "FAILED", "SECONDS", ""]);
    for report in reports {
        let load = report.load.map_or("-".into(), |load| format!("{:.1}", load.as_secs_f64()));
        let verdict = if report.tally.failed == 0 { "loads and serves" } else { "FAILED" };
        table.add_row([
            report.kernel.clone(),
            report.version.clone(),
            load,
            report.tally.passed.to_string(),
            report.tally.failed.to_string(),
            format!("{:.0}", report.took.as_secs_f64()),
            verdict.into(),
        ]);
    }
    for column in table.column_iter_mut().skip(2).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The committed figures.
struct Committed {
    path: PathBuf,
    text: String,
}

impl Committed {
    fn read() -> Result<Self> {
        let path = repository::root().join(figures::FILE);
        let text =
            fs::read_to_string(&path).into_diagnostic().wrap_err_with(|| path.display().to_string())?;
        Ok(Self { path, text })
    }

    fn renew(&self, now: &Figures) -> Result<()> {
        let mut figures = Figures::parse(&self.text);
        figures.renew(now);
        fs::write(&self.path, figures.written_into(&self.text))
            .into_diagnostic()
            .wrap_err_with(|| self.path.display().to_string())
    }

    fn hold(&self, now: &Figures) -> Result<()> {
        let committed = Figures::parse(&self.text);
        for other in now.others(&committed) {
            println!("not held against {}: {other}", figures::FILE);
        }
        match now.changes(&committed).as_slice() {
            [] => Ok(()),
            changes => Err(miette!(
                "the verifier's figures have changed by more than a tenth:\n{}\nIf that is meant, `cargo xtask vm \
                 --write` renews {}",
                changes.join("\n"),
                figures::FILE
            )),
        }
    }
}

/// The folder of one run; deleted at its end unless it is to be kept.
struct Work {
    folder: PathBuf,
    keep: bool,
}

impl Work {
    fn begin(keep: bool) -> Result<Self> {
        let folder = repository::target().join("vm").join(std::process::id().to_string());
        fs::create_dir_all(&folder).into_diagnostic().wrap_err_with(|| folder.display().to_string())?;
        Ok(Self { folder, keep })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("  kept: {}", self.folder.display());
        } else if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("  cannot delete {}: {error}", self.folder.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_work_whoever_is_first() {
        let results = in_parallel(vec![30, 0, 10], 2, |millis| {
            thread::sleep(Duration::from_millis(millis));
            millis
        });
        assert_eq!(results, [30, 0, 10]);
    }

    #[test]
    fn the_summary_says_which_kernel_loads_and_serves() {
        let well = Report { kernel: "6.18".into(), load: Some(Duration::from_secs(3)), ..Report::default() };
        let mut refused = Report { kernel: "6.1".into(), ..Report::default() };
        refused.fail("infinite loop".into());
        let table = summary(&[well, refused]).to_string();
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[1].contains("3.0") && lines[1].contains("loads and serves"), "{table}");
        assert!(lines[2].contains("6.1") && lines[2].contains("FAILED"), "{table}");
    }
}
