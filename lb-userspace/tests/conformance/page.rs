//! `docs/conformance.md`, from what the checks have found.

use std::fmt::Write;

use crate::evidence::Tests;
use crate::rule::{Check, Difference, Rule, Section};

/// What is known of a rule once its check has run.
pub struct Shown<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// Its section.
    pub section: &'a Section,
    /// Verdicts compared, both families together.
    pub verdicts: usize,
    /// In what Shunt is another than kube-proxy.
    pub differs: Vec<Difference>,
}

const HEAD: &str = "\
# Conformance

What a Service proxy must do, rule by rule, as kube-proxy (1.33 to 1.37) does it, and what shows that Shunt does. Sources are files of
[kubernetes/kubernetes](https://github.com/kubernetes/kubernetes); a dagger marks those read in an older release.

This page is written by `lb-userspace/tests/conformance`, which needs no root (`cargo test -p lb-userspace --test conformance`) and
fails where the page is another, with the command that puts the new one in its place. The check of a rule goes all the way, in both
families: Kubernetes objects as YAML through the agent's own reading, choice and plan into the tables of the datapath, then packets
and calls of clients outside, pods and processes of the node through the datapath's own decisions, the endpoints' answers back, and
each verdict compared.

- **yes**: the check ran, and all verdicts were those of the rule.
- **yes, but**: they were, except where the note says; where it leads to the list of differences, the check has seen the difference.
- **by tests**: nothing here asks; the tests named show it. They run, as all tests, with `cargo xtask test`.
- **differs**: the rule has no meaning here, or another.

*Pure* is the check, named by its module, and what other tests without root show it; *lab* tests use real sockets, programs in the
kernel, real API servers, and `api_twin` a real kube-proxy, asked the same questions. What differs on purpose is told in
[differences.md](differences.md). Each test named here is looked up by its name: one that is renamed or gone fails the suite.

The same objects in any order and through any history of changes end in the same maps, without a panic: properties over random
histories, with odd values of every field among them, in `lb-userspace/control/src/reconcile/tests/random.rs` (a million of them with
`PROPTEST_CASES=1000000 cargo test -p lb-control the_order_of_events`).
";

/// The page.
pub fn page(shown: &[Shown<'_>], tests: &Tests) -> String {
    let mut page = HEAD.to_owned();
    let verdicts: usize = shown.iter().map(|shown| shown.verdicts).sum();
    let checked = shown.iter().filter(|shown| shown.rule.check.is_some()).count();
    let _ = writeln!(
        page,
        "\n{} rules, {checked} with a check of their own, {verdicts} verdicts compared.",
        shown.len()
    );
    let mut title = "";
    for shown in shown {
        if shown.section.title != title {
            title = shown.section.title;
            let _ = writeln!(
                page,
                "\n## {title}\n\n| | rule | from | pure | lab | holds |\n|---|---|---|---|---|---|"
            );
        }
        let Rule { id, text, source, .. } = shown.rule;
        let check = shown.rule.check.iter().map(shown_check);
        let (lab, pure): (Vec<_>, Vec<_>) =
            shown.rule.tests.iter().map(|name| link(name, tests)).partition(|link: &String| is_lab(link));
        let pure: Vec<String> = check.chain(pure).collect();
        let (file, older) = source.split_once(' ').unwrap_or((source, ""));
        let _ = writeln!(
            page,
            "| {id} | {text} | `{file}`{older} | {} | {} | {} |",
            pure.join("<br>"),
            lab.join("<br>"),
            holds(shown)
        );
    }
    page
}

/// Whether a link leads to a test with real sockets and programs in the kernel.
fn is_lab(link: &str) -> bool {
    ["(../xtask/tests/", "(../lb-userspace/tests/kernel", "(../lb-userspace/kernel/tests/"]
        .iter()
        .any(|folder| link.contains(folder))
}

fn holds(shown: &Shown<'_>) -> String {
    let notes: Vec<String> = shown.differs.iter().map(note).collect();
    match (shown.rule.check.is_some(), notes.is_empty()) {
        (true, true) => "yes".to_owned(),
        (false, true) => "by tests".to_owned(),
        (true, false) => format!("yes, but {}", notes.join("; ")),
        (false, false) => format!("differs: {}", notes.join("; ")),
    }
}

fn note(difference: &Difference) -> String {
    match difference {
        Difference::Listed(id) => format!("[{id}](differences.md#{id})"),
        Difference::Explained(text) => (*text).to_owned(),
    }
}

/// The check's file, with a link.
fn shown_check(check: &Check) -> String {
    let name = check.name.rsplit("rules::").next().unwrap_or(check.name);
    let file = name.split("::").next().unwrap_or(name);
    format!("[{name}](../lb-userspace/tests/conformance/rules/{file}.rs)")
}

fn link(name: &str, tests: &Tests) -> String {
    // What is wrong with a name is told elsewhere.
    tests.file(name).map_or_else(|error| error, |file| format!("[{name}](../{file})"))
}
