//! The later pieces of a datagram: they have no ports, and go where the first piece went.
//!
//! tc sees every piece by itself, before the kernel puts them together. What became of the first piece
//! is noted under addresses, identification and protocol, which all pieces share.

use super::parse::{LaterPiece, Parsed};
use super::rewrite::Translation;
use super::tables::Tables;
use super::{Family, Tally, Verdict, ingress};
use crate::abi::{Fragment, FragmentKey, Moment, Reason};
use crate::addr::{Address as _, Ipv6, Proto};

/// Which way a packet goes through an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Way {
    /// Into the node.
    In,
    /// Out of it.
    Out,
}

/// How long a note holds: as long as Linux waits for pieces (`ipfrag_time`).
const SECONDS: u32 = 30;

/// What becomes of a later piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece<A> {
    /// Goes on untouched.
    Pass(Reason),
    /// Ends here.
    Drop(Reason),
    /// Goes on with other addresses; `UNSPECIFIED`: the address stays.
    Translate(A, A, Tally),
}

/// Notes what becomes of a first piece.
#[inline(always)]
pub fn note<A: Family, T: Tables<A>>(
    parsed: &Parsed<A>,
    way: Way,
    translation: &Translation<A>,
    tally: &Tally,
    tables: &T,
) {
    let tuple = &parsed.tuple;
    let key = key(tuple.source, tuple.destination, parsed.identification, tuple.proto, way);
    let fragment = Fragment {
        source: stays_or(translation.source.0),
        destination: stays_or(translation.destination.0),
        service: tally.service,
        backend: tally.backend,
        seen: tables.now(),
        reserved: 0,
    };
    tables.note_fragment(&key, &fragment);
}

/// `::` for an address that stays, whatever its family.
#[inline(always)]
fn stays_or<A: Family>(address: A) -> Ipv6 {
    if address == A::UNSPECIFIED { Ipv6::UNSPECIFIED } else { address.to_mapped() }
}

/// Decides about a later piece.
#[inline(always)]
pub fn later<A: Family, T: Tables<A>>(piece: &LaterPiece<A>, way: Way, tables: &T) -> Piece<A> {
    let key = key(piece.source, piece.destination, piece.identification, piece.proto, way);
    match tables.fragment(&key) {
        Some(first) if tables.now().since(first.seen) <= Moment::steps(SECONDS) => Piece::Translate(
            A::from_mapped(first.source),
            A::from_mapped(first.destination),
            Tally { reason: Reason::Fragment, service: first.service, backend: first.backend },
        ),
        // Out of order. Nobody but us can say where a ClusterIP's piece goes; any other may be the
        // node's own, and the kernel waits for the first.
        _ => match ingress::unknown(piece.destination, tables) {
            Verdict::Pass(_) => Piece::Pass(Reason::FragmentUnknown),
            _ => Piece::Drop(Reason::FragmentLost),
        },
    }
}

#[inline(always)]
fn key<A: Family>(source: A, destination: A, identification: u32, proto: Proto, way: Way) -> FragmentKey {
    // IPv6 pieces share an identification whatever they carry (RFC 8200, 4.5), and a later one may name
    // an extension header instead.
    let proto = if A::ICMP == Proto::ICMPV6 { Proto(0) } else { proto };
    FragmentKey::new(source.to_mapped(), destination.to_mapped(), identification, proto, way as u8)
}
