//! The steps of a packet in XDP.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Hook, Reason, STATION_TRIES, Station};
use lb_common::addr::Proto;
use lb_common::datapath::flow_table::{self, InsertError};
use lb_common::datapath::xdp::{Forwarding, forward};
use lb_common::datapath::{
    Desk, Origin, Outcome, Parsed, Point, Program, Route, Step, Tally, look as first, refuse as answers,
    rewrite,
};
use lb_common::wire::{ETHERNET_LENGTH, MAC_LENGTH, Packet, PacketMut, UDP_LENGTH, field};

use crate::counters::count_service;
use crate::desk::{KernelDesk, Tools, lend};
use crate::family::{KernelFamily, Opener};
use crate::functions::DONE;
use crate::log;
use crate::maps::{CONFIG, STATIONS};
use crate::packet::{XdpPacket, forget};
use crate::refusals::may_refuse;
use crate::tables::{Context, KernelTables};

/// XDP on a frame. A family whose steps fit on one stack keeps what they hand on in registers; the other one's are functions, and
/// theirs lies on the desk.
pub struct OnFrame<'a, A> {
    ctx: &'a XdpContext,
    parsed: Parsed<A>,
    route: Route,
}

impl<'a, A: KernelFamily> OnFrame<'a, A> {
    /// Nothing is known yet.
    #[inline(always)]
    pub const fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx, parsed: Parsed::NOTHING, route: Route::NOWHERE }
    }
}

impl<A: KernelFamily> Program<A> for OnFrame<'_, A> {
    type Action = u32;
    type Desk = KernelDesk<A>;

    const PASS: u32 = XDP_PASS;
    const DROP: u32 = XDP_DROP;

    #[inline(always)]
    fn look(&mut self, desk: &mut KernelDesk<A>) -> Outcome {
        if A::BY_FUNCTIONS {
            let number = desk.tools.number;
            return Outcome::from_number(lend(desk, || A::look_xdp(self.ctx.ctx, number)));
        }
        look(self.ctx, &mut self.parsed, &mut desk.desk, &mut desk.tools)
    }

    /// Nothing leaves here.
    #[inline(always)]
    fn judge_own(&mut self, _: &mut KernelDesk<A>) -> Outcome {
        Outcome::pass(Reason::NoService)
    }

    #[inline(always)]
    fn open(&mut self, desk: &mut KernelDesk<A>) -> Result<(), InsertError> {
        Opener::open(Context::Xdp(self.ctx.ctx), desk)
    }

    #[inline(always)]
    fn opening_proto(&self, desk: &KernelDesk<A>) -> Proto {
        desk.desk.opening.tuple.proto
    }

    #[inline(always)]
    fn unmake(&mut self, desk: &mut KernelDesk<A>) {
        let made = desk.desk.new.made;
        if let Some(tables) = KernelTables::<A>::new(Context::None, &mut desk.tools) {
            flow_table::unmake(made, &tables);
        }
    }

    #[inline(always)]
    fn may_answer(&mut self, _: &mut KernelDesk<A>) -> bool {
        KernelTables::<A>::sends(Context::Xdp(self.ctx.ctx).interface())
    }

    #[inline(always)]
    fn may_refuse(&mut self) -> bool {
        may_refuse()
    }

    #[inline(always)]
    fn refuse(&mut self, desk: &mut KernelDesk<A>) -> Option<u32> {
        let (number, context) = (desk.tools.number, self.ctx.ctx);
        let parsed = if A::BY_FUNCTIONS { &desk.parsed } else { &self.parsed };
        let answered = if parsed.tuple.proto == Proto::TCP {
            A::reset_xdp(context)
        } else {
            lend(desk, || A::unreachable_xdp(context, number))
        };
        (answered == DONE).then_some(XDP_TX)
    }

    #[inline(always)]
    fn translate(&mut self, outcome: Outcome, desk: &mut KernelDesk<A>) -> Outcome {
        if A::BY_FUNCTIONS {
            let number = desk.tools.number;
            let done = lend(desk, || A::translate_xdp(self.ctx.ctx, outcome.number(), number));
            return Outcome::from_number(done);
        }
        translate(self.ctx, outcome, &self.parsed, &mut self.route, (&mut desk.desk, &mut desk.tools))
    }

    #[inline(always)]
    fn transmit(&mut self, desk: &mut KernelDesk<A>) -> u32 {
        let route = if A::BY_FUNCTIONS { &desk.route } else { &self.route };
        if route.same_interface {
            XDP_TX
        } else {
            // SAFETY: the helper takes two numbers.
            unsafe { bpf_redirect(route.interface, 0) as u32 }
        }
    }

    #[inline(always)]
    fn count(&mut self, outcome: Outcome, desk: &mut KernelDesk<A>) {
        count_service(&Tally::new(&desk.desk.found), outcome, XdpPacket(self.ctx).length());
    }

    #[inline(always)]
    fn later_fragment(&mut self, _: &mut KernelDesk<A>) -> Outcome {
        Outcome::pass(Reason::LeftToStack)
    }

    #[inline(always)]
    fn icmp_error(&mut self, _: &mut KernelDesk<A>) -> Outcome {
        Outcome::pass(Reason::LeftToStack)
    }

    #[inline(always)]
    fn log(&self, reason: u32, desk: &KernelDesk<A>) {
        let parsed = if A::BY_FUNCTIONS { &desk.parsed } else { &self.parsed };
        log::packet(self.ctx, Hook::UplinkXdp, reason, &parsed.tuple);
    }
}

