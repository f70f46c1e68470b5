//! Rounds: every case once in each, so that what else the machine does falls on all alike.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lb_common::abi::Reason;
use lb_common::addr::Proto;
use miette::{IntoDiagnostic as _, Result, miette};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::agent::Agent;
use crate::case::{Carrier, Case, End, Flows};
use crate::ground::{Ground, Node, UPLINK};
use crate::netfilter;
use crate::rows::Measured;
use crate::sent::Sent;
use crate::wire::{ACK, SYN, Wire};

/// Frames that tell how long a case takes.
const TRIAL: u32 = 4096;
/// A case's frames in a round.
const FEWEST: u32 = 4096;
const MOST: u32 = 400_000;
/// Flows that pass through the agent's table before it counts as full.
const CHURN: u32 = 600_000;

/// The thread's part of the time that frames took, in the best of all samples, at least; floors apart. A kernel that counts
/// soft interrupts apart gives it the frames' making alone, a quarter at most.
const LEAST_BUSY: f64 = 0.5;

/// The device under test: a node and what carries packets through it.
struct Dut {
    node: Node,
    agent: Option<Agent>,
}

/// How long and where to measure.
pub struct Plan {
    /// Rounds, beside the one that warms up.
    pub rounds: usize,
    /// For a case in a round.
    pub time: Duration,
    /// To measure on.
    pub cpu: usize,
    /// There are.
    pub cpus: usize,
}

/// Measures.
pub fn measure(cases: &[Case], plan: &Plan) -> Result<Vec<Measured>> {
    let mut ground = Ground::enter()?;
    let mut wire = Wire::new(plan.cpu)?;
    let mut duts = BTreeMap::new();
    // Agents stay on the other CPUs, if there are any: children begin where their parent is.
    stay_on(|cpu| plan.cpus == 1 || cpu != plan.cpu, plan.cpus)?;
    for key in cases.iter().map(key).collect::<BTreeSet<_>>() {
        eprintln!("building: {}", key.0);
        duts.insert(key, build(&mut ground, &mut wire, key)?);
    }
    stay_on(|cpu| cpu == plan.cpu, plan.cpus)?;
    let most_connections = netfilter::most_connections().unwrap_or(u64::MAX);
    let mut counts = Vec::new();
    for case in cases {
        eprintln!("trying: {case}");
        let dut = dut(&duts, case)?;
        if dut.agent.is_some() && case.flows == Flows::New {
            wire.send(case, SYN, &dut.node.end(End::Client), CHURN)?;
        }
        let (sent, _) = sample(&mut wire, dut, case, TRIAL)?;
        let most = if case.carrier.tracks() { most_connections / 2 } else { u64::MAX };
        counts.push(count(sent.nanos / u64::from(TRIAL), plan.time, most));
    }
    let mut measured: Vec<_> = cases.iter().map(|case| Measured::new(*case)).collect();
    let mut busiest: Option<f64> = None;
    // (The first round warms up.)
    for round in 0..=plan.rounds {
        for index in order(cases, round) {
            let (case, measured) = (&cases[index], &mut measured[index]);
            eprintln!("round {round} of {}: {case}", plan.rounds);
            let (sent, problem) = sample(&mut wire, dut(&duts, case)?, case, counts[index])?;
            if round > 0 {
                if case.carrier > Carrier::Door {
                    busiest = Some(sent.busy.max(busiest.unwrap_or_default()));
                }
                measured.nanos.push(sent.nanos as f64 / sent.arrived.max(1) as f64);
                measured.problem = measured.problem.take().or(problem);
            }
        }
    }
    if let Some(busiest) = busiest.filter(|busiest| *busiest < LEAST_BUSY) {
        return Err(miette!(
            "this thread has got {busiest:.2} of the time that frames took: the kernel does not count time in soft interrupts \
             as the thread's (CONFIG_IRQ_TIME_ACCOUNTING)"
        ));
    }
    Ok(measured)
}

/// TCP has places of its own: first segments, of which there are many, are kept for longer than datagrams without an
/// answer.
type Key = (Carrier, bool);

fn key(case: &Case) -> Key {
    (case.carrier, case.proto == Proto::TCP)
}

