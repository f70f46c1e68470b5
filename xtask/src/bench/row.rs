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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// A quarter of the rounds lie above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// Of the three.
    pub unit: String,
    /// The case of the same run it is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<String>,
    /// `value` / that case's of the same `what`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// What the ratio or the value should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Why the figure means nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Row {
    /// Whether ratio or value is what it should be; `None`: nothing is asked of it.
    pub fn is_met(&self) -> Option<bool> {
        let target = self.target?;
        let got = self.held_against(target)?;
        let met = match target {
            Target::AtMost(most) | Target::ValueAtMost(most) => got <= most,
            Target::AtLeast(least) | Target::ValueAtLeast(least) => got >= least,
        };
        Some(met && self.problem.is_none())
    }

    /// The figure that a target is about: the ratio, or the value itself.
    pub fn held_against(&self, target: Target) -> Option<f64> {
        if target.is_of_ratio() { self.ratio } else { Some(self.value) }
    }
}

/// What a ratio, or a value in the row's unit, should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// Costs.
    AtMost(f64),
    /// Rates.
    AtLeast(f64),
    /// Times and sizes.
    ValueAtMost(f64),
    /// Numbers that must not fall below.
    ValueAtLeast(f64),
}

impl Target {
    /// Whether it is about the ratio, not about the value.
    pub const fn is_of_ratio(self) -> bool {
        matches!(self, Self::AtMost(_) | Self::AtLeast(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ratio: f64, target: Option<Target>, problem: Option<&str>) -> Row {
        Row {
            case: "a".into(),
            what: "time a packet".into(),
            value: 7.0,
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

    #[test]
    fn a_target_may_be_about_the_value_and_needs_no_ratio_then() {
        let of = |target| Row { ratio: None, ..row(0.0, Some(target), None) };
        assert_eq!(of(Target::ValueAtMost(7.0)).is_met(), Some(true));
        assert_eq!(of(Target::ValueAtMost(6.9)).is_met(), Some(false));
        assert_eq!(of(Target::ValueAtLeast(6.9)).is_met(), Some(true));
        assert_eq!(of(Target::AtMost(9.0)).is_met(), None);
    }

    #[test]
    fn targets_are_written_by_name() {
        let written = |target| serde_json::to_string(&target).unwrap();
        assert_eq!(written(Target::AtMost(1.2)), r#"{"atMost":1.2}"#);
        assert_eq!(written(Target::ValueAtMost(10.0)), r#"{"valueAtMost":10.0}"#);
    }
}
