//! The latest run of each sub-bench in docs/performance, and the summary of all in docs/performance.md.

use std::fs;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::machine::Machine;
use super::record::Record;
use super::{Bench, Row, summary};
use crate::repository;

const PAGE: &str = "docs/performance.md";
const BEGIN: &str = "<!-- summary: `cargo xtask bench --summarize` writes it -->\n";
const END: &str = "<!-- summary: end -->";

/// Where the latest run of a sub-bench is, from the root of the repository.
pub fn data_file(bench: Bench) -> String {
    format!("docs/performance/{}.json", bench.name())
}

/// Writes the data files of what was measured, then the summary. A row that the summary lacks is an error, and the data
/// files stay.
pub fn write(machine: &Machine, all: bool, results: &[(Bench, Vec<Row>)]) -> Result<()> {
    for (bench, rows) in results {
        let record = Record::new(*bench, all, machine.clone(), rows);
        let path = data_file(*bench);
        fs::write(repository::root().join(&path), record.to_json()?).into_diagnostic().wrap_err(path)?;
    }
    summarize()
}

/// Writes the summary of the data files into the page.
pub fn summarize() -> Result<()> {
    let page = summarized(&read(PAGE)?)?;
    fs::write(repository::root().join(PAGE), page).into_diagnostic().wrap_err(PAGE)
}

/// The page with the summary that the data files make.
pub fn summarized(page: &str) -> Result<String> {
    let run = |bench: Bench| {
        let path = data_file(bench);
        Ok((bench, Record::from_json(&read(&path)?).wrap_err(path)?))
    };
    let runs = Bench::ALL.into_iter().map(run).collect::<Result<Vec<_>>>()?;
    replaced(page, &summary::summary(&runs)?)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(repository::root().join(path)).into_diagnostic().wrap_err_with(|| path.to_owned())
}

/// The page with what stands between the markers replaced.
fn replaced(page: &str, summary: &str) -> Result<String> {
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) = parts
        .ok_or_else(|| miette!("{PAGE} lacks the line `{}` or the line `{END}` after it", BEGIN.trim()))?;
    Ok(format!("{before}{BEGIN}{summary}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_markers_changes() {
        let page = format!("a\n{BEGIN}old\n{END}\nb\n");
        assert_eq!(replaced(&page, "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}\nb\n"));
        assert!(replaced("a\n", "").unwrap_err().to_string().contains("summary: end"));
    }
}
