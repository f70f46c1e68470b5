//! Any bytes as a script of packets that go through the whole datapath.
#![no_main]

use std::sync::LazyLock;

use lb_testkit::fuzz::Stage;

static STAGE: LazyLock<Stage> = LazyLock::new(Stage::new);

libfuzzer_sys::fuzz_target!(|script: &[u8]| STAGE.play(script));
