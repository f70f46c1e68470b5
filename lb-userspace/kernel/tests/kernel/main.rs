//! The programs in this kernel, through `BPF_PROG_TEST_RUN`, held against the reference in memory.
//!
//! Root only. Nothing is attached: no packet of this machine is touched.

mod hammer;
mod harness;
mod priorities;

use std::collections::{BTreeMap, HashSet};

use harness::Kernel;
use lb_common::abi::{Hook, Moment, Reason};
use lb_common::wire::{ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LENGTH, IPV6_LENGTH};
use lb_testkit::fuzz::{Laws, PACKET_HOOKS, Passage, Traffic, is_untouched};
use lb_testkit::{Action, Frame, MemoryTables, World, client, fixtures, node, run};

#[test]
fn the_fixture_list_holds_in_the_kernel() {
    let world = World::example();
    let mut kernel = Kernel::new(&world);
    for fixture in fixtures() {
        kernel.forget();
        let tables = MemoryTables::new(&world);
        let mut outputs = Vec::new();
        for (index, step) in fixture.steps.iter().enumerate() {
            let input = step.bytes(&outputs);
            let mut expected = input.clone();
            run(step.hook, &mut expected, &tables);
            let before = kernel.counters(step.hook);
            let (action, bytes) = kernel.run(step.hook, &input);
            let moved = kernel.moved(step.hook, &before);
            let name = format!("{}, step {index}", fixture.name);
            assert_eq!(moved, [(step.reason, 1)].into(), "{name}: exactly one counter moves");
            assert_eq!(action, step.action, "{name}");
            if action != Action::Drop {
                assert_eq!(bytes, expected, "{name}: same bytes as the reference");
            }
            outputs.push(bytes);
        }
    }
}

/// How many random packets are sent instead of so many: `SHUNT_RANDOM_PART` of 10 sends a tenth, for machines that
/// are emulated.
fn part_of(usual: usize) -> usize {
    usual / std::env::var("SHUNT_RANDOM_PART").map_or(1, |part| part.parse().expect("a number"))
}

/// A million random frames and damaged frames of no Service leave every program as they came.
#[test]
fn what_is_not_ours_leaves_byte_identical() {
    let world = World::example();
    let kernel = Kernel::new(&world);
    let mut traffic = Traffic::new(7);
    let per_hook = part_of(1_000_000) / PACKET_HOOKS.len();
    for hook in PACKET_HOOKS {
        let before = kernel.counters(hook);
        for _ in 0..per_hook {
            let frame = if traffic.dice().once_in(2) { traffic.garbage() } else { traffic.stranger() };
            let (action, bytes) = kernel.run(hook, &frame);
            assert_eq!(action, Action::Pass, "{hook:?} {frame:02x?}");
            assert_eq!(bytes, frame, "{hook:?}");
        }
        let moved = kernel.moved(hook, &before);
        assert_eq!(moved.values().sum::<u64>(), per_hook as u64, "{hook:?}: one counter a packet");
        assert_eq!(moved.keys().copied().find(|reason| !is_untouched(*reason)), None, "{hook:?}");
    }
}

/// Random packets of Services and strangers, damaged now and then: kernel and reference agree on every
/// verdict, byte and counter, and the laws hold. A conversation is 100 000 packets; `SHUNT_CONVERSATIONS`
/// asks for more than one.
#[test]
fn kernel_and_reference_agree_on_random_conversations() {
    let wanted: u64 =
        std::env::var("SHUNT_CONVERSATIONS").map_or(1, |count| count.parse().expect("a number"));
    let (mut seeds, mut total) = (11.., Counts::default());
    for held in 0..wanted {
        let counts = seeds.by_ref().take(10).find_map(|seed| conversation(seed).ok());
        let counts = counts
            .expect("the clock moved on between kernel and reference every time: this machine is too busy");
        for (what, count) in counts {
            *total.entry(what).or_default() += count;
        }
        println!("conversation {} of {wanted} held", held + 1);
    }
    for ((hook, ipv6, reason), count) in &total {
        println!("{hook:?} {} {reason:?}: {count}", if *ipv6 { "IPv6" } else { "other" });
    }
    // Traffic that never gets to the point would prove nothing. (Of few packets many are first ones.)
    for (hook, ipv6) in PACKET_HOOKS.into_iter().flat_map(|hook| [(hook, false), (hook, true)]) {
        let translated = [Reason::NewFlow, Reason::Forward, Reason::Reply];
        let seen = translated.iter().any(|reason| total.contains_key(&(hook, ipv6, *reason)));
        assert!(seen, "{hook:?} has translated nothing; IPv6: {ipv6}");
    }
}

/// The kernel test-runs nothing without a byte behind the Ethernet header, nor tc on less than the network
/// header that is told.
fn shortest(hook: Hook, frame: &[u8]) -> usize {
    ETHERNET_LENGTH
        + match [frame[12], frame[13]] {
            ETHERTYPE_IPV4 if hook != Hook::UplinkXdp => IPV4_LENGTH,
            ETHERTYPE_IPV6 if hook != Hook::UplinkXdp => IPV6_LENGTH,
            _ => 1,
        }
}

/// The clock moved on between the kernel's turn and the reference's, so they may differ by right.
struct ClockMoved;

/// How many packets had this reason at this hook; IPv6 or not.
type Counts = BTreeMap<(Hook, bool, Reason), u64>;

