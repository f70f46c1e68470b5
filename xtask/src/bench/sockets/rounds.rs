//! The rounds: every set-up does the same in turn, so that what else the machine does falls on all alike.

use miette::Result;

use super::program::{Deed, Report};
use super::samples::{Figure, Samples};
use super::scene::{Balancer, Scene, Setup, Way};
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
    pub all_ways: bool,
}

impl Plan {
    /// By the command line.
    pub fn new(quick: bool, all: bool) -> Self {
        match (quick, all) {
            (true, _) => Self { rounds: 12, connections: 300, others: 3, all_ways: false },
            (_, true) => Self { rounds: 200, connections: 400, others: 30, all_ways: true },
            _ => Self { rounds: 80, connections: 400, others: 12, all_ways: false },
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
    wants: impl Fn(Setup, Way) -> bool,
    step: &Step,
) -> Result<Samples> {
    let all = cpus()?;
    let one = all.last().copied().unwrap_or_default();
    let soft = &SoftInterrupts::of(one)?;
    let mut samples = Samples::default();
    for way in Way::ALL {
        for scene in scenes.iter_mut() {
            check(scene, way, &wants, soft, &mut samples)?;
        }
    }
    for scene in scenes.iter_mut() {
        place(scene, &[one])?;
    }
    for round in 0..plan.rounds {
        step.detail(&format!("one connection at a time, round {} of {}", round + 1, plan.rounds));
        for way in Way::ALL {
            in_turn(scenes, round, |scene| {
                if !measures(scene, way, &wants) {
                    return Ok(());
                }
                let count = scaled(scene, plan.connections);
                run(scene, way, Deed::Connect, WARM.min(count), soft)?;
                let (report, cpu) = run(scene, way, Deed::Connect, count, soft)?;
                note(&mut samples, scene.setup, way, &report, count);
                let mut add = |figure, value| samples.add(scene.setup, way, figure, round, value);
                add(Figure::CpuPerConnection, 1e6 * cpu / count as f64);
                add(Figure::HalfTake, 1e6 * report.p50);
                add(Figure::OneInAHundredTakes, 1e6 * report.p99);
                Ok(())
            })?;
        }
    }
    others(scenes, plan, &wants, step, soft, &mut samples)?;
    for scene in scenes.iter_mut() {
        place(scene, &all)?;
    }
    at_once(scenes, plan, &wants, step, soft, &mut samples)?;
    Ok(samples)
}

/// Datagrams and bulk transfers.
fn others(
    scenes: &mut [Scene],
    plan: &Plan,
    wants: &impl Fn(Setup, Way) -> bool,
    step: &Step,
    soft: &SoftInterrupts,
    samples: &mut Samples,
) -> Result<()> {
    for round in 0..plan.others {
        step.detail(&format!("datagrams and bulk, round {} of {}", round + 1, plan.others));
        for way in Way::ALL.into_iter().filter(|way| plan.all_ways || *way == Way::Pod) {
            in_turn(scenes, round, |scene| {
                if !measures(scene, way, wants) {
                    return Ok(());
                }
                let setup = scene.setup;
                let (report, cpu) = run(scene, way, Deed::Datagram, DATAGRAMS, soft)?;
                note(samples, setup, way, &report, DATAGRAMS);
                samples.add(setup, way, Figure::CpuPerDatagram, round, 1e6 * cpu / DATAGRAMS as f64);
                let rate = DATAGRAMS as f64 / report.seconds / 1e3;
                samples.add(setup, way, Figure::DatagramRate, round, rate);
                let count = scaled(scene, DATAGRAMS);
                let (report, cpu) = run(scene, way, Deed::DatagramSocket, count, soft)?;
                note(samples, setup, way, &report, count);
                samples.add(setup, way, Figure::CpuPerDatagramSocket, round, 1e6 * cpu / count as f64);
                let (report, cpu) = run(scene, way, Deed::Bulk, CHUNKS, soft)?;
                note(samples, setup, way, &report, 1);
                let megabytes = CHUNKS as f64 * 65536.0 / 1e6;
                let rate = megabytes * 8e-3 / report.seconds;
                samples.add(setup, way, Figure::Throughput, round, rate);
                samples.add(setup, way, Figure::CpuPerMegabyte, round, 1e6 * cpu / megabytes);
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Many connections at a time, on all CPUs.
fn at_once(
    scenes: &mut [Scene],
    plan: &Plan,
    wants: &impl Fn(Setup, Way) -> bool,
    step: &Step,
    soft: &SoftInterrupts,
    samples: &mut Samples,
) -> Result<()> {
    for round in 0..plan.others {
        step.detail(&format!("{AT_ONCE} connections at a time, round {} of {}", round + 1, plan.others));
        for way in Way::ALL {
            in_turn(scenes, round, |scene| {
                if !measures(scene, way, wants) {
                    return Ok(());
                }
                let count = scaled(scene, 4 * plan.connections) / AT_ONCE * AT_ONCE;
                let (report, _) = run(scene, way, Deed::ConnectAtOnce(AT_ONCE), count, soft)?;
                note(samples, scene.setup, way, &report, count);
                let rate = count as f64 / report.seconds / 1e3;
                samples.add(scene.setup, way, Figure::ConnectionRate, round, rate);
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Every other round the other way round: nobody always follows the same one.
fn in_turn(scenes: &mut [Scene], round: usize, mut turn: impl FnMut(&mut Scene) -> Result<()>) -> Result<()> {
    let count = scenes.len();
    for at in 0..count {
        let index = (at + round) % count;
        let index = if round.is_multiple_of(2) { index } else { count - 1 - index };
        turn(&mut scenes[index])?;
    }
    Ok(())
}

fn measures(scene: &Scene, way: Way, wants: &impl Fn(Setup, Way) -> bool) -> bool {
    scene.setup.ways().contains(&way) && wants(scene.setup, way)
}

/// Fewer where each takes ten times as long.
fn scaled(scene: &Scene, count: usize) -> usize {
    match scene.setup {
        Setup { balancer: Balancer::Iptables | Balancer::KubeProxy, services: 1000.. } => count / 4,
        _ => count,
    }
}

fn place(scene: &mut Scene, cpus: &[usize]) -> Result<()> {
    for way in Way::ALL {
        let (client, server) = scene.pair(way)?;
        pin(client.pid(), cpus)?;
        pin(server.pid(), cpus)?;
    }
    Ok(())
}

/// Does it, and returns the CPU seconds of all who took part.
fn run(
    scene: &mut Scene,
    way: Way,
    deed: Deed,
    count: usize,
    soft: &SoftInterrupts,
) -> Result<(Report, f64)> {
    let (to, name) = (scene.target(way), scene.name(way));
    let (client, server) = scene.pair(way)?;
    let pids = [client.pid(), server.pid()];
    let used = || -> Result<f64> { Ok(cpu_seconds(pids[0])? + cpu_seconds(pids[1])? + soft.seconds()?) };
    let before = used()?;
    let report = client.ask(deed, to, &name, count)?;
    Ok((report, used()? - before))
}

fn note(samples: &mut Samples, setup: Setup, way: Way, report: &Report, count: usize) {
    if let Some(why) = &report.wrong {
        samples.fail(setup, way, why.clone());
    } else if report.right != count {
        samples.fail(setup, way, format!("{} of {count} answers", report.right));
    }
}

/// Whether connections take the way that the case names.
fn check(
    scene: &mut Scene,
    way: Way,
    wants: &impl Fn(Setup, Way) -> bool,
    soft: &SoftInterrupts,
    samples: &mut Samples,
) -> Result<()> {
    const COUNT: usize = 20;
    if !measures(scene, way, wants) {
        return Ok(());
    }
    let before = scene.counters()?;
    let (report, _) = run(scene, way, Deed::Connect, COUNT, soft)?;
    note(samples, scene.setup, way, &report, COUNT);
    let after = scene.counters()?;
    let moved = |hook: &str, reason: &str| {
        let label = format!("hook={hook},reason={reason}");
        let of = |counters: &[(String, u64)]| {
            counters.iter().find(|(labels, _)| *labels == label).map_or(0, |(_, count)| *count)
        };
        of(&after).saturating_sub(of(&before)) >= COUNT as u64
    };
    let hook = match (scene.setup.balancer, way) {
        (Balancer::ShuntTc, Way::Host) | (Balancer::ShuntSockets, Way::Pod) => Some("connect"),
        (Balancer::ShuntTc, Way::Pod) => Some("pod_ingress"),
        (Balancer::ShuntTc, _) => Some("uplink_ingress"),
        (Balancer::ShuntSockets, _) => Some("uplink_xdp"),
        _ => None,
    };
    if let Some(hook) = hook.filter(|hook| !moved(hook, "new_flow")) {
        samples.fail(scene.setup, way, format!("{COUNT} connections made no {COUNT} flows in {hook}"));
    }
    let tracked = scene.tracked()?;
    let should_track = !scene.setup.balancer.is_direct() && !scene.setup.balancer.is_shunt();
    if should_track != (tracked > 0) {
        samples.fail(scene.setup, way, format!("the node's kernel tracks {tracked} connections"));
    }
    Ok(())
}
