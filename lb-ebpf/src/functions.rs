//! Functions the verifier checks once, each by itself, with a stack of its own: the weight that packets of
//! known flows do not carry.
//!
//! They are global functions (<https://docs.kernel.org/bpf/verifier.html>): arguments and results are numbers
//! and contexts, and what is larger lies on the desk.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::abi::Reason;
use lb_common::datapath::flow_table::{self, InsertError};
use lb_common::datapath::fragment::{self, Piece, Way};
use lb_common::datapath::parse::quote;
use lb_common::datapath::{icmp_error, opening, rewrite};

use crate::counters::count_service;
use crate::desk::{self, DeskNumber};
use crate::family::KernelFamily;
use crate::packet::{ODD_HEADERS, SkbPacket};
use crate::tables::{Context, KernelTables};
use crate::{tc, xdp};
use lb_common::wire::Packet;

/// The function has done what it is for.
pub const DONE: u32 = 0;
/// It has not, and nothing has changed.
pub const UNDONE: u32 = u32::MAX;
/// Bit of [`KernelFamily::treat_odd`]'s result: the packet is to be dropped. The rest is the [`Reason`].
pub const DROP: u32 = 1 << 31;

/// Declares the functions of one family.
macro_rules! functions {
    ($module:ident, $address:ident) => {
        pub mod $module {
            use super::*;
            use lb_common::addr::$address;

            /// Picks a backend for the opening on the desk.
            #[unsafe(export_name = concat!(stringify!($module), "_prepare_from_xdp"))]
            #[inline(never)]
            pub extern "C" fn prepare_from_xdp(context: *mut xdp_md, desk: DeskNumber) -> u32 {
                prepare::<$address>(Context::Xdp(context), desk)
            }

            /// As [`prepare_from_xdp`], for tc.
            #[unsafe(export_name = concat!(stringify!($module), "_prepare_from_skb"))]
            #[inline(never)]
            pub extern "C" fn prepare_from_skb(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                prepare::<$address>(Context::Skb(context), desk)
            }

            /// Makes the flow on the desk.
            #[unsafe(export_name = concat!(stringify!($module), "_insert_flow"))]
            #[inline(never)]
            pub extern "C" fn insert_flow(desk: DeskNumber) -> u32 {
                insert::<$address>(desk)
            }

            /// Turns the packet into the answer its sender gets: [`DONE`] when it is one.
            #[unsafe(export_name = concat!(stringify!($module), "_refuse_xdp"))]
            #[inline(never)]
            pub extern "C" fn refuse_xdp(context: *mut xdp_md, desk: DeskNumber) -> u32 {
                let ctx = XdpContext::new(context);
                if xdp::refuse::<$address>(&ctx, desk).is_some() { DONE } else { UNDONE }
            }

            /// As [`refuse_xdp`], for tc.
            #[unsafe(export_name = concat!(stringify!($module), "_refuse_skb"))]
            #[inline(never)]
            pub extern "C" fn refuse_skb(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                let ctx = TcContext::new(context);
                if tc::refuse::<$address>(&ctx, desk).is_some() { DONE } else { UNDONE }
            }

            /// Finds what became of a later piece's first: [`DONE`], or the [`Reason`], and [`DROP`].
            #[unsafe(export_name = concat!(stringify!($module), "_find_piece"))]
            #[inline(never)]
            pub extern "C" fn find_piece(context: *mut __sk_buff, way: u32, desk: DeskNumber) -> u32 {
                find::<$address>(context, way, desk)
            }

            /// Rewrites a later piece as the desk says; the [`Reason`], and [`DROP`].
            #[unsafe(export_name = concat!(stringify!($module), "_rewrite_piece"))]
            #[inline(never)]
            pub extern "C" fn rewrite_piece(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                rewrite_later::<$address>(context, desk)
            }

            /// Searches for the query on the desk: the flow's reference, or 0.
            #[unsafe(export_name = concat!(stringify!($module), "_search_flow"))]
            #[inline(never)]
            pub extern "C" fn search_flow(desk: DeskNumber) -> u32 {
                search::<$address>(desk)
            }

            /// Asks where XDP may send the packet on the desk: [`DONE`] when it may.
            #[unsafe(export_name = concat!(stringify!($module), "_route_xdp"))]
            #[inline(never)]
            pub extern "C" fn route_xdp(context: *mut xdp_md, desk: DeskNumber) -> u32 {
                route::<$address>(context, desk)
            }

            /// Judges a frame; an [`Outcome`].
            #[unsafe(export_name = concat!(stringify!($module), "_look_xdp"))]
            #[inline(never)]
            pub extern "C" fn look_xdp(context: *mut xdp_md, desk: DeskNumber) -> u32 {
                xdp::look::<$address>(&XdpContext::new(context), desk).number()
            }

            /// As [`look_xdp`], for tc.
            #[unsafe(export_name = concat!(stringify!($module), "_look_skb"))]
            #[inline(never)]
            pub extern "C" fn look_skb(context: *mut __sk_buff, direction: u32, desk: DeskNumber) -> u32 {
                tc::look::<$address>(&TcContext::new(context), direction, desk).number()
            }

            /// Rewrites a datagram as the desk says: [`DONE`] when it could. Not 0: XDP sends it.
            #[unsafe(export_name = concat!(stringify!($module), "_translate_xdp"))]
            #[inline(never)]
            pub extern "C" fn translate_xdp(context: *mut xdp_md, forward: u32, desk: DeskNumber) -> u32 {
                xdp::translate_from_desk::<$address>(&XdpContext::new(context), forward, desk)
            }

            /// As [`translate_xdp`], for tc.
            #[unsafe(export_name = concat!(stringify!($module), "_translate_skb"))]
            #[inline(never)]
            pub extern "C" fn translate_skb(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                translate::<$address>(context, desk)
            }

            /// Reads an ICMP error and what it quotes: [`DONE`] when it may concern us.
            #[unsafe(export_name = concat!(stringify!($module), "_read_error"))]
            #[inline(never)]
            pub extern "C" fn read_error(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                read::<$address>(context, desk)
            }

            /// Finds the flow of the ICMP error on the desk: [`DONE`] when there is one.
            #[unsafe(export_name = concat!(stringify!($module), "_judge_error"))]
            #[inline(never)]
            pub extern "C" fn judge_error(way: u32, desk: DeskNumber) -> u32 {
                judge::<$address>(way, desk)
            }

            /// Rewrites the ICMP error as the desk says; the [`Reason`], and [`DROP`].
            #[unsafe(export_name = concat!(stringify!($module), "_rewrite_error"))]
            #[inline(never)]
            pub extern "C" fn rewrite_error(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                rewrite_quoted::<$address>(context, desk)
            }

            /// Notes what becomes of the first piece on the desk.
            #[unsafe(export_name = concat!(stringify!($module), "_note_first_piece"))]
            #[inline(never)]
            pub extern "C" fn note_first_piece(way: u32, desk: DeskNumber) -> u32 {
                note::<$address>(way, desk)
            }
        }
    };
}

