//! Whether XDP forwards a packet by itself.

use super::ingress::{Origin, Resolved, resolve};
use super::parse::Parsed;
use super::rewrite::Translation;
use super::tables::{Route, Tables};
use super::{Family, Tally, Verdict};
use crate::abi::Reason;

/// The kernel's routes, which only XDP needs to ask.
pub trait Router<A> {
    /// Where a packet of `length` bytes goes, if XDP may send it there by itself: a neighbour is
    /// known, the packet fits, and a program of ours sits on the interface.
    fn route(&self, source: A, destination: A, length: u16) -> Option<Route>;
}

/// What XDP does with a frame that [`Family::parse`] does not give as a datagram: later pieces and ICMP
/// errors are left to tc, all else passes.
#[inline(always)]
pub const fn unparsed(reason: Reason) -> Reason {
    match reason {
        Reason::Fragment | Reason::IcmpError => Reason::LeftToStack,
        other => other,
    }
}

/// Decides for XDP on an uplink.
///
/// Backends on this node: the destination is translated and the kernel delivers. Masqueraded flows
/// are translated completely and sent on. Where that cannot be, the packet is left as it came: tc and
/// the kernel do it, and find the neighbour or send the ICMP error that is missing.
#[inline(always)]
pub fn ingress<A: Family, T: Tables<A> + Router<A>>(parsed: &Parsed<A>, tables: &T) -> Verdict<A> {
    // tc treats all pieces of a datagram alike; the later ones could not be known here.
    if parsed.first_piece {
        return Verdict::Pass(Reason::LeftToStack);
    }
    let (translation, tally) = match resolve(parsed, Origin::Wire, tables) {
        Resolved::Forward(flow, reason) => {
            let tally = Tally::new(&flow, reason);
            let destination = Translation::destination(flow.backend, flow.backend_port);
            if flow.nat == A::UNSPECIFIED {
                return Verdict::Translate(destination, tally);
            }
            let whole = destination.with_source(flow.nat, flow.nat_port);
            if flow.nat == flow.client {
                return Verdict::Translate(whole, tally);
            }
            (whole, tally)
        }
        Resolved::MasqueradeReply(flow) => {
            let tally = Tally::new(&flow, Reason::MasqueradeReply);
            let destination = Translation::destination(flow.client, flow.client_port);
            (destination.with_source(flow.frontend, flow.frontend_port), tally)
        }
        Resolved::Verdict(verdict) => return verdict,
    };
    if parsed.ttl <= 1 {
        return Verdict::Pass(Reason::LeftToStack);
    }
    match tables.route(translation.source.0, translation.destination.0, parsed.l3_length) {
        Some(route) => Verdict::Forward(translation, route, tally),
        None => Verdict::Pass(Reason::LeftToStack),
    }
}
