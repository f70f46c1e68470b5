//! Two priorities on one CPU. Where a program can be interrupted by another of the same CPU, as on PREEMPT_RT without a
//! lock around softirqs, what the two keep on their CPU must not mix.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lb_common::abi::{Hook, Reason, ServiceFlags};
use lb_common::addr::{Ipv4, Ipv6, Proto};
use lb_testkit::{Action, Frame, Numbered, World};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};

use crate::harness::Kernel;

/// How long the urgent one comes in between, at each hook.
const LONG_ENOUGH: Duration = Duration::from_secs(1);
/// The time between.
const PAUSE: Duration = Duration::from_micros(150);
/// Packets of one call to the kernel: enough for most of the time to be spent in programs.
const IN_A_ROW: u32 = 64;
/// A hook of tc and one of XDP.
pub const HOOKS: [Hook; 2] = [Hook::PodIngress, Hook::UplinkXdp];
/// Ports of a client: its flows are made anew when their turn comes again.
const PORTS: u16 = 20_000;

/// A Service whose endpoint is its own address, so that a packet stays what it is however often it is translated.
pub fn itself<A: Numbered>(world: &mut World, number: u8) {
    let entry = (A::vip(number), 80, true);
    world.add((A::vip(number), 80), Proto::UDP, ServiceFlags::default(), &[entry]);
}

/// A packet of client `number` to that Service.
pub fn packet<A: Numbered>(number: u8, port: u16) -> Vec<u8> {
    Frame::udp((A::pod(number), port), (A::vip(number), 80)).build()
}

/// Runs a packet on the first CPU at a priority, again and again, and says how many were run.
fn keep_running(
    kernel: &Kernel,
    hook: Hook,
    (priority, pause): (u32, Option<Duration>),
    client: u8,
    go_on: &dyn Fn() -> bool,
) -> u64 {
    let mut first = CpuSet::new();
    first.set(0).expect("there is a CPU 0");
    sched_setaffinity(Pid::from_raw(0), &first).expect("this thread may run there");
    let thread = gettid().to_string();
    let status = Command::new("chrt").args(["--fifo", "--pid", &priority.to_string(), &thread]).status();
    assert!(status.expect("chrt").success(), "no real-time priority for thread {thread}");
    let mut run = 0;
    for port in (1024..1024 + PORTS).cycle() {
        if !go_on() {
            break;
        }
        for frame in &[packet::<Ipv4>(client, port), packet::<Ipv6>(client, port)] {
            let in_a_row = Kernel::in_a_row(hook, IN_A_ROW);
            let (action, bytes) = kernel.run_repeatedly(hook, frame, in_a_row);
            assert_eq!((action, &bytes), (Action::Pass, frame), "{hook:?}, priority {priority}, after {run}");
            run += u64::from(in_a_row);
        }
        if let Some(pause) = pause {
            std::thread::sleep(pause);
        }
    }
    run
}

#[test]
fn two_priorities_on_one_cpu_do_not_mix() {
    let mut world = World::new();
    for number in [20, 21] {
        itself::<Ipv4>(&mut world, number);
        itself::<Ipv6>(&mut world, number);
    }
    // So many that the two hardly ever want the same set: who interrupts a flow in the making does without its own.
    world.config.ipv4.flow_set_mask = 65_535;
    world.config.ipv6.flow_set_mask = 65_535;
    let kernel = Kernel::of(&world, &HOOKS);
    for hook in HOOKS {
        let before = kernel.counters(hook);
        let over = AtomicBool::new(false);
        let total: u64 = std::thread::scope(|scope| {
            let kernel = &kernel;
            let over = &over;
            let low = scope
                .spawn(move || keep_running(kernel, hook, (1, None), 20, &|| !over.load(Ordering::Relaxed)));
            let high = scope.spawn(move || {
                let began = Instant::now();
                let goes_on = || began.elapsed() < LONG_ENOUGH;
                let run = keep_running(kernel, hook, (50, Some(PAUSE)), 21, &goes_on);
                over.store(true, Ordering::Relaxed);
                run
            });
            [low, high].map(|thread| thread.join().expect("packets as they were")).iter().sum()
        });
        let moved = kernel.moved(hook, &before);
        assert!(moved.contains_key(&Reason::Forward), "{hook:?} has translated nothing: {moved:?}");
        assert_eq!(moved.values().sum::<u64>(), total, "{hook:?}: one counter a packet: {moved:?}");
    }
}
