//! The rounds: every set-up does the same in turn, so that what else the machine does falls on all alike.

use miette::Result;

use super::program::{Deed, Report};
use super::samples::{Figure, Samples};
use super::scene::{Balancer, Scene, Setup, TrafficPath};
use super::talk::{SoftInterrupts, cpu_seconds, cpus, pin};
use crate::progress::Step;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rounds of connections, one at a time.
    pub rounds: usize,
    /// Connections of a round.
    pub connections: usize,
    /// Rounds of everything else.
    pub others: usize,
    /// Everything else on every way, not from pods alone.
    pub all_paths: bool,
}

impl Plan {
    /// By the command line.
    pub fn new(quick: bool, all: bool) -> Self {
        match (quick, all) {
            (true, _) => Self { rounds: 10, connections: 200, others: 3, all_paths: false },
            (_, true) => Self { rounds: 200, connections: 400, others: 30, all_paths: true },
            _ => Self { rounds: 30, connections: 400, others: 8, all_paths: false },
        }
    }
}

/// Connections that warm up, before each round of a set-up.
const WARM: usize = 40;
/// Connections at a time, on all CPUs.
const AT_ONCE: usize = 16;
/// Datagrams of a round.
const DATAGRAMS: usize = 1000;
/// Chunks of 64 KiB of a bulk transfer.
const CHUNKS: usize = 1024;

/// Measures all set-ups on all ways that are wanted.
pub fn measure(
    scenes: &mut [Scene],
    plan: &Plan,
    wants: impl Fn(Setup, TrafficPath) -> bool,
    step: &Step,
) -> Result<Samples> {
    let all = cpus()?;
    let one = all.last().copied().unwrap_or_default();
    let soft = SoftInterrupts::of(one)?;
    let mut field = Field { scenes, wants, soft, samples: Samples::default() };
    field.round(0, &TrafficPath::ALL, check)?;
    field.place(&[one])?;
    field.rounds(plan.rounds, &TrafficPath::ALL, step, "one connection at a time", |turn| {
        one_at_a_time(turn, plan.connections)
    })?;
    let paths: &[TrafficPath] = if plan.all_paths { &TrafficPath::ALL } else { &[TrafficPath::Pod] };
    field.rounds(plan.others, paths, step, "datagrams and bulk", others)?;
    field.place(&all)?;
    let what = format!("{AT_ONCE} connections at a time");
    field.rounds(plan.others, &TrafficPath::ALL, step, &what, |turn| at_once(turn, plan.connections))?;
    Ok(field.samples)
}

/// All set-ups, and what was measured in them.
struct Field<'a, W> {
    scenes: &'a mut [Scene],
    wants: W,
    soft: SoftInterrupts,
    samples: Samples,
}

impl<W: Fn(Setup, TrafficPath) -> bool> Field<'_, W> {
    fn rounds(
        &mut self,
        count: usize,
        paths: &[TrafficPath],
        step: &Step,
        what: &str,
        work: impl Fn(&mut Turn<'_>) -> Result<()>,
    ) -> Result<()> {
        for round in 0..count {
            step.detail(&format!("{what}, round {} of {count}", round + 1));
            self.round(round, paths, &work)?;
        }
        Ok(())
    }

    /// On each way every set-up has its turn. Every other round the other way round: nobody always follows the same one.
    fn round(
        &mut self,
        round: usize,
        paths: &[TrafficPath],
        work: impl Fn(&mut Turn<'_>) -> Result<()>,
    ) -> Result<()> {
        let count = self.scenes.len();
        for path in paths.iter().copied() {
            for at in 0..count {
                let index = (at + round) % count;
                let index = if round.is_multiple_of(2) { index } else { count - 1 - index };
                let scene = &mut self.scenes[index];
                if scene.setup.paths().contains(&path) && (self.wants)(scene.setup, path) {
                    work(&mut Turn { scene, path, round, soft: &self.soft, samples: &mut self.samples })?;
                }
            }
        }
        Ok(())
    }

    fn place(&mut self, cpus: &[usize]) -> Result<()> {
        for scene in self.scenes.iter_mut() {
            for path in TrafficPath::ALL {
                let (client, server) = scene.pair(path)?;
                pin(client.pid(), cpus)?;
                pin(server.pid(), cpus)?;
            }
        }
        Ok(())
    }
}

/// A set-up's turn on a way.
struct Turn<'a> {
    scene: &'a mut Scene,
    path: TrafficPath,
    round: usize,
    soft: &'a SoftInterrupts,
    samples: &'a mut Samples,
}

