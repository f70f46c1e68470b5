//! What differs between the families in the kernel: which maps, which functions, how routes are asked.

use core::marker::PhantomData;

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup, xdp_md};
use lb_common::abi::{FlowSet, Frontend4, Frontend6, Interface, NatLine, Service, tail};
use lb_common::addr::{Ipv4, Ipv6, Port, Proto};
use lb_common::datapath::flow_table::InsertError;
use lb_common::datapath::opening::{Opened, Steps, open};
use lb_common::datapath::parse::{Fragments, Quoted};
use lb_common::datapath::refuse::Unreachable;

use crate::checksum::Summed;
use crate::desk::{DeskNumber, KernelDesk, Lending};
use crate::functions::{self, UNDONE};
use crate::maps::{DESK4, DESK6, FLOWS4, FLOWS6, NAT4, NAT6, ROUTES4, ROUTES6, SERVICES4, SERVICES6};
use crate::routes::KnownRoute;
use crate::tables::Context;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A family of addresses, with its maps.
pub trait KernelFamily: Quoted + Fragments + Unreachable + Summed + Functions + 'static {
    /// The entry of the service map.
    fn service(self, port: Port, proto: Proto) -> Option<&'static Service>;

    /// A set of the flow table.
    fn flow_set(index: u32) -> Option<*mut FlowSet<Self>>;

    /// A line of the NAT index.
    fn nat_line(index: u32) -> Option<*mut NatLine>;

    /// A desk of this CPU; see [`crate::desk`].
    fn desk(number: DeskNumber) -> Option<*mut KernelDesk<Self>>;

    /// A place for a route that this CPU has asked for.
    fn known_route(index: u32) -> Option<*mut KnownRoute<Self>>;

    /// The source for flows that leave through an interface.
    fn masquerade(interface: &Interface) -> Self;

    /// What decides between several sources of the interface that a route leads out of: the next hop, or the destination.
    fn toward(found: &bpf_fib_lookup, destination: Self) -> Self;

    /// Puts addresses and family into a question about routes.
    fn ask(query: &mut bpf_fib_lookup, source: Self, destination: Self);

    /// Index in [`crate::maps::TAILS_CONNTRACK`].
    const CONNTRACK_TAIL: u32;

    /// Whether every step is a function of its own: addresses this long would not leave room on the stack
    /// for two steps at once.
    const BY_FUNCTIONS: bool;
}

/// The steps of making a flow, each a function of its own. The desk is lent.
pub struct Opener<A> {
    context: Context,
    desk: DeskNumber,
    family: PhantomData<A>,
}

impl<A: KernelFamily> Opener<A> {
    /// With the desk of this number, which is lent.
    #[inline(always)]
    pub const fn new(context: Context, desk: DeskNumber) -> Self {
        Self { context, desk, family: PhantomData }
    }

    /// The number of its desk.
    #[inline(always)]
    pub const fn desk(&self) -> DeskNumber {
        self.desk
    }

    /// Makes the flow whose opening is on the desk.
    ///
    /// # Errors
    /// Why there is none.
    #[inline(always)]
    pub fn open(context: Context, desk: &mut KernelDesk<A>) -> Result<(), InsertError> {
        let (number, kind) = (desk.tools.number, desk.desk.opening.kind);
        let lending = Lending::of(desk);
        let opened = open(kind, &mut Self::new(context, number));
        lending.end();
        opened.result()
    }
}

impl<A: KernelFamily> Steps for Opener<A> {
    #[inline(always)]
    fn answers(&mut self) -> Opened {
        Opened(A::answers(self.desk))
    }

    #[inline(always)]
    fn prepare_own(&mut self) -> Opened {
        Opened(A::prepare_own(self.desk))
    }

    #[inline(always)]
    fn prepare(&mut self) -> Opened {
        Opened(match self.context {
            Context::Xdp(context) => A::prepare_xdp(context, self.desk),
            Context::Skb(context) => A::prepare_skb(context, self.desk),
            Context::None => UNDONE,
        })
    }

    #[inline(always)]
    fn is_port_taken(&mut self) -> bool {
        A::is_port_taken(self.desk) != 0
    }

    #[inline(always)]
    fn compose(&mut self, shares_port: bool) -> Opened {
        Opened(match self.context {
            Context::Xdp(context) => A::compose_xdp(context, shares_port.into(), self.desk),
            Context::Skb(context) => A::compose_skb(context, shares_port.into(), self.desk),
            Context::None => UNDONE,
        })
    }

    #[inline(always)]
    fn compose_of_node(&mut self) -> Opened {
        Opened(match self.context {
            Context::Skb(context) => A::compose_of_node(context, self.desk),
            Context::Xdp(_) | Context::None => UNDONE,
        })
    }

    #[inline(always)]
    fn choose_port(&mut self) -> Opened {
        Opened(A::choose_port(self.desk))
    }

    #[inline(always)]
    fn insert(&mut self) -> Opened {
        Opened(A::insert_flow(self.desk))
    }
}