functions!(ipv4, Ipv4);
functions!(ipv6, Ipv6);

#[inline(always)]
fn prepare<A: KernelFamily>(context: Context, desk: DeskNumber) -> u32 {
    let Some(tables) = KernelTables::<A>::off_the_hot_path(context, desk) else {
        return InsertError::Contended as u32;
    };
    let desk = tables.desk();
    // SAFETY: this program's own desk; the caller has filled `opening` in and waits.
    unsafe {
        match opening::prepare(&(*desk).opening, &tables) {
            Ok(new) => {
                new.write_to(&mut (*desk).new);
                DONE
            }
            Err(error) => error as u32,
        }
    }
}

#[inline(always)]
fn insert<A: KernelFamily>(desk: DeskNumber) -> u32 {
    let Some(tables) = KernelTables::<A>::off_the_hot_path(Context::None, desk) else {
        return InsertError::Contended as u32;
    };
    let desk = tables.desk();
    // SAFETY: this program's own desk; the caller has filled `new` in and waits.
    match flow_table::insert::<A, _>(unsafe { &mut (*desk).new }, &tables) {
        Ok(()) => DONE,
        Err(error) => error as u32,
    }
}

#[inline(always)]
fn note<A: KernelFamily>(way: u32, desk: DeskNumber) -> u32 {
    let Some(tables) = KernelTables::<A>::off_the_hot_path(Context::None, desk) else { return UNDONE };
    let desk = tables.desk();
    // SAFETY: this program's own desk; the caller has filled `translated` in and waits.
    let (parsed, translation, tally) = unsafe { &(*desk).translated };
    fragment::note(parsed, way_of(way), translation, tally, &tables);
    DONE
}

#[inline(always)]
const fn way_of(number: u32) -> Way {
    if number == Way::In as u32 { Way::In } else { Way::Out }
}

#[inline(always)]
fn search<A: KernelFamily>(desk: DeskNumber) -> u32 {
    let Some(tables) = KernelTables::<A>::new(Context::None, desk) else { return 0 };
    let desk = tables.desk();
    // SAFETY: this program's own desk; the caller has filled `query` in and waits.
    match flow_table::search(unsafe { &(*desk).query }, &tables) {
        Some(found) => {
            // SAFETY: as above.
            unsafe { (*desk).word = found.word };
            found.reference.0
        }
        None => 0,
    }
}

