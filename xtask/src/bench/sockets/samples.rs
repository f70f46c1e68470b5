//! Samples of rounds, and the rows they make.

use std::collections::BTreeMap;

use super::scene::{Balancer, Setup, TrafficPath};
use crate::bench::Row;
use crate::bench::row::Target;

/// What a figure is about, with the row's words and unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// CPU time of client, node and server together.
    CpuPerConnection,
    /// Of the time a connection takes from begin to end.
    HalfTake,
    /// The same.
    OneInAHundredTakes,
    /// With many at a time.
    ConnectionRate,
    /// CPU time of a datagram and its answer on an open socket.
    CpuPerDatagram,
    /// Datagrams on an open socket.
    DatagramRate,
    /// CPU time of a socket, a datagram and its answer.
    CpuPerDatagramSocket,
    /// One connection.
    Throughput,
    /// Of the same.
    CpuPerMegabyte,
}

impl Figure {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::CpuPerConnection => ("CPU time a connection", "µs"),
            Self::HalfTake => ("time a connection, p50", "µs"),
            Self::OneInAHundredTakes => ("time a connection, p99", "µs"),
            Self::ConnectionRate => ("connections a second, 16 at a time", "k/s"),
            Self::CpuPerDatagram => ("CPU time a UDP request, open socket", "µs"),
            Self::DatagramRate => ("UDP requests a second, open socket", "k/s"),
            Self::CpuPerDatagramSocket => ("CPU time a UDP request, new socket", "µs"),
            Self::Throughput => ("throughput of one connection", "Gbit/s"),
            Self::CpuPerMegabyte => ("CPU time a MB, one connection", "µs"),
        }
    }
}

/// Samples by set-up, way and figure: the value, keyed by its round.
#[derive(Debug, Default)]
pub struct Samples {
    values: BTreeMap<(TrafficPath, Setup, Figure), BTreeMap<usize, f64>>,
    problems: BTreeMap<(TrafficPath, Setup), String>,
}

impl Samples {
    /// Adds one.
    pub fn add(&mut self, setup: Setup, path: TrafficPath, figure: Figure, round: usize, value: f64) {
        self.values.entry((path, setup, figure)).or_default().insert(round, value);
    }

    /// Notes why the figures of a way mean nothing; the first reason stays.
    pub fn fail(&mut self, setup: Setup, path: TrafficPath, why: String) {
        self.problems.entry((path, setup)).or_insert(why);
    }

    /// The rows.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for ((path, setup, figure), values) in &self.values {
            let of_floor = |floor: Setup| self.values.get(&(*path, floor, *figure));
            let own = self.row(*setup, *path, *figure, values);
            let mut floors = floors(*setup, *path, *figure).into_iter();
            let mut compared = floors.by_ref().filter_map(|(floor, target)| {
                let ratio = ratio(values, of_floor(floor)?)?;
                Some(Row { floor: Some(floor.case(*path)), ratio: Some(ratio), target, ..own.clone() })
            });
            rows.push(compared.next().unwrap_or_else(|| own.clone()));
            rows.extend(compared);
        }
        rows
    }

    fn row(&self, setup: Setup, path: TrafficPath, figure: Figure, values: &BTreeMap<usize, f64>) -> Row {
        let sorted = sorted(values.values().copied());
        let (what, unit) = figure.words();
        let case = setup.case(path);
        Row {
            what: what.into(),
            value: part(&sorted, 50),
            low: Some(part(&sorted, 25)),
            high: Some(part(&sorted, 75)),
            unit: unit.into(),
            floor: None,
            ratio: None,
            target: None,
            problem: self.problems.get(&(path, setup)).map(|why| format!("{case}: {why}")),
            case,
        }
    }
}

