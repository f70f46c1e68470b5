//! Per-CPU counters.

use lb_common::abi::{BackendId, Hook, Reason, ServiceId, counter_index};
use lb_common::datapath::{Outcome, Tally};

use crate::desk::is_preemptible;
use crate::maps::{BACKEND_FLOWS, COUNTERS, SERVICE_TRAFFIC};

/// Counts a visit to a program. `reason` is the number of a [`Reason`].
#[inline(always)]
pub fn count(hook: Hook, reason: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(counter_index(hook, Reason::NotIp) + reason) {
        if is_preemptible() {
            return add(counter, 1);
        }
        // SAFETY: this CPU's slot of a per-CPU map; here programs of one CPU do not interrupt each other.
        unsafe { *counter += 1 };
    }
}

/// Counts a packet of a Service, and the flow it begins.
#[inline(always)]
pub fn count_service(tally: &Tally, outcome: Outcome, bytes: usize) {
    let begins = outcome.is_for(Reason::NewFlow);
    if let Some(traffic) = SERVICE_TRAFFIC.get_ptr_mut(tally.service) {
        // SAFETY: this CPU's slot of a per-CPU map; here programs of one CPU do not interrupt each other, or each number
        // is changed in one instruction.
        unsafe {
            if is_preemptible() {
                add(&raw mut (*traffic).packets, 1);
                add(&raw mut (*traffic).bytes, bytes as u64);
                add(&raw mut (*traffic).flows, u64::from(begins));
            } else {
                (*traffic).packets += 1;
                (*traffic).bytes += bytes as u64;
                (*traffic).flows += u64::from(begins);
            }
        }
    }
    if begins {
        count_backend_flow(tally.backend);
    }
}

/// Counts a call to a socket hook. Those run in process context, where packets of the same CPU may come
/// in between: hence the atomic.
#[inline(always)]
pub fn count_call(hook: Hook, reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(counter_index(hook, reason)) {
        add(counter, 1);
    }
}

/// Counts a call of a Service, and the flow it begins.
#[inline(always)]
pub fn count_service_call(service: ServiceId, backend: BackendId) {
    if let Some(traffic) = SERVICE_TRAFFIC.get_ptr_mut(service) {
        // SAFETY: the pointer is a live map element.
        add(unsafe { &raw mut (*traffic).flows }, 1);
    }
    count_backend_flow(backend);
}

#[inline(always)]
fn count_backend_flow(id: BackendId) {
    if let Some(flows) = BACKEND_FLOWS.get_ptr_mut(id) {
        add(flows, 1);
    }
}

#[inline(always)]
fn add(counter: *mut u64, number: u64) {
    use core::intrinsics::AtomicOrdering::SeqCst;
    // SAFETY: callers pass a live map element aligned to eight bytes. The result is not used.
    unsafe { core::intrinsics::atomic_xadd::<u64, u64, { SeqCst }>(counter, number) };
}
