//! Per-CPU counters.

use lb_common::abi::{Hook, Reason, counter_index};
use lb_common::datapath::Tally;

use crate::maps::{BACKENDS4, COUNTERS, SERVICE_TRAFFIC};

/// Counts a visit to a program.
#[inline(always)]
pub fn count(hook: Hook, reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(counter_index(hook, reason)) {
        // SAFETY: the pointer is this CPU's slot of a per-CPU map; programs on one CPU do not
        // interrupt each other in the same hook.
        unsafe { *counter += 1 };
    }
}

/// Counts a packet of a Service, and the flow it begins.
#[inline(always)]
pub fn count_service(tally: &Tally, bytes: usize) {
    let begins = tally.reason == Reason::NewFlow;
    if let Some(traffic) = SERVICE_TRAFFIC.get_ptr_mut(tally.service) {
        // SAFETY: this CPU's slot of a per-CPU map.
        unsafe {
            (*traffic).packets += 1;
            (*traffic).bytes += bytes as u64;
            (*traffic).flows += u64::from(begins);
        }
    }
    if begins {
        count_backend_flow(tally.backend);
    }
}

/// Counts a call that a socket hook translated.
#[inline(always)]
pub fn count_call(service: u32, backend: u32) {
    if let Some(traffic) = SERVICE_TRAFFIC.get_ptr_mut(service) {
        // SAFETY: this CPU's slot of a per-CPU map.
        unsafe { (*traffic).flows += 1 };
    }
    count_backend_flow(backend);
}

#[inline(always)]
fn count_backend_flow(id: u32) {
    if let Some(backend) = BACKENDS4.get_ptr_mut(id) {
        // SAFETY: the pointer is a live array element and `flows` is aligned to eight bytes. All CPUs
        // share it, hence the atomic; its result is not used.
        unsafe {
            core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::SeqCst }>(
                &raw mut (*backend).flows,
                1,
            )
        };
    }
}
