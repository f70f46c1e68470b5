//! The steps of making a flow, at a desk that is lent.

use aya_ebpf::bindings::__sk_buff;
use lb_common::datapath::conntrack::is_by_netfilter_here;
use lb_common::datapath::opening::Opened;
use lb_common::datapath::{flow_table, opening};

use crate::desk::KernelDesk;
use crate::family::KernelFamily;
use crate::functions::UNDONE;
use crate::tables::{Context, KernelTables};

/// Chooses a backend for the opening on the desk: [`opening::prepare`].
#[inline(always)]
pub fn prepare<A: KernelFamily>(context: Context, desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(context, tools) else { return UNDONE };
    opening::prepare(&tables, desk).0
}

/// Whether the client's port already speaks to the chosen backend: [`flow_table::is_port_taken`].
#[inline(always)]
pub fn is_taken<A: KernelFamily>(desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(Context::None, tools) else { return 0 };
    u32::from(flow_table::is_port_taken(&tables, desk))
}

/// Puts the record of the new flow together: [`opening::compose`].
#[inline(always)]
pub fn compose<A: KernelFamily>(context: Context, shares_port: u32, desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(context, tools) else { return UNDONE };
    opening::compose(shares_port != 0, &tables, desk).0
}

/// Chooses a port for it: [`flow_table::choose_port`].
#[inline(always)]
pub fn port<A: KernelFamily>(desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(Context::None, tools) else { return UNDONE };
    Opened::from(flow_table::choose_port(&tables, desk)).0
}

/// Makes the flow on the desk: [`flow_table::insert`].
#[inline(always)]
pub fn insert<A: KernelFamily>(desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(Context::None, tools) else { return UNDONE };
    Opened::from(flow_table::insert(&tables, desk)).0
}

/// Whether netfilter translates it: [`is_by_netfilter_here`].
#[inline(always)]
pub fn by_netfilter<A: KernelFamily>(context: *mut __sk_buff, desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(Context::Skb(context), tools) else { return 0 };
    u32::from(is_by_netfilter_here(&tables, desk))
}

/// Looks for a port in a NAT line: [`flow_table::look_in_line`].
#[inline(always)]
pub fn line<A: KernelFamily>(attempt: u32, desk: &mut KernelDesk<A>) -> u32 {
    let KernelDesk { tools, desk, .. } = desk;
    let Some(tables) = KernelTables::new(Context::None, tools) else { return 0 };
    flow_table::look_in_line(attempt, &tables, desk)
}
