//! Whether XDP forwards a packet by itself.

use super::Family;
use super::desk::Desk;
use super::outcome::Leg;
use super::parse::Parsed;
use super::rewrite::Translation;
use super::tables::Route;

/// The kernel's routes, which only XDP needs to ask.
pub trait Router<A> {
    /// Where a packet of `length` bytes goes, if XDP may send it there by itself: a neighbour is
    /// known, the packet fits, and a program of ours sits on the interface.
    fn route(&self, source: A, destination: A, length: u16, desk: &mut Desk<A>) -> Option<Route>;
}

/// How a packet gets its new addresses.
#[derive(Clone, Copy, Debug)]
pub enum Forwarding<A> {
    /// The kernel delivers it to a backend of this node.
    Deliver(Translation<A>),
    /// It leaves the node again by this route.
    Transmit(Translation<A>, Route),
    /// It is left as it came: tc and the kernel do it, and find the neighbour or send the ICMP error that is missing.
    Leave,
}

/// Decides for XDP on an uplink.
///
/// Backends on this node: the destination is translated and the kernel delivers. Masqueraded flows
/// are translated completely and sent on.
#[inline(always)]
pub fn forward<A: Family, R: Router<A>>(
    leg: Leg,
    parsed: &Parsed<A>,
    router: &R,
    desk: &mut Desk<A>,
) -> Forwarding<A> {
    let (translation, leaves) = leg.whole_translation(&desk.found);
    if !leaves {
        return Forwarding::Deliver(translation);
    }
    // Options and extension headers may be a router's business.
    if parsed.ttl <= 1 || parsed.l4() != parsed.l3() + A::HEADER_LENGTH {
        return Forwarding::Leave;
    }
    let (source, destination) = (translation.source.0, translation.destination.0);
    match router.route(source, destination, parsed.l3_length, desk) {
        Some(route) => Forwarding::Transmit(translation, route),
        None => Forwarding::Leave,
    }
}
