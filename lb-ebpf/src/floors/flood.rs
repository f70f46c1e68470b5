//! A SYN flood's frames: first packets of connections that nobody means, from sources that do not exist.

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_TX};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use lb_common::wire::Delta;

use crate::frame::Frame;
use crate::layout::{
    CONTROL_WORDS, COUNTER, FLOOD_FIRST_PORT, FLOOD_NET, FLOOD_NET_LENGTH, FLOOD_PORTS, TEMPLATE, words,
};
use crate::{advance, control};

/// Makes a SYN from a random source and sends it to the interface's other end: for frames that the kernel makes. The
/// template is a SYN from the first address and port.
#[xdp]
pub fn flood_source(ctx: XdpContext) -> u32 {
    let Some(control) = control() else { return XDP_ABORTED };
    match make(control, ctx.data(), ctx.data_end()) {
        Some(()) => XDP_TX,
        None => XDP_ABORTED,
    }
}

#[inline(always)]
fn make(control: &mut [u64; CONTROL_WORDS], start: usize, end: usize) -> Option<()> {
    const SOURCE: usize = 14 + 12;
    const PORT: usize = 14 + 20;
    let frame = Frame::bounded(start, end, 8 * words(false))?;
    // (All of it: the frame comes back as whoever had it has left it.)
    for word in 0..words(false) {
        frame.put_u64(8 * word, control[TEMPLATE + word]);
    }
    // SAFETY: the helper takes nothing.
    let (address, port) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    let address = FLOOD_NET | address >> FLOOD_NET_LENGTH;
    let port = FLOOD_FIRST_PORT + (((port >> 16) * FLOOD_PORTS) >> 16) as u16;
    let delta = Delta::default().double_word(FLOOD_NET.to_be_bytes(), address.to_be_bytes());
    frame.update_checksum(14 + 10, delta);
    frame.update_checksum(14 + 20 + 16, delta.word(FLOOD_FIRST_PORT.to_be_bytes(), port.to_be_bytes()));
    frame.put_u32(SOURCE, address.to_be());
    frame.put_u16(PORT, port.to_be());
    advance(&raw mut control[COUNTER]);
    Some(())
}
