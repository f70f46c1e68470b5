//! Figures as JSON, in the form that `cargo xtask bench` reads.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One figure of one process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    pub what: String,
    pub value: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub unit: String,
    /// Wanted at most; none: nothing is asked of it.
    pub want: Option<f64>,
    /// Why it means nothing.
    pub problem: Option<String>,
}

/// What several processes measured of one case: the first one's figures in its order, each with the median and the
/// range of all that have it.
pub fn merged(processes: &[Vec<Figure>]) -> Vec<Figure> {
    let Some((first, rest)) = processes.split_first() else { return Vec::new() };
    let merge = |figure: &Figure| {
        let others = rest.iter().filter_map(|figures| figures.iter().find(|other| other.what == figure.what));
        let all: Vec<&Figure> = std::iter::once(figure).chain(others).collect();
        if all.len() == 1 {
            return figure.clone();
        }
        let mut values: Vec<f64> = all.iter().map(|figure| figure.value).collect();
        values.sort_by(f64::total_cmp);
        let problem = all.iter().find_map(|figure| figure.problem.clone());
        let (value, low, high) = (at(&values, 0.5), Some(at(&values, 0.25)), Some(at(&values, 0.75)));
        Figure { value, low, high, problem, ..figure.clone() }
    };
    first.iter().map(merge).collect()
}

/// The value below which this share of the sorted ones lies.
pub fn at(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// A row as the table of `cargo xtask bench` has it.
pub fn row(case: &str, figure: &Figure) -> Value {
    json!({
        "case": case,
        "what": figure.what,
        "value": figure.value,
        "low": figure.low,
        "high": figure.high,
        "unit": figure.unit,
        "target": figure.want.map(|most| json!({ "valueAtMost": most })),
        "problem": figure.problem,
    })
}
