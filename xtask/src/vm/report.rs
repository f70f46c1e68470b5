//! What came of a kernel: events to counts, figures and problems.

use std::time::Duration;

use super::figures::{self, Column};
use super::parts::{Part, VERIFIER};
use super::plan::Event;
use crate::test::Tally;

/// Lines of a part's output that a failure shows.
const SHOWN_LINES: usize = 60;
/// Characters of each; the verifier's are longer.
const SHOWN_CHARACTERS: usize = 400;

/// What came of a kernel.
#[derive(Debug, Default)]
pub struct Report {
    /// The kernel as it was asked for.
    pub kernel: String,
    /// Debian's version.
    pub version: String,
    /// Tests, and parts that are not tests.
    pub tally: Tally,
    /// How long it took to load every program.
    pub load: Option<Duration>,
    /// What the verifier says.
    pub column: Option<Column>,
    /// What is wrong, with what was said about it.
    pub problems: Vec<String>,
    /// How long the machine ran.
    pub took: Duration,
}

impl Report {
    /// Something that prevents the rest.
    pub fn fail(&mut self, problem: String) {
        self.tally.failed += 1;
        self.problems.push(format!("{}: {problem}", self.kernel));
    }

    /// Takes over what a part did.
    pub fn add(&mut self, part: &Part, events: &[Event]) {
        let name = part.name;
        let ended = events.iter().find_map(|event| match event {
            Event::Ended { part, success, status, seconds } if part == name => {
                Some((*success, status.as_str(), Duration::from_secs_f64(*seconds)))
            }
            _ => None,
        });
        let Some((success, status, took)) = ended else {
            return self.fail(format!("{name} did not come to its end{}", shown(&lines(events, name, None))));
        };
        if name == VERIFIER {
            let json = lines(events, name, Some(false)).join("\n");
            match figures::column(&json) {
                Ok(column) if success => {
                    self.tally.passed += 1;
                    self.load = Some(took);
                    self.column = Some(column);
                }
                Err(report) if success => self.fail(format!("{name}: {report:?}")),
                _ => self.fail(format!("{name}: {status}{}", shown(&lines(events, name, None)))),
            }
            return;
        }
        let counted = lines(events, name, Some(false))
            .iter()
            .filter_map(|line| Tally::parse(line))
            .fold(Tally::default(), |total, tally| total + tally);
        self.tally = self.tally + counted;
        if !success || counted.failed > 0 {
            // Killed, or ended before it could say which test failed.
            self.tally.failed += u64::from(counted.failed == 0);
            self.problems.push(format!(
                "{}: {name}: {status}{}",
                self.kernel,
                shown(&lines(events, name, None))
            ));
        }
    }
}

/// What a part wrote: to its output, to its errors, or both.
pub fn lines<'a>(events: &'a [Event], name: &str, errors: Option<bool>) -> Vec<&'a str> {
    let of_part = |event: &'a Event| match event {
        Event::Line { part, error, text } if part == name && errors.is_none_or(|wanted| wanted == *error) => {
            Some(text.as_str())
        }
        _ => None,
    };
    events.iter().filter_map(of_part).collect()
}

fn shown(lines: &[&str]) -> String {
    let last = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    let cut = |line: &&str| match line.char_indices().nth(SHOWN_CHARACTERS) {
        Some((at, _)) => format!("\n    {} …", &line[..at]),
        None => format!("\n    {line}"),
    };
    last.iter().map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str) -> Part {
        Part::select(&[name.to_owned()]).unwrap()[0]
    }

    fn line(part: &str, error: bool, text: &str) -> Event {
        Event::Line { part: part.into(), error, text: text.into() }
    }

    fn ended(part: &str, success: bool) -> Event {
        Event::Ended { part: part.into(), success, status: "exit status: 1".into(), seconds: 2.0 }
    }

    #[test]
    fn tests_are_counted_as_they_say() {
        let mut report = Report::default();
        let said =
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s";
        report.add(&part("kernel"), &[line("kernel", false, said), ended("kernel", false)]);
        assert_eq!((report.tally.passed, report.tally.failed), (3, 2));
        assert!(report.problems[0].contains("3 passed"), "{:?}", report.problems);
    }

    #[test]
    fn a_part_that_says_nothing_or_does_not_end_has_failed() {
        let mut report = Report::default();
        report.add(&part("kernel"), &[line("kernel", true, "killed"), ended("kernel", false)]);
        report.add(&part("lab"), &[line("lab", true, "half")]);
        assert_eq!((report.tally.passed, report.tally.failed), (0, 2));
        assert!(
            report.problems[0].contains("killed") && report.problems[1].contains("did not come to its end")
        );
    }

    #[test]
    fn the_verifier_gives_figures_or_its_reason() {
        let json = r#"[{"program": "a", "verifiedInstructions": 5, "stackBytes": "8", "jitedBytes": 1}]"#;
        let mut report = Report::default();
        report.add(&part(VERIFIER), &[line(VERIFIER, false, json), ended(VERIFIER, true)]);
        assert_eq!((report.tally.passed, report.load), (1, Some(Duration::from_secs(2))));
        assert_eq!(report.column.as_ref().map(Vec::len), Some(1));
        let mut refused = Report { kernel: "6.1".into(), ..Report::default() };
        refused.add(&part(VERIFIER), &[line(VERIFIER, true, "infinite loop"), ended(VERIFIER, false)]);
        assert_eq!(refused.tally.failed, 1);
        assert_eq!(refused.problems, ["6.1: verifier: exit status: 1\n    infinite loop"]);
    }
}