#[inline(always)]
fn route<A: KernelFamily>(context: *mut xdp_md, desk: DeskNumber) -> u32 {
    let Some(tables) = KernelTables::<A>::new(Context::Xdp(context), desk) else { return UNDONE };
    let desk = tables.desk();
    // SAFETY: this program's own desk; the caller has filled `journey` in and waits.
    unsafe {
        let (source, destination, length) = (*desk).journey;
        let again = || {
            ((&raw const (*desk).journey.0).read_volatile(), (&raw const (*desk).journey.1).read_volatile())
        };
        let Some(route) = tables.ask_for_route(source, destination, length, again) else { return UNDONE };
        (*desk).target = route;
    }
    DONE
}

#[inline(always)]
fn translate<A: KernelFamily>(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
    let ctx = TcContext::new(context);
    let Some(desk) = desk::at::<A>(desk) else { return UNDONE };
    // SAFETY: this program's own desk; the caller has filled `translated` in and waits.
    let (parsed, translation, _) = unsafe { &(*desk).translated };
    // (A copy whose offsets the verifier sees to be in bounds.)
    let parsed = &parsed.bounded();
    if tc::translate(&ctx, parsed, translation).is_some() { DONE } else { UNDONE }
}

#[inline(always)]
fn find<A: KernelFamily>(context: *mut __sk_buff, way: u32, desk: DeskNumber) -> u32 {
    let ctx = TcContext::new(context);
    let Some(tables) = KernelTables::<A>::off_the_hot_path(Context::Skb(context), desk) else {
        return Reason::NoService as u32;
    };
    let Some(piece) = A::later_piece(&SkbPacket(&ctx)) else { return Reason::Malformed as u32 };
    match fragment::later(&piece, way_of(way), &tables) {
        Piece::Pass(reason) => reason as u32,
        Piece::Drop(reason) => reason as u32 | DROP,
        Piece::Translate(source, destination, tally) => {
            // SAFETY: this program's own desk.
            unsafe { (*tables.desk()).piece = (source, destination, tally) };
            DONE
        }
    }
}

#[inline(always)]
fn rewrite_later<A: KernelFamily>(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
    let ctx = TcContext::new(context);
    let mut packet = SkbPacket(&ctx);
    let Some(desk) = desk::at::<A>(desk) else { return Reason::NoService as u32 };
    // SAFETY: this program's own desk; the caller has had `piece` filled in.
    let (source, destination, tally) = unsafe { &(*desk).piece };
    count_service(tally, packet.length());
    match rewrite::translate_piece(&mut packet, *source, *destination) {
        Some(()) => tally.reason as u32,
        None => Reason::RewriteFailed as u32 | DROP,
    }
}

#[inline(always)]
fn read<A: KernelFamily>(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
    let ctx = TcContext::new(context);
    let packet = SkbPacket::with_headers(&ctx, ODD_HEADERS);
    let Some(desk) = desk::at::<A>(desk) else { return UNDONE };
    match quote::<A, _>(&packet) {
        Ok(quote) => {
            // SAFETY: this program's own desk.
            unsafe { (*desk).quote = quote };
            DONE
        }
        Err(_) => UNDONE,
    }
}

#[inline(always)]
fn judge<A: KernelFamily>(way: u32, desk: DeskNumber) -> u32 {
    let Some(tables) = KernelTables::<A>::off_the_hot_path(Context::None, desk) else { return UNDONE };
    let desk = tables.desk();
    // SAFETY: this program's own desk; the caller has had `quote` filled in.
    let quote = unsafe { &(*desk).quote };
    let found = match way_of(way) {
        Way::In => icmp_error::ingress(quote, &tables),
        Way::Out => icmp_error::egress(quote, &tables),
    };
    match found {
        Some(translation) => {
            // SAFETY: as above.
            unsafe { (*desk).error = translation };
            DONE
        }
        None => UNDONE,
    }
}

#[inline(always)]
fn rewrite_quoted<A: KernelFamily>(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
    let ctx = TcContext::new(context);
    let mut packet = SkbPacket(&ctx);
    let Some(desk) = desk::at::<A>(desk) else { return Reason::OtherProtocol as u32 };
    // SAFETY: this program's own desk; the caller has had both filled in.
    let (quote, (translation, tally)) = unsafe { (&(*desk).quote, &(*desk).error) };
    count_service(tally, packet.length());
    match rewrite::translate_error(&mut packet, quote, translation) {
        Some(()) => tally.reason as u32,
        None => Reason::RewriteFailed as u32 | DROP,
    }
}