impl Turn<'_> {
    /// Does it, and returns the CPU seconds of all who took part.
    fn run(&mut self, deed: Deed, count: usize) -> Result<(Report, f64)> {
        let (to, name) = (self.scene.target(self.path), self.scene.name(self.path));
        let (client, server) = self.scene.pair(self.path)?;
        let pids = [client.pid(), server.pid()];
        let used =
            || -> Result<f64> { Ok(cpu_seconds(pids[0])? + cpu_seconds(pids[1])? + self.soft.seconds()?) };
        let before = used()?;
        let report = client.ask(deed, to, &name, count)?;
        Ok((report, used()? - before))
    }

    /// The same, and each answer must be right.
    fn ask(&mut self, deed: Deed, count: usize) -> Result<(Report, f64)> {
        let (report, cpu) = self.run(deed, count)?;
        let answers = if deed == Deed::Bulk { 1 } else { count };
        if let Some(why) = &report.wrong {
            self.fail(why.clone());
        } else if report.right != answers {
            self.fail(format!("{} of {answers} answers", report.right));
        }
        Ok((report, cpu))
    }

    fn add(&mut self, figure: Figure, value: f64) {
        self.samples.add(self.scene.setup, self.path, figure, self.round, value);
    }

    fn fail(&mut self, why: String) {
        self.samples.fail(self.scene.setup, self.path, why);
    }

    /// Fewer where each takes ten times as long.
    fn scaled(&self, count: usize) -> usize {
        match self.scene.setup {
            Setup { balancer: Balancer::Iptables | Balancer::KubeProxy, services: 1000.. } => count / 4,
            _ => count,
        }
    }
}

fn one_at_a_time(turn: &mut Turn<'_>, connections: usize) -> Result<()> {
    let count = turn.scaled(connections);
    turn.run(Deed::Connect, WARM.min(count))?;
    let (report, cpu) = turn.ask(Deed::Connect, count)?;
    turn.add(Figure::CpuPerConnection, 1e6 * cpu / count as f64);
    turn.add(Figure::HalfTake, 1e6 * report.p50);
    turn.add(Figure::OneInAHundredTakes, 1e6 * report.p99);
    Ok(())
}

/// Datagrams and bulk transfers.
fn others(turn: &mut Turn<'_>) -> Result<()> {
    let (report, cpu) = turn.ask(Deed::Datagram, DATAGRAMS)?;
    turn.add(Figure::CpuPerDatagram, 1e6 * cpu / DATAGRAMS as f64);
    turn.add(Figure::DatagramRate, DATAGRAMS as f64 / report.seconds / 1e3);
    let count = turn.scaled(DATAGRAMS);
    let (_, cpu) = turn.ask(Deed::DatagramSocket, count)?;
    turn.add(Figure::CpuPerDatagramSocket, 1e6 * cpu / count as f64);
    let (report, cpu) = turn.ask(Deed::Bulk, CHUNKS)?;
    let megabytes = CHUNKS as f64 * 65536.0 / 1e6;
    turn.add(Figure::Throughput, megabytes * 8e-3 / report.seconds);
    turn.add(Figure::CpuPerMegabyte, 1e6 * cpu / megabytes);
    Ok(())
}

/// Many connections at a time, on all CPUs.
fn at_once(turn: &mut Turn<'_>, connections: usize) -> Result<()> {
    let count = turn.scaled(4 * connections) / AT_ONCE * AT_ONCE;
    let (report, _) = turn.ask(Deed::ConnectAtOnce(AT_ONCE), count)?;
    turn.add(Figure::ConnectionRate, count as f64 / report.seconds / 1e3);
    Ok(())
}

/// Whether connections take the way that the case names.
fn check(turn: &mut Turn<'_>) -> Result<()> {
    const COUNT: usize = 20;
    let before = turn.scene.counters()?;
    turn.ask(Deed::Connect, COUNT)?;
    let after = turn.scene.counters()?;
    let moved = |hook: &str, reason: &str| {
        let label = format!("hook={hook},reason={reason}");
        let of = |counters: &[(String, u64)]| {
            counters.iter().find(|(labels, _)| *labels == label).map_or(0, |(_, count)| *count)
        };
        of(&after).saturating_sub(of(&before)) >= COUNT as u64
    };
    let hook = match (turn.scene.setup.balancer, turn.path) {
        (Balancer::ShuntTc, TrafficPath::Host) | (Balancer::ShuntSockets, TrafficPath::Pod) => {
            Some("connect")
        }
        (Balancer::ShuntTc, TrafficPath::Pod) => Some("pod_ingress"),
        (Balancer::ShuntTc, _) => Some("uplink_ingress"),
        (Balancer::ShuntSockets, _) => Some("uplink_xdp"),
        _ => None,
    };
    if let Some(hook) = hook.filter(|hook| !moved(hook, "new_flow")) {
        turn.fail(format!("{COUNT} connections made no {COUNT} flows in {hook}"));
    }
    let tracked = turn.scene.tracked()?;
    let should_track = !turn.scene.setup.balancer.is_direct() && !turn.scene.setup.balancer.is_shunt();
    if should_track != (tracked > 0) {
        turn.fail(format!("the node's kernel tracks {tracked} connections"));
    }
    Ok(())
}
