//! Which module of a crate may name which, where the compiler would let all of them.

use super::rules::Problem;
use super::source::Source;

/// The modules of a crate in layers: each may name those that its line says, all of which stand above it.
struct Layers {
    /// Where the crate's source is.
    folder: &'static str,
    modules: &'static [(&'static str, &'static [&'static str])],
    /// Another crate, of which only these modules are for this one.
    other: Option<(&'static str, &'static [&'static str])>,
}

const LAYERS: [Layers; 4] = [
    Layers {
        folder: "lb-userspace/control/src/",
        modules: &[
            ("allocate", &[]),
            ("model", &[]),
            ("objects", &[]),
            ("seed", &[]),
            ("network", &["model"]),
            ("store", &["model", "seed"]),
            ("source", &["model", "objects"]),
            ("convert", &["model", "objects"]),
            ("desired", &["convert", "model"]),
            ("plan", &["allocate", "desired", "model", "store"]),
            ("reconcile", &["convert", "desired", "model", "network", "plan", "seed", "source", "store"]),
        ],
        other: None,
    },
    Layers {
        folder: "lb-userspace/kernel/src/",
        modules: &[
            ("channel", &[]),
            ("net", &[]),
            ("pin", &[]),
            ("sys", &[]),
            ("maps", &["pin", "sys"]),
            ("programs", &["maps", "pin", "sys"]),
            ("links", &["maps", "pin", "programs", "sys"]),
        ],
        // What it implements, and of what the facts are made: no Service as Kubernetes has it.
        other: Some(("lb_control::", &["model", "network", "seed", "store"])),
    },
    Layers {
        folder: "lb-userspace/telemetry/src/",
        modules: &[("logs", &[]), ("problems", &[]), ("recorder", &[]), ("metrics", &["recorder"])],
        other: None,
    },
    Layers {
        folder: "lb-userspace/src/",
        modules: &[
            ("args", &[]),
            ("exit", &["args"]),
            ("cleanup", &["args", "exit"]),
            ("get", &["args", "exit"]),
            ("keeper", &["args", "exit"]),
            ("app", &["args", "cleanup", "exit", "keeper"]),
        ],
        other: None,
    },
];

/// Whether a file names what its module may not. Tests may name all.
pub(super) fn of_a_file(source: &Source) -> Vec<Problem> {
    let mut found = LAYERS.iter().filter_map(|it| Some((it, source.path.strip_prefix(it.folder)?)));
    let Some((layers, file)) = found.next() else { return Vec::new() };
    let file = file.trim_end_matches(".rs").trim_end_matches("/mod");
    let path: Vec<&str> = file.split('/').collect();
    if path.contains(&"tests") || ["lib", "main"].contains(&file) {
        return Vec::new();
    }
    let problem = |line, message| Problem::new(&source.path, line, message);
    let Some((module, allowed)) = layers.modules.iter().find(|(module, _)| *module == path[0]) else {
        return vec![problem(1, "say in xtask/src/tidy/modules.rs what this module may name".to_owned())];
    };
    let mut problems = Vec::new();
    for (index, line) in source.code[..source.lines_before_tests()].iter().enumerate() {
        if line.contains("crate::{") || line.contains(&"super::".repeat(path.len())) {
            problems
                .push(problem(index + 1, "name another module by a path of its own: crate::module".into()));
        }
        let known = |name: &&str| layers.modules.iter().any(|(module, _)| module == name);
        for name in names_after(line, "crate::").filter(known) {
            if name != *module && !allowed.contains(&name) {
                let message = format!("`{module}` must not name `{name}`: it may name {}", list(allowed));
                problems.push(problem(index + 1, message));
            }
        }
        let Some((other, theirs)) = layers.other else { continue };
        for name in names_after(line, other).filter(|name| !theirs.contains(name)) {
            let message = format!("`{other}{name}` is not for this crate, but {}", list(theirs));
            problems.push(problem(index + 1, message));
        }
    }
    problems
}

/// What stands behind a path's beginning, in every place where it stands.
fn names_after<'line>(line: &'line str, path: &str) -> impl Iterator<Item = &'line str> {
    let ends = |c: char| !c.is_alphanumeric() && c != '_';
    line.split(path).skip(1).map(move |rest| rest.split(ends).next().unwrap_or(rest))
}

fn list(modules: &[&str]) -> String {
    if modules.is_empty() { "none".to_owned() } else { modules.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        of_a_file(&Source::new(path, text)).iter().map(Problem::to_string).collect()
    }

    #[test]
    fn no_circle_is_allowed() {
        for layers in LAYERS {
            for (index, (module, allowed)) in layers.modules.iter().enumerate() {
                for name in *allowed {
                    let above = layers.modules[..index].iter().any(|(module, _)| module == name);
                    assert!(above, "{}: {name} does not stand above {module}", layers.folder);
                }
            }
        }
    }

    #[test]
    fn a_module_names_those_above_it() {
        let plan = "use crate::reconcile::Status;\nuse crate::model::Problem;\n";
        assert_eq!(
            messages("lb-userspace/control/src/plan/rings.rs", plan),
            [
                "lb-userspace/control/src/plan/rings.rs:1: `plan` must not name `reconcile`: it may name allocate, desired, \
              model, store"
            ]
        );
        assert_eq!(messages("lb-userspace/control/src/reconcile/run.rs", plan), [""; 0]);
        let in_tests = "use crate::model::Kind;\n#[cfg(test)]\nmod tests { use crate::reconcile::Status; }\n";
        assert_eq!(messages("lb-userspace/control/src/plan.rs", in_tests), [""; 0]);
        assert_eq!(messages("lb-userspace/control/src/plan/tests.rs", plan), [""; 0]);
        assert_eq!(messages("lb-userspace/kernel/src/maps/mod.rs", "use crate::links::Hooks;\n").len(), 1);
    }

    #[test]
    fn no_path_leads_around_the_rule() {
        let maps = |text| messages("lb-userspace/kernel/src/maps/config.rs", text).len();
        assert_eq!(maps("use super::super::links::Hooks;\n"), 1);
        assert_eq!(maps("use crate::{links, programs};\n"), 1);
        assert_eq!(maps("use super::mmap::RingMemory;\n"), 0);
        assert_eq!(messages("lb-userspace/kernel/src/maps/mod.rs", "use super::links::Hooks;\n").len(), 1);
        assert_eq!(messages("lb-userspace/kernel/src/new.rs", "//! New.\n").len(), 1);
    }

    #[test]
    fn the_kernel_side_knows_the_store_and_no_more() {
        let names = |name: &str| {
            let text = format!("use lb_control::{name}::X;\n");
            messages("lb-userspace/kernel/src/maps/store.rs", &text).len()
        };
        assert_eq!((names("store"), names("model"), names("network")), (0, 0, 0));
        assert_eq!((names("reconcile"), names("source"), names("objects")), (1, 1, 1));
    }
}
