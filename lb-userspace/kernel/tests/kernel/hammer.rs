//! Two CPUs in one set of the flow table, where each packet takes a way from another flow. It goes to its own Service's endpoint
//! all the same: a record that is half one flow's and half another's would send it to the other's. Where processors load in
//! another order than the program's, this is what lb-ebpf/src/order.rs is for.

use std::time::{Duration, Instant};

use lb_common::abi::{Hook, Reason};
use lb_common::addr::{Ipv4, Ipv6};
use lb_testkit::{Numbered, World};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::harness::Kernel;
use crate::priorities::{HOOKS, itself, packet};

const LONG_ENOUGH: Duration = Duration::from_secs(1);
/// Calls to the kernel at least, however long they take: two emulated CPUs that share one get to a few dozen a second.
const CALLS: usize = 100;
/// Ports of a client: more than a set has ways.
const PORTS: u16 = 64;
/// Packets of one call to the kernel. The first makes the flow, the others look for it while the other CPU takes the way.
const IN_A_ROW: u32 = 32;

/// The CPUs that this process may run on.
fn cpus() -> Vec<usize> {
    let all = sched_getaffinity(Pid::from_raw(0)).expect("the CPUs of this process");
    (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or(false)).collect()
}

fn keep_asking<A: Numbered>(kernel: &Kernel, hook: Hook, cpu: usize, client: u8) {
    let mut own = CpuSet::new();
    own.set(cpu).expect("there is such a CPU");
    sched_setaffinity(Pid::from_raw(0), &own).expect("this thread may run there");
    let frames: Vec<_> = (1024..1024 + PORTS).map(|port| packet::<A>(client, port)).collect();
    let began = Instant::now();
    for (call, frame) in frames.iter().cycle().enumerate() {
        if call >= CALLS && began.elapsed() > LONG_ENOUGH {
            break;
        }
        // (Some are dropped: both CPUs may want the set at once.)
        let (action, bytes) = kernel.run_repeatedly(hook, frame, Kernel::in_a_row(hook, IN_A_ROW));
        assert_eq!(&bytes, frame, "{action:?}: client {client} has got to another's endpoint");
    }
}

fn both<A: Numbered>(kernel: &Kernel, hook: Hook) {
    let before = kernel.counters(hook);
    let cpus = cpus();
    std::thread::scope(|scope| {
        for (number, client) in [22, 23].into_iter().enumerate() {
            let cpu = cpus[number % cpus.len()];
            scope.spawn(move || keep_asking::<A>(kernel, hook, cpu, client));
        }
    });
    let moved = kernel.moved(hook, &before);
    let count = |reason| moved.get(&reason).copied().unwrap_or(0);
    assert!(count(Reason::NewFlow) > 50 && count(Reason::Forward) > 50, "{hook:?}: {moved:?}");
    println!("{hook:?} on CPUs {cpus:?}: {moved:?}");
}

#[test]
fn two_cpus_in_one_set_do_not_mix_their_flows() {
    let mut world = World::new();
    for number in [22, 23] {
        itself::<Ipv4>(&mut world, number);
        itself::<Ipv6>(&mut world, number);
    }
    world.config.ipv4.flow_set_mask = 0;
    world.config.ipv6.flow_set_mask = 0;
    let kernel = Kernel::of(&world, &HOOKS);
    for hook in HOOKS {
        both::<Ipv4>(&kernel, hook);
        both::<Ipv6>(&kernel, hook);
    }
}
