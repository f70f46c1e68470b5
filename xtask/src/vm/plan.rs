//! What host and virtual machine say to each other: the plan of what is to be run, and what came of it, line by line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the plan lies in the virtual machine.
pub const PLAN: &str = "/vm/plan.json";
/// The folder of modules in the virtual machine.
pub const MODULES: &str = "/vm/modules";

/// What the virtual machine does.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The device that [`Event`]s are written to.
    pub events: PathBuf,
    /// Programs to run, one after the other.
    pub steps: Vec<Step>,
}

/// A program to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    /// The part that it belongs to.
    pub part: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Variables beside those of every step.
    pub environment: BTreeMap<String, String>,
    /// The folder to start it in.
    pub folder: PathBuf,
    /// After so long it is killed.
    pub seconds: u64,
}

/// What happened in the virtual machine; one JSON object a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "event")]
pub enum Event {
    /// The kernel is up.
    Booted {
        /// What it says it is.
        kernel: String,
        /// Seconds since it began.
        seconds: f64,
    },
    /// A program wrote a line.
    Line {
        /// The part it belongs to.
        part: String,
        /// Whether it was an error's.
        error: bool,
        /// Without its end.
        text: String,
    },
    /// A program has ended, or has been killed.
    Ended {
        /// The part it belongs to.
        part: String,
        /// Whether it ended well.
        success: bool,
        /// How it ended, in words.
        status: String,
        /// How long it took.
        seconds: f64,
    },
    /// All is done, and the machine goes off. What does not say this has not come to its end.
    Done,
}
