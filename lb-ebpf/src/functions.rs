//! Functions the verifier checks once, each by itself, with a stack of its own: the weight that packets of
//! known flows do not carry, and for addresses so long that no two steps fit on one stack, every step.
//!
//! They are global functions (<https://docs.kernel.org/bpf/verifier.html>): arguments and results are numbers
//! and contexts, and what is larger lies on the desk, which the caller lends ([`crate::desk::lend`]).

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::abi::{FlowReference, Reason};
use lb_common::datapath::conntrack::Known;
use lb_common::datapath::flow_table::{self, Survey};
use lb_common::datapath::parse::quote;
use lb_common::datapath::{Leg, Outcome, Point, Step, Tally, fragment, icmp_error, rewrite};
use lb_common::wire::Packet;

use crate::conntrack::{ask, end, serve as serve_unknown, write_down as insert_in_conntrack};
use crate::counters::count_service;
use crate::desk::{DeskNumber, KernelDesk, lent};
use crate::family::KernelFamily;
use crate::making::{by_netfilter, compose, insert, is_taken, line, port, prepare};
use crate::own::{
    compose_node, find_flow_of_node, hop_onward, judge_answer, judge_own_packet, prepare_own_record,
    serve_node,
};
use crate::packet::{ODD_HEADERS, SkbPacket};
use crate::tables::{Context, KernelTables};
use crate::{tc, xdp};

/// The function has done what it is for.
pub const DONE: u32 = 0;
/// It has not, and nothing has changed.
pub const UNDONE: u32 = u32::MAX;

/// Does something at the desk that the caller has lent; `otherwise` if there is none, which cannot be. (No closure: the compiler would
/// make a function of it, with a frame of its own on the stack.)
macro_rules! on {
    ($address:ident, $number:expr, $otherwise:expr, $function:ident($($before:expr),*)) => {
        // SAFETY: these functions are called by `lend` alone, and look for the desk here alone.
        match unsafe { lent::<$address>($number) } {
            Some(desk) => $function($($before,)* desk),
            None => $otherwise,
        }
    };
}

