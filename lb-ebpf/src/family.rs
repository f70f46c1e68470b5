//! What differs between the families in the kernel: which maps, which functions, how routes are asked.

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup};
use lb_common::abi::{FlowSet, Frontend4, Frontend6, Interface, NatLine, Reason, Service};
use lb_common::addr::{Ipv4, Ipv6, Port, Proto};
use lb_common::datapath::parse::{Pieces, Quoted};
use lb_common::datapath::refuse::Unreachable;

use crate::checksum::Summed;
use crate::desk::DeskNumber;
use crate::functions;
use crate::maps::{DESK4, DESK6, Desk, FLOWS4, FLOWS6, NAT4, NAT6, ROUTES4, ROUTES6, SERVICES4, SERVICES6};
use crate::routes::KnownRoute;
use crate::tables::Context;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A family of addresses, with its maps.
pub trait KernelFamily: Quoted + Pieces + Unreachable + Summed + 'static {
    /// The entry of the service map.
    fn service(self, port: Port, proto: Proto) -> Option<&'static Service>;

    /// A set of the flow table.
    fn flow_set(index: u32) -> Option<*mut FlowSet<Self>>;

    /// A line of the NAT index.
    fn nat_line(index: u32) -> Option<*mut NatLine>;

    /// A desk of this CPU; see [`crate::desk`].
    fn desk(number: DeskNumber) -> Option<*mut Desk<Self>>;

    /// A place for a route that this CPU has asked for.
    fn known_route(index: u32) -> Option<*mut KnownRoute<Self>>;

    /// The source for flows that leave through an interface.
    fn masquerade(interface: &Interface) -> Self;

    /// Puts addresses and family into a question about routes.
    fn ask(query: &mut bpf_fib_lookup, source: Self, destination: Self);

    /// Picks a backend for the opening on the desk; see [`functions`].
    fn prepare(context: Context, desk: DeskNumber) -> u32;

    /// Makes the flow on the desk; see [`functions`].
    fn insert(desk: DeskNumber) -> u32;

    /// Answers a packet nobody serves; see [`functions`].
    fn refuse(context: Context, desk: DeskNumber) -> u32;

    /// Treats a later piece; see [`functions`].
    fn treat_piece(context: *mut __sk_buff, way: u32, desk: DeskNumber) -> u32;

    /// Treats an ICMP error; see [`functions`].
    fn treat_error(context: *mut __sk_buff, way: u32, desk: DeskNumber) -> u32;

    /// Whether every step is a function of its own: addresses this long would not leave room on the stack
    /// for two steps at once.
    const APART: bool;

    /// Searches for the query on the desk; see [`functions`].
    fn search(desk: DeskNumber) -> u32;

    /// Asks where the packet on the desk goes; see [`functions`].
    fn route(context: Context, desk: DeskNumber) -> u32;

    /// Judges a packet; see [`functions`].
    fn look(context: Context, direction: u32, desk: DeskNumber) -> u32;

    /// Rewrites the datagram on the desk; see [`functions`].
    fn translate(context: Context, forward: u32, desk: DeskNumber) -> u32;

    /// Notes the first piece on the desk; see [`functions`].
    fn note_first_piece(way: u32, desk: DeskNumber);
}

