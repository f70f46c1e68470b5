//! Memory-mapped arrays: the kernel's own memory, read and written without a system call.

use std::io;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use lb_common::abi::{
    Backend, BackendId, Flow, FlowSet, FlowWord, Ring, WAYS, address_bit, endpoint_bit, port_bit,
};
use lb_common::addr::{Ipv4, Ipv6, Port};
use memmap2::{MmapOptions, MmapRaw};
use zerocopy::{FromBytes, IntoBytes as _};

use super::Map;

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
    fn new(map: &Map) -> io::Result<Self> {
        let info = map.info();
        let stride = (info.value_size as usize).next_multiple_of(ALIGN);
        let elements = info.max_entries as usize;
        let mut options = MmapOptions::new();
        options.len(stride * elements);
        let memory = options.map_raw_read_only(map.as_fd().as_raw_fd())?;
        Ok(Self { memory, stride, elements })
    }
}

/// Least bytes of the arena that are mapped at a time.
const WINDOW: usize = 256 * 1024;
/// Mappings begin at multiples of this, the largest page size there is.
const PAGE: usize = 64 * 1024;

/// The ring arena: slots that each hold a backend id.
///
/// Only a window of it is mapped, around what was last read or written: whatever is mapped counts as memory of this
/// process, and the arena is large.
#[derive(Debug)]
pub struct RingMemory {
    map: Map,
    writable: bool,
    stride: usize,
    slots_per_element: usize,
    window: Mutex<Option<Window>>,
}

#[derive(Debug)]
struct Window {
    memory: MmapRaw,
    begin: usize,
}

impl Window {
    fn holds(&self, begin: usize, end: usize) -> bool {
        self.begin <= begin && end <= self.begin + self.memory.len()
    }
}

impl RingMemory {
    /// Maps the arena, piece by piece. For writing the map must have been opened for writing.
    pub fn new(map: Map, writable: bool) -> io::Result<Self> {
        let slots_per_element = map.info().value_size as usize / size_of::<BackendId>();
        if slots_per_element == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "values too small to hold a backend id"));
        }
        let stride = (map.info().value_size as usize).next_multiple_of(ALIGN);
        Ok(Self { map, writable, stride, slots_per_element, window: Mutex::new(None) })
    }

    /// Number of slots there are.
    pub const fn slots(&self) -> usize {
        self.map.info().max_entries as usize * self.slots_per_element
    }

    /// Whether a ring lies inside.
    pub const fn holds(&self, ring: Ring) -> bool {
        (ring.offset as usize).saturating_add(ring.length as usize) <= self.slots()
    }

    /// Where in the arena a slot lies, in bytes.
    const fn position(&self, index: usize) -> usize {
        index / self.slots_per_element * self.stride + index % self.slots_per_element * size_of::<BackendId>()
    }

    /// Calls `each` with the place of every slot.
    fn visit(
        &self,
        offset: u32,
        length: usize,
        mut each: impl FnMut(usize, *mut BackendId),
    ) -> io::Result<()> {
        let offset = offset as usize;
        if offset.checked_add(length).is_none_or(|end| end > self.slots()) {
            let message =
                format!("slots {offset}..{} lie outside the arena of {}", offset + length, self.slots());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        if length == 0 {
            return Ok(());
        }
        let begin = self.position(offset);
        let end = self.position(offset + length - 1) + size_of::<BackendId>();
        // A panic elsewhere leaves a mapping that is as good as any.
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = window.take().filter(|window| window.holds(begin, end));
        let window = window.insert(match kept {
            Some(window) => window,
            None => self.map_window(begin, end)?,
        });
        let base = window.memory.as_mut_ptr();
        // Without padding between elements, slots lie end to end: no division for each.
        let dense = self.stride == self.slots_per_element * size_of::<BackendId>();
        for i in 0..length {
            let position = if dense { begin + i * size_of::<BackendId>() } else { self.position(offset + i) };
            each(i, base.wrapping_add(position - window.begin).cast());
        }
        Ok(())
    }

    fn map_window(&self, begin: usize, end: usize) -> io::Result<Window> {
        let all = self.stride * self.map.info().max_entries as usize;
        let begin = begin / PAGE * PAGE;
        let end = end.max(begin + WINDOW).min(all);
        let mut options = MmapOptions::new();
        options.offset(begin as u64).len(end - begin);
        let fd = self.map.as_fd().as_raw_fd();
        let memory = if self.writable { options.map_raw(fd)? } else { options.map_raw_read_only(fd)? };
        Ok(Window { memory, begin })
    }

    /// Writes slots from `offset` on. The arena must have been mapped for writing.
    pub fn write(&self, offset: u32, ids: &[BackendId]) -> io::Result<()> {
        self.visit(offset, ids.len(), |i, slot| {
            // SAFETY: inside the window, which `visit` mapped around all of them, and aligned to four bytes, as
            // strides are multiples of eight. Programs may read the slot meanwhile: a volatile write of four
            // aligned bytes is a single store.
            unsafe { slot.write_volatile(ids[i]) };
        })
    }

    /// Reads `length` slots from `offset` on.
    pub fn read(&self, offset: u32, length: u32) -> io::Result<Vec<BackendId>> {
        let mut ids = Vec::with_capacity((length as usize).min(self.slots()));
        // SAFETY: as in `write`.
        self.visit(offset, length as usize, |_, slot| ids.push(unsafe { slot.read_volatile() }))?;
        Ok(ids)
    }
}