/// Declares the functions of one family.
macro_rules! functions {
    ($module:ident, $address:ident) => {
        pub mod $module {
            use super::*;
            use lb_common::addr::$address;

            /// Reads a frame and finds its flow: an [`Outcome`].
            #[unsafe(export_name = concat!(stringify!($module), "_look_xdp"))]
            #[inline(never)]
            pub extern "C" fn look_xdp(context: *mut xdp_md, desk: DeskNumber) -> u32 {
                let nothing = Outcome::pass(Reason::NoService);
                on!($address, desk, nothing.number(), look_frame(context))
            }

            /// As [`look_xdp`], for tc.
            #[unsafe(export_name = concat!(stringify!($module), "_look_skb"))]
            #[inline(never)]
            pub extern "C" fn look_skb(context: *mut __sk_buff, point: u32, desk: DeskNumber) -> u32 {
                let nothing = Outcome::pass(Reason::NoService);
                on!($address, desk, nothing.number(), look_at_skb(context, point))
            }

            /// Searches a set for the query on the desk: [`flow_table::search_set`].
            #[unsafe(export_name = concat!(stringify!($module), "_search_set"))]
            #[inline(never)]
            pub extern "C" fn search_set(choice: u32, desk: DeskNumber) -> u32 {
                on!($address, desk, FlowReference::NONE.0, search(choice))
            }

            /// Decides for a packet that may be of a connection of the node's own: `datapath::own::judge`.
            #[unsafe(export_name = concat!(stringify!($module), "_judge_own"))]
            #[inline(never)]
            pub extern "C" fn judge_own(desk: DeskNumber) -> u32 {
                let nothing = Outcome::pass(Reason::NoService);
                on!($address, desk, nothing.number(), judge_own_packet())
            }

            /// Finds the flow of a packet that may be the node's own to a Service: `datapath::of_node::find`.
            #[unsafe(export_name = concat!(stringify!($module), "_find_of_node"))]
            #[inline(never)]
            pub extern "C" fn find_of_node(desk: DeskNumber) -> u32 {
                let nothing = Outcome::pass(Reason::NoService);
                on!($address, desk, nothing.number(), find_flow_of_node())
            }

            /// Says what becomes of one without a flow: `datapath::of_node::serve`.
            #[unsafe(export_name = concat!(stringify!($module), "_serve_of_node"))]
            #[inline(never)]
            pub extern "C" fn serve_of_node(desk: DeskNumber) -> u32 {
                let nothing = Outcome::pass(Reason::NoService);
                on!($address, desk, nothing.number(), serve_node())
            }

            /// Puts the record of its flow together: an `Opened` of `datapath::of_node::compose`.
            #[unsafe(export_name = concat!(stringify!($module), "_compose_of_node"))]
            #[inline(never)]
            pub extern "C" fn compose_of_node(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, compose_node(context))
            }

            /// Finds out where a packet of the flow on the desk goes on, or the later fragment there: a [`Step`] of
            /// `datapath::of_node::onward`.
            #[unsafe(export_name = concat!(stringify!($module), "_find_hop"))]
            #[inline(never)]
            pub extern "C" fn find_hop(
                context: *mut __sk_buff,
                leg: u32,
                point: u32,
                fragment: u32,
                desk: DeskNumber,
            ) -> u32 {
                on!($address, desk, Step::DROP.0, hop_onward(context, leg, point, fragment))
            }

            /// Looks through a set for the flow in the making: [`flow_table::survey_set`].
            #[unsafe(export_name = concat!(stringify!($module), "_survey_set"))]
            #[inline(never)]
            pub extern "C" fn survey_set(choice: u32, desk: DeskNumber) -> u32 {
                on!($address, desk, Survey::CONTENDED.0, survey(choice))
            }

            /// Whether the packet whose opening is on the desk is an answer: an `Opened` of `datapath::own::answers`.
            #[unsafe(export_name = concat!(stringify!($module), "_answers"))]
            #[inline(never)]
            pub extern "C" fn answers(desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, judge_answer())
            }

            /// Prepares the record of a connection of the node's own: an `Opened`.
            #[unsafe(export_name = concat!(stringify!($module), "_prepare_own"))]
            #[inline(never)]
            pub extern "C" fn prepare_own(desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, prepare_own_record())
            }

            /// Prepares the flow whose opening is on the desk: an `Opened`.
            #[unsafe(export_name = concat!(stringify!($module), "_prepare_xdp"))]
            #[inline(never)]
            pub extern "C" fn prepare_xdp(context: *mut xdp_md, desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, prepare(Context::Xdp(context)))
            }

            /// As [`prepare_xdp`], for tc.
            #[unsafe(export_name = concat!(stringify!($module), "_prepare_skb"))]
            #[inline(never)]
            pub extern "C" fn prepare_skb(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, prepare(Context::Skb(context)))
            }

            /// Whether the client's port already speaks to the chosen backend: 1 if so.
            #[unsafe(export_name = concat!(stringify!($module), "_is_port_taken"))]
            #[inline(never)]
            pub extern "C" fn is_port_taken(desk: DeskNumber) -> u32 {
                on!($address, desk, 0, is_taken())
            }

            /// Puts the record of the new flow together: an `Opened`.
            #[unsafe(export_name = concat!(stringify!($module), "_compose_xdp"))]
            #[inline(never)]
            pub extern "C" fn compose_xdp(context: *mut xdp_md, shares_port: u32, desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, compose(Context::Xdp(context), shares_port))
            }

            /// As [`compose_xdp`], for tc.
            #[unsafe(export_name = concat!(stringify!($module), "_compose_skb"))]
            #[inline(never)]
            pub extern "C" fn compose_skb(
                context: *mut __sk_buff,
                shares_port: u32,
                desk: DeskNumber,
            ) -> u32 {
                on!($address, desk, UNDONE, compose(Context::Skb(context), shares_port))
            }

            /// Chooses a port for the flow in the making: an `Opened`.
            #[unsafe(export_name = concat!(stringify!($module), "_choose_port"))]
            #[inline(never)]
            pub extern "C" fn choose_port(desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, port())
            }

            /// Makes the flow on the desk: an `Opened`.
            #[unsafe(export_name = concat!(stringify!($module), "_insert_flow"))]
            #[inline(never)]
            pub extern "C" fn insert_flow(desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, insert())
            }

            /// Looks for a port in a NAT line: [`flow_table::look_in_line`].
            #[unsafe(export_name = concat!(stringify!($module), "_look_in_line"))]
            #[inline(never)]
            pub extern "C" fn look_in_line(attempt: u32, desk: DeskNumber) -> u32 {
                on!($address, desk, 0, line(attempt))
            }

            /// Asks where XDP may send the packet on the desk: [`DONE`] when it may.
            #[unsafe(export_name = concat!(stringify!($module), "_route_xdp"))]
            #[inline(never)]
            pub extern "C" fn route_xdp(context: *mut xdp_md, desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, route(context))
            }

            /// Gives a frame the addresses of its flow: an [`Outcome`].
            #[unsafe(export_name = concat!(stringify!($module), "_translate_xdp"))]
            #[inline(never)]
            pub extern "C" fn translate_xdp(context: *mut xdp_md, outcome: u32, desk: DeskNumber) -> u32 {
                let failed = Outcome::drop(Reason::RewriteFailed);
                on!($address, desk, failed.number(), translate_frame(context, outcome))
            }

            /// As [`translate_xdp`], for tc: [`DONE`] when it could.
            #[unsafe(export_name = concat!(stringify!($module), "_translate_skb"))]
            #[inline(never)]
            pub extern "C" fn translate_skb(context: *mut __sk_buff, leg: u32, desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, translate_skb_of(context, leg))
            }

            /// What netfilter says of the packet on the desk: a [`Known`](lb_common::datapath::conntrack::Known).
            #[unsafe(export_name = concat!(stringify!($module), "_ask_conntrack"))]
            #[inline(never)]
            pub extern "C" fn ask_conntrack(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                on!($address, desk, Known::NOTHING.0, ask(context))
            }

            /// What becomes of the packet on the desk, which netfilter does not know: an [`Outcome`].
            #[unsafe(export_name = concat!(stringify!($module), "_serve"))]
            #[inline(never)]
            pub extern "C" fn serve(point: u32, replaces: u32, desk: DeskNumber) -> u32 {
                let nothing = Outcome::pass(Reason::NoService);
                on!($address, desk, nothing.number(), serve_unknown(point, replaces))
            }

            /// Has netfilter forget the connection of the packet on the desk.
            #[unsafe(export_name = concat!(stringify!($module), "_end_in_conntrack"))]
            #[inline(never)]
            pub extern "C" fn end_in_conntrack(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, end(context))
            }

            /// Whether netfilter translates the flow on the desk: 1 if so.
            #[unsafe(export_name = concat!(stringify!($module), "_is_by_netfilter"))]
            #[inline(never)]
            pub extern "C" fn is_by_netfilter(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                on!($address, desk, 0, by_netfilter(context))
            }

            /// Writes the flow on the desk into conntrack: an `Opened`.
            #[unsafe(export_name = concat!(stringify!($module), "_write_down"))]
            #[inline(never)]
            pub extern "C" fn write_down(context: *mut __sk_buff, attempt: u32, desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, insert_in_conntrack(context, attempt))
            }

            /// Turns a segment into the RST that its sender gets: [`DONE`] when it is one.
            #[unsafe(export_name = concat!(stringify!($module), "_reset_xdp"))]
            #[inline(never)]
            pub extern "C" fn reset_xdp(context: *mut xdp_md) -> u32 {
                done(xdp::reset::<$address>(&XdpContext::new(context)))
            }

            /// As [`reset_xdp`], for tc.
            #[unsafe(export_name = concat!(stringify!($module), "_reset_skb"))]
            #[inline(never)]
            pub extern "C" fn reset_skb(context: *mut __sk_buff) -> u32 {
                done(tc::reset::<$address>(&TcContext::new(context)))
            }

            /// Takes the options off a segment: [`DONE`] when there are none.
            #[unsafe(export_name = concat!(stringify!($module), "_cut_options_skb"))]
            #[inline(never)]
            pub extern "C" fn cut_options_skb(context: *mut __sk_buff) -> u32 {
                done(tc::cut_options::<$address>(&TcContext::new(context)))
            }

            /// Turns a datagram into the ICMP error that its sender gets: [`DONE`] when it is one.
            #[unsafe(export_name = concat!(stringify!($module), "_unreachable_xdp"))]
            #[inline(never)]
            pub extern "C" fn unreachable_xdp(context: *mut xdp_md, desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, frame_unreachable(context))
            }

            /// As [`unreachable_xdp`], for tc.
            #[unsafe(export_name = concat!(stringify!($module), "_unreachable_skb"))]
            #[inline(never)]
            pub extern "C" fn unreachable_skb(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, skb_unreachable(context))
            }

            /// Notes what becomes of the first fragment on the desk.
            #[unsafe(export_name = concat!(stringify!($module), "_note_first_fragment"))]
            #[inline(never)]
            pub extern "C" fn note_first_fragment(leg: u32, point: u32, desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, note(leg, point))
            }

            /// Finds what became of a later fragment's first: an [`Outcome`].
            #[unsafe(export_name = concat!(stringify!($module), "_find_fragment"))]
            #[inline(never)]
            pub extern "C" fn find_fragment(context: *mut __sk_buff, point: u32, desk: DeskNumber) -> u32 {
                let nothing = Outcome::pass(Reason::NoService);
                on!($address, desk, nothing.number(), find(context, point))
            }

            /// Rewrites a later fragment as the desk says: an [`Outcome`].
            #[unsafe(export_name = concat!(stringify!($module), "_rewrite_fragment"))]
            #[inline(never)]
            pub extern "C" fn rewrite_fragment(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                let nothing = Outcome::pass(Reason::NoService);
                on!($address, desk, nothing.number(), rewrite_later(context))
            }

            /// Reads an ICMP error and what it quotes: [`DONE`] when it may concern us.
            #[unsafe(export_name = concat!(stringify!($module), "_read_error"))]
            #[inline(never)]
            pub extern "C" fn read_error(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, read(context))
            }

            /// Finds the flow of the ICMP error on the desk, which comes in: [`DONE`] when there is one.
            #[unsafe(export_name = concat!(stringify!($module), "_judge_error"))]
            #[inline(never)]
            pub extern "C" fn judge_error(desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, judge_inwards())
            }

            /// The same of one that leaves. (Two functions: both ways at once would take too much of the stack.)
            #[unsafe(export_name = concat!(stringify!($module), "_judge_leaving_error"))]
            #[inline(never)]
            pub extern "C" fn judge_leaving_error(desk: DeskNumber) -> u32 {
                on!($address, desk, UNDONE, judge_leaving())
            }

            /// Rewrites the ICMP error as the desk says: an [`Outcome`].
            #[unsafe(export_name = concat!(stringify!($module), "_rewrite_error"))]
            #[inline(never)]
            pub extern "C" fn rewrite_error(context: *mut __sk_buff, desk: DeskNumber) -> u32 {
                let nothing = Outcome::pass(Reason::OtherProtocol);
                on!($address, desk, nothing.number(), rewrite_quoted(context))
            }
        }
    };
}

