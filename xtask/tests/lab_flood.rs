//! A SYN flood takes nothing from those who mean it. `cargo xtask bench flood` shows how fast a flood may be.

use lb_common::abi::{WAYS, capacity};
use xtask::bench::flood::{Flooded, Programs, Scene};

/// SYNs a second that a busy machine can send and forward.
const RATE: u32 = 40_000;
/// Half as many again as the flow table has room for: a busy machine loses some on the way.
const COUNT: u64 = 400_000;
/// What the flow table has room for.
const ROOM: u64 = capacity::FLOW_SETS as u64 * WAYS as u64;

#[test]
fn open_connections_live_and_new_ones_succeed_under_a_syn_flood() {
    let helper = Some(env!("CARGO_BIN_EXE_xtask").into());
    let mut scene = Scene::new(Programs { helper, ..Programs::default() }).expect("a lab");
    for target in Flooded::ALL {
        let outcome = scene.flood(target, RATE, COUNT).expect("a flood");
        assert_eq!(outcome.flood.sent, COUNT);
        assert!(outcome.arrived() > ROOM, "{target}: {outcome:?}");
        assert!(outcome.kept() >= 1.0, "{target}: {outcome:?}");
        assert!(outcome.held.opened >= 100 && outcome.opened() >= 0.99, "{target}: {outcome:?}");
        println!("{target}: {outcome:?}");
    }
}
