//! Rounds: every case once in each, so that what else the machine does falls on all alike.

use std::collections::BTreeMap;

use miette::{Result, miette};
use serde_json::{Value, json};

use crate::bed::{Bed, Made};
use crate::case::{self, Case, FLOOR, NOTHING_TC, NOTHING_XDP, Variety};

/// Measures and gives rows.
pub fn measure(object: &[u8], chosen: Vec<Case>, rounds: usize, packets: u32) -> Result<Vec<Value>> {
    let mut cases: Vec<Case> = case::list(false)
        .into_iter()
        .filter(|floor| [FLOOR, NOTHING_XDP, NOTHING_TC].contains(&floor.name.as_str()))
        .collect();
    cases.extend(case::restoring(&chosen));
    for case in chosen {
        if !cases.iter().any(|other| other.name == case.name) {
            cases.push(case);
        }
    }
    let mut beds = BTreeMap::<Bed, Made>::new();
    for case in &cases {
        if !beds.contains_key(&case.bed) {
            eprintln!("loading: {:?} tables", case.bed);
            let mut made = Made::new(object, case.bed)?;
            if beds.is_empty() {
                made.occupy_uplink()?;
            }
            beds.insert(case.bed, made);
        }
    }
    for (bed, made) in &mut beds {
        eprintln!("preparing: {bed:?} tables");
        made.prepare(&cases.iter().filter(|case| case.bed == *bed).collect::<Vec<_>>())?;
    }
    let mut samples = vec![Vec::new(); cases.len()];
    let mut problems = vec![None; cases.len()];
    // (The first round warms up.)
    for round in 0..=rounds {
        eprintln!("round {round} of {rounds}");
        for (index, case) in cases.iter().enumerate() {
            let count = match case.variety {
                Variety::Flows(flows) => packets.max(flows),
                _ => packets,
            };
            let made = beds.get_mut(&case.bed).ok_or_else(|| miette!("no tables for {}", case.name))?;
            let (nanos, problem) = made.run(case, count)?;
            samples[index].push(nanos);
            if round > 0 {
                problems[index] = problem.or(problems[index].take());
            }
        }
    }
    Ok(rows(&cases, &samples, &problems))
}

fn rows(cases: &[Case], samples: &[Vec<f64>], problems: &[Option<String>]) -> Vec<Value> {
    let of = |name: &str| {
        let index = cases.iter().position(|case| case.name == name);
        index.map_or(&[][..], |index| &samples[index][1..])
    };
    let floor = median(of(FLOOR));
    let mut rows = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let own = &samples[index][1..];
        let restoring = case.restorer().map(|restorer| format!("floor: {restorer} + nothing"));
        let nothing = of(if case.is_xdp() { NOTHING_XDP } else { NOTHING_TC });
        let values: Vec<f64> = match restoring.filter(|name| *name != case.name) {
            // What the restoring program has cost in the same round is taken off.
            Some(name) => own
                .iter()
                .zip(of(&name))
                .zip(nothing)
                .map(|((own, wrapped), bare)| own - wrapped + bare)
                .collect(),
            None => own.to_vec(),
        };
        let value = median(&values);
        rows.push(json!({
            "case": case.name,
            "what": "time a packet",
            "value": value,
            "low": quantile(&values, 0.25),
            "high": quantile(&values, 0.75),
            "unit": "ns",
            "floor": FLOOR,
            "ratio": value / floor,
            "target": case.target.map(|most| json!({ "atMost": most })),
            "problem": problems[index],
        }));
    }
    rows
}

fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(f64::NAN)
}