functions!(ipv4, Ipv4);
functions!(ipv6, Ipv6);

#[inline(always)]
const fn done(result: Option<()>) -> u32 {
    if result.is_some() { DONE } else { UNDONE }
}

#[inline(always)]
fn look_frame<A: KernelFamily>(context: *mut xdp_md, desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, parsed, desk, .. } = desk;
    xdp::look(&XdpContext::new(context), parsed, desk, tools).number()
}

#[inline(always)]
fn look_at_skb<A: KernelFamily>(context: *mut __sk_buff, point: u32, desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, parsed, desk, .. } = desk;
    tc::look(&TcContext::new(context), Point::from_number(point), parsed, desk, tools).number()
}

#[inline(always)]
fn search<A: KernelFamily>(choice: u32, desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::new(Context::None, tools) else { return FlowReference::NONE.0 };
    flow_table::search_set(choice, &tables, desk).0
}

#[inline(always)]
fn survey<A: KernelFamily>(choice: u32, desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::new(Context::None, tools) else { return Survey::CONTENDED.0 };
    flow_table::survey_set(choice, &tables, desk).0
}

#[inline(always)]
fn route<A: KernelFamily>(context: *mut xdp_md, desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::new(Context::Xdp(context), tools) else { return UNDONE };
    match tables.ask_for_route(desk) {
        Some(route) => {
            desk.route = route;
            DONE
        }
        None => UNDONE,
    }
}

