//! One figure and what it is held against.

use serde::{Deserialize, Serialize};

/// A row of a sub-bench.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The situation.
    pub case: String,
    /// What was measured in it.
    pub what: String,
    /// The median.
    pub value: f64,
    /// A quarter of the rounds lie below.
    pub low: Option<f64>,
    /// A quarter of the rounds lie above.
    pub high: Option<f64>,
    /// Of the three.
    pub unit: String,
    /// The case of the same run it is compared with.
    pub floor: Option<String>,
    /// `value` / that case's.
    pub ratio: Option<f64>,
    /// What the ratio should be.
    pub target: Option<Target>,
    /// Why the figure means nothing.
    pub problem: Option<String>,
}

impl Row {
    /// Whether the ratio is what it should be; `None`: nothing is asked of it.
    pub fn is_met(&self) -> Option<bool> {
        let ratio = self.ratio?;
        Some(match self.target? {
            _ if self.problem.is_some() => false,
            Target::AtMost(most) => ratio <= most,
            Target::AtLeast(least) => ratio >= least,
        })
    }
}

/// What a ratio should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// Costs.
    AtMost(f64),
    /// Rates.
    AtLeast(f64),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ratio: f64, target: Option<Target>, problem: Option<&str>) -> Row {
        Row {
            case: "a".into(),
            what: "time a packet".into(),
            value: 1.0,
            low: None,
            high: None,
            unit: "ns".into(),
            floor: None,
            ratio: Some(ratio),
            target,
            problem: problem.map(String::from),
        }
    }

    #[test]
    fn a_target_is_met_from_the_right_side_and_never_by_a_row_that_means_nothing() {
        assert_eq!(row(1.5, Some(Target::AtMost(1.5)), None).is_met(), Some(true));
        assert_eq!(row(1.6, Some(Target::AtMost(1.5)), None).is_met(), Some(false));
        assert_eq!(row(1.6, Some(Target::AtLeast(1.5)), None).is_met(), Some(true));
        assert_eq!(row(1.0, Some(Target::AtMost(1.5)), Some("no packet came")).is_met(), Some(false));
        assert_eq!(row(1.0, None, None).is_met(), None);
    }
}
