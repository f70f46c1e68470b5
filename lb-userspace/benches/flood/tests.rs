//! Tests of what is pure in the bench `flood`.

#[expect(dead_code, reason = "most of it is for other programs")]
#[path = "../../../lb-ebpf/src/floors/layout.rs"]
mod layout;
mod pace;
mod syn;

use std::time::Duration;

use lb_testkit::checksums_hold;
use pace::Pace;

#[test]
fn a_syn_has_good_checksums_and_the_window_by_which_it_is_known() {
    let frame = syn::frame([2, 0, 0, 0, 0, 1], "192.0.2.1:80".parse().unwrap());
    assert_eq!(checksums_hold(&frame), Some(true));
    assert_eq!((frame.len(), &frame[47..50]), (60, &[0x02, 0xff, 0xff][..]));
    assert_eq!(frame[26..30], [198, 18, 0, 0]);
}

/// Of a hundred thousand a second, ten thousand in all.
fn batch(millis: u64, sent: u64, last: u32, rest_micros: u64) -> Option<u32> {
    let pace = Pace { rate: 100_000, count: 10_000 };
    pace.batch(Duration::from_millis(millis), sent, last, Duration::from_micros(rest_micros))
}

#[test]
fn what_is_due_is_sent_in_calls_neither_large_nor_small() {
    assert_eq!(batch(1, 0, 0, 0), Some(100));
    assert_eq!(batch(1, 40, 100, 1000), None);
    assert_eq!(batch(50, 0, 0, 0), Some(128));
}

#[test]
fn who_is_late_makes_up_for_it_at_twice_the_rate() {
    assert_eq!(batch(50, 128, 128, 639), None);
    assert_eq!(batch(50, 128, 128, 640), Some(128));
}

#[test]
fn the_last_frames_are_sent_and_no_more() {
    assert_eq!(batch(200, 9_990, 128, 1000), Some(10));
    assert_eq!(batch(200, 9_900, 128, 1000), Some(100));
    assert_eq!(batch(99, 9_990, 128, 1000), None);
}
