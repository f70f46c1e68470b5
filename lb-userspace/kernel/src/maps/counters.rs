//! Reads the per-CPU counters.

use std::io;

use lb_common::abi::{Hook, Reason, ServiceId, Traffic, counter_index};

use super::Maps;

/// Visits to a program that ended one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Which program.
    pub hook: Hook,
    /// How it ended.
    pub reason: Reason,
    /// How often, on all CPUs together.
    pub count: u64,
}

/// Every outcome of every program, those that never happened included.
pub fn outcomes(maps: &Maps) -> io::Result<Vec<Outcome>> {
    let counts: Vec<u64> = maps.counters.all()?.iter().map(|cpus| cpus.iter().sum()).collect();
    let pairs = Hook::ALL.iter().flat_map(|hook| Reason::ALL.iter().map(move |reason| (*hook, *reason)));
    Ok(pairs
        .map(|(hook, reason)| {
            let count = counts.get(counter_index(hook, reason) as usize).copied().unwrap_or(0);
            Outcome { hook, reason, count }
        })
        .collect())
}

/// What went to one Service port, on all CPUs together.
pub fn traffic(maps: &Maps, service: ServiceId) -> io::Result<Traffic> {
    Ok(maps.traffic.get(service)?.iter().fold(Traffic::default(), |sum, cpu| Traffic {
        flows: sum.flows + cpu.flows,
        packets: sum.packets + cpu.packets,
        bytes: sum.bytes + cpu.bytes,
    }))
}