fn conversation(seed: u64) -> Result<Counts, ClockMoved> {
    let mut world = World::example();
    // Room for all flows: which half-open one is given up depends on the clock.
    world.config.ipv4.flow_set_mask = 16_383;
    world.config.ipv6.flow_set_mask = 16_383;
    let (kernel, tables, laws) = (Kernel::new(&world), MemoryTables::new(&world), Laws::new(&world));
    let (mut traffic, clock) = (Traffic::new(seed), ProgramsClock::new());
    let counters: Vec<_> = PACKET_HOOKS.map(|hook| kernel.counters(hook)).into();
    let mut counts = Counts::new();
    for round in 0..part_of(100_000) {
        let (hook, mut before) = traffic.packet(&world);
        let shortest = shortest(hook, &before);
        before.resize(before.len().max(shortest), 0);
        let now = clock.quiet_moment();
        let (kernel_action, bytes) = kernel.run(hook, &before);
        if clock.now() != now {
            return Err(ClockMoved);
        }
        tables.set_now(now);
        let mut after = before.clone();
        let (action, reason) = run(hook, &mut after, &tables);
        *counts.entry((hook, before[12..14] == ETHERTYPE_IPV6, reason)).or_default() += 1;
        let which = || format!("seed {seed} round {round} {hook:?} {reason:?} from {before:02x?}");
        assert_eq!(kernel_action, action, "{}", which());
        laws.check(&Passage { hook, before: &before, after: &after, action, reason });
        if action != Action::Drop {
            assert_eq!(bytes, after, "{}", which());
            traffic.came_out(bytes);
        }
    }
    for (hook, before) in PACKET_HOOKS.into_iter().zip(&counters) {
        let mut expected = BTreeMap::<Reason, u64>::new();
        for ((_, _, reason), count) in counts.iter().filter(|((of, ..), _)| *of == hook) {
            *expected.entry(*reason).or_default() += count;
        }
        assert_eq!(kernel.moved(hook, before), expected, "{hook:?}: one counter a packet");
    }
    Ok(counts)
}

/// The programs' clock, read from outside: it runs with the coarse clock, some ticks behind, which the kernel
/// missed before it could count them.
struct ProgramsClock {
    behind_nanos: u64,
}

impl ProgramsClock {
    fn new() -> Self {
        let clock = lb_kernel::maps::flows::clock().expect("how long a tick lasts");
        let timers = std::fs::read_to_string("/proc/timer_list").expect("the kernel's timers; are you root?");
        let jiffies = timers.lines().find_map(|line| line.strip_prefix("jiffies: "));
        let jiffies: u64 = jiffies.expect("the count of ticks").parse().expect("a number");
        let counted = (jiffies - clock.first_tick) * clock.tick_nanos;
        Self { behind_nanos: coarse_nanos().saturating_sub(counted) }
    }

    fn now(&self) -> Moment {
        Moment::from_nanos(coarse_nanos() - self.behind_nanos)
    }

    /// A moment that has some time left, and has begun for certain.
    fn quiet_moment(&self) -> Moment {
        const STEP: u64 = 1 << 26;
        loop {
            let nanos = coarse_nanos() - self.behind_nanos;
            if (STEP / 8..STEP * 3 / 4).contains(&(nanos % STEP)) {
                return Moment::from_nanos(nanos);
            }
            std::hint::spin_loop();
        }
    }
}

fn coarse_nanos() -> u64 {
    let clock = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock");
    clock.tv_sec() as u64 * 1_000_000_000 + clock.tv_nsec() as u64
}

/// Two CPUs, the same first packets at the same time: no flow with two backends, no shared port.
#[test]
fn two_cpus_make_one_flow() {
    let mut world = World::example();
    world.config.ipv4.flow_set_mask = 4095;
    (world.config.nat_port_first, world.config.nat_port_count) = (10_000, 20_000);
    let kernel = Kernel::of(&world, &[Hook::UplinkIngress]);
    let syns: Vec<Vec<u8>> = (0..4_000_u32)
        .map(|n| {
            let source = (client((n >> 12) as u8), 1024 + (n & 0xfff) as u16);
            Frame::tcp(source, (node(), 30_081)).build()
        })
        .collect();
    let results: Vec<Vec<(Action, Vec<u8>)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (kernel, syns) = (&kernel, &syns);
                scope.spawn(move || {
                    syns.iter().map(|syn| kernel.run(Hook::UplinkIngress, syn)).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    for (a, b) in results[0].iter().zip(&results[1]) {
        if a.0 == Action::Pass && b.0 == Action::Pass {
            assert_eq!(a.1, b.1, "one backend for one flow");
        }
    }
    let lost = results.iter().flatten().filter(|(action, _)| *action != Action::Pass).count();
    // In step, they lose many races against each other, and try again; a host that takes a CPU away costs one or two.
    assert!(lost < 80, "{lost} of 8000 first packets are lost");
    let flows = kernel.live_flows();
    let clients: HashSet<_> = flows.iter().map(|flow| (flow.client, flow.client_port)).collect();
    assert_eq!(clients.len(), flows.len(), "one record for one flow");
    let ports: HashSet<_> = flows.iter().map(|flow| flow.nat_port).collect();
    assert_eq!(ports.len(), flows.len(), "one masquerading port for one flow to this backend");
    assert!(flows.len() > 1000, "{} flows", flows.len());
}
