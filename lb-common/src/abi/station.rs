//! Whom frames may be for: the Ethernet addresses of each interface with an XDP program, and of the devices on top of it.
//!
//! A card hears frames for others (a switch that floods, a promiscuous card), and the stack leaves those alone. XDP comes before the
//! stack knows.

/// Slots of the table; a power of two.
pub const STATION_SLOTS: u32 = 1024;
/// Slots that a station may be in, one after the other.
pub const STATION_TRIES: u32 = 4;

/// An Ethernet address on an interface, in one word: the address in the low 48 bits, above it what fits of the interface's index.
/// 0: nobody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Station(pub u64);

impl Station {
    /// The station with this address on the interface of this index.
    #[inline(always)]
    pub const fn new(interface: u32, address: [u8; 6]) -> Self {
        Self((interface as u64) << 48 | Self::word(address))
    }

    /// The station with this address, where there is one interface: what [`super::Config::station`] holds. Never 0.
    #[inline(always)]
    pub const fn only(address: [u8; 6]) -> u64 {
        1 << 63 | Self::word(address)
    }

    /// An address in a word, the first byte lowest, as a processor of this world reads it.
    #[inline(always)]
    const fn word([a, b, c, d, e, f]: [u8; 6]) -> u64 {
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// The slot of this turn, below [`STATION_TRIES`].
    #[inline(always)]
    pub const fn slot(self, turn: u32) -> u32 {
        // The golden ratio's bits spread neighbouring addresses; the high ones of the product depend on all.
        let hash = (self.0 ^ self.0 >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        (hash as u32).wrapping_add(turn) % STATION_SLOTS
    }
}