#[inline(always)]
fn translate_frame<A: KernelFamily>(context: *mut xdp_md, outcome: u32, desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, parsed, desk, route, .. } = desk;
    let outcome = Outcome::from_number(outcome);
    xdp::translate(&XdpContext::new(context), outcome, parsed, route, (desk, tools)).number()
}

#[inline(always)]
fn translate_skb_of<A: KernelFamily>(context: *mut __sk_buff, leg: u32, desk: &mut KernelDesk<A>) -> u32 {
    done(tc::translate(&TcContext::new(context), Leg(leg), &desk.parsed, &desk.desk.found))
}

#[inline(always)]
fn frame_unreachable<A: KernelFamily>(context: *mut xdp_md, desk: &mut KernelDesk<A>) -> u32 {
    done(xdp::unreachable::<A>(&XdpContext::new(context), &mut desk.answer))
}

#[inline(always)]
fn skb_unreachable<A: KernelFamily>(context: *mut __sk_buff, desk: &mut KernelDesk<A>) -> u32 {
    done(tc::unreachable::<A>(&TcContext::new(context), &mut desk.answer))
}

#[inline(always)]
fn note<A: KernelFamily>(leg: u32, point: u32, desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, parsed, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(Context::None, tools) else { return UNDONE };
    let (translation, tally) = (Leg(leg).translation(&desk.found), Tally::new(&desk.found));
    let direction = Point::from_number(point).direction();
    fragment::note(parsed, direction, &translation, &tally, &tables, &mut desk.fragment);
    DONE
}

