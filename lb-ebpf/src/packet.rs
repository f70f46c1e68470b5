//! Frames in the kernel: the only pointer arithmetic on packets in the project.

use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::wire::{Packet, PacketMut};

/// `N` bytes on an even address: headers start on one, and their fields are on even offsets. The
/// compiler may then move two bytes at a time.
#[repr(C, align(2))]
struct Even<const N: usize>([u8; N]);

/// A frame between two pointers that the verifier knows as packet start and end.
///
/// The comparison is made on pointers: the verifier does not take a length for a bound
/// (<https://docs.kernel.org/bpf/verifier.html#direct-packet-access>).
#[inline(always)]
fn bounded<const N: usize>(start: usize, end: usize, offset: usize) -> Option<*mut Even<N>> {
    let mut at = start + offset;
    // The compiler must not split the sum again: what is compared must be what is dereferenced.
    // (An empty template would leave two line infos on one instruction, which the kernel refuses.)
    // SAFETY: a register is copied to itself.
    unsafe { core::arch::asm!("{at} = {at}", at = inout(reg) at, options(nomem, nostack)) };
    if at + size_of::<Even<N>>() > end { None } else { Some(at as *mut Even<N>) }
}

/// `N` bytes at `offset`.
#[inline(always)]
fn read<const N: usize>(start: usize, end: usize, offset: usize) -> Option<[u8; N]> {
    let at = bounded::<N>(start, end, offset)?;
    // SAFETY: the N bytes at `at` lie inside the packet's linear part, on an even address.
    Some(unsafe { at.read() }.0)
}

/// A frame in XDP.
pub struct XdpPacket<'a>(pub &'a XdpContext);

impl Packet for XdpPacket<'_> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        read(self.0.data(), self.0.data_end(), offset)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.0.data_end() - self.0.data()
    }
}

impl PacketMut for XdpPacket<'_> {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let at = bounded::<N>(self.0.data(), self.0.data_end(), offset)?;
        // SAFETY: the N bytes at `at` lie inside the packet, on an even address, and this program owns
        // the packet while it runs.
        unsafe { at.write(Even(bytes)) };
        Some(())
    }
}

/// Headers we may need to look at: Ethernet, IPv4 with all options, TCP without.
const HEADERS: usize = 14 + 60 + 20;

/// A frame in tc. Read directly; written through helpers that know about checksum offload.
pub struct SkbPacket<'a>(pub &'a TcContext);

impl<'a> SkbPacket<'a> {
    /// Makes sure that the headers are in the skb's linear part.
    #[inline(always)]
    pub fn new(ctx: &'a TcContext) -> Self {
        if ctx.data() + HEADERS > ctx.data_end() && ctx.data_end() - ctx.data() < ctx.len() as usize {
            let wanted = if (ctx.len() as usize) < HEADERS { ctx.len() } else { HEADERS as u32 };
            // A failure shows as a short packet, which passes untouched.
            let _ = ctx.pull_data(wanted);
        }
        Self(ctx)
    }
}

impl Packet for SkbPacket<'_> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        read(self.0.data(), self.0.data_end(), offset)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.0.len() as usize
    }
}
