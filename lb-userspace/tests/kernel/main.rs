//! The programs in this kernel, through `BPF_PROG_TEST_RUN`, held against the reference in memory.
//!
//! Root only. Nothing is attached: no packet of this machine is touched.

mod harness;

use std::collections::{BTreeMap, HashSet};

use harness::Kernel;
use lb_common::abi::{Hook, Moment, Reason};
use lb_common::addr::{Address as _, Ipv4, Ipv6, Proto};
use lb_common::testkit::{
    Action, Frame, Frontend, Input, MemoryTables, Numbered, Step, World, checksums_hold, client, fixtures,
    icmp_error, node, pieces, run,
};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

const PACKET_HOOKS: [Hook; 5] =
    [Hook::UplinkXdp, Hook::UplinkIngress, Hook::UplinkEgress, Hook::PodIngress, Hook::PodEgress];

#[test]
fn the_fixture_list_holds_in_the_kernel() {
    for fixture in fixtures() {
        let world = World::example();
        let (kernel, tables) = (Kernel::new(&world), MemoryTables::new(&world));
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

/// A million random frames and mutated frames of no Service leave every program as they came.
#[test]
fn what_is_not_ours_leaves_byte_identical() {
    let kernel = Kernel::new(&World::example());
    let mut dice = Dice::new(7);
    let per_hook = 1_000_000 / PACKET_HOOKS.len();
    for hook in PACKET_HOOKS {
        let before = kernel.counters(hook);
        for _ in 0..per_hook {
            let frame = if dice.below(2) == 0 { dice.garbage() } else { dice.stranger() };
            let (action, bytes) = kernel.run(hook, &frame);
            assert_eq!(action, Action::Pass, "{hook:?} {frame:02x?}");
            assert_eq!(bytes, frame, "{hook:?}");
        }
        let moved = kernel.moved(hook, &before);
        assert_eq!(moved.values().sum::<u64>(), per_hook as u64, "{hook:?}: one counter a packet");
        let ours = |reason: &Reason| {
            !matches!(
                reason,
                Reason::NotIp
                    | Reason::Malformed
                    | Reason::FragmentUnknown
                    | Reason::LeftToStack
                    | Reason::OtherProtocol
                    | Reason::NoService
                    | Reason::Martian
                    | Reason::NotForUs
            )
        };
        assert_eq!(moved.keys().copied().find(ours), None, "{hook:?}");
    }
}

/// Random packets of Services, mutated now and then: kernel and reference agree on every byte. A
/// conversation is 100 000 packets; `SHUNT_CONVERSATIONS` asks for more than one.
#[test]
fn kernel_and_reference_agree_on_random_conversations() {
    let wanted: u64 =
        std::env::var("SHUNT_CONVERSATIONS").map_or(1, |count| count.parse().expect("a number"));
    let mut seeds = 11..;
    for held in 0..wanted {
        let done = seeds.by_ref().take(10).any(|seed| conversation(seed).is_ok());
        assert!(done, "the clock moved on between kernel and reference every time: this machine is too busy");
        println!("conversation {} of {wanted} held", held + 1);
    }
}

/// The clock moved on between the kernel's turn and the reference's, so they may differ by right.
struct ClockMoved;

fn conversation(seed: u64) -> Result<(), ClockMoved> {
    let mut world = World::example();
    // Room for all flows: which half-open one is given up depends on the clock.
    world.config.ipv4.flow_set_mask = 16_383;
    world.config.ipv6.flow_set_mask = 16_383;
    let (kernel, tables) = (Kernel::new(&world), MemoryTables::new(&world));
    let mut dice = Dice::new(seed);
    let before: Vec<_> = PACKET_HOOKS.map(|hook| kernel.counters(hook)).into();
    let mut expected_reasons: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    let mut outputs: Vec<Vec<u8>> = Vec::new();
    for round in 0..100_000 {
        let hook = PACKET_HOOKS[dice.below(PACKET_HOOKS.len())];
        let frame = dice.packet_of(&world, &outputs);
        let now = quiet_moment();
        let (kernel_action, bytes) = kernel.run(hook, &frame);
        if shunt::dataplane::flows::now() != now {
            return Err(ClockMoved);
        }
        tables.set_now(now);
        let mut expected = frame.clone();
        let (action, reason) = run(hook, &mut expected, &tables);
        *expected_reasons.entry((hook as u32, reason as u32)).or_default() += 1;
        assert_eq!(kernel_action, action, "round {round} {hook:?} {reason:?} {frame:02x?}");
        if action == Action::Drop {
            continue;
        }
        assert_eq!(bytes, expected, "round {round} {hook:?} {reason:?} from {frame:02x?}");
        if checksums_hold(&frame) == Some(true) {
            assert_eq!(checksums_hold(&bytes), Some(true), "round {round} {hook:?} {reason:?}");
        }
        if outputs.len() < 512 {
            outputs.push(bytes);
        } else {
            let at = dice.below(512);
            outputs[at] = bytes;
        }
    }
    for (hook, before) in PACKET_HOOKS.into_iter().zip(&before) {
        for (reason, count) in kernel.moved(hook, before) {
            let expected = expected_reasons.remove(&(hook as u32, reason as u32)).unwrap_or(0);
            assert_eq!(count, expected, "{hook:?} {reason:?}");
        }
    }
    assert_eq!(expected_reasons, BTreeMap::new(), "reasons the kernel never counted");
    Ok(())
}

/// A moment of the flow clock that has some time left.
fn quiet_moment() -> Moment {
    const STEP: u64 = 1 << 26;
    loop {
        let clock = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock");
        let nanos = clock.tv_sec() as u64 * 1_000_000_000 + clock.tv_nsec() as u64;
        if nanos % STEP < STEP * 3 / 4 {
            return Moment::from_nanos(nanos);
        }
        std::hint::spin_loop();
    }
}

/// Two CPUs, the same first packets at the same time: no flow with two backends, no shared port.
#[test]
fn two_cpus_make_one_flow() {
    let mut world = World::example();
    world.config.ipv4.flow_set_mask = 4095;
    (world.config.nat_port_first, world.config.nat_port_count) = (10_000, 20_000);
    let kernel = Kernel::new(&world);
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
    let flows = kernel.live_flows();
    let clients: HashSet<_> = flows.iter().map(|flow| (flow.client, flow.client_port)).collect();
    assert_eq!(clients.len(), flows.len(), "one record for one flow");
    let ports: HashSet<_> = flows.iter().map(|flow| flow.nat_port).collect();
    assert_eq!(ports.len(), flows.len(), "one masquerading port for one flow to this backend");
    assert!(flows.len() > 1000, "{} flows", flows.len());
}

/// Dice for frames, seeded so that a failure repeats.
struct Dice {
    runner: TestRunner,
    state: u64,
}

impl Dice {
    fn new(seed: u64) -> Self {
        Self { runner: TestRunner::deterministic(), state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = lb_common::datapath::select::mix(self.state, 0x9e37_79b9);
        self.state
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    /// Random bytes behind an EtherType that is IPv4 or IPv6 most of the time.
    fn garbage(&mut self) -> Vec<u8> {
        let length = 54 + self.below(100);
        let mut frame: Vec<u8> = (0..length).map(|_| self.next() as u8).collect();
        match self.below(3) {
            0 => frame[12..14].copy_from_slice(&[8, 0]),
            1 => {
                frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
                // Half of them with extension headers to walk through.
                frame[20] = [0, 43, 44, 51, 60, 6, 17, 58, self.next() as u8][self.below(9)];
                let payload = (length.saturating_sub(54)) as u16;
                frame[18..20].copy_from_slice(&payload.to_be_bytes());
            }
            _ => {}
        }
        frame
    }

    /// A good frame between addresses that are no frontends, with up to three bytes changed.
    fn stranger(&mut self) -> Vec<u8> {
        if self.below(2) == 0 { self.stranger_of::<Ipv4>(30..34) } else { self.stranger_of::<Ipv6>(38..54) }
    }

    /// Changes stay clear of the destination, so that it cannot become a Service's.
    fn stranger_of<A: Numbered>(&mut self, destination: std::ops::Range<usize>) -> Vec<u8> {
        let source = (A::client(self.next() as u8), self.next() as u16);
        let to = (A::remote_pod(self.next() as u8), 1 + (self.next() as u16 >> 1));
        let payload = vec![self.next() as u8; self.below(64)];
        let frame = match self.below(5) {
            0 | 1 => Frame::tcp(source, to).flags(self.next() as u8),
            2 | 3 => Frame::udp(source, to),
            _ => Frame::sctp(source, to, self.next() as u8),
        };
        let mut bytes = frame.clone().ip_options(self.below(3)).payload(&payload).build();
        match self.below(8) {
            0 if bytes.len() > 80 => bytes = pieces(&frame.payload(&[7; 64]).build(), 24).swap_remove(1),
            1 => bytes = icmp_error(A::client(3), &bytes),
            _ => {}
        }
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len());
            if !destination.contains(&at) {
                bytes[at] ^= self.next() as u8;
            }
        }
        bytes
    }

    /// A packet to a Service, the answer to a packet that came out earlier, an error about one, a piece of
    /// one, or any of them damaged.
    fn packet_of(&mut self, world: &World, outputs: &[Vec<u8>]) -> Vec<u8> {
        let flags = [0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, self.next() as u8][self.below(8)];
        let mut bytes = if outputs.is_empty() || self.below(3) == 0 {
            let port = self.below(60);
            let (frontend, _) = world.services[(port + self.below(3)) % world.services.len()];
            if frontend.0.unmapped().is_some() {
                self.opening_of::<Ipv4>(frontend, port, flags)
            } else {
                self.opening_of::<Ipv6>(frontend, port, flags)
            }
        } else {
            let earlier = outputs[self.below(outputs.len())].clone();
            let input = match self.below(6) {
                0 => Input::ErrorAbout(0, if self.below(2) == 0 { Ipv6::client(9) } else { Ipv6::pod(4) }),
                1 | 2 => Input::Bytes(earlier.clone()),
                _ => Input::AnswerTo(0, flags),
            };
            let input = match input {
                Input::ErrorAbout(step, reporter) if earlier[12..14] == [8, 0] => {
                    let address = if reporter == Ipv6::pod(4) { Ipv4::pod(4) } else { Ipv4::client(9) };
                    Input::ErrorAbout(step, address.to_mapped())
                }
                other => other,
            };
            let mut copy = earlier.clone();
            let packet = lb_common::wire::SlicePacket(&mut copy);
            let parses = if earlier[12..14] == [8, 0] {
                lb_common::datapath::parse4(&packet).is_ok()
            } else {
                lb_common::datapath::parse6(&packet).is_ok()
            };
            if parses {
                Step { hook: Hook::PodIngress, input, action: Action::Pass, reason: Reason::Reply }
                    .bytes(&[earlier])
            } else {
                earlier
            }
        };
        if self.below(8) == 0 {
            let at = 14 + self.below(bytes.len() - 14);
            bytes[at] ^= proptest::num::u8::ANY.new_tree(&mut self.runner).expect("a byte").current();
        }
        bytes
    }

    fn opening_of<A: Numbered>(&mut self, frontend: Frontend, port: usize, flags: u8) -> Vec<u8> {
        let sources = [A::client(1), A::client(2), A::pod(1), A::pod(4), A::pod(9)];
        let source = (sources[self.below(5)], 1000 + port as u16);
        let destination = (A::from_mapped(frontend.0), frontend.1.get());
        let frame = match frontend.2 {
            Proto::TCP => Frame::tcp(source, destination).flags(flags),
            Proto::SCTP => Frame::sctp(source, destination, [1, 2, 6, 7, 8, 10][self.below(6)]),
            _ => Frame::udp(source, destination),
        };
        if frontend.2 != Proto::SCTP && self.below(10) == 0 {
            let whole = frame.payload(&[self.next() as u8; 200]).build();
            let index = self.below(3);
            return pieces(&whole, 72).swap_remove(index);
        }
        let payload = vec![self.next() as u8; self.below(40)];
        let frame = if frontend.2 == Proto::SCTP { frame } else { frame.payload(&payload) };
        frame.ip_options(self.below(20).saturating_sub(16)).build()
    }
}
