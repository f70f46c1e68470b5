//! Who works at which desk.
//!
//! Where softirqs cannot be interrupted by others of their CPU, a CPU needs one desk, and finds it without asking. With
//! PREEMPT_RT they can (always since Linux 6.18, where `PREEMPT_RT_NEEDS_BH_LOCK` is off): a program that is interrupted
//! by another of the same CPU, for a more urgent packet, would find its desk rearranged. There each program takes a desk of
//! its CPU when it begins, and gives it back when it ends; it stays on its CPU meanwhile.

use lb_common::abi::capacity;

use crate::family::KernelFamily;
use crate::maps::{DESKS_TAKEN, Desk, PREEMPTIBLE};

/// The number of a desk of this CPU: what functions are told, in place of a pointer. 0 is the only one where programs cannot
/// interrupt each other, and nobody's where they can.
pub type DeskNumber = u32;

/// No desk is free.
const NONE: DeskNumber = u32::MAX;

/// Whether programs of one CPU can interrupt each other. The verifier knows the answer, and drops what is not needed.
#[inline(always)]
pub fn is_preemptible() -> bool {
    PREEMPTIBLE.load() != 0
}

/// Takes a desk. Nothing only if more programs have been interrupted on this CPU than it has desks.
#[inline(always)]
pub fn take() -> Option<DeskNumber> {
    if !is_preemptible() {
        return Some(0);
    }
    match take_desk() {
        NONE => None,
        number => Some(number),
    }
}

/// Gives it back.
#[inline(always)]
pub fn give_back(number: DeskNumber) {
    if number == 0 {
        return;
    }
    if let Some(taken) = DESKS_TAKEN.get_ptr_mut(number) {
        // SAFETY: this CPU's slot, which its taker alone clears; one store, so that whoever interrupts sees it or not.
        unsafe { taken.write_volatile(0) };
    }
}

/// The desk of that number.
#[inline(always)]
pub fn at<A: KernelFamily>(number: DeskNumber) -> Option<*mut Desk<A>> {
    let desk = A::desk(number)?;
    if number != 0 {
        // SAFETY: a live map element, which its taker alone uses.
        unsafe { (*desk).number = number };
    }
    Some(desk)
}

/// The number of a desk.
#[inline(always)]
pub fn number<A: KernelFamily>(desk: *mut Desk<A>) -> DeskNumber {
    // SAFETY: as in `at`.
    unsafe { (*desk).number }
}

/// Takes a free desk: its number, or [`NONE`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_desk() -> DeskNumber {
    use core::intrinsics::AtomicOrdering::SeqCst;
    for number in 1..capacity::DESKS {
        let Some(taken) = DESKS_TAKEN.get_ptr_mut(number) else { return NONE };
        // SAFETY: this CPU's slot, aligned to its eight bytes. Others of this CPU may come in between at any time: whoever
        // sees zero and is the one to change it has the desk.
        unsafe {
            if taken.read_volatile() == 0
                && core::intrinsics::atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(taken, 0, 1).1
            {
                return number;
            }
        }
    }
    NONE
}
