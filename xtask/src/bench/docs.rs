//! The section of docs/performance.md that holds a sub-bench's latest run.

use std::fs;

use comfy_table::presets;
use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::{Bench, Row, machine, report};
use crate::repository;

const PAGE: &str = "docs/performance.md";

/// Replaces the section of one sub-bench.
pub fn write(bench: Bench, rows: &[Row]) -> Result<()> {
    let path = repository::root().join(PAGE);
    let page = fs::read_to_string(&path).into_diagnostic().wrap_err(PAGE)?;
    let page = replaced(&page, bench.name(), &section(bench, rows))?;
    fs::write(&path, page).into_diagnostic().wrap_err(PAGE)
}

fn section(bench: Bench, rows: &[Row]) -> String {
    let mut text = format!("`cargo xtask bench {}` on {}.\n\n", bench.name(), machine::describe());
    if rows.iter().any(|row| row.target.is_some()) {
        text += &format!("{}\n\n", report::targets(rows, presets::ASCII_MARKDOWN));
    }
    text + &format!("{}\n", report::table(rows, presets::ASCII_MARKDOWN))
}

/// The page with what stands between the markers of `name` replaced.
fn replaced(page: &str, name: &str, section: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- {name}: latest run -->\n"), format!("<!-- {name}: end -->"));
    let parts = page.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let (before, after) = parts
        .ok_or_else(|| miette!("{PAGE} lacks the line `{}` or the line `{end}` after it", begin.trim()))?;
    Ok(format!("{before}{begin}{section}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_markers_changes() {
        let page = "a\n<!-- x: latest run -->\nold\n<!-- x: end -->\nb\n";
        let new = replaced(page, "x", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- x: latest run -->\nnew\n<!-- x: end -->\nb\n");
        assert!(replaced(page, "y", "").unwrap_err().to_string().contains("y: latest run"));
    }
}
