//! Frames in the kernel: the only pointer arithmetic on packets in the project.

use aya_ebpf::helpers::generated::bpf_skb_store_bytes;
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

/// `W` words at `offset`, each in one load.
///
/// In assembly: all the compiler knows of is an even address, and it would put a word together from bytes.
/// Headers start two bytes behind a multiple of four, and what drivers align (`NET_IP_ALIGN`) and the verifier
/// assumes is such that their words do not.
#[inline(always)]
fn words<const W: usize>(start: usize, end: usize, offset: usize) -> Option<[u32; W]> {
    const { assert!(W <= 5) };
    let mut at = start + offset;
    // SAFETY: a register is copied to itself, for the reason given in `bounded`.
    unsafe { core::arch::asm!("{at} = {at}", at = inout(reg) at, options(nomem, nostack)) };
    if at + 4 * W > end {
        return None;
    }
    let mut words = [0; W];
    macro_rules! load {
        ($($number:literal)*) => { $(
            if let Some(place) = words.get_mut($number) {
                let word: u64;
                // SAFETY: the word lies inside the packet's linear part.
                unsafe {
                    core::arch::asm!("{word} = *(u32 *)({at} + {offset})", at = in(reg) at,
                        word = out(reg) word, offset = const 4 * $number, options(pure, readonly, nostack));
                }
                *place = word as u32;
            }
        )* };
    }
    load!(0 1 2 3 4);
    Some(words)
}

/// Four bytes go into a packet.
#[inline(always)]
fn store(at: usize, word: u32) {
    // SAFETY: the caller has compared `at` with the end of a packet that is this program's.
    unsafe {
        core::arch::asm!("*(u32 *)({at} + 0) = {word}", at = in(reg) at, word = in(reg) u64::from(word),
            options(nostack));
    }
}

/// `value`, mixed with something in and out again: the verifier does not know that it cancels, so the
/// result is any number to it.
#[inline(always)]
pub fn forget(value: usize, unknown: u32) -> usize {
    let mut value = value;
    // SAFETY: arithmetic on registers.
    unsafe {
        core::arch::asm!(
            "{value} ^= {unknown}",
            "{value} ^= {unknown}",
            value = inout(reg) value,
            unknown = in(reg) unknown as u64,
            options(nomem, nostack)
        );
    }
    value
}

/// A frame in XDP.
pub struct XdpPacket<'a>(pub &'a XdpContext);

impl Packet for XdpPacket<'_> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        read(self.0.data(), self.0.data_end(), offset)
    }

    #[inline(always)]
    fn words<const W: usize>(&self, offset: usize) -> Option<[u32; W]> {
        words(self.0.data(), self.0.data_end(), offset)
    }

    #[inline(always)]
    fn forget_history(&self, offset: usize) -> usize {
        // SAFETY: the context is valid while the program runs.
        forget(offset, unsafe { (*self.0.ctx).ingress_ifindex })
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
        if let (words, []) = bytes.as_chunks::<4>() {
            for (number, word) in words.iter().enumerate() {
                store(at as usize + 4 * number, u32::from_ne_bytes(*word));
            }
        } else {
            // SAFETY: the N bytes at `at` lie inside the packet, on an even address, and this program owns
            // the packet while it runs.
            unsafe { at.write(Even(bytes)) };
        }
        Some(())
    }
}

/// All headers, with what an ICMP error quotes.
pub const ODD_HEADERS: usize = 256;

/// Bit of `bpf_skb_store_bytes`: what the device has summed up is kept in step with the bytes.
const RECOMPUTE: u64 = aya_ebpf::bindings::BPF_F_RECOMPUTE_CSUM as u64;

/// A frame in tc. Written byte by byte, so for what no device finishes a checksum for: ICMP, later fragments.
pub struct SkbPacket<'a>(pub &'a TcContext);

impl<'a> SkbPacket<'a> {
    /// Makes sure that `headers` bytes are in the skb's linear part, or all there are.
    #[inline(always)]
    pub fn with_headers(ctx: &'a TcContext, headers: usize) -> Self {
        if ctx.data() + headers > ctx.data_end() && ctx.data_end() - ctx.data() < ctx.len() as usize {
            let wanted = if (ctx.len() as usize) < headers { ctx.len() } else { headers as u32 };
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
    fn words<const W: usize>(&self, offset: usize) -> Option<[u32; W]> {
        words(self.0.data(), self.0.data_end(), offset)
    }

    #[inline(always)]
    fn forget_history(&self, offset: usize) -> usize {
        forget(offset, self.0.len())
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.0.len() as usize
    }
}

impl PacketMut for SkbPacket<'_> {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        // SAFETY: `bytes` holds N readable bytes; the helper checks the offset against the skb.
        let code = unsafe {
            bpf_skb_store_bytes(self.0.skb.skb, offset as u32, bytes.as_ptr().cast(), N as u32, RECOMPUTE)
        };
        (code == 0).then_some(())
    }
}
