//! What was seen, for people and for machines.

use std::fmt;
use std::fs;
use std::path::Path;

use comfy_table::{Table, presets};
use miette::{IntoDiagnostic, Result, WrapErr};
use serde::Serialize;

use super::judge;
use super::outcome::Outcome;
use super::run::OF_ROWS;

/// A kind at one frontend, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// IPv4 or IPv6.
    pub family: &'static str,
    /// Whether the nodes have a strict `rp_filter`.
    pub strict: bool,
    /// What is odd.
    pub name: String,
    /// Where it was sent.
    pub at: String,
    /// The source is the sender's.
    pub is_honest: bool,
    /// With kube-proxy.
    pub kube_proxy: Outcome,
    /// With Shunt and native XDP.
    pub native: Outcome,
    /// With Shunt without XDP.
    pub off: Outcome,
}

impl Row {
    fn outcomes(&self) -> [(&'static str, &Outcome); 2] {
        [("native XDP", &self.native), ("tc", &self.off)]
    }

    /// What is wrong with each outcome, but for what is listed, if not all is to be told; then with the name of what explains it.
    fn judged(&self, all: bool) -> String {
        let of = |(mode, outcome): (&str, &Outcome)| {
            let wrong = judge::wrong(self, outcome);
            match judge::explanation(self, outcome) {
                _ if wrong.is_empty() => None,
                Some(listed) => all.then(|| format!("{mode}: {}", listed.id)),
                None => Some(format!("{mode}: {wrong:?}")),
            }
        };
        self.outcomes().into_iter().filter_map(of).collect::<Vec<_>>().join(", ")
    }

    /// Nothing is wrong with it that no listed difference explains.
    pub fn is_in_order(&self) -> bool {
        self.judged(false).is_empty()
    }

    fn explanations(&self) -> impl Iterator<Item = &'static judge::Listed> {
        let differs = |outcome: &&Outcome| !judge::wrong(self, outcome).is_empty();
        let outcomes = self.outcomes().into_iter().map(|(_, outcome)| outcome).filter(differs);
        outcomes.filter_map(|outcome| judge::explanation(self, outcome))
    }
}

/// The outcome of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OddReport {
    /// All of it.
    pub rows: Vec<Row>,
    /// What was wrong with rows that were in order when they were sent again.
    pub unsteady: Vec<Row>,
}

impl OddReport {
    /// Rows with something wrong that no listed difference explains, and what.
    pub fn wrong(&self) -> Vec<(&Row, String)> {
        self.rows.iter().map(|row| (row, row.judged(false))).filter(|(_, wrong)| !wrong.is_empty()).collect()
    }

    /// Nothing is wrong, and hardly anything was at first.
    pub fn is_in_order(&self) -> bool {
        self.rows.iter().all(Row::is_in_order) && self.unsteady.len() * OF_ROWS <= self.rows.len()
    }

    /// Listed differences that have not shown.
    pub fn unseen(&self) -> Vec<&'static str> {
        let shows = |id: &str| self.rows.iter().any(|row| row.explanations().any(|listed| listed.id == id));
        judge::LIST.iter().map(|listed| listed.id).filter(|id| !shows(id)).collect()
    }

    /// What has come of kinds, those of a name that ended alike together.
    fn table<'a>(rows: impl Iterator<Item = (&'a Row, String)>) -> String {
        let mut lines: Vec<([String; 6], Vec<String>)> = Vec::new();
        for (row, wrong) in rows {
            let family = if row.strict { format!("{}, strict", row.family) } else { row.family.to_owned() };
            let cells = [
                family,
                row.name.clone(),
                row.kube_proxy.to_string(),
                row.native.to_string(),
                row.off.to_string(),
                wrong,
            ];
            match lines.iter_mut().find(|(known, _)| *known == cells) {
                Some((_, at)) => at.push(row.at.clone()),
                None => lines.push((cells, vec![row.at.clone()])),
            }
        }
        let mut table = Table::new();
        let header = ["FAMILY", "KIND", "KUBE-PROXY", "SHUNT, NATIVE XDP", "SHUNT, TC", "WRONG", "AT"];
        table.load_style(presets::NOTHING).set_header(header);
        for (cells, at) in lines {
            table.add_row(cells.into_iter().chain([at.join("; ")]));
        }
        table.to_string()
    }

    /// Writes `odd.json` and `odd.txt` into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_string(self).into_diagnostic()?;
        for (name, text) in [("odd.json", json), ("odd.txt", self.everything())] {
            let file = folder.join(name);
            fs::write(&file, text + "\n").into_diagnostic().wrap_err_with(|| file.display().to_string())?;
        }
        Ok(())
    }

    /// All of it as a table.
    pub fn everything(&self) -> String {
        Self::table(self.rows.iter().map(|row| (row, row.judged(true))))
    }
}

impl fmt::Display for OddReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong = self.wrong();
        writeln!(f, "{} packets of odd kinds, {} of them wrong", self.rows.len(), wrong.len())?;
        if !wrong.is_empty() {
            writeln!(f, "{}", Self::table(wrong.into_iter()))?;
        }
        if !self.unsteady.is_empty() {
            writeln!(f, "{} more were, and not when they were sent again", self.unsteady.len())?;
            writeln!(f, "{}", Self::table(self.unsteady.iter().map(|row| (row, row.judged(false)))))?;
        }
        self.unseen().into_iter().try_for_each(|id| writeln!(f, "listed, but does not show any more: {id}"))
    }
}
