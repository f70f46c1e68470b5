//! From what was measured to rows.

use lb_common::addr::Proto;
use serde_json::{Value, json};

use crate::case::{Aim, Carrier, Case, Flows, LARGEST};

/// A case and its rounds.
pub struct Measured {
    /// The case.
    pub case: Case,
    /// Nanoseconds a packet, a round each.
    pub nanos: Vec<f64>,
    /// What was not as it should be.
    pub problem: Option<String>,
}

impl Measured {
    /// Nothing yet.
    pub const fn new(case: Case) -> Self {
        Self { case, nanos: Vec::new(), problem: None }
    }

    /// Millions a second of one core.
    fn rates(&self) -> Vec<f64> {
        self.nanos.iter().map(|nanos| 1000.0 / nanos).collect()
    }
}

/// What the rate is held against, beside the floor.
struct Against {
    what: &'static str,
    floor: Case,
    least: Option<f64>,
}

/// All rows. `times`: nanoseconds as well.
pub fn rows(all: &[Measured], times: bool) -> Vec<Value> {
    let mut rows = Vec::new();
    for one in all {
        let against = Against { what: "rate", floor: one.case.floor(), least: least_of_floor(one.case) };
        rows.push(row(all, one, &against));
        if times {
            rows.push(json!({
                "case": one.case.to_string(), "what": "time a packet", "unit": "ns",
                "value": quantile(&one.nanos, 0.5),
                "low": quantile(&one.nanos, 0.25), "high": quantile(&one.nanos, 0.75),
                "floor": null, "ratio": null, "target": null, "problem": one.problem,
            }));
        }
    }
    for one in all {
        rows.extend(
            comparisons(one.case).iter().filter(|it| is_there(all, it.floor)).map(|it| row(all, one, it)),
        );
    }
    rows
}

fn is_there(all: &[Measured], case: Case) -> bool {
    all.iter().any(|one| one.case == case)
}

/// What is asked of packets that XDP sends back by itself, as the floor does.
fn least_of_floor(case: Case) -> Option<f64> {
    let (Carrier::Shunt(_), Aim::Back) = (case.carrier, case.aim) else { return None };
    Some(match case.flows {
        Flows::One => 0.8,
        Flows::Many => 0.6,
        Flows::New => 0.25,
    })
}

fn comparisons(case: Case) -> Vec<Against> {
    let Carrier::Shunt(services) = case.carrier else { return Vec::new() };
    let of = |carrier, aim| Case { carrier, aim, ..case };
    // The kernel's rules masquerade what aims at an external address, wherever the pod is.
    let aim = if case.is_masqueraded() { Aim::Here } else { Aim::Inside };
    let least = match (case.aim, case.flows) {
        (Aim::Back, Flows::New) => Some(6.0),
        (Aim::Back, _) => Some(4.0),
        _ => None,
    };
    let mut all = vec![
        Against { what: "rate, against nftables", floor: of(Carrier::Nftables(services), aim), least },
        Against { what: "rate, against iptables", floor: of(Carrier::Iptables(services), aim), least: None },
    ];
    if services > 1 {
        let floor = of(Carrier::Shunt(1), case.aim);
        let least = (case.aim == Aim::Back && services == LARGEST).then_some(0.95);
        all.push(Against { what: "rate, against 1 Service", floor, least });
    }
    if case.aim == Aim::Back {
        let floor = of(Carrier::Route, Aim::Pod);
        let floor = Case { proto: Proto::UDP, ..floor };
        all.push(Against { what: "rate, against a route look-up alone", floor, least: None });
    }
    if case.aim == Aim::Here {
        let floor = of(Carrier::Forwarding, Aim::Pod);
        all.push(Against { what: "rate, against forwarding without rules", floor, least: None });
    }
    all
}

fn row(all: &[Measured], one: &Measured, against: &Against) -> Value {
    let rates = one.rates();
    let floor = all.iter().find(|other| other.case == against.floor);
    // Round by round: what else the machine does falls on both.
    let ratio = floor.map(|floor| {
        let ratios: Vec<_> = rates.iter().zip(floor.rates()).map(|(rate, floor)| rate / floor).collect();
        quantile(&ratios, 0.5)
    });
    let problem = one.problem.as_ref().or(floor.and_then(|floor| floor.problem.as_ref()));
    json!({
        "case": one.case.to_string(),
        "what": against.what,
        "value": quantile(&rates, 0.5),
        "low": quantile(&rates, 0.25),
        "high": quantile(&rates, 0.75),
        "unit": "Mpps",
        "floor": floor.map(|floor| floor.case.to_string()),
        "ratio": ratio,
        "target": against.least.map(|least| json!({ "atLeast": least })),
        "problem": problem,
    })
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(f64::NAN)
}
