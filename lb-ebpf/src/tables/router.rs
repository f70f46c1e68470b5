//! Where XDP may send a packet by itself.

use lb_common::datapath::xdp::Router;
use lb_common::datapath::{Desk, Route};

use super::{Context, FIB_SUCCESS, KernelTables};
use crate::desk::lend;
use crate::family::KernelFamily;
use crate::functions::DONE;

impl<A: KernelFamily> Router<A> for KernelTables<A> {
    #[inline(always)]
    fn route(&self, source: A, destination: A, length: u16, desk: &mut Desk<A>) -> Option<Route> {
        if let Some((known, asked)) = self.known_route(source, destination)
            && let Some(route) = known.answer(&asked, length)
        {
            return Some(route);
        }
        desk.journey = (source, destination, length);
        let Context::Xdp(context) = self.context else { return None };
        (lend(desk, || A::route_xdp(context, self.number)) == DONE).then_some(desk.route)
    }
}

impl<A: KernelFamily> KernelTables<A> {
    /// Asks the kernel what [`Router::route`] is about, for the journey on the desk, and remembers the answer.
    #[inline(always)]
    pub fn ask_for_route(&self, desk: &Desk<A>) -> Option<Route> {
        // (Where it sends nothing back it sends nothing at all: so the kernel is not asked for each packet.)
        if !Self::sends(self.context.interface()) {
            return None;
        }
        let (source, destination, length) = desk.journey;
        let (code, found) = self.ask_route(source, destination, length);
        if code != FIB_SUCCESS {
            return None;
        }
        let route = self.found_route(found);
        if !route.same_interface && !Self::sends(route.interface) {
            return None;
        }
        // SAFETY: with this code the kernel has written the length that fits (Linux 5.13), or left the packet's.
        let longest = unsafe { found.__bindgen_anon_1.mtu_result };
        // (Read anew: to keep them, and where the answer belongs, would take room on the stack.)
        // SAFETY: a reference may be read.
        let (source, destination, _) = unsafe { (&raw const desk.journey).read_volatile() };
        if let Some((known, asked)) = self.known_route(source, destination) {
            known.note(&asked, &route, longest);
        }
        Some(route)
    }
}