#[inline(always)]
fn find<A: KernelFamily>(context: *mut __sk_buff, point: u32, desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(Context::Skb(context), tools) else {
        return Outcome::pass(Reason::NoService).number();
    };
    let Some(later) = A::later_fragment(&SkbPacket(&TcContext::new(context))) else {
        return Outcome::pass(Reason::Malformed).number();
    };
    desk.later = later;
    fragment::later(Point::from_number(point).direction(), &tables, desk).number()
}

#[inline(always)]
fn rewrite_later<A: KernelFamily>(context: *mut __sk_buff, desk: &mut KernelDesk<A>) -> u32 {
    let ctx = TcContext::new(context);
    let mut packet = SkbPacket(&ctx);
    let (source, destination, tally) = &desk.desk.later_addresses;
    let outcome = Outcome::new(Step::PASS, Reason::Fragment);
    count_service(tally, outcome, packet.length());
    match rewrite::translate_fragment(&mut packet, *source, *destination) {
        Some(()) => outcome.number(),
        None => Outcome::drop(Reason::RewriteFailed).number(),
    }
}

#[inline(always)]
fn read<A: KernelFamily>(context: *mut __sk_buff, desk: &mut KernelDesk<A>) -> u32 {
    let ctx = TcContext::new(context);
    let packet = SkbPacket::with_headers(&ctx, ODD_HEADERS);
    match quote::<A, _>(&packet) {
        Ok(quote) => {
            desk.desk.quote = quote;
            DONE
        }
        Err(_) => UNDONE,
    }
}

#[inline(always)]
fn judge_inwards<A: KernelFamily>(desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(Context::None, tools) else { return UNDONE };
    done(icmp_error::ingress(&tables, desk).map(|translation| desk.error = translation))
}

#[inline(always)]
fn judge_leaving<A: KernelFamily>(desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(Context::None, tools) else { return UNDONE };
    done(icmp_error::egress(&tables, desk).map(|translation| desk.error = translation))
}

#[inline(always)]
fn rewrite_quoted<A: KernelFamily>(context: *mut __sk_buff, desk: &mut KernelDesk<A>) -> u32 {
    let ctx = TcContext::new(context);
    let mut packet = SkbPacket(&ctx);
    let (translation, tally) = &desk.desk.error;
    let outcome = Outcome::pass(Reason::IcmpError);
    count_service(tally, outcome, packet.length());
    match rewrite::translate_error(&mut packet, &desk.desk.quote, translation) {
        Some(()) => outcome.number(),
        None => Outcome::drop(Reason::RewriteFailed).number(),
    }
}
