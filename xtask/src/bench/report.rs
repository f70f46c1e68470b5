//! Rows as tables and as JSON.

use comfy_table::{CellAlignment, Table, TableStyle, presets};
use miette::{IntoDiagnostic, Result};
use serde_json::json;

use super::Bench;
use super::machine::Machine;
use super::row::{Row, Target};

/// Everything, for machines.
pub fn json(machine: &Machine, results: &[(Bench, Vec<Row>)]) -> Result<String> {
    let benches: serde_json::Map<_, _> =
        results.iter().map(|(bench, rows)| (bench.name().to_owned(), json!(rows))).collect();
    serde_json::to_string_pretty(&json!({ "machine": machine, "benches": benches })).into_diagnostic()
}

/// Everything, for a terminal.
pub fn text(machine: &Machine, results: &[(Bench, Vec<Row>)]) -> String {
    let mut text = format!("{machine}\n");
    for (bench, rows) in results {
        text += &format!("\n{}\n{}\n", bench.name(), table(rows));
        if rows.iter().any(|row| row.target.is_some()) {
            text += &format!("\n{}: wanted and got\n{}\n", bench.name(), targets(rows, presets::NOTHING));
        }
    }
    text
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["CASE", "WHAT", "MEDIAN", "P25-P75", "", "RATIO", ""]);
    for row in rows {
        let range = match (row.low, row.high) {
            (Some(low), Some(high)) => format!("{}-{}", number(low), number(high)),
            _ => String::new(),
        };
        let ratio = row.ratio.map_or(String::new(), ratio);
        let note = if row.problem.is_some() { "MEANS NOTHING" } else { "" };
        let value = number(row.value);
        table.add_row([&row.case, &row.what, &value, &range, &row.unit, &ratio, note]);
    }
    for column in [2, 3, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// What is wanted of ratios and values, and what they are.
fn targets(rows: &[Row], style: TableStyle) -> Table {
    let mut table = Table::new();
    table.load_style(style).set_header(["CASE", "WHAT", "COMPARED WITH", "WANTED", "GOT", ""]);
    for row in rows {
        let (Some(target), Some(met)) = (row.target, row.is_met()) else { continue };
        let Some(got) = row.held_against(target) else { continue };
        let (wanted, got) = (wanted(target, &row.unit), shown(target, got, &row.unit));
        let floor = row.floor.as_deref().filter(|_| target.is_of_ratio()).unwrap_or_default();
        let met = if met { "met" } else { "NOT MET" };
        table.add_row([row.case.as_str(), &row.what, floor, &wanted, &got, met]);
    }
    table
}

/// What a target asks for.
pub fn wanted(target: Target, unit: &str) -> String {
    match target {
        Target::AtMost(most) | Target::ValueAtMost(most) => format!("at most {}", shown(target, most, unit)),
        Target::AtLeast(least) | Target::ValueAtLeast(least) => {
            format!("at least {}", shown(target, least, unit))
        }
    }
}

/// A figure that a target is about.
fn shown(target: Target, figure: f64, unit: &str) -> String {
    match target.is_of_ratio() {
        true => ratio(figure),
        false => format!("{} {unit}", number(figure)).trim_end().to_owned(),
    }
}

/// Two decimals, and more of what is nearly nothing.
pub fn ratio(ratio: f64) -> String {
    if ratio.abs() < 0.1 { format!("{ratio:.4}") } else { format!("{ratio:.2}") }
}

/// Three digits that count.
pub fn number(value: f64) -> String {
    let decimals = if value.abs() >= 100.0 { 0 } else { 1 };
    if value.abs() < 1.0 { format!("{value:.3}") } else { format!("{value:.decimals$}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_show_what_counts() {
        assert_eq!([0.0123, 6.21, 87.0, 646.4].map(number), ["0.012", "6.2", "87.0", "646"]);
    }

    #[test]
    fn a_target_is_shown_in_what_it_is_about() {
        let row = |target, ratio| Row {
            case: "10 000 Services".into(),
            what: "one change".into(),
            value: 8.25,
            low: None,
            high: None,
            unit: "ms".into(),
            floor: Some("the other".into()),
            ratio,
            target: Some(target),
            problem: None,
        };
        let rows = [row(Target::ValueAtMost(10.0), None), row(Target::AtMost(0.2), Some(0.25))];
        let shown = targets(&rows, presets::ASCII_MARKDOWN).to_string();
        let lines: Vec<Vec<&str>> =
            shown.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
        assert_eq!(lines[2][3..7], ["", "at most 10.0 ms", "8.2 ms", "met"]);
        assert_eq!(lines[3][3..7], ["the other", "at most 0.20", "0.25", "NOT MET"]);
    }
}
