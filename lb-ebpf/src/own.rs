//! The steps for connections of the node's own: see [`own`] and [`of_node`].

use aya_ebpf::bindings::__sk_buff;
use lb_common::abi::Reason;
use lb_common::datapath::{Leg, Outcome, Point, Step, of_node, opening, own};

use crate::desk::KernelDesk;
use crate::family::KernelFamily;
use crate::functions::UNDONE;
use crate::tables::{Context, KernelTables};

/// Decides for a packet that may be of a connection of the node's own: an [`Outcome`].
#[inline(always)]
pub fn judge_own_packet<A: KernelFamily>(desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let nothing = Outcome::pass(Reason::NoService);
    let Some(tables) = KernelTables::off_the_hot_path(Context::None, tools) else { return nothing.number() };
    own::judge(&tables, desk).number()
}

/// Whether the packet on the desk answers such a connection: an `Opened`.
#[inline(always)]
pub fn judge_answer<A: KernelFamily>(desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(Context::None, tools) else { return UNDONE };
    own::answers(&tables, desk).0
}

/// Lays the record of such a connection on the desk: an `Opened`.
#[inline(always)]
pub fn prepare_own_record<A: KernelFamily>(desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(Context::None, tools) else { return UNDONE };
    opening::prepare_own(&tables, desk).0
}

/// Finds out where a packet of the flow on the desk goes on, or the later fragment there: a [`Step`].
#[inline(always)]
pub fn hop_onward<A: KernelFamily>(
    context: *mut __sk_buff,
    leg: u32,
    point: u32,
    fragment: u32,
    desk: &mut KernelDesk<A>,
) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let (context, leg) = (Context::Skb(context), Leg(leg));
    let Some(tables) = KernelTables::off_the_hot_path(context, tools) else { return Step::DROP.0 };
    let addresses = if fragment != 0 {
        (desk.later_addresses.0, desk.later_addresses.1)
    } else {
        let translation = leg.translation(&desk.found);
        (translation.source.0, translation.destination.0)
    };
    let point = Point::from_number(point);
    of_node::onward(leg, point, context.interface(), addresses, &tables, &mut desk.hop).0
}

/// Finds the flow of a packet that may be the node's own to a Service: an [`Outcome`].
#[inline(always)]
pub fn find_flow_of_node<A: KernelFamily>(desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let nothing = Outcome::pass(Reason::NoService);
    let Some(tables) = KernelTables::off_the_hot_path(Context::None, tools) else { return nothing.number() };
    of_node::find(&tables, desk).number()
}

/// Says what becomes of one without a flow: an [`Outcome`].
#[inline(always)]
pub fn serve_node<A: KernelFamily>(desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let nothing = Outcome::pass(Reason::NoService);
    let Some(tables) = KernelTables::off_the_hot_path(Context::None, tools) else { return nothing.number() };
    of_node::serve(&tables, desk).number()
}

/// Puts the record of its flow together: an `Opened`.
#[inline(always)]
pub fn compose_node<A: KernelFamily>(context: *mut __sk_buff, desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(Context::Skb(context), tools) else { return UNDONE };
    of_node::compose(&tables, desk).0
}