/// Declares the functions of a family, and implements them for both.
macro_rules! functions {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        /// What a family has in functions of its own: see [`functions`].
        pub trait Functions {
            $(
                #[doc = concat!("See [`functions::ipv4::", stringify!($name), "`].")]
                fn $name($($argument: $kind),*) -> u32;
            )*
        }

        impl Functions for Ipv4 {
            $(
                #[inline(always)]
                fn $name($($argument: $kind),*) -> u32 {
                    functions::ipv4::$name($($argument),*)
                }
            )*
        }

        impl Functions for Ipv6 {
            $(
                #[inline(always)]
                fn $name($($argument: $kind),*) -> u32 {
                    functions::ipv6::$name($($argument),*)
                }
            )*
        }
    };
}

functions! {
    look_xdp(context: *mut xdp_md, desk: DeskNumber);
    look_skb(context: *mut __sk_buff, point: u32, desk: DeskNumber);
    search_set(choice: u32, desk: DeskNumber);
    answers(desk: DeskNumber);
    prepare_own(desk: DeskNumber);
    judge_own(desk: DeskNumber);
    find_of_node(desk: DeskNumber);
    serve_of_node(desk: DeskNumber);
    compose_of_node(context: *mut __sk_buff, desk: DeskNumber);
    find_hop(context: *mut __sk_buff, leg: u32, point: u32, fragment: u32, desk: DeskNumber);
    survey_set(choice: u32, desk: DeskNumber);
    prepare_xdp(context: *mut xdp_md, desk: DeskNumber);
    prepare_skb(context: *mut __sk_buff, desk: DeskNumber);
    is_port_taken(desk: DeskNumber);
    compose_xdp(context: *mut xdp_md, shares_port: u32, desk: DeskNumber);
    compose_skb(context: *mut __sk_buff, shares_port: u32, desk: DeskNumber);
    choose_port(desk: DeskNumber);
    insert_flow(desk: DeskNumber);
    look_in_line(attempt: u32, desk: DeskNumber);
    route_xdp(context: *mut xdp_md, desk: DeskNumber);
    translate_xdp(context: *mut xdp_md, outcome: u32, desk: DeskNumber);
    translate_skb(context: *mut __sk_buff, leg: u32, desk: DeskNumber);
    unreachable_xdp(context: *mut xdp_md, desk: DeskNumber);
    unreachable_skb(context: *mut __sk_buff, desk: DeskNumber);
    note_first_fragment(leg: u32, point: u32, desk: DeskNumber);
    find_fragment(context: *mut __sk_buff, point: u32, desk: DeskNumber);
    rewrite_fragment(context: *mut __sk_buff, desk: DeskNumber);
    read_error(context: *mut __sk_buff, desk: DeskNumber);
    judge_error(desk: DeskNumber);
    judge_leaving_error(desk: DeskNumber);
    rewrite_error(context: *mut __sk_buff, desk: DeskNumber);
    ask_conntrack(context: *mut __sk_buff, desk: DeskNumber);
    serve(point: u32, replaces: u32, desk: DeskNumber);
    end_in_conntrack(context: *mut __sk_buff, desk: DeskNumber);
    is_by_netfilter(context: *mut __sk_buff, desk: DeskNumber);
    write_down(context: *mut __sk_buff, attempt: u32, desk: DeskNumber);
    reset_xdp(context: *mut xdp_md);
    cut_options_skb(context: *mut __sk_buff);
    reset_skb(context: *mut __sk_buff);
}

/// Implements [`KernelFamily`] over one family's maps and functions.
macro_rules! family {
    (
        $address:ty, $frontend:ident, $services:ident, $flows:ident, $nat:ident, $desk:ident, $routes:ident,
        $number:ident, $masquerade:ident, by_functions: $by_functions:literal, conntrack: $tail:path,
        query: |$query:ident, $from:ident, $to:ident| $ask:block,
        toward: |$found:ident, $destination:ident| $toward:expr
    ) => {
        impl KernelFamily for $address {
            const BY_FUNCTIONS: bool = $by_functions;
            const CONNTRACK_TAIL: u32 = $tail;

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
            fn desk(number: DeskNumber) -> Option<*mut KernelDesk<Self>> {
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
            fn toward($found: &bpf_fib_lookup, $destination: Self) -> Self {
                $toward
            }

            #[inline(always)]
            fn ask($query: &mut bpf_fib_lookup, $from: Self, $to: Self) {
                $query.family = $number;
                $ask
            }
        }
    };
}

family! {
    Ipv4, Frontend4, SERVICES4, FLOWS4, NAT4, DESK4, ROUTES4, AF_INET, masquerade4,
    by_functions: false, conntrack: tail::CONNTRACK_IPV4,
    query: |query, source, destination| {
        query.__bindgen_anon_3.ipv4_src = source.to_be32();
        query.__bindgen_anon_4.ipv4_dst = destination.to_be32();
    },
    // SAFETY: the answer to a question about IPv4 holds an IPv4 address there: the gateway, or what was asked for.
    toward: |found, _destination| Self::from_be32(unsafe { found.__bindgen_anon_4.ipv4_dst })
}

family! {
    Ipv6, Frontend6, SERVICES6, FLOWS6, NAT6, DESK6, ROUTES6, AF_INET6, masquerade6,
    by_functions: true, conntrack: tail::CONNTRACK_IPV6,
    query: |query, source, destination| {
        query.__bindgen_anon_3.ipv6_src = source.words();
        query.__bindgen_anon_4.ipv6_dst = destination.words();
    },
    toward: |_found, destination| destination
}
