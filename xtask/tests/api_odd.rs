//! Packets that cannot be true, at Shunt and at the real kube-proxy side by side.

use std::path::Path;

use xtask::twin::odd::compare;

#[test]
fn odd_packets_end_as_with_kube_proxy() {
    let report = compare(Path::new(env!("CARGO_BIN_EXE_xtask"))).unwrap_or_else(|error| panic!("{error:?}"));
    println!("{report}");
    assert!(report.is_in_order(), "see above");
}
