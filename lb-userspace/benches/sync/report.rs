//! Figures as a table for people and as JSON for machines.

use serde::{Deserialize, Serialize};

use crate::case::Case;

/// One figure.
#[derive(Serialize, Deserialize)]
pub struct Row {
    pub case: String,
    pub what: String,
    pub value: f64,
    pub unit: String,
    /// At most; none: nothing is asked of it.
    pub want: Option<f64>,
}

impl Row {
    pub fn json(&self) -> String {
        // Strings and finite numbers always make JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    pub fn parse(line: &str) -> Result<Self, String> {
        serde_json::from_str(line).map_err(|error| format!("{line:?}: {error}"))
    }
}

/// A table of one case.
pub fn table(case: &Case, rows: &[Row]) -> String {
    let mut text = format!("\n{}\n", case.name());
    for Row { what, value, unit, want, .. } in rows {
        let verdict = match want {
            Some(want) if value <= want => format!("  at most {want}: met"),
            Some(want) => format!("  at most {want}: MISSED"),
            None => String::new(),
        };
        text.push_str(&format!("  {what:<44} {value:>12.3} {unit:<6}{verdict}\n"));
    }
    text
}
