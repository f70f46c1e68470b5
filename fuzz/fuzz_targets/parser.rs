//! Any bytes as the packet of a frame of either family.
#![no_main]

libfuzzer_sys::fuzz_target!(|packet: &[u8]| lb_testkit::fuzz::parser(packet));
