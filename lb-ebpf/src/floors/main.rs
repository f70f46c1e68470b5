//! What `cargo xtask bench` compares with: programs that do next to nothing, and the one that gives the program
//! under test a fresh packet each time. Never part of the agent.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "atomic addition exists for BPF only as an intrinsic")]
#![expect(missing_docs, reason = "the attribute macros leave the doc comments behind")]

mod flood;
mod frame;
mod layout;
mod wire;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::generated::{bpf_skb_change_tail, bpf_xdp_adjust_tail};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, HashMap, ProgramArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::abi::Frontend4;
use lb_common::addr::{Ipv4, Port, Proto};
use lb_common::wire::{Checksum, Delta};

use frame::Frame;
use layout::{
    BASE, CLIENT_NET, CONTROL_WORDS, COUNTER, FIRST_PORT, LENGTH, MASK, MULTIPLIER, PORT_BITS, PORTS,
    TEMPLATE,
};

/// TC_ACT_SHOT.
const SHOT: i32 = 2;

/// The packet to be made, and which flow is next.
#[map]
pub static CONTROL: Array<[u64; CONTROL_WORDS]> = Array::with_max_entries(1, 0);

/// The masquerading port of each flow.
#[map]
pub static NAT_PORTS: Array<u32> = Array::with_max_entries(PORTS, 0);

/// The program under test.
#[map]
pub static TARGET_XDP: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The program under test.
#[map]
pub static TARGET_TC: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// What [`floor_dnat`] looks up: the address and port of the backend, as they stand in a packet.
#[map]
pub static FLOOR_SERVICES: HashMap<Frontend4, [u32; 2]> = HashMap::with_max_entries(16_384, 0);

/// The least an XDP program can do.
#[xdp]
pub fn floor_pass(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

/// The least a tc program can do.
#[classifier]
pub fn floor_next(_ctx: TcContext) -> i32 {
    -1
}

/// Back to the sender.
#[xdp]
pub fn floor_swap(ctx: XdpContext) -> u32 {
    let Some(frame) = Frame::bounded(ctx.data(), ctx.data_end(), 14) else { return XDP_PASS };
    turn_around(&frame);
    XDP_TX
}

/// Swaps the MAC addresses.
#[inline(always)]
fn turn_around(frame: &Frame) {
    let (to, to_end, from, from_end) = (frame.u32(0), frame.u16(4), frame.u32(6), frame.u16(10));
    frame.put_u32(0, from);
    frame.put_u16(4, from_end);
    frame.put_u32(6, to);
    frame.put_u16(10, to_end);
}

/// The least a load balancer for IPv4 can do: one look-up, destination and checksums rewritten, sent.
#[xdp]
pub fn floor_dnat(ctx: XdpContext) -> u32 {
    const HEADERS: usize = 14 + 20 + 20;
    const ADDRESS: usize = 14 + 16;
    const PORT: usize = 14 + 20 + 2;
    const IP_CHECKSUM: usize = 14 + 10;
    let Some(frame) = Frame::bounded(ctx.data(), ctx.data_end(), HEADERS) else { return XDP_PASS };
    if frame.u16(12) != 0x0800_u16.to_be() || frame.u16(14) as u8 != 0x45 {
        return XDP_PASS;
    }
    let proto = Proto((frame.u16(14 + 8) >> 8) as u8);
    let checksum = match proto {
        Proto::TCP => 14 + 20 + 16,
        Proto::UDP => 14 + 20 + 6,
        _ => return XDP_PASS,
    };
    let (address, port) = (frame.u32(ADDRESS), frame.u16(PORT));
    let key = Frontend4::new(Ipv4::from_be32(address), Port::from_be16(port), proto);
    // SAFETY: the value is written before the run and never again.
    let Some([new_address, new_port]) = (unsafe { FLOOR_SERVICES.get(key) }) else { return XDP_PASS };
    let delta = Delta::default().double_word(address.to_ne_bytes(), new_address.to_ne_bytes());
    frame.update_checksum(IP_CHECKSUM, delta);
    frame.update_checksum(checksum, delta.word(port.to_ne_bytes(), (*new_port as u16).to_ne_bytes()));
    frame.put_u32(ADDRESS, *new_address);
    frame.put_u16(PORT, *new_port as u16);
    XDP_TX
}

impl Frame {
    #[inline(always)]
    fn update_checksum(&self, at: usize, delta: Delta) {
        let updated = Checksum(self.u16(at).to_ne_bytes()).updated(delta);
        self.put_u16(at, u16::from_ne_bytes(updated.0));
    }
}

/// Where the flow's number goes in the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Source,
    Destination,
    /// The destination's port is the flow's masquerading port.
    NatPort,
}

