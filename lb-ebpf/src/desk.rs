//! Who works at which desk.
//!
//! Where softirqs cannot be interrupted by others of their CPU, a CPU needs one desk, and finds it without asking. With
//! PREEMPT_RT they can (always since Linux 6.18, where `PREEMPT_RT_NEEDS_BH_LOCK` is off): a program that is interrupted
//! by another of the same CPU, for a more urgent packet, would find its desk rearranged. There each program takes a desk of
//! its CPU when it begins, and gives it back when it ends; it stays on its CPU meanwhile.

use aya_ebpf::bindings::bpf_fib_lookup;
use lb_common::abi::capacity;
use lb_common::datapath::refuse::Unreachable;
use lb_common::datapath::{Desk, Parsed, Route};

use crate::family::KernelFamily;
use crate::maps::{DESKS_TAKEN, PREEMPTIBLE};

/// The number of a desk of this CPU: what functions are told, in place of a pointer. 0 is the only one where programs cannot
/// interrupt each other, and nobody's where they can.
pub type DeskNumber = u32;

/// What is too large for the 512 bytes of stack. One packet at a time lies on it.
pub struct KernelDesk<A: Unreachable> {
    /// What belongs to the desk itself.
    pub tools: Tools,
    /// The datagram at hand.
    pub parsed: Parsed<A>,
    /// What the steps hand on.
    pub desk: Desk<A>,
    /// Where XDP sends the frame.
    pub route: Route,
    /// What a client gets when nobody serves.
    pub answer: A::Answer,
}

/// What belongs to a desk itself.
pub struct Tools {
    /// Which of its CPU's it is.
    pub number: DeskNumber,
    /// A question about routes and its answer.
    pub route_query: bpf_fib_lookup,
}

/// No desk is free.
const NONE: DeskNumber = u32::MAX;

/// Whether programs of one CPU can interrupt each other. The verifier knows the answer, and drops what is not needed.
#[inline(always)]
pub fn is_preemptible() -> bool {
    PREEMPTIBLE.load() != 0
}

/// Takes a desk for as long as a program runs. Nothing only if more programs have been interrupted on this CPU than it has desks.
#[inline(always)]
pub fn take<A: KernelFamily>() -> Option<&'static mut KernelDesk<A>> {
    let number = if is_preemptible() { take_desk() } else { 0 };
    if number == NONE {
        return None;
    }
    let desk = A::desk(number)?;
    // SAFETY: a live map element. Nobody else has it: where programs cannot interrupt each other, there is one of them on this
    // CPU, and it takes a desk once; where they can, `take_desk` has taken it.
    let desk = unsafe { &mut *desk };
    if number != 0 {
        desk.tools.number = number;
    }
    Some(desk)
}

/// Gives it back.
#[inline(always)]
pub fn give_back<A: KernelFamily>(desk: &'static mut KernelDesk<A>) {
    let number = desk.tools.number;
    if number == 0 {
        return;
    }
    if let Some(taken) = DESKS_TAKEN.get_ptr_mut(number) {
        // SAFETY: this CPU's slot, which its taker alone clears; one store, so that whoever interrupts sees it or not.
        unsafe { taken.write_volatile(0) };
    }
}

/// The same before another program goes on with the packet, from which there is no way back to this one.
#[inline(always)]
pub fn give_back_early<A: KernelFamily>(desk: &mut KernelDesk<A>) {
    let number = desk.tools.number;
    if number == 0 {
        return;
    }
    desk.tools.number = 0;
    if let Some(taken) = DESKS_TAKEN.get_ptr_mut(number) {
        // SAFETY: as in `give_back`.
        unsafe { taken.write_volatile(0) };
    }
}

/// Lends what lies at `memory` to a function of the program, which finds it by the desk's number ([`lent`]). The compiler is told
/// that the function reads and writes there.
#[inline(always)]
pub fn lend<T, R>(memory: &mut T, function: impl FnOnce() -> R) -> R {
    let lending = Lending::of(memory);
    let result = function();
    lending.end();
    result
}

/// The same for as long as this lives: what is called meanwhile stays in place, where the compiler makes a function of a closure that is large.
pub struct Lending<T>(*mut T);

impl<T> Lending<T> {
    /// Lends what lies at `memory`.
    #[inline(always)]
    pub fn of(memory: &mut T) -> Self {
        let pointer = &raw mut *memory;
        escape(pointer);
        Self(pointer)
    }

    /// Takes it back.
    #[inline(always)]
    pub fn end(self) {
        escape(self.0);
    }
}

/// The pointer is out of the compiler's sight, and so is what becomes of the memory there.
#[inline(always)]
fn escape<T>(pointer: *mut T) {
    // (An empty template would leave two line infos on one instruction, which the kernel refuses.)
    // SAFETY: a register is copied to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) pointer => _, options(nostack)) };
}

/// The desk that the caller of this function has lent.
///
/// # Safety
/// The function must have been called inside [`lend`], by whoever has taken the desk of this number, and call this once.
#[inline(always)]
pub unsafe fn lent<A: KernelFamily>(number: DeskNumber) -> Option<&'static mut KernelDesk<A>> {
    let desk = A::desk(number)?;
    // SAFETY: a live map element. Its taker waits for this function, and uses it no sooner.
    let desk = unsafe { &mut *desk };
    if number != 0 {
        desk.tools.number = number;
    }
    Some(desk)
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