/// Reads a frame and finds its flow.
#[inline(always)]
pub fn look<A: KernelFamily>(
    ctx: &XdpContext,
    parsed: &mut Parsed<A>,
    desk: &mut Desk<A>,
    tools: &mut Tools,
) -> Outcome {
    const POINT: Point = Point::Ingress(Origin::Wire);
    let packet = XdpPacket(ctx);
    *parsed = match first::read(&packet, POINT, || is_for_us(ctx)) {
        Ok(parsed) => parsed,
        Err(outcome) => return outcome,
    };
    let Some(tables) = KernelTables::new(Context::Xdp(ctx.ctx), tools) else {
        return Outcome::pass(Reason::NoService);
    };
    first::find(parsed, POINT, &tables, desk)
}

/// Whether a frame is for this interface, or for a device on top of it. (Nobody's station is a group: broadcast and multicast are the
/// stack's.)
#[inline(always)]
fn is_for_us(ctx: &XdpContext) -> bool {
    let (Some(address), Some(config)) = (XdpPacket(ctx).read(0), CONFIG.get(0)) else { return false };
    if config.station != 0 { config.station == Station::only(address) } else { is_in_table(ctx.ctx) != 0 }
}

/// The same where several interfaces have XDP: what the table says. (A function of its own, so that the common case is small enough
/// to stand in its place.)
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_in_table(context: *mut xdp_md) -> u32 {
    let Some(address) = XdpPacket(&XdpContext::new(context)).read(0) else { return 0 };
    // SAFETY: the context is valid while its program runs.
    let station = Station::new(unsafe { (*context).ingress_ifindex }, address);
    for turn in 0..STATION_TRIES {
        if STATIONS.get(station.slot(turn)).is_some_and(|slot| *slot == station.0) {
            return 1;
        }
    }
    0
}

/// Gives a frame the addresses of its flow, and those of its next station if it leaves again.
#[inline(always)]
pub fn translate<A: KernelFamily>(
    ctx: &XdpContext,
    outcome: Outcome,
    parsed: &Parsed<A>,
    route: &mut Route,
    (desk, tools): (&mut Desk<A>, &mut Tools),
) -> Outcome {
    let mut packet = XdpPacket(ctx);
    let Some(tables) = KernelTables::new(Context::Xdp(ctx.ctx), tools) else {
        return Outcome::pass(Reason::LeftToStack);
    };
    let (done, step) = match forward(outcome.leg(), parsed, &tables, desk) {
        Forwarding::Leave => return Outcome::pass(Reason::LeftToStack),
        Forwarding::Deliver(translation) => {
            (rewrite::translate(&mut packet, parsed, &translation), Step::DELIVER)
        }
        Forwarding::Transmit(translation, found) => {
            *route = found;
            let done = rewrite::translate(&mut packet, parsed, &translation)
                .and_then(|()| rewrite::decrement_ttl(&mut packet, parsed))
                .and_then(|()| packet.write(0, route.destination_mac))
                .and_then(|()| packet.write(MAC_LENGTH, route.source_mac));
            (done, Step::TRANSMIT)
        }
    };
    match done {
        Some(()) => outcome.then(step),
        None => Outcome::drop(Reason::RewriteFailed),
    }
}

/// Turns a segment into the RST that its sender gets.
#[inline(always)]
pub fn reset<A: KernelFamily>(ctx: &XdpContext) -> Option<()> {
    let mut packet = XdpPacket(ctx);
    let parsed: Parsed<A> = A::parse(&packet).ok()?;
    let reset = answers::reset(&packet, &parsed)?;
    turn_around(&mut packet)?;
    rewrite::reset(&mut packet, &parsed, &reset)?;
    cut(ctx, answers::reset_frame_length(&parsed))
}

/// Turns a datagram into the ICMP error that its sender gets.
#[inline(always)]
pub fn unreachable<A: KernelFamily>(ctx: &XdpContext, answer: &mut A::Answer) -> Option<()> {
    let mut packet = XdpPacket(ctx);
    let parsed: Parsed<A> = A::parse(&packet).ok()?;
    A::unreachable(&packet, &parsed, answer)?;
    let macs: [u8; 2 * MAC_LENGTH] = packet.read(0)?;
    resize(ctx, A::HEADER_LENGTH, ETHERNET_LENGTH + size_of::<A::Answer>())?;
    packet.write(0, macs)?;
    packet.write(field::ETHERTYPE, A::ETHERTYPE)?;
    turn_around(&mut packet)?;
    A::write_answer(answer, &mut packet, ETHERNET_LENGTH)
}

#[inline(always)]
fn turn_around(packet: &mut XdpPacket) -> Option<()> {
    let destination: [u8; MAC_LENGTH] = packet.read(0)?;
    let source: [u8; MAC_LENGTH] = packet.read(MAC_LENGTH)?;
    packet.write(0, source)?;
    packet.write(MAC_LENGTH, destination)
}

/// Changes the frame's length. Room is made at the head, which every driver can; the tail is only cut.
#[inline(always)]
fn resize(ctx: &XdpContext, header: usize, length: usize) -> Option<()> {
    let shortest = ETHERNET_LENGTH + header + UDP_LENGTH;
    let grow = length as i32 - shortest as i32;
    // SAFETY: the context is valid; packet pointers are read anew afterwards.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -grow) } != 0 {
        return None;
    }
    cut(ctx, length)
}

/// Cuts off what the frame has behind `length`.
#[inline(always)]
fn cut(ctx: &XdpContext, length: usize) -> Option<()> {
    // (Hidden from the compiler, which would add to a pointer what it can subtract from its distance.)
    let have = forget(XdpPacket(ctx).length(), 0) as i32;
    let behind = have - length as i32;
    // SAFETY: the context is valid; packet pointers are read anew afterwards.
    if behind > 0 && unsafe { bpf_xdp_adjust_tail(ctx.ctx, -behind) } != 0 {
        return None;
    }
    Some(())
}
