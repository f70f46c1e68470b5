//! The steps for connections of the node's own: see [`own`].

use lb_common::abi::Reason;
use lb_common::datapath::{Outcome, opening, own};

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
