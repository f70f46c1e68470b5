//! The later fragments of a datagram: they have no ports, and go where the first fragment went.
//!
//! tc sees every fragment by itself, before the kernel puts them together. What became of the first fragment
//! is noted under addresses, identification and protocol, which all fragments share.

use super::desk::Desk;
use super::outcome::{Outcome, Step};
use super::parse::{LaterFragment, Parsed};
use super::rewrite::Translation;
use super::tables::PacketTables;
use super::{Family, Tally, conntrack, ingress};
use crate::abi::{Fragment, FragmentKey, Moment, Reason};
use crate::addr::{Address as _, Ipv6, Proto};

/// Which way a packet goes through an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Direction {
    /// Into the node.
    Ingress,
    /// Out of it.
    Egress,
}

/// How long a note holds: as long as Linux waits for fragments (`ipfrag_time`).
const SECONDS: u32 = 30;

/// Notes on the desk and in the tables what becomes of a first fragment.
#[inline(always)]
pub fn note<A: Family, T: PacketTables<A>>(
    parsed: &Parsed<A>,
    direction: Direction,
    translation: &Translation<A>,
    tally: &Tally,
    tables: &T,
    memory: &mut (FragmentKey, Fragment),
) {
    let tuple = &parsed.tuple;
    let key = key(tuple.source, tuple.destination, parsed.identification, tuple.proto, direction);
    let fragment = Fragment {
        source: stays_or(translation.source.0),
        destination: stays_or(translation.destination.0),
        service: tally.service,
        backend: tally.backend,
        seen: tables.now(),
        reserved: 0,
    };
    *memory = (key, fragment);
    tables.note_fragment(&memory.0, &memory.1);
}

/// `::` for an address that stays, whatever its family.
#[inline(always)]
fn stays_or<A: Family>(address: A) -> Ipv6 {
    if address == A::UNSPECIFIED { Ipv6::UNSPECIFIED } else { address.to_mapped() }
}

/// Decides about the later fragment on the desk, and lays its new addresses there: [`Step::TRANSLATE`], or [`Step::PASS`] or
/// [`Step::DROP`].
#[inline(always)]
pub fn later<A: Family, T: PacketTables<A>>(direction: Direction, tables: &T, desk: &mut Desk<A>) -> Outcome {
    let LaterFragment { source, destination, identification, proto } = desk.later;
    desk.fragment.0 = key(source, destination, identification, proto, direction);
    match tables.fragment(&desk.fragment.0) {
        Some(first) if tables.now().since(first.seen) <= Moment::steps(SECONDS) => {
            let tally = Tally { service: first.service, backend: first.backend };
            desk.later_addresses = (A::from_mapped(first.source), A::from_mapped(first.destination), tally);
            Outcome::new(Step::TRANSLATE, Reason::Fragment)
        }
        // Out of order. Nobody but us can say where a ClusterIP's fragment goes; any other may be the
        // node's own, and the kernel waits for the first.
        _ => match ingress::unknown(destination, tables, &mut desk.source_range).step() {
            Step::PASS => Outcome::pass(Reason::FragmentUnknown),
            // Netfilter puts fragments together before it translates.
            _ if conntrack::is_asked(tables) => Outcome::pass(Reason::FragmentUnknown),
            _ => Outcome::drop(Reason::FragmentLost),
        },
    }
}

#[inline(always)]
fn key<A: Family>(
    source: A,
    destination: A,
    identification: u32,
    proto: Proto,
    direction: Direction,
) -> FragmentKey {
    // IPv6 fragments share an identification whatever they carry (RFC 8200, 4.5), and a later one may name
    // an extension header instead.
    let proto = if A::ICMP == Proto::ICMPV6 { Proto(0) } else { proto };
    FragmentKey::new(source.to_mapped(), destination.to_mapped(), identification, proto, direction as u8)
}
