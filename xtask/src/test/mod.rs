//! `cargo xtask test`: everything that must pass.
//!
//! All tests are built once; then the stages run their executables one after the other. Which stage a file of `tests/`
//! belongs to is in its name (see [`Stage::of`]), so a new file needs no change here.

mod outcome;
mod target;

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use miette::{IntoDiagnostic, Result, WrapErr, miette};
use nix::unistd::geteuid;

use crate::architecture::Architecture;
use crate::setup::{self, Purpose, Toolchain};
use crate::{build, kube, lint, repository, vm};
pub use outcome::Tally;
pub use target::{PACKAGES, Stage, Target, features};

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct TestArgs {
    /// Only what needs no privilege: lint and host tests
    #[arg(long, conflicts_with = "only")]
    pub host: bool,

    /// Only this stage (lint, host, kernel, vm, lab, api) or this file of tests (such as lab_life)
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,

    /// Arguments of the test programs, such as a part of a test's name
    #[arg(last = true, value_name = "TEST ARGUMENTS")]
    pub arguments: Vec<String>,
}

impl TestArgs {
    /// One stage alone.
    pub fn only(stage: Stage) -> Self {
        Self { host: false, only: Some(stage.name().into()), arguments: Vec::new() }
    }
}

/// Runs the stages in order and prints a summary. The last line has the format of cargo's own.
pub fn test(args: TestArgs) -> Result<ExitCode> {
    let began = Instant::now();
    let selection = Selection::new(&args)?;
    let mut rows = Vec::new();
    let result = run_stages(&selection, &args.arguments, &mut rows);
    if let Err(report) = &result
        && report.downcast_ref::<setup::Unavailable>().is_some()
    {
        // Nothing was tested; the exit status says so.
        return result.map(|()| ExitCode::FAILURE);
    }
    let total = rows.iter().fold(Tally::default(), |total, row: &Row| total + row.tally);
    println!("\n{}\n", summary(&rows));
    if let Err(report) = &result {
        println!("{report:?}\n");
    }
    let passed = result.is_ok() && total.failed == 0;
    println!("{}", total.line(passed, began.elapsed()));
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Selection {
    All,
    Unprivileged,
    Stage(Stage),
    File(String),
}

impl Selection {
    fn new(args: &TestArgs) -> Result<Self> {
        Ok(match &args.only {
            _ if args.host => Self::Unprivileged,
            None => Self::All,
            Some(name) => match Stage::ALL.into_iter().find(|stage| stage.name() == name) {
                Some(stage) => Self::Stage(stage),
                None if is_test_file(name) => Self::File(name.clone()),
                None => {
                    let stages = Stage::ALL.map(Stage::name).join(", ");
                    return Err(miette!(
                        "--only {name}: not a stage ({stages}), and no file tests/{name}.rs"
                    ));
                }
            },
        })
    }

    fn has(&self, stage: Stage) -> bool {
        match self {
            Self::All => true,
            Self::Unprivileged => !stage.needs_root(),
            Self::Stage(only) => *only == stage,
            Self::File(name) => Stage::of(name) == stage && stage != Stage::Lint,
        }
    }

    fn has_target(&self, target: &Target) -> bool {
        match self {
            Self::File(name) => target.name == *name && target.kind == "test",
            _ => self.has(target.stage()),
        }
    }

    fn purposes(&self) -> &'static [Purpose] {
        if Stage::ALL.into_iter().any(|stage| stage.needs_root_here() && self.has(stage)) {
            &[Purpose::Build, Purpose::Lab, Purpose::Test, Purpose::Vm]
        } else if self.has(Stage::Vm) {
            &[Purpose::Build, Purpose::Vm]
        } else {
            &[Purpose::Build]
        }
    }
}

fn is_test_file(name: &str) -> bool {
    let root = repository::root();
    target::PACKAGES
        .iter()
        .any(|package| root.join(package).join("tests").join(name).with_extension("rs").exists())
}

/// A line of the summary.
struct Row {
    name: &'static str,
    tally: Tally,
    took: Duration,
    note: &'static str,
}

