//! Where and when a run took place.

use std::fmt;
use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::{command, repository};

/// The machine, its state, and what was measured on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The end of the run, in UTC.
    pub when: String,
    /// Its release.
    pub kernel: String,
    /// How many there are.
    pub cpus: usize,
    /// Its model.
    pub processor: String,
    /// Of the last minute.
    pub load: f64,
    /// What was checked out; with `-dirty`: and changed.
    pub commit: Option<String>,
}

impl Machine {
    /// This one, now.
    pub fn here() -> Self {
        let said = |command: &mut Command| command::stdout(command).ok().map(|said| said.trim().to_owned());
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let mut git = Command::new("git");
        git.current_dir(repository::root()).args(["describe", "--always", "--dirty", "--exclude", "*"]);
        Self {
            when: said(Command::new("date").args(["-u", "+%FT%H:%MZ"])).unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get()),
            processor: model(&read("/proc/cpuinfo")).to_owned(),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or_default(),
            commit: said(&mut git),
        }
    }
}

/// In one line.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { when, kernel, cpus, processor, load, commit } = self;
        write!(f, "Linux {kernel}, {cpus} CPUs ({processor}), load {load:.2}, {when}")?;
        commit.iter().try_for_each(|commit| write!(f, ", commit {commit}"))
    }
}

fn model(cpuinfo: &str) -> &str {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named() {
        assert_eq!(model("processor\t: 0\nmodel name\t: AMD EPYC\nmodel name\t: x\n"), "AMD EPYC");
        assert_eq!(model(""), "unknown");
    }

    #[test]
    fn the_commit_is_told_if_it_is_known() {
        let machine = Machine {
            when: "2026-11-21T23:12Z".into(),
            kernel: "6.18.44".into(),
            cpus: 2,
            processor: "AMD EPYC".into(),
            load: 1.5,
            commit: None,
        };
        let known = Machine { commit: Some("f0fd66f-dirty".into()), ..machine.clone() };
        let told = "Linux 6.18.44, 2 CPUs (AMD EPYC), load 1.50, 2026-11-21T23:12Z";
        assert_eq!(machine.to_string(), told);
        assert_eq!(known.to_string(), format!("{told}, commit f0fd66f-dirty"));
    }
}
