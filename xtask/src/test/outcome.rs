//! Counts of tests, read from and written as the closing line of Rust's test programs.

use std::ops::Add;
use std::time::Duration;

/// How many tests ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Marked `#[ignore]`.
    pub ignored: u64,
    /// Benchmarks.
    pub measured: u64,
    /// Not asked for.
    pub filtered_out: u64,
}

impl Tally {
    /// Reads `test result: ok. 3 passed; 0 failed; …`, with or without colour.
    pub fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.split_once("test result: ")?.1.split_once(". ")?;
        let count = |what: &str| {
            let part = counts.split(';').map(str::trim).find_map(|part| part.strip_suffix(what))?;
            part.trim().parse().ok()
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
            measured: count("measured")?,
            filtered_out: count("filtered out")?,
        })
    }

    /// The same line for all tests together.
    pub fn line(self, passed: bool, took: Duration) -> String {
        let verdict = if passed { "ok" } else { "FAILED" };
        let Self { passed, failed, ignored, measured, filtered_out } = self;
        format!(
            "test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; {measured} measured; \
             {filtered_out} filtered out; finished in {:.2}s",
            took.as_secs_f64()
        )
    }
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
            measured: self.measured + other.measured,
            filtered_out: self.filtered_out + other.filtered_out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_line_reads_as_what_it_was() {
        let tally = Tally { passed: 12, failed: 1, ignored: 2, measured: 0, filtered_out: 3 };
        let line = tally.line(false, Duration::from_millis(1530));
        assert!(
            line.starts_with("test result: FAILED. 12 passed; 1 failed;") && line.ends_with("in 1.53s"),
            "{line}"
        );
        assert_eq!(Tally::parse(&line), Some(tally));
    }

    #[test]
    fn colour_does_not_matter() {
        let line = "test result: \u{1b}[32mok\u{1b}[m. 4 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.0s";
        assert_eq!(Tally::parse(line), Some(Tally { passed: 4, filtered_out: 1, ..Tally::default() }));
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(Tally::parse("test outcome::tests::passed ... ok"), None);
        assert_eq!(Tally::parse("running 3 tests"), None);
    }
}
