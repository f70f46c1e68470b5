//! The steps of a packet in tc, with the helpers that know about checksum offload.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_change_tail, bpf_skb_change_type,
    bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use lb_common::abi::{Config, Flow, Hook, Reason};
use lb_common::addr::{Port, Proto};
use lb_common::datapath::flow_table::InsertError;
use lb_common::datapath::opening::OpeningKind;
use lb_common::datapath::refuse::{Options, Reset};
use lb_common::datapath::{
    Desk, Hop, Leg, Outcome, Parsed, Point, Program, Step, Tally, Translation, Tuple, look as first, of_node,
    refuse as answers, rewrite,
};
use lb_common::wire::{ETHERNET_LENGTH, MAC_LENGTH, Packet, TCP_LENGTH, field};

use crate::conntrack;
use crate::counters::count_service;
use crate::desk::{KernelDesk, Tools, lend};
use crate::family::{KernelFamily, Opener};
use crate::functions::DONE;
use crate::log;
use crate::maps::CONFIG;
use crate::packet::SkbPacket;
use crate::refusals::may_refuse;
use crate::tables::{Context, KernelTables};

/// Next program in line: TCX_NEXT, which is also clsact's TC_ACT_UNSPEC.
pub const NEXT: i32 = -1;
/// The packet ends here.
pub const DROP: i32 = TC_ACT_SHOT;
/// Addressed to this interface.
const PACKET_HOST: u32 = 0;

/// tc on an skb; the same as [`crate::xdp::OnFrame`].
pub struct OnSkb<'a, A> {
    ctx: &'a TcContext,
    hook: Hook,
    point: Point,
    pub(crate) parsed: Parsed<A>,
}

impl<'a, A: KernelFamily> OnSkb<'a, A> {
    /// Nothing is known yet.
    #[inline(always)]
    pub const fn new(ctx: &'a TcContext, hook: Hook, point: Point) -> Self {
        Self { ctx, hook, point, parsed: Parsed::NOTHING }
    }
}

