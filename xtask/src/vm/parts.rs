//! What runs in the virtual machines, as a table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use miette::{Result, miette};

use super::machine::Acceleration;
use super::plan::Step;
use crate::test::Target;

/// One of the things that a kernel is checked by.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// The name to type.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    run: Run,
    /// How long it may take on the machine itself.
    seconds: u64,
}

#[derive(Debug, Clone, Copy)]
enum Run {
    /// `shunt` with these arguments.
    Shunt(&'static [&'static str]),
    /// A file of tests, by package and name.
    Tests(&'static str, &'static str),
}

/// What the verifier makes of each program.
pub const VERIFIER: &str = "verifier";

/// In the order they run.
pub const PARTS: &[Part] = &[
    Part {
        name: VERIFIER,
        about: "every program loads; instructions, stack, seconds",
        run: Run::Shunt(&["debug", "verifier", "--output", "json"]),
        seconds: 20,
    },
    Part {
        name: "kernel",
        about: "every fixture and random packets through the programs",
        run: Run::Tests("lb-kernel", "kernel"),
        seconds: 40,
    },
    Part {
        name: "lab",
        about: "the agent over veths, with real sockets",
        run: Run::Tests("xtask", "vm_lab"),
        seconds: 90,
    },
];

/// The programs of this repository that run in a virtual machine.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The agent.
    pub shunt: PathBuf,
    /// This program, as the tests know it.
    pub xtask: PathBuf,
    /// The test programs.
    pub tests: Vec<Target>,
}

impl Programs {
    fn test(&self, package: &str, name: &str) -> Result<&Target> {
        let mut tests = self.tests.iter().filter(|test| test.kind == "test");
        tests
            .find(|test| test.package == package && test.name == name)
            .ok_or_else(|| miette!("cargo built no file of tests {name} of {package}"))
    }

    /// The files that the parts need, and the folders that tests are started in.
    pub fn files(&self, parts: &[Part]) -> Result<(Vec<&Path>, Vec<&Path>)> {
        let (mut files, mut folders) = (vec![self.shunt.as_path(), self.xtask.as_path()], Vec::new());
        for part in parts {
            if let Run::Tests(package, name) = part.run {
                let test = self.test(package, name)?;
                files.push(&test.executable);
                folders.push(test.folder.as_path());
            }
        }
        Ok((files, folders))
    }
}

impl Part {
    /// The parts of a name, or all.
    pub fn select(names: &[String]) -> Result<Vec<Part>> {
        if let Some(unknown) = names.iter().find(|name| PARTS.iter().all(|part| part.name != **name)) {
            let known: Vec<_> = PARTS.iter().map(|part| format!("{} ({})", part.name, part.about)).collect();
            return Err(miette!("--only {unknown}: there are {}", known.join(", ")));
        }
        let wanted = |part: &&Part| names.is_empty() || names.iter().any(|name| name == part.name);
        Ok(PARTS.iter().filter(wanted).copied().collect())
    }

    /// The files of tests that are parts.
    pub fn tests() -> impl Iterator<Item = &'static str> {
        PARTS.iter().filter_map(|part| match part.run {
            Run::Tests(_, name) => Some(name),
            Run::Shunt(_) => None,
        })
    }

    /// The names of the parts that are this file of tests.
    pub fn of_file(file: &str) -> Vec<&'static str> {
        let is_file = |part: &&Part| matches!(part.run, Run::Tests(_, name) if name == file);
        PARTS.iter().filter(is_file).map(|part| part.name).collect()
    }

    /// How long it may take.
    pub fn seconds(&self, acceleration: Acceleration) -> u64 {
        self.seconds * u64::from(acceleration.patience())
    }

    /// What is to be started for it.
    pub fn step(&self, programs: &Programs, acceleration: Acceleration) -> Result<Step> {
        let patience = acceleration.patience();
        // As `cargo xtask test` starts them, with more patience and fewer random packets.
        let mut environment = BTreeMap::from([
            ("SHUNT_BIN".to_owned(), programs.shunt.display().to_string()),
            ("SHUNT_PATIENCE".to_owned(), patience.to_string()),
            ("SHUNT_RANDOM_PART".to_owned(), "10".to_owned()),
            ("RUST_BACKTRACE".to_owned(), "0".to_owned()),
        ]);
        let (program, arguments, folder) = match self.run {
            Run::Shunt(arguments) => (&programs.shunt, arguments, Path::new("/")),
            Run::Tests(package, name) => {
                let test = programs.test(package, name)?;
                environment.insert("CARGO_MANIFEST_DIR".into(), test.folder.display().to_string());
                (&test.executable, &["--test-threads=1", "--nocapture"][..], test.folder.as_path())
            }
        };
        Ok(Step {
            part: self.name.into(),
            program: program.clone(),
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
            environment,
            folder: folder.into(),
            seconds: self.seconds(acceleration),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_part_is_answered_with_those_there_are() {
        let error = Part::select(&["nothing".into()]).unwrap_err().to_string();
        assert!(error.contains("verifier (every program loads"), "{error}");
        let names: Vec<_> = Part::select(&["lab".into()]).unwrap().iter().map(|part| part.name).collect();
        assert_eq!(names, ["lab"]);
        assert_eq!(Part::of_file("vm_lab"), ["lab"]);
    }
}