fn dut<'a>(duts: &'a BTreeMap<Key, Dut>, case: &Case) -> Result<&'a Dut> {
    duts.get(&key(case)).ok_or_else(|| miette!("nothing to test for {case}"))
}

/// What is compared comes soon after each other, and now the one first, now the other.
fn order(cases: &[Case], round: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..cases.len()).collect();
    order.sort_by_key(|index| cases[*index].flows);
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Frames that take so long.
fn count(nanos: u64, time: Duration, most: u64) -> u32 {
    let fitting = time.as_nanos() as u64 / nanos.max(1);
    u32::try_from(fitting.min(most)).map_or(MOST, |count| count.clamp(FEWEST, MOST))
}

fn stay_on(is_ours: impl Fn(usize) -> bool, cpus: usize) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in (0..cpus).filter(|cpu| is_ours(*cpu)) {
        set.set(cpu).into_diagnostic()?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).into_diagnostic()
}

fn build(ground: &mut Ground, wire: &mut Wire, (carrier, tcp): Key) -> Result<Dut> {
    let node = ground.node()?;
    // All outer ends count, and a veth hands on at once what it gets from XDP when its peer has a program.
    for end in [End::Client, End::Pods, End::Uplink] {
        wire.attach("wire_sink", &node.end(end))?;
    }
    let program = match carrier {
        Carrier::Drop => Some("wire_sink"),
        Carrier::Swap => Some("floor_swap"),
        Carrier::Dnat => Some("floor_dnat"),
        Carrier::Route => Some("wire_route"),
        Carrier::Door => Some("wire_door"),
        _ => None,
    };
    if let Some(program) = program {
        node.within(|| wire.attach(program, UPLINK))?;
    }
    if carrier == Carrier::Door {
        node.within(|| wire.open_door())?;
    }
    netfilter::load(&node, carrier)?;
    if carrier.tracks() {
        netfilter::forgive(&node)?;
    }
    let agent = match carrier {
        Carrier::Shunt(services) => Some(Agent::start(&node, services, if tcp { "tcp" } else { "udp" })?),
        _ => None,
    };
    Ok(Dut { node, agent })
}

/// Sends so many frames through a place that knows their flows, or none of them; and what was not as it should be.
fn sample(wire: &mut Wire, dut: &Dut, case: &Case, count: u32) -> Result<(Sent, Option<String>)> {
    if case.carrier.tracks() {
        netfilter::flush(&dut.node)?;
    }
    let entry = dut.node.end(End::Client);
    if let Some(flows) = case.flows.count() {
        // One alone: netfilter would take the first eight of a flow for the beginnings of eight.
        let first = wire.send(case, SYN, &entry, 1)?;
        if case.proto == Proto::TCP {
            wire.answer(&first.sample, &dut.node.end(case.end()))?;
        }
        wire.send(case, ACK, &entry, 2 * flows.max(64) as u32)?;
    }
    let before = dut.agent.as_ref().map(Agent::outcomes).transpose()?;
    let flags = if case.flows == Flows::New { SYN } else { ACK };
    let sent = wire.send(case, flags, &entry, count)?;
    let mut problem = sent.problem(case);
    let enough = u64::from(count - count / 200);
    if let (Some(agent), Some(before)) = (&dut.agent, before) {
        let reason = if case.flows == Flows::New { Reason::NewFlow } else { Reason::Forward };
        let mut moved = agent.outcomes()?;
        moved.retain(|reason, count| {
            *count -= before.get(reason).copied().unwrap_or(0);
            *count > 0
        });
        if moved.get(&reason).copied().unwrap_or(0) < enough {
            problem = problem.or(Some(format!("{count} frames moved {moved:?}, not {reason:?}")));
        }
    }
    if case.carrier.tracks() {
        let connections = netfilter::connections(&dut.node)?;
        let (fewest, most) = match case.flows.count() {
            Some(flows) => (flows, flows),
            None => (enough, u64::from(count)),
        };
        if !(fewest..=most).contains(&connections) {
            problem = problem.or(Some(format!("{count} frames made {connections} connections")));
        }
    }
    Ok((sent, problem.map(|problem| format!("{case}: {problem}"))))
}
