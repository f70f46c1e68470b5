//! Memory-mapped arrays: the kernel's own memory, read and written without a system call.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::abi::{BackendId, Flow, FlowSet, FlowWord, WAYS};
use memmap2::{MmapOptions, MmapRaw};
use zerocopy::{FromBytes, IntoBytes as _};

use super::sys::Map;

/// The array's elements start at multiples of eight bytes.
const ALIGN: usize = 8;

/// One element after the other, `stride` bytes apart.
#[derive(Debug)]
struct Mapping {
    memory: MmapRaw,
    stride: usize,
    elements: usize,
}

impl Mapping {
    fn new(map: &Map, writable: bool) -> io::Result<Self> {
        let info = map.info();
        let stride = (info.value_size as usize).next_multiple_of(ALIGN);
        let elements = info.max_entries as usize;
        let mut options = MmapOptions::new();
        options.len(stride * elements);
        let fd = map.as_fd().as_raw_fd();
        let memory = if writable { options.map_raw(fd)? } else { options.map_raw_read_only(fd)? };
        Ok(Self { memory, stride, elements })
    }
}

/// The ring arena: slots that each hold a backend id.
#[derive(Debug)]
pub struct RingMemory {
    mapping: Mapping,
    slots_per_element: usize,
}

impl RingMemory {
    /// Maps the arena. For writing the map must have been opened for writing.
    pub fn new(map: &Map, writable: bool) -> io::Result<Self> {
        let slots_per_element = map.info().value_size as usize / size_of::<BackendId>();
        if slots_per_element == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "values too small to hold a backend id"));
        }
        Ok(Self { mapping: Mapping::new(map, writable)?, slots_per_element })
    }

    /// Number of slots there are.
    pub const fn slots(&self) -> usize {
        self.mapping.elements * self.slots_per_element
    }

    fn slot(&self, index: usize) -> *mut BackendId {
        let element = index / self.slots_per_element * self.mapping.stride;
        let within = index % self.slots_per_element * size_of::<BackendId>();
        self.mapping.memory.as_mut_ptr().wrapping_add(element + within).cast()
    }

    fn check(&self, offset: u32, length: usize) -> io::Result<usize> {
        let offset = offset as usize;
        if offset.checked_add(length).is_none_or(|end| end > self.slots()) {
            let message =
                format!("slots {offset}..{} lie outside the arena of {}", offset + length, self.slots());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(offset)
    }

    /// Writes slots from `offset` on. The arena must have been mapped for writing.
    pub fn write(&self, offset: u32, ids: &[BackendId]) -> io::Result<()> {
        let offset = self.check(offset, ids.len())?;
        for (i, id) in ids.iter().enumerate() {
            // SAFETY: inside the mapping, checked above, and aligned to four bytes, as strides are
            // multiples of eight. Programs may read the slot meanwhile: a volatile write of four
            // aligned bytes is a single store.
            unsafe { self.slot(offset + i).write_volatile(*id) };
        }
        Ok(())
    }

    /// Reads `length` slots from `offset` on.
    pub fn read(&self, offset: u32, length: u32) -> io::Result<Vec<BackendId>> {
        let offset = self.check(offset, length as usize)?;
        // SAFETY: as in `write`.
        Ok((offset..offset + length as usize).map(|i| unsafe { self.slot(i).read_volatile() }).collect())
    }
}

/// The flow table of clients with addresses of type `A`, read while programs write it.
#[derive(Debug)]
pub struct FlowMemory<A> {
    mapping: Mapping,
    kind: PhantomData<FlowSet<A>>,
}

impl<A: FromBytes> FlowMemory<A> {
    /// Maps the table, read-only.
    pub fn new(map: &Map) -> io::Result<Self> {
        if map.info().value_size as usize != size_of::<FlowSet<A>>() {
            let message = format!(
                "flow sets of {} bytes; this release knows sets of {}",
                map.info().value_size,
                size_of::<FlowSet<A>>()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Self { mapping: Mapping::new(map, false)?, kind: PhantomData })
    }

    /// Number of sets.
    pub const fn sets(&self) -> usize {
        self.mapping.elements
    }

    /// The word of one way; none outside the table.
    pub fn word(&self, set: usize, way: usize) -> Option<FlowWord> {
        if set >= self.sets() || way >= WAYS {
            return None;
        }
        let offset = set * self.mapping.stride + way * size_of::<u64>();
        // SAFETY: inside the mapping, checked above; words are aligned to eight bytes, and programs
        // change them with atomic instructions only.
        let word = unsafe { AtomicU64::from_ptr(self.mapping.memory.as_mut_ptr().add(offset).cast()) };
        Some(FlowWord(word.load(Ordering::Acquire)))
    }

    /// The record of one way, which a program may be writing at this very moment: look at the word
    /// before and after. None outside the table.
    pub fn record(&self, set: usize, way: usize) -> Option<Flow<A>> {
        /// Room for a record of either family.
        const WORDS: usize = size_of::<Flow<lb_common::addr::Ipv6>>() / size_of::<u64>();
        if set >= self.sets() || way >= WAYS {
            return None;
        }
        let offset = set * self.mapping.stride + WAYS * size_of::<u64>() + way * size_of::<Flow<A>>();
        let start = self.mapping.memory.as_mut_ptr().wrapping_add(offset).cast::<u64>();
        let mut words = [0_u64; WORDS];
        for (i, word) in words.iter_mut().take(size_of::<Flow<A>>() / size_of::<u64>()).enumerate() {
            // SAFETY: inside the mapping, checked above, and aligned to eight bytes.
            *word = unsafe { start.add(i).read_volatile() };
        }
        std::sync::atomic::fence(Ordering::Acquire);
        Flow::read_from_prefix(words.as_bytes()).ok().map(|(flow, _)| flow)
    }
}