impl<A: KernelFamily> Program<A> for OnSkb<'_, A> {
    type Action = i32;
    type Desk = KernelDesk<A>;

    const PASS: i32 = NEXT;
    const DROP: i32 = DROP;

    #[inline(always)]
    fn look(&mut self, desk: &mut KernelDesk<A>) -> Outcome {
        if A::BY_FUNCTIONS {
            let (number, point) = (desk.tools.number, self.point.number());
            return Outcome::from_number(lend(desk, || A::look_skb(self.ctx.skb.skb, point, number)));
        }
        look(self.ctx, self.point, &mut self.parsed, &mut desk.desk, &mut desk.tools)
    }

    #[inline(always)]
    fn judge_own(&mut self, desk: &mut KernelDesk<A>) -> Outcome {
        let number = desk.tools.number;
        if self.point == Point::Egress && desk.desk.opening.kind == OpeningKind::OF_NODE {
            let mut judged = Outcome::from_number(lend(desk, || A::find_of_node(number)));
            if judged.step() == Step::SERVE {
                judged = Outcome::from_number(lend(desk, || A::serve_of_node(number)));
            }
            if judged.step() != Step::JUDGE_OWN {
                return judged;
            }
        }
        Outcome::from_number(lend(desk, || A::judge_own(number)))
    }

    #[inline(always)]
    fn open(&mut self, desk: &mut KernelDesk<A>) -> Result<(), InsertError> {
        Opener::open(Context::Skb(self.ctx.skb.skb), desk)
    }

    #[inline(always)]
    fn hand_over(&mut self, desk: &mut KernelDesk<A>) {
        if let Point::Ingress(origin) = self.point {
            conntrack::hand_over(self.ctx, origin, desk);
        }
    }

    #[inline(always)]
    fn opening_proto(&self, desk: &KernelDesk<A>) -> Proto {
        desk.desk.opening.tuple.proto
    }

    /// The kernel's own forwarding takes everything.
    #[inline(always)]
    fn unmake(&mut self, _: &mut KernelDesk<A>) {}

    #[inline(always)]
    fn may_answer(&mut self, _: &mut KernelDesk<A>) -> bool {
        true
    }

    #[inline(always)]
    fn may_refuse(&mut self) -> bool {
        may_refuse()
    }

    #[inline(always)]
    fn refuse(&mut self, desk: &mut KernelDesk<A>) -> Option<i32> {
        let (number, context) = (desk.tools.number, self.ctx.skb.skb);
        let parsed = if A::BY_FUNCTIONS { &desk.parsed } else { &self.parsed };
        let answered = if parsed.tuple.proto == Proto::TCP {
            let reset = A::reset_skb(context);
            if reset == DONE { A::cut_options_skb(context) } else { reset }
        } else {
            lend(desk, || A::unreachable_skb(context, number))
        };
        if answered != DONE {
            return None;
        }
        // Back to where it came from: one of the node's own is met on its way out.
        let flags = if self.point == Point::Egress {
            mark(self.ctx, |config| config.turned_inwards());
            BPF_F_INGRESS as u64
        } else {
            0
        };
        // SAFETY: the helper takes two numbers.
        Some(unsafe { bpf_redirect(Context::Skb(self.ctx.skb.skb).interface(), flags) } as i32)
    }

    #[inline(always)]
    fn translate(&mut self, outcome: Outcome, desk: &mut KernelDesk<A>) -> Outcome {
        let number = desk.tools.number;
        let first_fragment =
            if A::BY_FUNCTIONS { desk.parsed.first_fragment } else { self.parsed.first_fragment };
        if first_fragment {
            if !A::BY_FUNCTIONS {
                desk.parsed = self.parsed;
            }
            let (leg, point) = (outcome.leg().0, self.point.number());
            lend(desk, || A::note_first_fragment(leg, point, number));
        }
        let done = if A::BY_FUNCTIONS {
            lend(desk, || A::translate_skb(self.ctx.skb.skb, outcome.leg().0, number)) == DONE
        } else {
            translate(self.ctx, outcome.leg(), &self.parsed, &desk.desk.found).is_some()
        };
        if !done {
            return Outcome::drop(Reason::RewriteFailed);
        }
        if outcome.leg().turns_off() {
            return outcome.then(self.turn_off(outcome.leg(), false, desk));
        }
        note_translated(self.ctx, self.point);
        outcome.then(Step::DELIVER)
    }

    #[inline(always)]
    fn transmit(&mut self, desk: &mut KernelDesk<A>) -> i32 {
        let hop = desk.desk.hop.0;
        // SAFETY: the helpers take numbers, and no address of a neighbour: the kernel looks for it.
        unsafe {
            if hop & Hop::INWARDS != 0 {
                bpf_redirect(hop & !Hop::INWARDS, BPF_F_INGRESS as u64) as i32
            } else {
                bpf_redirect_neigh(hop, core::ptr::null_mut(), 0, 0) as i32
            }
        }
    }

    #[inline(always)]
    fn count(&mut self, outcome: Outcome, desk: &mut KernelDesk<A>) {
        count_service(&Tally::new(&desk.desk.found), outcome, self.ctx.len() as usize);
    }

    #[inline(always)]
    fn later_fragment(&mut self, desk: &mut KernelDesk<A>) -> Outcome {
        let (number, context, point) = (desk.tools.number, self.ctx.skb.skb, self.point.number());
        let outcome = Outcome::from_number(lend(desk, || A::find_fragment(context, point, number)));
        if outcome.step() != Step::TRANSLATE {
            return outcome;
        }
        note_translated(self.ctx, self.point);
        let rewritten = Outcome::from_number(lend(desk, || A::rewrite_fragment(context, number)));
        // SAFETY: the context is valid while the program runs.
        let sent_by_node = unsafe { (*context).ingress_ifindex == 0 };
        if rewritten.step() == Step::PASS && of_node::has_fragment(self.point, sent_by_node, &desk.desk) {
            let leg = if self.point == Point::Egress { Leg::NODE_REQUEST } else { Leg::NODE_REPLY };
            let step = self.turn_off(leg, true, desk);
            return rewritten.then(if step == Step::DELIVER { Step::PASS } else { step });
        }
        rewritten
    }

    #[inline(always)]
    fn icmp_error(&mut self, desk: &mut KernelDesk<A>) -> Outcome {
        let (number, context, leaves) = (desk.tools.number, self.ctx.skb.skb, self.point == Point::Egress);
        lend(desk, || {
            let judge = || if leaves { A::judge_leaving_error(number) } else { A::judge_error(number) };
            if A::read_error(context, number) == DONE && judge() == DONE {
                note_translated(self.ctx, self.point);
                Outcome::from_number(A::rewrite_error(context, number))
            } else {
                Outcome::pass(Reason::OtherProtocol)
            }
        })
    }

    #[inline(always)]
    fn log(&self, reason: u32, desk: &KernelDesk<A>) {
        let parsed = if A::BY_FUNCTIONS { &desk.parsed } else { &self.parsed };
        log::packet(self.ctx, self.hook, reason, &parsed.tuple);
    }
}

