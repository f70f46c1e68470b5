//! The memory of the flow table: sets of words and records, and the lines of ports.

use core::mem::offset_of;

use lb_common::abi::{Flow, FlowReference, FlowSet, FlowWord, NAT_LINE, NatLine, Progress, WAYS};
use lb_common::datapath::FlowSets;
use lb_common::datapath::flow::Side;

use super::{KernelTables, barrier};
use crate::family::KernelFamily;
use crate::order::{KEPT, pointer_after};

impl<A: KernelFamily> FlowSets<A> for KernelTables<A> {
    type Set = *mut FlowSet<A>;

    #[inline(always)]
    fn set(&self, index: u32) -> Option<Self::Set> {
        A::flow_set(index)
    }

    #[inline(always)]
    fn word(&self, set: Self::Set, way: usize) -> FlowWord {
        // SAFETY: `set` is a live array element and `way < WAYS`, so the word lies inside it. Volatile,
        // since other CPUs write it.
        FlowWord(unsafe { word_pointer(set, way).read_volatile() })
    }

    #[inline(always)]
    fn swap_word(&self, set: Self::Set, way: usize, old: FlowWord, new: FlowWord) -> bool {
        use core::intrinsics::AtomicOrdering::SeqCst;
        // SAFETY: as above; eight-byte words are aligned.
        unsafe {
            core::intrinsics::atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(
                word_pointer(set, way),
                old.0,
                new.0,
            )
            .1
        }
    }

    #[inline(always)]
    fn clear_lock(&self, set: Self::Set) {
        use core::intrinsics::AtomicOrdering::SeqCst;
        barrier();
        let mask = FlowWord(u64::MAX).unlocked().0;
        // SAFETY: as above; the result is not used.
        unsafe {
            core::intrinsics::atomic_and::<u64, u64, { SeqCst }>(word_pointer(set, 0), mask);
        }
    }

    #[inline(always)]
    fn mark(&self, set: Self::Set, way: usize) {
        use core::intrinsics::AtomicOrdering::SeqCst;
        // SAFETY: as above; the result is not used.
        unsafe {
            core::intrinsics::atomic_or::<u64, u64, { SeqCst }>(word_pointer(set, way), FlowWord::mark().0);
        }
    }

    const READS_IN_ORDER: bool = KEPT;

    #[inline(always)]
    fn fits(&self, set: Self::Set, way: usize, test: impl Fn(&Flow<A>) -> bool) -> bool {
        barrier();
        // SAFETY: as for `word`. Another CPU may be writing the record; every bit pattern is a valid
        // `Flow`, and the answer is checked on a copy.
        let fits = test(unsafe { &*flow_pointer(set, way) });
        barrier();
        fits
    }

    #[inline(always)]
    fn copy_flow(&self, set: Self::Set, way: usize, before: FlowWord, copy: &mut Flow<A>) -> FlowWord {
        const { assert!(offset_of!(Flow<A>, progress) % size_of::<u64>() == 0) };
        barrier();
        let from = flow_pointer(pointer_after(before.0, set), way).cast::<u64>();
        let to = (&raw mut *copy).cast::<u64>();
        let mut all = 0;
        for word in 0..Self::COPIED {
            // SAFETY: as for `fits`; the caller compares the word before and after and throws a torn copy away. Records and copies
            // lie in map values, on multiples of eight bytes. Word by word, for what the compiler makes of a copy is a call.
            unsafe {
                to.add(word).write_volatile(from.add(word).read_volatile());
            }
        }
        if !KEPT {
            for word in 0..Self::COPIED {
                // SAFETY: a word of the copy. Volatile: what was loaded is no longer in registers.
                all |= unsafe { to.add(word).read_volatile() };
            }
        }
        barrier();
        self.word(pointer_after(all, set), way)
    }

    #[inline(always)]
    fn progress(&self, set: Self::Set, way: usize) -> Progress {
        barrier();
        // SAFETY: as for `fits`. The numbers need not fit each other.
        unsafe { (*flow_pointer(set, way)).progress }
    }

