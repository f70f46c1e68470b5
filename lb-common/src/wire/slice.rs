//! A frame in a byte slice: what tests, fuzzing and benches use.

use super::{Packet, PacketMut};

/// A whole frame in memory.
#[derive(Debug)]
pub struct SlicePacket<'a>(pub &'a mut [u8]);

impl Packet for SlicePacket<'_> {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }

    fn length(&self) -> usize {
        self.0.len()
    }
}

impl PacketMut for SlicePacket<'_> {
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        *self.0.get_mut(offset..)?.first_chunk_mut()? = bytes;
        Some(())
    }
}