impl<A: KernelFamily> OnSkb<'_, A> {
    /// Finds out how a translated packet of the node's own flow goes on, and marks it for that.
    #[inline(always)]
    fn turn_off(&mut self, leg: Leg, fragment: bool, desk: &mut KernelDesk<A>) -> Step {
        let (number, context, point) = (desk.tools.number, self.ctx.skb.skb, self.point.number());
        let step = Step(lend(desk, || A::find_hop(context, leg.0, point, fragment.into(), number)));
        if step == Step::TRANSMIT && desk.desk.hop.0 & Hop::INWARDS != 0 {
            mark(self.ctx, |config| config.turned_inwards());
        } else {
            note_translated(self.ctx, self.point);
        }
        step
    }
}

/// Reads a packet and finds its flow.
#[inline(always)]
pub fn look<A: KernelFamily>(
    ctx: &TcContext,
    point: Point,
    parsed: &mut Parsed<A>,
    desk: &mut Desk<A>,
    tools: &mut Tools,
) -> Outcome {
    if is_translated(ctx, point) {
        return Outcome::pass(Reason::Translated);
    }
    // On an uplink, frames for other stations turn up when a switch floods. A bridge's port sees the
    // bridge's address as another's, so pods' interfaces do not ask.
    // SAFETY: the context is valid while the program runs.
    let is_for_us = || unsafe { (*ctx.skb.skb).pkt_type } == PACKET_HOST;
    *parsed = match first::read(&SkbPacket(ctx), point, is_for_us) {
        Ok(parsed) => parsed,
        Err(outcome) => return outcome,
    };
    let Some(tables) = KernelTables::new(Context::Skb(ctx.skb.skb), tools) else {
        return Outcome::pass(Reason::NoService);
    };
    let outcome = first::find(parsed, point, &tables, desk);
    if outcome.is_for(Reason::Translated) {
        // By XDP, which cannot say so.
        note_translated(ctx, point);
    }
    outcome
}

/// What a packet bears that has been translated on this way; see [`Config::translated`].
#[inline(always)]
fn translated(point: Point) -> Option<u32> {
    let config: &Config = CONFIG.get(0)?;
    Some(config.translated(point == Point::Egress).into())
}

/// Whether another program of ours has translated the packet on this way.
#[inline(always)]
fn is_translated(ctx: &TcContext, point: Point) -> bool {
    // SAFETY: the context is valid while the program runs.
    let mark = unsafe { (*ctx.skb.skb).tc_index };
    mark != 0 && (translated(point) == Some(mark) || point != Point::Egress && is_turned_inwards(ctx, mark))
}

/// Whether a program of ours has sent the packet in here, for this node: its frame may say otherwise.
#[inline(always)]
fn is_turned_inwards(ctx: &TcContext, mark: u32) -> bool {
    let Some(config) = CONFIG.get(0) else { return false };
    if u32::from(config.turned_inwards()) != mark {
        return false;
    }
    // SAFETY: the helper takes the context of this program and a number. (If it fails, the stack drops the packet.)
    unsafe { bpf_skb_change_type(ctx.skb.skb, PACKET_HOST) };
    true
}

/// Tells those that come after.
#[inline(always)]
fn note_translated(ctx: &TcContext, point: Point) {
    mark(ctx, |config| config.translated(point == Point::Egress));
}

/// Puts a mark on the packet.
#[inline(always)]
fn mark(ctx: &TcContext, which: impl FnOnce(&Config) -> u16) {
    if let Some(mark) = CONFIG.get(0).map(which) {
        // SAFETY: as above; the kernel lets tc programs write this field. (By its offset: the verifier refuses a pointer to it.)
        unsafe {
            core::arch::asm!(
                "*(u32 *)({skb} + {offset}) = {mark}",
                skb = in(reg) ctx.skb.skb,
                offset = const core::mem::offset_of!(__sk_buff, tc_index),
                mark = in(reg) u64::from(mark),
                options(nostack)
            );
        }
    }
}