    #[inline(always)]
    fn note_progress(&self, set: Self::Set, way: usize, side: Side, [sent, acknowledged]: [u32; 2]) {
        // SAFETY: as for `word`. Each number is written in one store; of two packets at once, one may be written down late.
        unsafe {
            let progress = &raw mut (*flow_pointer(set, way)).progress;
            match side {
                Side::Client => {
                    (&raw mut (*progress).sent[0]).write_volatile(sent);
                    (&raw mut (*progress).acknowledged[0]).write_volatile(acknowledged);
                }
                Side::Backend => {
                    (&raw mut (*progress).sent[1]).write_volatile(sent);
                    (&raw mut (*progress).acknowledged[1]).write_volatile(acknowledged);
                }
            }
        }
    }

    #[inline(always)]
    fn note_unanswered_syn(&self, set: Self::Set, way: usize, moment: u32) {
        // SAFETY: as for `note_progress`.
        unsafe { (&raw mut (*flow_pointer(set, way)).progress.unanswered_syn).write_volatile(moment) };
    }

    #[inline(always)]
    fn put_flow(&self, set: Self::Set, way: usize, flow: &Flow<A>) {
        barrier();
        // SAFETY: as for `word`; the word says that this CPU alone writes the record.
        unsafe { flow_pointer(set, way).write(*flow) };
        barrier();
    }

    #[inline(always)]
    fn fetch_flow(&self, set: Self::Set, way: usize) {
        // SAFETY: as for `word`. The spare room at the record's end is always zero, and nothing reads it: to write it
        // makes the processor ask for the line and go on, where a load would hold up all that follows.
        unsafe { (&raw mut (*flow_pointer(set, way)).spare).write_volatile(0) };
    }

    type NatLine = *mut NatLine;

    #[inline(always)]
    fn nat_line(&self, index: u32) -> Option<Self::NatLine> {
        A::nat_line(index)
    }

    #[inline(always)]
    fn nat_slot(&self, line: Self::NatLine, place: usize) -> FlowReference {
        // SAFETY: `line` is a live array element; volatile, since other CPUs write it.
        FlowReference(unsafe { slot_pointer(line, place).read_volatile() })
    }

    #[inline(always)]
    fn swap_nat_slot(
        &self,
        line: Self::NatLine,
        place: usize,
        old: FlowReference,
        new: FlowReference,
    ) -> bool {
        use core::intrinsics::AtomicOrdering::SeqCst;
        // SAFETY: as above, aligned to four bytes.
        unsafe {
            core::intrinsics::atomic_cxchg::<u32, { SeqCst }, { SeqCst }>(
                slot_pointer(line, place),
                old.0,
                new.0,
            )
            .1
        }
    }
}

impl<A: KernelFamily> KernelTables<A> {
    /// Words of a record that stay as they are while the flow lives.
    const COPIED: usize = offset_of!(Flow<A>, progress) / size_of::<u64>();
}

#[inline(always)]
fn word_pointer<A>(set: *mut FlowSet<A>, way: usize) -> *mut u64 {
    // SAFETY: `way & 7` lies inside the array of eight; the mask is what the verifier wants to see.
    unsafe { (&raw mut (*set).words).cast::<u64>().add(way & (WAYS - 1)) }
}

#[inline(always)]
fn flow_pointer<A>(set: *mut FlowSet<A>, way: usize) -> *mut Flow<A> {
    // SAFETY: as for `word_pointer`.
    unsafe { (&raw mut (*set).flows).cast::<Flow<A>>().add(way & (WAYS - 1)) }
}

#[inline(always)]
fn slot_pointer(line: *mut NatLine, place: usize) -> *mut u32 {
    // SAFETY: as for `word_pointer`, with sixteen.
    unsafe { line.cast::<u32>().add(place & (NAT_LINE - 1)) }
}
