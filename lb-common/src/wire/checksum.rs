//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are taken over 16-bit words **as they lie in memory**. One's-complement addition is the same
//! in either byte order up to a swap of the result (RFC 1071, 2(B)), so no word is ever swapped:
//! checksum bytes in, checksum bytes out.

/// A checksum field as its two bytes in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checksum(pub [u8; 2]);

impl Checksum {
    /// The field after a change: `HC' = ~(~HC + ~m + m')`, RFC 1624 equation 3.
    #[inline(always)]
    #[must_use]
    pub fn updated(self, delta: Delta) -> Self {
        let sum = u64::from(!u16::from_ne_bytes(self.0)) + delta.0;
        Self((!fold(sum)).to_ne_bytes())
    }

    /// The checksum of `bytes`, to which `initial` (e.g. a pseudo header) is added. An odd last byte
    /// counts as if a zero followed.
    pub fn of(bytes: &[u8], initial: Delta) -> Self {
        let (words, rest) = bytes.as_chunks::<2>();
        let mut sum = initial.0;
        for word in words {
            sum += u64::from(u16::from_ne_bytes(*word));
        }
        if let [last] = rest {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self((!fold(sum)).to_ne_bytes())
    }
}

/// What a set of changes adds to a one's-complement sum, not yet folded.
///
/// 64 bits hold the sum of any number of words a packet can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delta(u64);

impl Delta {
    /// A 16-bit word, on an even offset, changes.
    #[inline(always)]
    #[must_use]
    pub fn word(self, from: [u8; 2], to: [u8; 2]) -> Self {
        Self(self.0 + u64::from(!u16::from_ne_bytes(from)) + u64::from(u16::from_ne_bytes(to)))
    }

    /// Two 16-bit words, on an even offset, change. Adding 32 bits at once folds to the same sum.
    #[inline(always)]
    #[must_use]
    pub fn double_word(self, from: [u8; 4], to: [u8; 4]) -> Self {
        Self(self.0 + u64::from(!u32::from_ne_bytes(from)) + u64::from(u32::from_ne_bytes(to)))
    }

    /// Eight 16-bit words, on an even offset, change: an IPv6 address.
    #[inline(always)]
    #[must_use]
    pub fn address(self, from: [u32; 4], to: [u32; 4]) -> Self {
        let mut sum = self.0;
        for (from, to) in from.iter().zip(to) {
            sum += u64::from(!*from) + u64::from(to);
        }
        Self(sum)
    }

    /// Both sets of changes.
    #[inline(always)]
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Two words come in that were not there.
    #[inline(always)]
    #[must_use]
    pub fn with_double_word(self, word: [u8; 4]) -> Self {
        Self(self.0 + u64::from(u32::from_ne_bytes(word)))
    }

    /// A word comes in that was not there: for pseudo headers.
    #[inline(always)]
    #[must_use]
    pub fn with_word(self, word: [u8; 2]) -> Self {
        Self(self.0 + u64::from(u16::from_ne_bytes(word)))
    }
}

/// Folds a sum to 16 bits with end-around carry: each step adds the two halves, and the carry of the lower
/// sum lands in the upper one.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}
