//! The summary of docs/performance.md: from data files to one page of markdown.

use comfy_table::{CellAlignment, Table, presets};
use miette::{Result, miette};

use super::record::{Judged, Record};
use super::{Bench, docs, headlines, report};

/// All sub-benches. A run that lacks a headline row is an error that names it.
pub fn summary(runs: &[(Bench, Record)]) -> Result<String> {
    let (mut parts, mut missing) = (Vec::new(), Vec::new());
    for (bench, record) in runs {
        let (rows, absent) = headlines::of(*bench, record);
        missing.extend(absent.iter().map(|name| format!("{}: {name}", docs::data_file(*bench))));
        parts.push(of_one(*bench, record, &rows));
    }
    if missing.is_empty() {
        return Ok(parts.join("\n"));
    }
    Err(miette!(
        "rows that the summary should have (xtask/src/bench/headlines.rs) are not there:\n{}",
        missing.join("\n")
    ))
}

fn of_one(bench: Bench, record: &Record, headlines: &[&Judged]) -> String {
    let name = bench.name();
    let head = &record.head;
    let mut text = format!("**{name}** ([all rows](performance/{name}.json)): {}.", verdict(record));
    text += &format!(" `{}`, {}.\n\n", head.command, head.machine);
    // What misses its target is never left out.
    let is_missed = |judged: &&Judged| judged.met == Some(false) || judged.row.problem.is_some();
    let others = record.rows.iter().filter(is_missed).filter(|missed| !headlines.contains(missed));
    let rows: Vec<&Judged> = headlines.iter().copied().chain(others).collect();
    text + &format!("{}\n", table(&rows))
}

fn verdict(record: &Record) -> String {
    let verdicts: Vec<bool> = record.rows.iter().filter_map(|judged| judged.met).collect();
    let met = verdicts.iter().filter(|met| **met).count();
    match verdicts.len() {
        0 => "no targets".into(),
        all => format!("{met} of {all} targets met"),
    }
}

fn table(rows: &[&Judged]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["CASE", "WHAT", "MEDIAN", "RATIO", "TO", "WANTED", ""]);
    for Judged { row, met } in rows {
        let value = format!("{} {}", report::number(row.value), row.unit);
        let ratio = row.ratio.map_or(String::new(), report::ratio);
        let floor = row.floor.as_deref().filter(|_| row.ratio.is_some()).unwrap_or_default();
        let wanted = row.target.map_or(String::new(), |target| report::wanted(target, &row.unit));
        let verdict = match (&row.problem, met) {
            (Some(_), _) => "MEANS NOTHING",
            (None, Some(true)) => "met",
            (None, Some(false)) => "NOT MET",
            (None, None) => "",
        };
        let floor = without_common_place(&row.case, floor);
        table.add_row([&row.case, &row.what, value.trim_end(), &ratio, floor, &wanted, verdict]);
    }
    for column in [2, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// `from here: that one` beside `from here: this one` is `that one`.
fn without_common_place<'floor>(case: &str, floor: &'floor str) -> &'floor str {
    match (case.split_once(": "), floor.split_once(": ")) {
        (Some((place, _)), Some((same, rest))) if place == same => rest,
        _ => floor,
    }
}

#[cfg(test)]
mod tests;
