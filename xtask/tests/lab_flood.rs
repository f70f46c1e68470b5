//! A SYN flood takes nothing from those who mean it. `cargo xtask bench flood` shows how fast a flood may be.

use lb_common::abi::{WAYS, capacity};
use xtask::bench::flood::{Flooded, Programs, Scene};

/// SYNs a second that a busy machine can send and forward.
const RATE: u32 = 40_000;
/// Half as many again as the flow table has room for: a busy machine loses some before they leave the client.
const COUNT: u64 = 400_000;
/// A tenth more than the flow table has room for.
const MORE_THAN_FIT: u64 = capacity::FLOW_SETS as u64 * WAYS as u64 / 10 * 11;

#[test]
fn open_connections_live_and_new_ones_succeed_under_a_syn_flood() {
    let helper = Some(env!("CARGO_BIN_EXE_xtask").into());
    let mut scene = Scene::new(Programs { helper, ..Programs::default() }).expect("a lab");
    for target in Flooded::ALL {
        let outcome = scene.flood(target, RATE, COUNT).expect("a flood");
        assert_eq!(outcome.flood.sent, COUNT);
        let unsent = outcome.lost.iter().filter(|(netns, _)| netns.starts_with("client "));
        let sent = COUNT - unsent.map(|(_, count)| count).sum::<u64>();
        assert!(outcome.arrived() > sent / 10 * 9, "{target}: {outcome:?}");
        assert!(outcome.arrived() > MORE_THAN_FIT, "{target}: {outcome:?}");
        assert!(outcome.kept() >= 1.0, "{target}: {outcome:?}");
        assert!(outcome.held.opened >= 100 && outcome.opened() >= 0.99, "{target}: {outcome:?}");
        println!("{target}: {outcome:?}");
    }
}