/// What a figure is held against; the first is the row's own, others make rows of their own.
fn floors(setup: Setup, path: TrafficPath, figure: Figure) -> Vec<(Setup, Option<Target>)> {
    let direct = |balancer| Setup { balancer, services: 1 };
    let alike = |balancer| Setup { balancer, ..setup };
    let is_cpu = figure == Figure::CpuPerConnection;
    let own = |cpu: f64| wanted_of_direct(figure, cpu);
    let plain = (direct(Balancer::Direct), None);
    let others = [Balancer::Nftables, Balancer::Iptables, Balancer::KubeProxy]
        .map(|other| (alike(other), Some(Target::AtMost(1.0))));
    let others = others.into_iter().filter(|_| is_cpu);
    match (setup.balancer, path) {
        (Balancer::ShuntTc, TrafficPath::Host) | (Balancer::ShuntSockets, TrafficPath::Pod) => {
            [(direct(Balancer::Direct), own(1.03))].into_iter().chain(others).collect()
        }
        (Balancer::ShuntTc, _) => [(direct(Balancer::Direct), own(1.12))].into_iter().chain(others).collect(),
        (Balancer::ShuntSockets, _) => {
            let first = [(direct(Balancer::DirectXdp), own(1.12))].into_iter();
            first.chain(is_cpu.then_some(plain)).chain(others).collect()
        }
        _ => vec![plain],
    }
}

/// What is wanted of Shunt beside the direct way. Few connections that wait for a timer leave the CPU time as it is: they show
/// in the slowest of a hundred, and where many come at a time.
fn wanted_of_direct(figure: Figure, cpu: f64) -> Option<Target> {
    match figure {
        Figure::CpuPerConnection => Some(Target::AtMost(cpu)),
        Figure::OneInAHundredTakes => Some(Target::AtMost(1.5)),
        Figure::ConnectionRate => Some(Target::AtLeast(0.8)),
        Figure::Throughput => Some(Target::AtLeast(0.85)),
        _ => None,
    }
}

/// The median of the ratios of each round.
fn ratio(values: &BTreeMap<usize, f64>, floor: &BTreeMap<usize, f64>) -> Option<f64> {
    let ratios = values.iter().filter_map(|(round, value)| Some(value / floor.get(round)?));
    let sorted = sorted(ratios);
    (!sorted.is_empty()).then(|| part(&sorted, 50))
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn part(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECT: Setup = Setup { balancer: Balancer::Direct, services: 1 };
    const TC: Setup = Setup { balancer: Balancer::ShuntTc, services: 10_000 };

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        let mut samples = Samples::default();
        // The machine is half as fast in the last two rounds.
        for (round, (direct, tc)) in
            [(10.0, 11.0), (10.0, 11.0), (20.0, 22.0), (20.0, 22.0)].iter().enumerate()
        {
            samples.add(DIRECT, TrafficPath::Pod, Figure::CpuPerConnection, round, *direct);
            samples.add(TC, TrafficPath::Pod, Figure::CpuPerConnection, round, *tc);
        }
        let rows = samples.rows();
        assert_eq!(rows.len(), 2, "{rows:?}");
        let tc = rows.iter().find(|row| row.case.contains("tc, 10000 Services")).unwrap();
        assert!((tc.ratio.unwrap() - 1.1).abs() < 1e-9);
        assert_eq!((tc.target, tc.is_met()), (Some(Target::AtMost(1.12)), Some(true)));
    }

    /// As when a backend refused one connection of sixteen on a port that it still knew, for ten milliseconds.
    #[test]
    fn connections_that_wait_for_a_timer_are_not_overlooked() {
        let mut samples = Samples::default();
        for (setup, cpu, slowest, rate) in [(DIRECT, 130.0, 260.0, 10.7), (TC, 140.0, 11_000.0, 0.7)] {
            samples.add(setup, TrafficPath::Far, Figure::CpuPerConnection, 0, cpu);
            samples.add(setup, TrafficPath::Far, Figure::OneInAHundredTakes, 0, slowest);
            samples.add(setup, TrafficPath::Far, Figure::ConnectionRate, 0, rate);
        }
        let met = |row: &Row| row.is_met();
        let of_tc = samples.rows().iter().filter(|row| row.case.contains("tc")).map(met).collect::<Vec<_>>();
        assert_eq!(of_tc, [Some(true), Some(false), Some(false)]);
    }

    #[test]
    fn a_way_with_a_problem_meets_nothing() {
        let mut samples = Samples::default();
        samples.add(DIRECT, TrafficPath::Pod, Figure::CpuPerConnection, 0, 10.0);
        samples.add(TC, TrafficPath::Pod, Figure::CpuPerConnection, 0, 5.0);
        samples.fail(TC, TrafficPath::Pod, "answered by another".into());
        let rows = samples.rows();
        assert_eq!(rows.iter().filter(|row| row.problem.is_some()).count(), 1);
        assert!(rows.iter().all(|row| row.is_met() != Some(true)));
    }
}
