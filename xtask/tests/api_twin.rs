//! Shunt beside the real kube-proxy: the same to every client, but for the list of docs/differences.md.

use std::path::Path;

use lb_lab::Family;
use xtask::twin::kube_proxy::Mode;
use xtask::twin::shape::Shape;
use xtask::twin::{DEFAULT_SEED, compare};

/// Another seed, as a failed run has printed it.
const SEED: &str = "SHUNT_TWIN_SEED";

#[test]
fn every_client_gets_the_same_from_both() {
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().unwrap_or_else(|error| panic!("{SEED}={seed}: {error}")),
        Err(_) => DEFAULT_SEED,
    };
    let helper = Path::new(env!("CARGO_BIN_EXE_xtask"));
    let report = compare(seed, &Family::ALL, (Shape::Plain, Mode::default()), helper)
        .unwrap_or_else(|error| panic!("{error:?}"));
    println!("{report}");
    let unlisted = report.unlisted().count();
    assert!(report.is_good(), "{unlisted} differences that are not listed, see above; {SEED}={seed}");
}
