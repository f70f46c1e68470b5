//! The template of all frames.

use std::net::{Ipv4Addr, SocketAddrV4};

use lb_common::addr::Ipv4;
use lb_common::wire::{Checksum, Delta};
use lb_testkit::Frame;

use crate::layout;

/// The TCP window of the flood's SYNs, by which they are known.
const WINDOW: u16 = u16::MAX;
/// The length of Ethernet's shortest frame.
const SHORTEST: usize = 60;

/// A SYN from the first source.
pub fn frame(mac: [u8; 6], to: SocketAddrV4) -> Vec<u8> {
    const WINDOW_AT: usize = 14 + 20 + 14;
    const CHECKSUM_AT: usize = 14 + 20 + 16;
    let source = Ipv4::from(Ipv4Addr::from(layout::FLOOD_NET));
    let mut frame = Frame::tcp((source, layout::FLOOD_FIRST_PORT), (Ipv4::from(*to.ip()), to.port())).build();
    frame[..6].copy_from_slice(&mac);
    let (old, new) = ([frame[WINDOW_AT], frame[WINDOW_AT + 1]], WINDOW.to_be_bytes());
    let checksum = Checksum([frame[CHECKSUM_AT], frame[CHECKSUM_AT + 1]]);
    let checksum = checksum.updated(Delta::default().word(old, new));
    frame[WINDOW_AT..][..2].copy_from_slice(&new);
    frame[CHECKSUM_AT..][..2].copy_from_slice(&checksum.0);
    frame.resize(SHORTEST, 0);
    frame
}
