//! Both ends of the wire: who sends frames, and who counts those that arrive.

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_redirect};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::XdpContext;

use lb_common::addr::Proto;
use lb_common::wire::Delta;

use crate::frame::Frame;
use crate::layout::{
    CLIENT_NET, DOOR_INTERFACE, DOOR_MACS, DOOR_WORDS, FIRST_PORT, FRAME_WORDS, SINK_ADDRESS, SINK_EVERY,
    SINK_FRAME, SINK_MASK, SINK_PORT, SINK_RIGHT, SINK_SEEN, SINK_WORDS,
};
use crate::{Place, control, restore, turn_around};

/// AF_INET.
const AF_INET: u8 = 2;

/// What has arrived, and what is right.
#[map]
pub static SINK: Array<[u64; SINK_WORDS]> = Array::with_max_entries(1, 0);

/// Where [`wire_door`] sends to.
#[map]
pub static DOOR: Array<[u64; DOOR_WORDS]> = Array::with_max_entries(1, 0);

/// Makes the next packet and sends it to the interface's other end: for frames that the kernel makes. IPv4;
/// the template is the first client's.
#[xdp]
pub fn wire_source(ctx: XdpContext) -> u32 {
    let Some(control) = control() else { return XDP_ABORTED };
    if restore(control, ctx.data(), ctx.data_end(), false, Place::Source).is_none() {
        return XDP_ABORTED;
    }
    match correct(ctx.data(), ctx.data_end()) {
        Some(()) => XDP_TX,
        None => XDP_ABORTED,
    }
}

/// The kernel's forwarding looks at checksums: those of the template are for the first client.
#[inline(always)]
fn correct(start: usize, end: usize) -> Option<()> {
    const CLIENT: usize = 14 + 12;
    const CLIENT_PORT: usize = 14 + 20;
    let frame = Frame::bounded(start, end, 14 + 20 + 20)?;
    let delta = Delta::default().double_word(CLIENT_NET.to_be_bytes(), frame.u32(CLIENT).to_ne_bytes());
    frame.update_checksum(14 + 10, delta);
    let checksum = if Proto((frame.u16(14 + 8) >> 8) as u8) == Proto::TCP { 16 } else { 6 };
    let delta = delta.word(FIRST_PORT.to_be_bytes(), frame.u16(CLIENT_PORT).to_ne_bytes());
    frame.update_checksum(14 + 20 + checksum, delta);
    Some(())
}

/// Counts the IPv4 packet, keeps one now and then, and drops it.
#[xdp]
pub fn wire_sink(ctx: XdpContext) -> u32 {
    const DESTINATION: usize = 14 + 16;
    const PORT: usize = 14 + 20 + 2;
    let Some(frame) = Frame::bounded(ctx.data(), ctx.data_end(), 8 * FRAME_WORDS) else { return XDP_DROP };
    if frame.u16(12) != 0x0800_u16.to_be() {
        return XDP_DROP;
    }
    // SAFETY: a live map element; one CPU receives.
    let Some(sink) = SINK.get_ptr_mut(0).map(|sink| unsafe { &mut *sink }) else { return XDP_ABORTED };
    let address = u64::from(frame.u32(DESTINATION)) & sink[SINK_MASK];
    if address == sink[SINK_ADDRESS] && u64::from(frame.u16(PORT)) == sink[SINK_PORT] {
        sink[SINK_RIGHT] += 1;
    }
    if sink[SINK_SEEN].is_multiple_of(SINK_EVERY) {
        for word in 0..FRAME_WORDS {
            sink[SINK_FRAME + word] = frame.u64(8 * word);
        }
    }
    sink[SINK_SEEN] += 1;
    XDP_DROP
}

/// The least a router can do: other MAC addresses, out of another interface.
#[xdp]
pub fn wire_door(ctx: XdpContext) -> u32 {
    let Some(frame) = Frame::bounded(ctx.data(), ctx.data_end(), 14) else { return XDP_PASS };
    // SAFETY: written before the run and never again.
    let Some(door) = DOOR.get_ptr(0).map(|door| unsafe { &*door }) else { return XDP_ABORTED };
    frame.put_u64(0, door[DOOR_MACS]);
    frame.put_u32(8, door[DOOR_MACS + 1] as u32);
    // SAFETY: the helper takes two numbers.
    unsafe { bpf_redirect(door[DOOR_INTERFACE] as u32, 0) as u32 }
}

/// What a program pays that asks the kernel for a packet's way: the route and the neighbour, then back to the sender.
#[xdp]
pub fn wire_route(ctx: XdpContext) -> u32 {
    let Some(frame) = Frame::bounded(ctx.data(), ctx.data_end(), 14 + 20) else { return XDP_PASS };
    // SAFETY: zeros are a value of this plain C struct.
    let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    query.family = AF_INET;
    // SAFETY: the context is valid.
    query.ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
    query.__bindgen_anon_3.ipv4_src = frame.u32(14 + 12);
    query.__bindgen_anon_4.ipv4_dst = frame.u32(14 + 16);
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: context and query are valid for the call.
    let code = unsafe { fib_lookup(ctx.ctx.cast(), &raw mut query, size, 0) };
    if code != 0 {
        return XDP_ABORTED;
    }
    turn_around(&frame);
    XDP_TX
}