/// Goes on after a stage that fails, so that one run shows all there is. An error ends everything.
fn run_stages(selection: &Selection, arguments: &[String], rows: &mut Vec<Row>) -> Result<()> {
    let mut timed = |name, work: &mut dyn FnMut() -> Result<Tally>| {
        println!("\n=== {name}");
        let began = Instant::now();
        let (result, tally) = match work() {
            Ok(tally) => (Ok(()), tally),
            Err(report) => (Err(report), Tally { failed: 1, ..Tally::default() }),
        };
        let note = if tally.failed == 0 { "" } else { "FAILED" };
        rows.push(Row { name, tally, took: began.elapsed(), note });
        result
    };
    let nothing = |()| Tally::default();

    let mut toolchain = Toolchain::default();
    timed("set-up", &mut || {
        toolchain = setup::ensure(selection.purposes())?;
        if selection.has(Stage::Api) {
            kube::Assets::find_or_build()?;
        }
        Ok(Tally::default())
    })?;
    let mut lint = Ok(());
    if selection.has(Stage::Lint) {
        lint = timed("lint", &mut || lint::check(&toolchain).map(nothing));
    }
    if *selection == Selection::Stage(Stage::Lint) {
        return lint;
    }
    let mut built = Built::default();
    timed("build", &mut || {
        built = Built::build(&toolchain)?;
        Ok(Tally::default())
    })?;
    for stage in Stage::ALL {
        let targets: Vec<_> =
            built.targets.iter().filter(|it| it.stage() == stage && selection.has_target(it)).collect();
        if stage == Stage::Lint || !selection.has(stage) {
            continue;
        }
        let outcome =
            timed(stage.name(), &mut || run_stage(stage, &targets, &built, selection, &toolchain, arguments));
        if let Err(report) = outcome {
            println!("{report:?}");
        }
    }
    lint
}

fn run_stage(
    stage: Stage,
    targets: &[&Target],
    built: &Built,
    selection: &Selection,
    toolchain: &Toolchain,
    arguments: &[String],
) -> Result<Tally> {
    if stage.needs_root_here() && !geteuid().is_root() {
        return Err(miette!(
            "the {} tests need root: network namespaces and BPF. Run `cargo xtask test` as root, or the part \
             without them: cargo xtask test --host",
            stage.name()
        ));
    }
    if targets.is_empty() {
        return Err(miette!("there is no test in the stage {}", stage.name()));
    }
    if stage == Stage::Vm {
        let file = if let Selection::File(name) = selection { Some(name.as_str()) } else { None };
        return vm::stage(&built.programs(), file);
    }
    if stage == Stage::Kernel {
        println!("{}", build::verified(&built.shunt)?);
    }
    let mut total = Tally::default();
    for target in targets {
        total = total + run_target(target, &built.shunt, stage.needs_root(), arguments)?;
    }
    if stage == Stage::Host && !matches!(selection, Selection::File(_)) {
        let mut cargo = toolchain.cargo();
        cargo.args(["test", "--doc", "--workspace", "--exclude", "lb-ebpf"]).args(target::features());
        total = total + run_and_count(cargo.arg("--").args(arguments))?;
    }
    Ok(total)
}

fn run_target(target: &Target, shunt: &Path, one_at_a_time: bool, arguments: &[String]) -> Result<Tally> {
    println!("\n    {} {} of {}", target.kind, target.name, target.package);
    let mut program = Command::new(&target.executable);
    // As cargo does it.
    program.current_dir(&target.folder).env("CARGO_MANIFEST_DIR", &target.folder).env("SHUNT_BIN", shunt);
    if one_at_a_time {
        program.arg("--test-threads=1");
    }
    if std::io::stdout().is_terminal() {
        program.args(["--color", "always"]);
    }
    run_and_count(program.args(arguments))
}

/// Runs a test program, shows its output and counts. A failed test is counted; only a program that ends without
/// saying what passed is an error.
fn run_and_count(command: &mut Command) -> Result<Tally> {
    run_and_count_to(command, &mut std::io::stdout())
}

fn run_and_count_to(command: &mut Command, shown: &mut impl Write) -> Result<Tally> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot start {command:?}"))?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.into_diagnostic()?;
            shown.write_all(&line).and_then(|()| shown.write_all(b"\n")).into_diagnostic()?;
            if let Some(counted) = Tally::parse(&String::from_utf8_lossy(&line)) {
                tally = tally + counted;
            }
        }
    }
    let status = child.wait().into_diagnostic()?;
    if !status.success() && tally.failed == 0 {
        // Killed, or ended before it could say which test failed.
        writeln!(shown, "{status} from {command:?}").into_diagnostic()?;
        tally.failed = 1;
    }
    Ok(tally)
}