/// Gives a packet the addresses that its flow has for this leg.
#[inline(always)]
pub fn translate<A: KernelFamily>(
    ctx: &TcContext,
    leg: Leg,
    parsed: &Parsed<A>,
    flow: &Flow<A>,
) -> Option<()> {
    let translation: Translation<A> = leg.translation(flow);
    let Tuple { source, source_port, destination, destination_port, .. } = parsed.tuple;
    if let Some((address, port)) = translation.new_source() {
        replace_in_transport(ctx, parsed, (source, address), field::SOURCE_PORT, (source_port, port))?;
    }
    if let Some((address, port)) = translation.new_destination() {
        let ports = (destination_port, port);
        replace_in_transport(ctx, parsed, (destination, address), field::DESTINATION_PORT, ports)?;
    }
    A::replace_in_network(ctx, parsed, &translation)
}

/// Puts another port at `offset` of the transport header, and tells the checksum of port and address. Both are
/// given as they were and as they become.
#[inline(always)]
fn replace_in_transport<A: KernelFamily>(
    ctx: &TcContext,
    parsed: &Parsed<A>,
    (old_address, address): (A, A),
    offset: usize,
    (old_port, port): (Port, Port),
) -> Option<()> {
    let proto = parsed.tuple.proto;
    if proto == Proto::SCTP {
        // Its checksum covers the ports and is not ours to compute.
        return (old_port == port).then_some(());
    }
    let checksum = parsed.l4() + rewrite::checksum_offset(proto);
    // A UDP checksum of zero means none, and must stay so.
    let flags = if proto == Proto::UDP { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
    old_address.replace_in_transport(address, ctx, checksum, flags | BPF_F_PSEUDO_HDR as u64)?;
    if old_port != port {
        l4_checksum(ctx, checksum, old_port.to_be16() as u64, port.to_be16() as u64, flags | 2)?;
        store(ctx, parsed.l4() + offset, &port.octets())?;
    }
    Some(())
}

/// Turns a datagram into the ICMP error that its sender gets.
#[inline(always)]
pub fn unreachable<A: KernelFamily>(ctx: &TcContext, answer: &mut A::Answer) -> Option<()> {
    let parsed: Parsed<A> = read_alone(ctx)?;
    A::unreachable(&SkbPacket(ctx), &parsed, answer)?;
    turn_around(ctx)?;
    change_tail(ctx, (ETHERNET_LENGTH + size_of::<A::Answer>()) as u32)?;
    store(ctx, ETHERNET_LENGTH, answer)
}

/// Turns a segment into the RST that its sender gets.
#[inline(always)]
pub fn reset<A: KernelFamily>(ctx: &TcContext) -> Option<()> {
    let parsed: Parsed<A> = read_alone(ctx)?;
    let mut reset = answers::reset(&SkbPacket(ctx), &parsed)?;
    // Of the same length for now: see `cut_options`. (Bits that are reserved are none of an answer's.)
    reset.new[2][0] = reset.old[2][0] & 0xf0;
    turn_around(ctx)?;
    reset_segment(ctx, &parsed, &reset)
}

/// Reads a packet that is to be answered. Not one skb that stands for many packets: no single answer fits, and no flow starts
/// this way.
#[inline(always)]
fn read_alone<A: KernelFamily>(ctx: &TcContext) -> Option<Parsed<A>> {
    // SAFETY: the context is valid while the program runs.
    if unsafe { (*ctx.skb.skb).gso_size } != 0 {
        return None;
    }
    A::parse(&SkbPacket::with_headers(ctx, A::headers(&SkbPacket(ctx)))).ok()
}

/// Sends the frame back to its sender's station.
#[inline(always)]
fn turn_around(ctx: &TcContext) -> Option<()> {
    let macs: [u8; 2 * MAC_LENGTH] = SkbPacket(ctx).read(0)?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = macs;
    store(ctx, 0, &[s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5])
}

/// Makes the packet longer or shorter. Packet pointers are not to be used afterwards.
#[inline(always)]
fn change_tail(ctx: &TcContext, length: u32) -> Option<()> {
    // SAFETY: the context is valid.
    (unsafe { bpf_skb_change_tail(ctx.skb.skb, length, 0) } == 0).then_some(())
}

#[inline(always)]
fn reset_segment<A: KernelFamily>(ctx: &TcContext, parsed: &Parsed<A>, reset: &Reset) -> Option<()> {
    const { assert!(A::DESTINATION == A::SOURCE + size_of::<A>()) };
    const { assert!(field::DESTINATION_PORT == field::SOURCE_PORT + 2) };
    let tuple = &parsed.tuple;
    // Swapping both addresses and both ports leaves every sum as it was.
    store(ctx, parsed.l3() + A::SOURCE, &[tuple.destination, tuple.source])?;
    let (source, destination) = (tuple.destination_port.octets(), tuple.source_port.octets());
    store(ctx, parsed.l4() + field::SOURCE_PORT, &[source, destination])?;
    A::set_ttl_of(ctx, parsed, answers::TTL)?;
    for (word, (old, new)) in reset.old.iter().zip(reset.new).enumerate() {
        let (from, to) = (u32::from_ne_bytes(*old) as u64, u32::from_ne_bytes(new) as u64);
        l4_checksum(ctx, parsed.l4() + field::TCP_CHECKSUM, from, to, 4)?;
        store(ctx, parsed.l4() + field::TCP_SEQUENCE + 4 * word, &new)?;
    }
    Some(())
}

/// Takes the options off a segment: they become nothing, and then are no more there. With data behind them (TCP Fast Open) they stay
/// nothing, as data.
#[inline(always)]
pub fn cut_options<A: KernelFamily>(ctx: &TcContext) -> Option<()> {
    let parsed: Parsed<A> = read_alone(ctx)?;
    let Options { words, has_data } = Options::of(&SkbPacket(ctx), &parsed)?;
    if words == 0 {
        return Some(());
    }
    let checksum = parsed.l4() + field::TCP_CHECKSUM;
    for word in 0..Options::MOST {
        if word >= words {
            break;
        }
        let offset = parsed.l4() + TCP_LENGTH + 4 * word;
        let [option]: [u32; 1] = SkbPacket(ctx).words(offset)?;
        l4_checksum(ctx, checksum, option as u64, 0, 4)?;
        store(ctx, offset, &0_u32)?;
    }
    let offset = parsed.l4() + field::TCP_OFFSET_FLAGS;
    let [old, flags]: [u8; 2] = SkbPacket(ctx).read(offset)?;
    let new = answers::NO_OPTIONS | old & 0xf;
    let number = |first| u16::from_ne_bytes([first, flags]) as u64;
    l4_checksum(ctx, checksum, number(old), number(new), 2)?;
    store(ctx, offset, &new)?;
    if has_data {
        return Some(());
    }
    let length = |words: usize| ((TCP_LENGTH + 4 * words) as u16).to_be() as u64;
    l4_checksum(ctx, checksum, length(words), length(0), BPF_F_PSEUDO_HDR as u64 | 2)?;
    A::set_length_of(ctx, &parsed, answers::reset_length(&parsed))?;
    change_tail(ctx, (parsed.l4() + TCP_LENGTH) as u32)
}

/// Writes the bytes of a plain value (no padding) without touching what the device has summed up.
#[inline(always)]
pub fn store<T>(ctx: &TcContext, offset: usize, value: &T) -> Option<()> {
    store_from::<T, 0>(ctx, offset, value)
}

/// The same without the first `SKIPPED` bytes of `value`.
#[inline(always)]
pub fn store_from<T, const SKIPPED: usize>(ctx: &TcContext, offset: usize, value: &T) -> Option<()> {
    const { assert!(SKIPPED < size_of::<T>()) };
    // SAFETY: `value` is readable for its size; the helper checks the offset against the skb.
    let code = unsafe {
        bpf_skb_store_bytes(
            ctx.skb.skb,
            offset as u32,
            core::ptr::from_ref(value).cast::<u8>().add(SKIPPED).cast(),
            (size_of::<T>() - SKIPPED) as u32,
            0,
        )
    };
    (code == 0).then_some(())
}

/// Tells the transport checksum about a change.
#[inline(always)]
pub fn l4_checksum(ctx: &TcContext, offset: usize, old: u64, new: u64, flags: u64) -> Option<()> {
    // SAFETY: the helper takes numbers and checks the offset.
    (unsafe { bpf_l4_csum_replace(ctx.skb.skb, offset as u32, old, new, flags) } == 0).then_some(())
}