/// A filter of addresses or ports ([`address_bit`], [`port_bit`]).
#[derive(Debug)]
pub struct FilterMemory {
    mapping: Option<Mapping>,
}

impl FilterMemory {
    /// Maps the filter, if it is to be written.
    pub fn new(map: &Map, writable: bool) -> io::Result<Self> {
        let mapping = || {
            let mut options = MmapOptions::new();
            let elements = map.info().max_entries as usize;
            options.len(elements * size_of::<u64>());
            let memory = options.map_raw(map.as_fd().as_raw_fd())?;
            Ok::<_, io::Error>(Mapping { memory, stride: size_of::<u64>(), elements })
        };
        Ok(Self { mapping: if writable { Some(mapping()?) } else { None } })
    }

    /// Sets the address's bit. There is no way back.
    pub fn note(&self, address: IpAddr) {
        self.set(bit_of(address));
    }

    /// Sets the endpoint's bit. There is no way back.
    pub fn note_endpoint(&self, backend: &Backend) {
        self.set(match backend.address.unmapped() {
            Some(address) => endpoint_bit(address, backend.port),
            None => endpoint_bit(backend.address, backend.port),
        });
    }

    /// Sets the port's bit. There is no way back.
    pub fn note_port(&self, port: u16) {
        self.set(port_bit(Port::new(port)));
    }

    fn set(&self, place: (u32, u64)) {
        if let Some((word, bit)) = self.word(place) {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Whether the address's bit is set, as far as can be told.
    pub fn has(&self, address: IpAddr) -> bool {
        self.word(bit_of(address)).is_none_or(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0)
    }

    /// The word of this number, and the bit.
    fn word(&self, (word, bit): (u32, u64)) -> Option<(&AtomicU64, u64)> {
        // A filter of another size has no such word; for programs every bit of it is set then.
        let mapping = self.mapping.as_ref().filter(|mapping| (word as usize) < mapping.elements)?;
        let offset = word as usize * mapping.stride;
        // SAFETY: inside the mapping, checked above; elements are aligned to eight bytes, and programs change them atomically too.
        let word = unsafe { AtomicU64::from_ptr(mapping.memory.as_mut_ptr().add(offset).cast()) };
        Some((word, bit))
    }
}

/// Where the bit of an address is.
fn bit_of(address: IpAddr) -> (u32, u64) {
    match address {
        IpAddr::V4(address) => address_bit(Ipv4::from(address)),
        IpAddr::V6(address) => address_bit(Ipv6::from(address)),
    }
}

/// The flow table of clients with addresses of type `A`.
///
/// It is mapped only while somebody reads it: whatever is mapped counts as memory of this process.
#[derive(Debug)]
pub struct FlowMemory<A> {
    map: Map,
    kind: PhantomData<FlowSet<A>>,
}

impl<A> FlowMemory<A> {
    /// Takes the table, and refuses one of another layout.
    pub fn new(map: Map) -> io::Result<Self> {
        if map.info().value_size as usize != size_of::<FlowSet<A>>() {
            let message = format!(
                "flow sets of {} bytes; this release knows sets of {}",
                map.info().value_size,
                size_of::<FlowSet<A>>()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Self { map, kind: PhantomData })
    }

    /// Number of sets.
    pub fn sets(&self) -> usize {
        self.map.info().max_entries as usize
    }

    /// Maps the table for reading.
    pub fn mapped(&self) -> io::Result<MappedFlows<A>> {
        Ok(MappedFlows { mapping: Mapping::new(&self.map)?, kind: PhantomData })
    }
}

/// A flow table, read while programs write it.
#[derive(Debug)]
pub struct MappedFlows<A> {
    mapping: Mapping,
    kind: PhantomData<FlowSet<A>>,
}

impl<A: FromBytes> MappedFlows<A> {
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
