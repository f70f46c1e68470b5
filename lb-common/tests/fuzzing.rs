//! What the fuzzers run, on the fixture list and on mutations of it: a part of every test run.
//!
//! `SHUNT_MUTATIONS` asks for more than there are by default.

use lb_common::abi::Reason;
use lb_testkit::fuzz::{Dice, Laws, Passage, Stage, Traffic, damage, packets, parser, scripts};
use lb_testkit::{Action, MemoryTables, World, run};

fn mutations() -> u64 {
    std::env::var("SHUNT_MUTATIONS").map_or(100_000, |count| count.parse().expect("a number"))
}

/// Packets that fuzzers have found a fault with.
const FOUND: [&[u8]; 1] = [
    // A first fragment of UDP that ends before its ports.
    &[
        0x45, 0, 0, 22, 0x12, 0x34, 0x60, 0, 64, 17, 0x12, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0x7e, 0x28, 1, 0,
        0x50, 0, 8, 0xe9, 0x2d,
    ],
];

/// Changes some bytes, cuts, repeats or joins.
fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..=dice.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = dice.below(bytes.len());
        match dice.below(6) {
            0 | 1 => bytes[at] ^= 1 << dice.below(8),
            2 => bytes[at] = dice.byte(),
            3 => bytes.truncate(at),
            4 => bytes.insert(at, dice.byte()),
            _ => bytes.extend_from_slice(&others[dice.below(others.len())]),
        }
    }
}

#[test]
fn the_parser_says_what_packets_say() {
    let (mut seeds, mut dice) = (packets(), Dice::new(1));
    seeds.extend(FOUND.map(<[u8]>::to_vec));
    seeds.iter().for_each(|packet| parser(packet));
    for _ in 0..mutations() {
        let mut packet = seeds[dice.below(seeds.len())].clone();
        if dice.once_in(2) {
            mutate(&mut dice, &mut packet, &seeds);
        } else {
            let ethertype = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
            let mut frame = [&[0; 12], &ethertype[..], &packet[..]].concat();
            damage(&mut dice, &mut frame);
            packet = frame.split_off(frame.len().min(14));
        }
        parser(&packet);
    }
}

#[test]
fn scripts_keep_the_laws() {
    let (seeds, stage, mut dice) = (scripts(), Stage::new(), Dice::new(2));
    seeds.iter().for_each(|script| stage.play(script));
    for _ in 0..mutations() / 20 {
        let mut script = seeds[dice.below(seeds.len())].clone();
        mutate(&mut dice, &mut script, &seeds);
        stage.play(&script);
    }
}

#[test]
fn random_traffic_keeps_the_laws() {
    let world = World::example();
    let (tables, laws, mut traffic) = (MemoryTables::new(&world), Laws::new(&world), Traffic::new(3));
    for _ in 0..mutations() {
        let (hook, before) = traffic.packet(&world);
        let mut after = before.clone();
        let (action, reason) = run(hook, &mut after, &tables);
        laws.check(&Passage { hook, before: &before, after: &after, action, reason });
        if action != Action::Drop {
            traffic.came_out(after);
        }
        if traffic.dice().once_in(1000) {
            tables.pass_seconds(20);
        }
    }
}

#[test]
fn the_address_filter_saves_looks_and_changes_nothing() {
    let world = World::example();
    let (filtering, mut looking, mut traffic) =
        (MemoryTables::new(&world), MemoryTables::new(&world), Traffic::new(4));
    looking.let_all_addresses_concern();
    for _ in 0..mutations() {
        let (hook, frame) = traffic.packet(&world);
        let (mut one, mut other) = (frame.clone(), frame.clone());
        let outcome = run(hook, &mut one, &filtering);
        // (Who looks sees more of what is nobody's business: a flow to this very backend, by whatever address.)
        let as_counted = |(action, reason)| {
            (action, if reason == Reason::Translated { Reason::NoService } else { reason })
        };
        let looked = run(hook, &mut other, &looking);
        assert_eq!(as_counted(outcome), as_counted(looked), "{hook:?} {frame:02x?}");
        assert_eq!(one, other, "{hook:?} {frame:02x?}");
        if outcome.0 != Action::Drop {
            traffic.came_out(one);
        }
        if traffic.dice().once_in(1000) {
            filtering.pass_seconds(20);
            looking.pass_seconds(20);
        }
    }
    assert_eq!(filtering.live_flows(), looking.live_flows());
}
