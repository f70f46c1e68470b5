//! Conformance: every rule of kube-proxy, from objects to what becomes of packets. Writes `docs/conformance.md`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lb_control::model::Family;

use evidence::{Tests, root};
use page::{Shown, page};
use rule::{Difference, Row};

mod ask;
mod evidence;
mod names;
mod page;
mod rule;
mod rules;
mod stage;

/// Every rule with what its check has found, and what is wrong.
fn shown() -> (Vec<Shown<'static>>, Vec<String>) {
    let mut shown = Vec::new();
    let mut wrong = Vec::new();
    for section in rules::SECTIONS {
        for rule in section.rules {
            let mut one = Shown { rule, section, verdicts: 0, differs: rule.differs.to_vec() };
            let checks = rule.check.iter().flat_map(|check| Family::ALL.map(|family| (check, family)));
            for (check, family) in checks {
                let mut row = Row::new(family);
                (check.run)(&mut row);
                one.verdicts += row.verdicts;
                one.differs.extend(row.differs);
                wrong.extend(row.wrong.into_iter().map(|what| format!("{} {}: {what}", rule.id, check.name)));
            }
            one.differs.sort();
            one.differs.dedup();
            if rule.check.is_some() && one.verdicts == 0 {
                wrong.push(format!("{}: its check compares nothing", rule.id));
            }
            if rule.check.is_none() && rule.tests.is_empty() && one.differs.is_empty() {
                wrong.push(format!("{}: nothing shows it", rule.id));
            }
            shown.push(one);
        }
    }
    (shown, wrong)
}

/// The headings of a page.
fn headings(page: &str) -> BTreeSet<String> {
    let path = root().join(page);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().filter_map(|line| line.strip_prefix("## ")).map(str::to_owned).collect()
}

#[test]
fn every_rule_holds_and_the_page_says_so() {
    let (shown, wrong) = shown();
    assert!(wrong.is_empty(), "{} verdicts are not those of the rules:\n{}", wrong.len(), wrong.join("\n"));
    let listed = headings("docs/differences.md");
    for difference in shown.iter().flat_map(|shown| &shown.differs) {
        if let Difference::Listed(id) = difference {
            assert!(listed.contains(*id), "docs/differences.md has no {id}");
        }
    }
    let page = page(&shown, &Tests::read());
    let file = root().join("docs/conformance.md");
    if fs::read_to_string(&file).unwrap_or_default() != page {
        let draft = Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance.md");
        fs::write(&draft, page).unwrap_or_else(|error| panic!("{}: {error}", draft.display()));
        panic!("{} is not what the rules say; cp {} {}", file.display(), draft.display(), file.display());
    }
}

#[test]
fn every_test_that_a_rule_names_is_there() {
    let tests = Tests::read();
    let named = rules::SECTIONS.iter().flat_map(|section| section.rules).flat_map(|rule| rule.tests);
    let wrong: BTreeSet<String> = named.filter_map(|name| tests.file(name).err()).collect();
    assert_eq!(wrong, BTreeSet::new());
}

#[test]
fn rules_are_numbered_in_order() {
    let ids: Vec<_> = rules::SECTIONS.iter().flat_map(|section| section.rules).map(|rule| rule.id).collect();
    let numbers: Vec<Vec<u32>> =
        ids.iter().map(|id| id.split('.').filter_map(|part| part.parse().ok()).collect()).collect();
    assert!(numbers.iter().all(|number| number.len() == 2), "{ids:?}");
    let mut sorted = numbers.clone();
    sorted.sort();
    sorted.dedup();
    // Sections of the page stand in an order of their own.
    let mut found = numbers;
    found.sort();
    assert_eq!(found, sorted, "each number once");
}