/// Everything that was compiled for the tests.
#[derive(Debug, Default)]
pub struct Built {
    targets: Vec<Target>,
    shunt: std::path::PathBuf,
}

impl Built {
    /// Compiles it.
    pub fn build(toolchain: &Toolchain) -> Result<Self> {
        let shunt = build::shunt(toolchain, &[])?;
        let mut cargo = toolchain.cargo();
        cargo.args(["test", "--no-run", "--workspace", "--exclude", "lb-ebpf"]).args(target::features());
        let targets = build::messages(&mut cargo)?.iter().filter_map(Target::from_message).collect();
        Ok(Self { targets, shunt })
    }

    /// What virtual machines of another architecture run, linked statically. [`Purpose::Cross`] must have been asked for.
    pub fn programs_for(toolchain: &Toolchain, architecture: Architecture) -> Result<vm::Programs> {
        let shunt = build::shunt_for(toolchain, architecture)?;
        let mut cargo = toolchain.cargo_for(architecture);
        cargo.args(["test", "--no-run", "--workspace", "--exclude", "lb-ebpf"]).args(target::features());
        for name in vm::tests() {
            cargo.args(["--test", name]);
        }
        // With the binary of xtask, whose package some of them are in.
        let messages = build::messages(&mut cargo)?;
        let binary = |name: &str| {
            let mut found = messages.iter().filter_map(|message| build::executable(message, name, "bin"));
            found.next().ok_or_else(|| miette!("cargo named no executable {name}"))
        };
        let tests = messages.iter().filter_map(Target::from_message).collect();
        Ok(vm::Programs { shunt, xtask: binary("xtask")?, tests })
    }

    /// What virtual machines run of it.
    pub fn programs(&self) -> vm::Programs {
        // The tests were compiled with this path of xtask.
        let xtask = self.shunt.with_file_name("xtask");
        vm::Programs { shunt: self.shunt.clone(), xtask, tests: self.targets.clone() }
    }
}

fn summary(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["STAGE", "PASSED", "FAILED", "IGNORED", "SECONDS", ""]);
    for row in rows {
        let numbers =
            [row.tally.passed, row.tally.failed, row.tally.ignored].map(|number| number.to_string());
        let seconds = format!("{:.1}", row.took.as_secs_f64());
        table.add_row([row.name.to_owned()].into_iter().chain(numbers).chain([seconds, row.note.to_owned()]));
    }
    for column in table.column_iter_mut().skip(1).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(host: bool, only: Option<&str>) -> Result<Selection> {
        Selection::new(&TestArgs { host, only: only.map(String::from), arguments: Vec::new() })
    }

    #[test]
    fn the_unprivileged_part_is_lint_and_host_tests() {
        let host = selection(true, None).unwrap();
        let stages: Vec<_> = Stage::ALL.into_iter().filter(|stage| host.has(*stage)).collect();
        assert_eq!(stages, [Stage::Lint, Stage::Host]);
        assert_eq!(host.purposes(), [Purpose::Build]);
    }

    #[test]
    fn virtual_machines_need_no_root_and_no_lab() {
        let machines = selection(false, Some("vm")).unwrap();
        assert_eq!(machines.purposes(), [Purpose::Build, Purpose::Vm]);
        assert!(!Stage::Vm.needs_root_here() && Stage::Vm.needs_root());
    }

    #[test]
    fn one_file_of_tests_can_be_chosen() {
        let file = selection(false, Some("api_server")).unwrap();
        let stages: Vec<_> = Stage::ALL.into_iter().filter(|stage| file.has(*stage)).collect();
        assert_eq!(stages, [Stage::Api]);
        let error = selection(false, Some("no_such_file")).unwrap_err().to_string();
        assert!(error.contains("lint, host, kernel, vm, lab, api"), "{error}");
    }

    #[test]
    fn a_failed_test_is_counted_and_a_killed_program_counts_as_one() {
        let says = |text: &str| {
            // Not to standard output, where it would be counted as a result of this very program.
            run_and_count_to(Command::new("sh").args(["-c", text]), &mut Vec::new()).unwrap()
        };
        let failing = says(
            "echo 'test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out'; exit 101",
        );
        assert_eq!((failing.passed, failing.failed, failing.ignored), (3, 2, 1));
        assert_eq!(says("kill -9 $$").failed, 1);
        assert_eq!(says("true"), Tally::default());
    }
}
