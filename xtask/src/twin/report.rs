//! What a run has found, for people and for machines.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use comfy_table::{Table, presets};
use miette::{IntoDiagnostic, Result, WrapErr};
use serde::Serialize;

use super::differences::{self, LIST, Seen};
use super::verdict::Verdict;

/// Kinds of a listed difference that the table shows; the file has all.
const SHOWN: usize = 3;

/// A probe whose two verdicts are not the same.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Name of the listed difference that explains it.
    pub listed: Option<&'static str>,
    /// `start`, or what happened before.
    pub act: &'static str,
    /// Name of the Service.
    pub service: String,
    /// What it is like.
    pub described: String,
    /// Who asked.
    pub asker: String,
    /// What kind of address.
    pub frontend: String,
    /// The address.
    pub to: String,
    /// kube-proxy's verdict.
    pub kube_proxy: String,
    /// Shunt's verdict.
    pub shunt: String,
}

impl Difference {
    /// Describes an observation.
    pub fn new(act: &'static str, seen: &Seen) -> Self {
        Difference {
            listed: differences::explanation(seen).map(|listed| listed.id),
            act,
            service: seen.case.name.clone(),
            described: seen.case.shown(),
            asker: seen.probe.asker.to_string(),
            frontend: seen.probe.frontend.to_string(),
            to: format!("{} {}", seen.probe.to, seen.probe.how.name()),
            kube_proxy: seen.kube_proxy.to_string(),
            shunt: seen.shunt.to_string(),
        }
    }
}

/// The outcome of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The seed of the Services.
    pub seed: u64,
    /// Number of Services.
    pub services: usize,
    /// Number of probes, all acts together.
    pub probes: usize,
    /// How many probes ended how with kube-proxy.
    pub outcomes: BTreeMap<&'static str, usize>,
    /// Probes that failed now and then with Shunt alone, and answered like kube-proxy when asked again.
    pub unsteady: Vec<Difference>,
    /// Everything that differs.
    pub differences: Vec<Difference>,
    /// Seconds of each part of the run.
    pub seconds: Vec<(&'static str, f64)>,
}

impl Report {
    /// Counts a verdict of kube-proxy.
    pub fn count(&mut self, verdict: &Verdict) {
        self.probes += 1;
        *self.outcomes.entry(verdict.word()).or_default() += 1;
    }

    /// What no listed difference explains.
    pub fn unlisted(&self) -> impl Iterator<Item = &Difference> {
        self.differences.iter().filter(|difference| difference.listed.is_none())
    }

    /// Whether nothing is wrong. A busy machine may let a probe time out here and there.
    pub fn is_good(&self) -> bool {
        self.unlisted().next().is_none() && self.unsteady.len() * 50 <= self.probes
    }

    /// Listed differences that have not shown.
    pub fn unseen(&self) -> impl Iterator<Item = &'static str> {
        let shows = |id: &str| self.differences.iter().any(|difference| difference.listed == Some(id));
        LIST.iter().map(|listed| listed.id).filter(move |id| !shows(id))
    }

    /// Differences that read alike but for the Service: how many of each, the most frequent first, and one of them.
    fn kinds(&self, id: Option<&str>) -> Vec<(usize, &Difference)> {
        let mut kinds: BTreeMap<_, (usize, &Difference)> = BTreeMap::new();
        for difference in self.differences.iter().filter(|difference| difference.listed == id) {
            let Difference { asker, frontend, kube_proxy, shunt, .. } = difference;
            kinds.entry((asker, frontend, kube_proxy, shunt)).or_insert((0, difference)).0 += 1;
        }
        let mut kinds: Vec<_> = kinds.into_values().collect();
        kinds.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        kinds
    }

    /// Writes `report.json` into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let file = folder.join("report.json");
        let text = serde_json::to_string_pretty(self).into_diagnostic()?;
        fs::write(&file, text + "\n").into_diagnostic().wrap_err_with(|| file.display().to_string())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcomes: Vec<_> = self.outcomes.iter().map(|(word, count)| format!("{count} {word}")).collect();
        writeln!(
            f,
            "seed {}: {} Services, {} probes; with kube-proxy {}",
            self.seed,
            self.services,
            self.probes,
            outcomes.join(", ")
        )?;
        let seconds: Vec<_> = self.seconds.iter().map(|(part, took)| format!("{part} {took:.1} s")).collect();
        writeln!(f, "{}", seconds.join(", "))?;
        let mut table = Table::new();
        let header = ["DIFFERENCE", "COUNT", "ASKED BY", "AT", "KUBE-PROXY", "SHUNT", "FOR EXAMPLE"];
        table.load_style(presets::NOTHING).set_header(header);
        for id in LIST.iter().map(|listed| Some(listed.id)).chain([None]) {
            let kinds = self.kinds(id);
            let shown = if id.is_none() { kinds.len() } else { SHOWN };
            let mut name = id.unwrap_or("NOT LISTED");
            for (count, example) in kinds.iter().take(shown) {
                table.add_row([
                    std::mem::take(&mut name).to_owned(),
                    count.to_string(),
                    example.asker.clone(),
                    example.frontend.clone(),
                    example.kube_proxy.clone(),
                    example.shunt.clone(),
                    format!("{} {} ({}) {}", example.to, example.service, example.described, example.act),
                ]);
            }
            let rest: usize = kinds.iter().skip(shown).map(|(count, _)| count).sum();
            if rest > 0 {
                table.add_row([String::new(), rest.to_string(), "more in report.json".into()]);
            }
        }
        writeln!(f, "{table}")?;
        let unsteady = self.unsteady.len();
        writeln!(
            f,
            "{unsteady} probes failed now and then with Shunt alone, and not when they were asked again"
        )?;
        self.unseen().try_for_each(|id| writeln!(f, "listed, but does not show any more: {id}"))
    }
}
