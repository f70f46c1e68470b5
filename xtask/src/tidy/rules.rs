//! The rules, each as a function from text to problems.

use std::fmt;

use super::modules;
use super::source::Source;
use crate::test::Stage;

/// Lines a file may have; long tests go to a `tests.rs` of their own.
const MOST_LINES: usize = 500;

/// Longer files, and why they are.
const LONG_FILES: &[(&str, &str)] = &[];

/// Files outside lb-ebpf that may hold unsafe blocks, and what for.
const UNSAFE_FILES: &[(&str, &str)] = &[
    ("lb-userspace/kernel/src/channel.rs", "owns descriptors that nix hands out as numbers"),
    (
        "lb-userspace/kernel/src/links/link.rs",
        "creates and updates links, of cgroups too, for which aya has no call",
    ),
    ("lb-userspace/kernel/src/maps/map.rs", "reads and writes maps in batches, for which aya has no call"),
    ("lb-userspace/kernel/src/maps/mmap.rs", "reads and writes maps that the kernel shares as memory"),
    ("lb-userspace/kernel/src/programs/image.rs", "loads a program with its log, which aya drops"),
    ("lb-userspace/kernel/src/sys.rs", "bpf() itself, and calls about this process that nix has not"),
];

/// A path that only some files may use.
struct Confined {
    path: &'static str,
    /// Files this rule is about.
    within: &'static str,
    /// Of these, the ones that may.
    allowed: &'static [&'static str],
    why: &'static str,
}

const CONFINED: &[Confined] = &[
    Confined {
        path: "kube::",
        within: "lb-userspace/",
        allowed: &["lb-userspace/control/src/source"],
        why: "the rest of the agent works without a cluster",
    },
    // (No crate but lb-kernel has it to name; tests and benchmarks of lb-userspace have.)
    Confined {
        path: "aya::",
        within: "lb-userspace/",
        allowed: &["lb-userspace/kernel", "lb-userspace/tests/kernel", "lb-userspace/benches"],
        why: "the rest of the agent runs in tests without a kernel",
    },
    Confined { path: "std::", within: "lb-common/src/", allowed: &[], why: "it is no_std" },
];

/// Modules whose results depend on their arguments alone.
const PURE: [&str; 6] = [
    "lb-userspace/control/src/allocate",
    "lb-userspace/control/src/convert",
    "lb-userspace/control/src/desired",
    "lb-userspace/control/src/model",
    "lb-userspace/control/src/network",
    "lb-userspace/control/src/plan",
];
const IMPURE: [&str; 7] =
    ["Instant::now", "SystemTime::now", "std::fs", "std::env", "std::process", "tokio", "rand"];

/// Crates that a package must never depend on, not even through others.
pub struct Without {
    /// The package.
    pub package: &'static str,
    /// Its folder.
    pub folder: &'static str,
    /// What counts as depending, as `cargo tree --edges` takes it.
    pub edges: &'static str,
    /// Names of libraries; what begins with one and an underscore is meant as well.
    crates: &'static [&'static str],
    why: &'static str,
}

/// Who must do without what.
pub const WITHOUT: [Without; 3] = [
    Without {
        package: "lb-common",
        folder: "lb-common",
        edges: "normal",
        crates: &["aya", "kube", "libc", "log", "nix", "serde", "tokio"],
        why: "it runs in the kernel",
    },
    Without {
        package: "lb-control",
        folder: "lb-userspace/control",
        edges: "normal,build,dev",
        crates: &["aya", "lb_kernel", "lb_telemetry", "lb_health", "rtnetlink", "shunt"],
        why: "it compiles, and its tests run, without a BPF toolchain",
    },
    Without {
        package: "lb-lab",
        folder: "xtask/lab",
        edges: "normal,build,dev",
        crates: &["aya", "kube", "lb_common", "lb_control", "lb_kernel", "shunt", "xtask"],
        why: "it runs the product, and knows nothing of its inside",
    },
];

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    path: String,
    line: usize,
    message: String,
}

