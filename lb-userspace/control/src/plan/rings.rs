//! Rings to be written.

use std::net::IpAddr;
use std::sync::Arc;

use lb_common::abi::{BackendId, Ring};
use lb_common::addr::{Ipv4, Ipv6, Port};
use lb_common::maglev::{self, EndpointHash};

/// A ring whose slots have yet to be worked out.
///
/// The slots of all Services together may take a hundred megabytes; the members do not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingPlan {
    /// Where it goes.
    pub ring: Ring,
    pub(super) members: Arc<[Member]>,
    pub(super) seed: u64,
}

/// A backend of a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Member {
    pub(super) id: BackendId,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

impl RingPlan {
    /// Works the slots out.
    pub fn slots(&self) -> Arc<[BackendId]> {
        slots(&self.members, self.ring.length, self.seed)
    }
}

/// The slots of a ring of `length` over `members`, which are sorted by address and port.
pub(super) fn slots(members: &[Member], length: u32, seed: u64) -> Arc<[BackendId]> {
    let endpoints: Vec<_> = members
        .iter()
        .map(|member| {
            let port = Port::new(member.port);
            match member.address {
                IpAddr::V4(address) => EndpointHash::new(Ipv4::from(address), port, seed),
                IpAddr::V6(address) => EndpointHash::new(Ipv6::from(address), port, seed),
            }
        })
        .collect();
    let mut slots = vec![0; length as usize];
    maglev::build(&endpoints, &mut slots, &mut vec![0; endpoints.len()]);
    for slot in &mut slots {
        *slot = members[*slot as usize].id;
    }
    slots.into()
}
