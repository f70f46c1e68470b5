//! The data file of a sub-bench: its latest run, as docs/performance has it.

use miette::{IntoDiagnostic, Result, WrapErr};
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::{Bench, Row};

/// A run of one sub-bench.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Record {
    /// All but the rows.
    #[serde(flatten)]
    pub head: Head,
    /// What was measured.
    pub rows: Vec<Judged>,
}

/// What was run, and where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// As one types it.
    pub command: String,
    /// Where and when.
    #[serde(flatten)]
    pub machine: Machine,
    /// What a reader of the figures has to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A row, and whether it is what it should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// What was measured.
    #[serde(flatten)]
    pub row: Row,
    /// The verdict of the run; `None`: nothing is asked of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

impl Record {
    /// Of a run that has just ended.
    pub fn new(bench: Bench, all: bool, machine: Machine, rows: &[Row]) -> Self {
        let command = format!("cargo xtask bench {}{}", bench.name(), if all { " --all" } else { "" });
        let judged = |row: &Row| Judged { met: row.is_met(), row: row.clone() };
        Self { head: Head { command, machine, note: None }, rows: rows.iter().map(judged).collect() }
    }

    /// Reads a data file.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).into_diagnostic()
    }

    /// The data file: a line for each row, so that a change of one is a change of one line.
    pub fn to_json(&self) -> Result<String> {
        let head = serde_json::to_string_pretty(&self.head).into_diagnostic()?;
        let line = |judged: &Judged| {
            let row = serde_json::to_string(judged).into_diagnostic();
            Ok(format!("    {}", row.wrap_err_with(|| judged.row.case.clone())?))
        };
        let rows = self.rows.iter().map(line).collect::<Result<Vec<_>>>()?.join(",\n");
        Ok(format!("{},\n  \"rows\": [\n{rows}\n  ]\n}}\n", head.trim_end_matches("\n}")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::Target;
    use super::*;

    fn record() -> Record {
        let machine = Machine {
            when: "2026-11-21T23:12Z".into(),
            kernel: "6.18.44".into(),
            cpus: 2,
            processor: "AMD EPYC".into(),
            load: 1.25,
            commit: None,
        };
        let row = |case: &str, target| Row {
            case: case.into(),
            what: "time a packet".into(),
            value: 88.5,
            low: Some(80.0),
            high: Some(91.25),
            unit: "ns".into(),
            floor: Some("floor".into()),
            ratio: Some(1.5),
            target,
            problem: None,
        };
        let rows = [row("established", Some(Target::AtMost(1.4))), row("refused", None)];
        Record::new(Bench::Packet, true, machine, &rows)
    }

    #[test]
    fn a_data_file_has_a_line_for_each_row() {
        insta::assert_snapshot!(record().to_json().unwrap(), @r#"
        {
          "command": "cargo xtask bench packet --all",
          "when": "2026-11-21T23:12Z",
          "kernel": "6.18.44",
          "cpus": 2,
          "processor": "AMD EPYC",
          "load": 1.25,
          "commit": null,
          "rows": [
            {"case":"established","what":"time a packet","value":88.5,"low":80.0,"high":91.25,"unit":"ns","floor":"floor","ratio":1.5,"target":{"atMost":1.4},"met":false},
            {"case":"refused","what":"time a packet","value":88.5,"low":80.0,"high":91.25,"unit":"ns","floor":"floor","ratio":1.5}
          ]
        }
        "#);
    }

    #[test]
    fn what_was_written_is_read() {
        let mut record = record();
        assert_eq!(Record::from_json(&record.to_json().unwrap()).unwrap(), record);
        record.head.note = Some("of a quiet hour".into());
        assert_eq!(Record::from_json(&record.to_json().unwrap()).unwrap(), record);
        assert!(Record::from_json("{}").is_err());
    }
}