/// Implements [`KernelFamily`] over one family's maps and functions.
macro_rules! family {
    (
        $address:ty, $frontend:ident, $services:ident, $flows:ident, $nat:ident, $desk:ident, $routes:ident,
        $number:ident, $masquerade:ident, functions: $functions:ident, apart: $apart:literal,
        query: |$query:ident, $from:ident, $to:ident| $ask:block
    ) => {
        impl KernelFamily for $address {
            const APART: bool = $apart;

            #[inline(always)]
            fn service(self, port: Port, proto: Proto) -> Option<&'static Service> {
                // SAFETY: entries are replaced, never changed in place. What is read through the reference
                // may be another entry's by then; whoever needs more than its being there copies it twice
                // (`Tables::service_copy`).
                unsafe { $services.get($frontend::new(self, port, proto)) }
            }

            #[inline(always)]
            fn flow_set(index: u32) -> Option<*mut FlowSet<Self>> {
                $flows.get_ptr_mut(index)
            }

            #[inline(always)]
            fn nat_line(index: u32) -> Option<*mut NatLine> {
                $nat.get_ptr_mut(index)
            }

            #[inline(always)]
            fn desk(number: DeskNumber) -> Option<*mut Desk<Self>> {
                $desk.get_ptr_mut(number)
            }

            #[inline(always)]
            fn known_route(index: u32) -> Option<*mut KnownRoute<Self>> {
                $routes.get_ptr_mut(index)
            }

            #[inline(always)]
            fn masquerade(interface: &Interface) -> Self {
                interface.$masquerade
            }

            #[inline(always)]
            fn ask($query: &mut bpf_fib_lookup, $from: Self, $to: Self) {
                $query.family = $number;
                $ask
            }

            #[inline(always)]
            fn prepare(context: Context, desk: DeskNumber) -> u32 {
                match context {
                    Context::Xdp(context) => functions::$functions::prepare_from_xdp(context, desk),
                    Context::Skb(context) => functions::$functions::prepare_from_skb(context, desk),
                    Context::Socket(_) | Context::None => functions::UNDONE,
                }
            }

            #[inline(always)]
            fn insert(desk: DeskNumber) -> u32 {
                functions::$functions::insert_flow(desk)
            }

            #[inline(always)]
            fn refuse(context: Context, desk: DeskNumber) -> u32 {
                match context {
                    Context::Xdp(context) => functions::$functions::refuse_xdp(context, desk),
                    Context::Skb(context) => functions::$functions::refuse_skb(context, desk),
                    Context::Socket(_) | Context::None => functions::UNDONE,
                }
            }

            #[inline(always)]
            fn treat_piece(context: *mut __sk_buff, way: u32, desk: DeskNumber) -> u32 {
                match functions::$functions::find_piece(context, way, desk) {
                    functions::DONE => functions::$functions::rewrite_piece(context, desk),
                    other => other,
                }
            }

            #[inline(always)]
            fn search(desk: DeskNumber) -> u32 {
                functions::$functions::search_flow(desk)
            }

            #[inline(always)]
            fn route(context: Context, desk: DeskNumber) -> u32 {
                match context {
                    Context::Xdp(context) => functions::$functions::route_xdp(context, desk),
                    Context::Skb(_) | Context::Socket(_) | Context::None => functions::UNDONE,
                }
            }

            #[inline(always)]
            fn look(context: Context, direction: u32, desk: DeskNumber) -> u32 {
                match context {
                    Context::Xdp(context) => functions::$functions::look_xdp(context, desk),
                    Context::Skb(context) => functions::$functions::look_skb(context, direction, desk),
                    Context::Socket(_) | Context::None => functions::UNDONE,
                }
            }

            #[inline(always)]
            fn translate(context: Context, forward: u32, desk: DeskNumber) -> u32 {
                match context {
                    Context::Xdp(context) => functions::$functions::translate_xdp(context, forward, desk),
                    Context::Skb(context) => functions::$functions::translate_skb(context, desk),
                    Context::Socket(_) | Context::None => functions::UNDONE,
                }
            }

            #[inline(always)]
            fn treat_error(context: *mut __sk_buff, way: u32, desk: DeskNumber) -> u32 {
                use functions::{DONE, $functions as family};
                if family::read_error(context, desk) == DONE && family::judge_error(way, desk) == DONE {
                    family::rewrite_error(context, desk)
                } else {
                    Reason::OtherProtocol as u32
                }
            }

            #[inline(always)]
            fn note_first_piece(way: u32, desk: DeskNumber) {
                functions::$functions::note_first_piece(way, desk);
            }
        }
    };
}

family! {
    Ipv4, Frontend4, SERVICES4, FLOWS4, NAT4, DESK4, ROUTES4, AF_INET, masquerade4,
    functions: ipv4, apart: false,
    query: |query, source, destination| {
        query.__bindgen_anon_3.ipv4_src = source.to_be32();
        query.__bindgen_anon_4.ipv4_dst = destination.to_be32();
    }
}

family! {
    Ipv6, Frontend6, SERVICES6, FLOWS6, NAT6, DESK6, ROUTES6, AF_INET6, masquerade6,
    functions: ipv6, apart: true,
    query: |query, source, destination| {
        query.__bindgen_anon_3.ipv6_src = source.words();
        query.__bindgen_anon_4.ipv6_dst = destination.words();
    }
}
