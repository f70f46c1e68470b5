//! What a SYN flood does to those who mean it: connections that are open, and new ones, in a lab of two nodes.

mod counters;
mod queues;
mod scene;

use std::collections::BTreeMap;

use miette::{IntoDiagnostic, Result, miette};
use nix::unistd::geteuid;

use super::row::Target;
use super::{Context, Row};
use crate::build;
use crate::command::typed;
use crate::progress::Step;

pub use scene::{Flooded, Outcome, Programs, Scene};

/// SYNs a second.
const RATE: u32 = 200_000;

/// What becomes of packets when all is well; every other reason has a row.
const USUAL: [&str; 6] = ["new_flow", "forward", "masquerade_reply", "left_to_stack", "no_service", "not_ip"];

/// Builds the agent and the sender, floods, and says what became of the connections.
pub fn run(context: &Context<'_>, step: &Step) -> Result<Vec<Row>> {
    if !geteuid().is_root() {
        return Err(miette!("`bench flood` needs root: it makes network namespaces"));
    }
    step.detail("building");
    let programs = programs(context)?;
    let count = u64::from(RATE) * if context.args.quick { 4 } else { 10 };
    let mut scene = Scene::new(programs).into_diagnostic()?;
    let mut rows = Vec::new();
    for target in Flooded::ALL.into_iter().filter(|target| context.wants(&target.to_string())) {
        step.detail(&target.to_string());
        let outcome = scene.flood(target, RATE, count).into_diagnostic()?;
        rows.extend(described(target, &outcome, count));
    }
    Ok(rows)
}

/// Builds for release what is in the flood's way or makes it.
fn programs(context: &Context<'_>) -> Result<Programs> {
    let mut cargo = context.toolchain.cargo();
    cargo.args(["build", "--release", "--package", "lb-userspace", "--features", "bench"]);
    cargo.args(["--bin", "shunt", "--bench", "flood"]);
    let messages = build::messages(&mut cargo)?;
    let built = |name, kind| {
        let found = messages.iter().find_map(|message| build::executable(message, name, kind));
        found.ok_or_else(|| miette!("cargo named no executable {name}: {}", typed(&cargo)))
    };
    Ok(Programs { helper: None, shunt: Some(built("shunt", "bin")?), sender: Some(built("flood", "bench")?) })
}

fn described(target: Flooded, outcome: &Outcome, count: u64) -> Vec<Row> {
    let row = |what: &str, value: f64, unit: &str| Row {
        case: target.to_string(),
        what: what.into(),
        value,
        low: None,
        high: None,
        unit: unit.into(),
        floor: None,
        ratio: None,
        target: None,
        problem: None,
    };
    let share = |what: &str, share: f64, least: f64, all: &str| Row {
        ratio: Some(share),
        floor: Some(all.into()),
        target: Some(Target::AtLeast(least)),
        ..row(what, 100.0 * share, "%")
    };
    let Outcome { flood, held, .. } = outcome;
    let slow = flood.sent < count || flood.rate() < u64::from(RATE) * 9 / 10;
    let mut rate = row("SYNs sent", flood.rate() as f64 / 1000.0, "k/s");
    rate.problem = slow.then(|| format!("{target}: only {} SYNs a second were sent", flood.rate()));
    let of_sent = |part: u64| part.min(count) as f64 / count as f64;
    let mut rows = vec![
        rate,
        share("SYNs that have arrived", of_sent(outcome.arrived()), 0.99, "those sent"),
        share("SYNs that came out of the node", of_sent(outcome.passed_on), 0.99, "those sent"),
        share("open connections that live on", outcome.kept(), 1.0, "those open before"),
        share("new connections that succeed", outcome.opened(), 0.99, "those tried"),
        row("new connections", held.opened as f64, ""),
        row("slowest new connection", held.slowest_open_micros as f64 / 1000.0, "ms"),
        row("lines echoed meanwhile", held.echoed as f64, ""),
        row("segments that the client sent again", outcome.sent_again as f64, ""),
    ];
    if let Some(pause) = flood.longest_pause_micros {
        rows.push(row("longest time without a SYN", pause as f64 / 1000.0, "ms"));
    }
    rows.push(row("processors busy", 100.0 * outcome.busy, "%"));
    if let Some(xdp) = flood.programs.get("uplink_xdp") {
        rows.push(row("time in uplink_xdp, a packet", xdp.nanos as f64 / xdp.runs as f64, "ns"));
    }
    let nanos: u64 = flood.programs.values().map(|spent| spent.nanos).sum();
    if nanos > 0 {
        let millis = nanos as f64 / 1e6;
        rows.push(row("time in the node's programs, a SYN", nanos as f64 / flood.sent as f64, "ns"));
        rows.push(row("time in the node's programs", 100.0 * millis / flood.millis as f64, "% of a CPU"));
    }
    let failed = |what: &'static str, reasons: &BTreeMap<String, u64>| -> Vec<Row> {
        reasons.iter().map(|(reason, count)| row(&format!("{what}: {reason}"), *count as f64, "")).collect()
    };
    rows.extend(failed("open connections broken", &held.broken));
    rows.extend(failed("new connections failed", &held.not_opened));
    let unusual = outcome.reasons.iter().filter(|(reason, _)| !USUAL.contains(&reason.as_str()));
    rows.extend(unusual.map(|(reason, count)| row(&format!("packets, reason {reason}"), *count as f64, "")));
    rows.extend(
        outcome.lost.iter().map(|(place, count)| row(&format!("lost at {place}"), *count as f64, "")),
    );
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_lab::{FloodReport, HoldReport};

    /// A thousand SYNs, or fewer, in so many milliseconds; ten connections of before and ninety new ones.
    fn outcome(arrived: u64, millis: u64) -> Outcome {
        let names = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        Outcome {
            flood: FloodReport { sent: 1000, millis, ..FloodReport::default() },
            held: HoldReport {
                connections: 10,
                opened: 90,
                not_opened: names(&[("timeout", 10)]),
                ..HoldReport::default()
            },
            sent_again: 0,
            reasons: names(&[("new_flow", arrived + 100), ("forward", 7), ("stray", 3)]),
            passed_on: arrived,
            lost: names(&[("node-a eth0: rx drops", 5)]),
            busy: 0.5,
        }
    }

    fn is_met(rows: &[Row], what: &str) -> Option<bool> {
        rows.iter().find(|row| row.what == what).and_then(Row::is_met)
    }

    #[test]
    fn who_meant_it_does_not_make_up_for_what_the_flood_has_lost() {
        let rows = described(Flooded::Near, &outcome(980, 5), 1000);
        assert_eq!(is_met(&rows, "SYNs that have arrived"), Some(false));
        assert_eq!(
            is_met(&described(Flooded::Near, &outcome(990, 5), 1000), "SYNs that have arrived"),
            Some(true)
        );
        assert_eq!(is_met(&rows, "open connections that live on"), Some(true));
        assert_eq!(is_met(&rows, "new connections that succeed"), Some(false));
    }

    #[test]
    fn a_flood_that_is_too_slow_means_nothing() {
        let problem = |millis| described(Flooded::Far, &outcome(1000, millis), 1000)[0].problem.is_some();
        assert_eq!((problem(5), problem(6)), (false, true));
    }

    #[test]
    fn losses_and_unusual_reasons_have_rows() {
        let rows = described(Flooded::Near, &outcome(1000, 5), 1000);
        let shown: Vec<_> = rows.iter().rev().take(2).map(|row| row.what.as_str()).collect();
        assert_eq!(shown, ["lost at node-a eth0: rx drops", "packets, reason stray"]);
    }
}