/// The one entry of [`CONTROL`].
#[inline(always)]
fn control() -> Option<&'static mut [u64; CONTROL_WORDS]> {
    // SAFETY: a live map element; one program runs at a time.
    Some(unsafe { &mut *CONTROL.get_ptr_mut(0)? })
}

/// Writes the next packet over the last one, or over what the program under test has left of it.
#[inline(always)]
fn restore(
    control: &mut [u64; CONTROL_WORDS],
    start: usize,
    end: usize,
    ipv6: bool,
    place: Place,
) -> Option<()> {
    let words = layout::words(ipv6);
    let frame = Frame::bounded(start, end, 8 * words)?;
    let number = control[COUNTER];
    let flow = (number.wrapping_mul(control[MULTIPLIER]) & control[MASK]) + control[BASE];
    for word in 0..words {
        frame.put_u64(8 * word, control[TEMPLATE + word]);
    }
    // (Address and port, of the source; the destination's follow.)
    let (address, address_length, ports) = if ipv6 { (34, 16, 54) } else { (26, 4, 34) };
    let host = CLIENT_NET | (flow >> PORT_BITS) as u32;
    let port = FIRST_PORT + (flow as u16 & ((1 << PORT_BITS) - 1));
    match place {
        Place::Source => {
            frame.put_u32(address, host.to_be());
            frame.put_u16(ports, port.to_be());
        }
        Place::Destination => {
            frame.put_u32(address + address_length, host.to_be());
            frame.put_u16(ports + 2, port.to_be());
        }
        Place::NatPort => {
            let port = *NAT_PORTS.get(layout::nat_port_index(ipv6, flow as u32))?;
            frame.put_u16(ports + 2, (port as u16).to_be());
        }
    }
    advance(&raw mut control[COUNTER]);
    Some(())
}

/// Counts the packet. Atomically: the processor then finishes all stores before it goes on. Otherwise the program
/// under test would wait for each field that it reads in other pieces than it was written in.
#[inline(always)]
fn advance(counter: *mut u64) {
    use core::intrinsics::AtomicOrdering::SeqCst;
    // SAFETY: a live map element, aligned to eight bytes. The result is not used.
    unsafe { core::intrinsics::atomic_xadd::<u64, u64, { SeqCst }>(counter, 1) };
}

#[inline(always)]
fn restore_xdp(ctx: &XdpContext, ipv6: bool, place: Place) -> u32 {
    let Some(control) = control() else { return XDP_ABORTED };
    let missing = control[LENGTH] as i32 - (ctx.data_end() - ctx.data()) as i32;
    if missing != 0 {
        // SAFETY: the context is valid; packet pointers are read anew.
        let _ = unsafe { bpf_xdp_adjust_tail(ctx.ctx, missing) };
    }
    if restore(control, ctx.data(), ctx.data_end(), ipv6, place).is_some() {
        // SAFETY: the context is this program's. Only an empty array comes back.
        unsafe { TARGET_XDP.tail_call(ctx, 0) };
    }
    XDP_ABORTED
}

#[inline(always)]
fn restore_tc(ctx: &TcContext, ipv6: bool, place: Place) -> i32 {
    let Some(control) = control() else { return SHOT };
    if ctx.len() != control[LENGTH] as u32 {
        // SAFETY: the context is valid; packet pointers are read anew.
        let _ = unsafe { bpf_skb_change_tail(ctx.skb.skb, control[LENGTH] as u32, 0) };
    }
    // SAFETY: the context is valid. (What the program under test notes there, the next packet does not bear.)
    unsafe {
        core::arch::asm!(
            "*(u32 *)({skb} + {offset}) = {nothing}",
            skb = in(reg) ctx.skb.skb,
            offset = const core::mem::offset_of!(aya_ebpf::bindings::__sk_buff, tc_index),
            nothing = in(reg) 0_u64,
            options(nostack)
        );
    }
    if restore(control, ctx.data(), ctx.data_end(), ipv6, place).is_some() {
        // SAFETY: as above.
        unsafe { TARGET_TC.tail_call(ctx, 0) };
    }
    SHOT
}

macro_rules! restorers {
    ($($xdp:ident $tc:ident: $ipv6:literal $place:ident;)*) => {$(
        #[xdp]
        pub fn $xdp(ctx: XdpContext) -> u32 {
            restore_xdp(&ctx, $ipv6, Place::$place)
        }

        #[classifier]
        pub fn $tc(ctx: TcContext) -> i32 {
            restore_tc(&ctx, $ipv6, Place::$place)
        }
    )*};
}

restorers! {
    xdp4_source tc4_source: false Source;
    xdp4_dest tc4_dest: false Destination;
    xdp4_nat tc4_nat: false NatPort;
    xdp6_source tc6_source: true Source;
    xdp6_dest tc6_dest: true Destination;
    xdp6_nat tc6_nat: true NatPort;
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
