//! Routes that XDP has asked the kernel for a moment ago.
//!
//! To ask costs as much as all else that is done with a packet of a known flow. An answer is good for the rest of its
//! moment, a fifteenth of a second: no longer than a neighbour that is gone goes unnoticed anyway.

use lb_common::abi::Moment;
use lb_common::addr::Address;
use lb_common::datapath::Route;

/// Routes a CPU remembers; a power of two.
pub const ROUTES: u32 = 1024;

/// Where a route is remembered.
#[inline(always)]
pub fn place<A: Address>(source: A, destination: A) -> u32 {
    // The golden ratio's bits spread neighbouring addresses; the high ones of the product depend on all.
    let hash = (destination.fold() ^ source.fold().rotate_left(16)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 32) as u32 % ROUTES
}

/// An answer of the kernel, and to what.
pub struct KnownRoute<A> {
    destination: A,
    source: A,
    /// Where the packet came in.
    ingress: u32,
    /// When it was asked for.
    moment: Moment,
    interface: u32,
    destination_mac: [u8; 6],
    source_mac: [u8; 6],
    /// The longest packet that goes there, in bytes from the IP header on.
    longest: u16,
    /// What to masquerade with on that way.
    masquerade: A,
}

/// What is asked.
#[derive(Clone, Copy)]
pub struct Asked<A> {
    /// Of a packet from here; unspecified: from anywhere.
    pub source: A,
    /// To there.
    pub destination: A,
    /// That has come in here.
    pub ingress: u32,
    /// Now.
    pub moment: Moment,
}

impl<A: Copy + PartialEq> KnownRoute<A> {
    /// The answer, if it is there and a packet of `length` bytes may go that way.
    #[inline(always)]
    pub fn answer(&self, asked: &Asked<A>, length: u16) -> Option<Route> {
        let known = self.is_of(asked) && length <= self.longest;
        known.then_some(Route {
            interface: self.interface,
            same_interface: self.interface == asked.ingress,
            destination_mac: self.destination_mac,
            source_mac: self.source_mac,
        })
    }

    /// What to masquerade with, if that is known.
    #[inline(always)]
    pub fn masquerade(&self, asked: &Asked<A>) -> Option<A> {
        self.is_of(asked).then_some(self.masquerade)
    }

    /// Notes what to masquerade with, and nothing else.
    #[inline(always)]
    pub fn note_masquerade(&mut self, asked: &Asked<A>, masquerade: A) {
        self.ask(asked);
        self.longest = 0;
        self.masquerade = masquerade;
    }

    #[inline(always)]
    fn is_of(&self, asked: &Asked<A>) -> bool {
        self.moment == asked.moment
            && self.destination == asked.destination
            && self.source == asked.source
            && self.ingress == asked.ingress
    }

    #[inline(always)]
    fn ask(&mut self, asked: &Asked<A>) {
        self.destination = asked.destination;
        self.source = asked.source;
        self.ingress = asked.ingress;
        self.moment = asked.moment;
    }

    /// Notes an answer.
    #[inline(always)]
    pub fn note(&mut self, asked: &Asked<A>, route: &Route, longest: u16) {
        self.ask(asked);
        self.interface = route.interface;
        self.destination_mac = route.destination_mac;
        self.source_mac = route.source_mac;
        self.longest = longest;
    }
}