impl Problem {
    pub(super) fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.into(), line, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// The rules that look at one file.
pub fn of_a_file(source: &Source) -> Vec<Problem> {
    [module_doc, length, unsafe_code, confined_paths, pure_modules, ignored_tests, modules::of_a_file]
        .into_iter()
        .flat_map(|rule| rule(source))
        .collect()
}

fn module_doc(source: &Source) -> Vec<Problem> {
    // What the tests of a module are about, the module says.
    if source.path.ends_with("/tests.rs") {
        return Vec::new();
    }
    match source.lines.iter().find(|line| !line.trim().is_empty()) {
        Some(line) if line.starts_with("//!") => Vec::new(),
        _ => vec![Problem::new(&source.path, 1, "begin the file with a `//!` line that says what it is for")],
    }
}

fn length(source: &Source) -> Vec<Problem> {
    let is_tests = source.path.ends_with("/tests.rs") || source.path.contains("/tests/");
    let is_excused = LONG_FILES.iter().any(|(path, _)| *path == source.path);
    let lines = source.lines.len();
    if lines <= MOST_LINES || is_tests || is_excused {
        return Vec::new();
    }
    let message =
        format!("{lines} lines; split it by concern, {MOST_LINES} is the most (tests.rs may be longer)");
    vec![Problem::new(&source.path, lines, message)]
}

fn unsafe_code(source: &Source) -> Vec<Problem> {
    let allowed =
        source.path.starts_with("lb-ebpf/") || UNSAFE_FILES.iter().any(|(path, _)| *path == source.path);
    if allowed {
        return Vec::new();
    }
    let files: Vec<_> = UNSAFE_FILES.iter().map(|(path, _)| *path).collect();
    let message = format!("unsafe code is allowed in lb-ebpf, {} only", files.join(", "));
    source.lines_with("unsafe").map(|line| Problem::new(&source.path, line, message.clone())).collect()
}

fn confined_paths(source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    for rule in CONFINED.iter().filter(|rule| source.path.starts_with(rule.within)) {
        if rule.allowed.iter().any(|allowed| source.path.starts_with(allowed)) {
            continue;
        }
        for line in source.lines_with(rule.path) {
            let message = match rule.allowed {
                [] => format!("`{}` is not for {}: {}", rule.path, rule.within, rule.why),
                allowed => format!("`{}` is for {} only: {}", rule.path, allowed.join(", "), rule.why),
            };
            problems.push(Problem::new(&source.path, line, message));
        }
    }
    problems
}

fn pure_modules(source: &Source) -> Vec<Problem> {
    if !PURE.iter().any(|module| source.path.starts_with(module)) || source.path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let end = source.lines_before_tests();
    let uses = |word: &'static str| {
        source.lines_with(word).filter(move |&line| line <= end).map(move |line| {
            Problem::new(
                &source.path,
                line,
                format!("`{word}` in a pure module; pass the value in as an argument"),
            )
        })
    };
    IMPURE.into_iter().flat_map(uses).collect()
}

fn ignored_tests(source: &Source) -> Vec<Problem> {
    let lines = source.code.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with("#[ignore"));
    lines
        .map(|(index, _)| {
            Problem::new(&source.path, index + 1, "a test that never runs proves nothing; delete it")
        })
        .collect()
}

/// Exceptions for files that are gone or need them no longer.
pub fn of_exceptions(sources: &[Source]) -> Vec<Problem> {
    let here = "xtask/src/tidy/rules.rs";
    let find = |path: &str| sources.iter().find(|source| source.path == path);
    let long = LONG_FILES.iter().filter(|(path, _)| find(path).is_none_or(|it| it.lines.len() <= MOST_LINES));
    let safe = UNSAFE_FILES
        .iter()
        .filter(|(path, _)| find(path).is_none_or(|it| it.lines_with("unsafe").next().is_none()));
    long.chain(safe)
        .map(|(path, _)| Problem::new(here, 1, format!("{path} needs its exception no longer")))
        .collect()
}

/// Files of `tests/` that need root are declared so, and plain `cargo test` leaves them out.
pub fn of_root_tests(manifest: &str, text: &str, sources: &[Source]) -> Vec<Problem> {
    let folder = manifest.replace("Cargo.toml", "tests/");
    let entries: Vec<_> = text.split("[[test]]").skip(1).collect();
    let is_declared = |name: &str| {
        let name = format!("name = \"{name}\"");
        entries
            .iter()
            .any(|entry| entry.contains(&name) && entry.contains("required-features = [\"root-tests\"]"))
    };
    sources
        .iter()
        .filter_map(|source| source.path.strip_prefix(&folder)?.strip_suffix(".rs"))
        .map(|name| name.strip_suffix("/main").unwrap_or(name))
        .filter(|name| !name.contains('/') && Stage::of(name).needs_root() && !is_declared(name))
        .map(|name| {
            let message = format!(
                "the test {name} needs root by its name: declare it as [[test]] with \
                                   required-features = [\"root-tests\"]"
            );
            Problem::new(manifest, 1, message)
        })
        .collect()
}

/// `names`: those of all crates that a package depends on, one a line.
pub fn of_dependencies(without: &Without, names: &str) -> Vec<Problem> {
    let is = |name: &str, banned: &str| {
        name.strip_prefix(banned).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    let Without { package, folder, crates, why, .. } = without;
    names
        .lines()
        .map(|line| line.trim().trim_end_matches(" (*)"))
        .filter(|name| crates.iter().any(|banned| is(name, banned)))
        .map(|name| {
            let message = format!("{package} must not depend on {name}: {why}");
            Problem::new(&format!("{folder}/Cargo.toml"), 1, message)
        })
        .collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
