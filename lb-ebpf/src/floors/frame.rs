//! A frame whose first bytes are there.

use core::arch::asm;

/// Its start; what is read and written lies within the length it was bounded to.
pub struct Frame(usize);

impl Frame {
    /// A frame of `length` bytes at least.
    #[inline(always)]
    pub fn bounded(start: usize, end: usize, length: usize) -> Option<Self> {
        (start + length <= end).then_some(Self(start))
    }

    /// Two bytes.
    #[inline(always)]
    pub fn u16(&self, at: usize) -> u16 {
        // SAFETY: the verifier has seen the bound; fields are on even offsets.
        unsafe { *((self.0 + at) as *const u16) }
    }

    /// Four bytes.
    #[inline(always)]
    pub fn u32(&self, at: usize) -> u32 {
        let word: u64;
        // SAFETY: the verifier has seen the bound. In assembly, since fields are on odd multiples of two.
        unsafe {
            asm!("{word} = *(u32 *)({at} + 0)", at = in(reg) self.0 + at, word = out(reg) word,
                options(pure, readonly, nostack));
        }
        word as u32
    }

    /// Eight bytes.
    #[inline(always)]
    pub fn u64(&self, at: usize) -> u64 {
        let word: u64;
        // SAFETY: as in `u32`.
        unsafe {
            asm!("{word} = *(u64 *)({at} + 0)", at = in(reg) self.0 + at, word = out(reg) word,
                options(pure, readonly, nostack));
        }
        word
    }

    /// Changes two bytes.
    #[inline(always)]
    pub fn put_u16(&self, at: usize, value: u16) {
        // SAFETY: as in `u16`; the packet is this program's.
        unsafe { *((self.0 + at) as *mut u16) = value };
    }

    /// Changes four bytes.
    #[inline(always)]
    pub fn put_u32(&self, at: usize, value: u32) {
        // SAFETY: as in `u32`; the packet is this program's.
        unsafe {
            asm!("*(u32 *)({at} + 0) = {value}", at = in(reg) self.0 + at, value = in(reg) u64::from(value),
                options(nostack));
        }
    }

    /// Changes eight bytes.
    #[inline(always)]
    pub fn put_u64(&self, at: usize, value: u64) {
        // SAFETY: as in `put_u32`.
        unsafe {
            asm!("*(u64 *)({at} + 0) = {value}", at = in(reg) self.0 + at, value = in(reg) value, options(nostack));
        }
    }
}
