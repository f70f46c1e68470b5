//! What came of the frames that were sent.

use std::net::Ipv4Addr;

use lb_testkit::checksums_hold;

use crate::case::Case;
use crate::layout;

/// What came of the frames that were sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// How many there were.
    pub sent: u32,
    /// How many arrived.
    pub arrived: u64,
    /// How many of these with the right destination.
    pub right: u64,
    /// One of them.
    pub sample: Vec<u8>,
    /// CPU time of all of them.
    pub nanos: u64,
    /// Part of the time they took which this is.
    pub busy: f64,
}

impl Sent {
    /// What is not as it should be with the frames that arrived.
    pub fn problem(&self, case: &Case) -> Option<String> {
        let enough = u64::from(self.sent - self.sent / 200);
        let from = u32::from_be_bytes(bytes4(&self.sample, 26));
        let is_clients = from >> 25 == layout::CLIENT_NET >> 25;
        if self.arrived < enough || self.arrived > u64::from(self.sent) {
            Some(format!("{} of {} frames arrived", self.arrived, self.sent))
        } else if self.right < enough {
            Some(format!("{} of {} frames had the right destination", self.right, self.sent))
        } else if checksums_hold(&self.sample) != Some(true) {
            Some(format!("a checksum is wrong: {:02x?}", self.sample))
        } else if is_clients == case.is_masqueraded() {
            Some(format!("the backend saw {}", Ipv4Addr::from(from)))
        } else {
            None
        }
    }
}

/// Four bytes of a frame.
pub fn bytes4(frame: &[u8], at: usize) -> [u8; 4] {
    frame.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
}
