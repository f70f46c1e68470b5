//! Log lines for developers, in objects built with the feature `log` alone: first packets and
//! refusals, never every packet.

use aya_ebpf::EbpfContext;
use lb_common::abi::Hook;
#[cfg(feature = "log")]
use lb_common::abi::Reason;
use lb_common::addr::Address;
use lb_common::datapath::Tuple;

/// Says what became of a packet worth a line.
#[cfg(feature = "log")]
#[inline(always)]
pub fn packet<C: EbpfContext, A: Address>(ctx: &C, hook: Hook, reason: u32, tuple: &Tuple<A>) {
    let quiet = [Reason::Forward, Reason::Reply, Reason::NoService, Reason::Masquerade];
    if quiet.iter().any(|quiet| *quiet as u32 == reason) {
        return;
    }
    aya_log_ebpf::debug!(
        ctx,
        "hook {} reason {}: [{:i}]:{} to [{:i}]:{}",
        hook as u32,
        reason,
        tuple.source.to_mapped().octets(),
        tuple.source_port.get(),
        tuple.destination.to_mapped().octets(),
        tuple.destination_port.get()
    );
}

/// Nothing, in every other object.
#[cfg(not(feature = "log"))]
#[inline(always)]
pub fn packet<C: EbpfContext, A: Address>(_ctx: &C, _hook: Hook, _reason: u32, _tuple: &Tuple<A>) {}
