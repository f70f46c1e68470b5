//! Netfilter's conntrack, as programs may use it: functions of the kernel (kfuncs), some of modules.
//!
//! Which number such a function has, differs from kernel to kernel and from boot to boot: what stands here are placeholders, which the
//! agent replaces before it loads the programs that have them (`lb-userspace/kernel/src/programs/conntrack.rs`).

use core::arch::asm;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use lb_common::abi::{FlowReference, Hook, Reason, kfunc};
use lb_common::addr::{Port, Proto};
use lb_common::datapath::conntrack::{self, ConntrackSteps, Known, Treatment};
use lb_common::datapath::flow_table::{self, InsertError};
use lb_common::datapath::opening::{Opened, Steps};
use lb_common::datapath::{Origin, Outcome, Point, Program, Step, Tally, Tuple, ingress};

use crate::counters::count_service;
use crate::desk::{self, KernelDesk, Lending, lend};
use crate::family::{KernelFamily, Opener};
use crate::functions::{DONE, UNDONE};
use crate::maps::TAILS_CONNTRACK;
use crate::packet::SkbPacket;
use crate::tables::{Context, KernelTables};
use crate::tc::OnSkb;

/// `struct bpf_ct_opts`, as Linux has known it from 6.1 on.
#[repr(C)]
struct Options {
    /// `BPF_F_CURRENT_NETNS`.
    namespace: i32,
    error: i32,
    proto: u8,
    /// Of a connection that is found, the packet's direction: 1 for a reply.
    direction: u8,
    reserved: [u8; 2],
}

impl Options {
    const LENGTH: u64 = size_of::<Self>() as u64;

    #[inline(always)]
    const fn new(proto: Proto) -> Self {
        Self { namespace: -1, error: 0, proto: proto.0, direction: 0, reserved: [0; 2] }
    }
}

/// `struct bpf_sock_tuple`, of one family.
#[repr(C)]
struct SocketTuple<A> {
    source: A,
    destination: A,
    source_port: Port,
    destination_port: Port,
}

impl<A: KernelFamily> SocketTuple<A> {
    const LENGTH: u64 = size_of::<Self>() as u64;

    #[inline(always)]
    const fn of(tuple: &Tuple<A>) -> Self {
        Self {
            source: tuple.source,
            destination: tuple.destination,
            source_port: tuple.source_port,
            destination_port: tuple.destination_port,
        }
    }
}

/// `union nf_inet_addr`.
#[repr(C, align(8))]
struct AnyAddress<A> {
    address: A,
    /// (In words, for what the compiler makes of bytes is a loop.)
    rest: [u32; 3],
}

/// Calls a function of the kernel. What its number stands for is in [`kfunc`].
macro_rules! kernel_function {
    ($(#[$meta:meta])* fn $name:ident($($argument:ident: $kind:ty),*) -> u64 as $number:expr,) => {
        $(#[$meta])*
        #[inline(always)]
        unsafe fn $name($($argument: $kind),*) -> u64 {
            // (The linter takes the programs for the machine's own, which has no such registers.)
            #[cfg(not(target_arch = "bpf"))]
            return 0 $(& $argument)*;
            #[cfg(target_arch = "bpf")]
            {
                let result: u64;
                // SAFETY: the caller's.
                unsafe {
                    kernel_function!(@call $number, result, ($($argument)*));
                }
                result
            }
        }
    };
    (@call $number:expr, $result:ident, ($a:ident $b:ident $c:ident $d:ident $e:ident)) => {
        asm!("call {number}", number = const $number, lateout("r0") $result,
            inlateout("r1") $a => _, inlateout("r2") $b => _, inlateout("r3") $c => _, inlateout("r4") $d => _,
            inlateout("r5") $e => _, options(nostack))
    };
    (@call $number:expr, $result:ident, ($a:ident $b:ident $c:ident $d:ident)) => {
        asm!("call {number}", number = const $number, lateout("r0") $result,
            inlateout("r1") $a => _, inlateout("r2") $b => _, inlateout("r3") $c => _, inlateout("r4") $d => _,
            lateout("r5") _, options(nostack))
    };
    (@call $number:expr, $result:ident, ($a:ident $b:ident)) => {
        asm!("call {number}", number = const $number, lateout("r0") $result,
            inlateout("r1") $a => _, inlateout("r2") $b => _, lateout("r3") _, lateout("r4") _, lateout("r5") _,
            options(nostack))
    };
    (@call $number:expr, $result:ident, ($a:ident)) => {
        asm!("call {number}", number = const $number, lateout("r0") $result,
            inlateout("r1") $a => _, lateout("r2") _, lateout("r3") _, lateout("r4") _, lateout("r5") _, options(nostack))
    };
}

kernel_function! {
    /// `bpf_skb_ct_lookup`: the connection of these addresses, or null. It has to be released.
    fn look_up(context: u64, tuple: u64, tuple_length: u64, options: u64, options_length: u64) -> u64 as kfunc::LOOK_UP,
}
kernel_function! {
    /// `bpf_ct_release`.
    fn release(connection: u64) -> u64 as kfunc::RELEASE,
}
kernel_function! {
    /// `bpf_ct_change_timeout`, in milliseconds.
    fn change_timeout(connection: u64, milliseconds: u64) -> u64 as kfunc::CHANGE_TIMEOUT,
}
kernel_function! {
    /// `bpf_skb_ct_alloc`: a connection in the making, or null. It has to be inserted.
    fn allocate(context: u64, tuple: u64, tuple_length: u64, options: u64, options_length: u64) -> u64 as kfunc::ALLOCATE,
}
kernel_function! {
    /// `bpf_ct_set_nat_info`: the port in host order, 0 for any; 0 for the source, 1 for the destination.
    fn set_nat(connection: u64, address: u64, port: u64, side: u64) -> u64 as kfunc::SET_NAT,
}
kernel_function! {
    /// `bpf_ct_insert_entry`: the connection, which has to be released, or null if there is such a one; the one in the making is gone.
    fn insert(connection: u64) -> u64 as kfunc::INSERT,
}

#[inline(always)]
fn pointer<T>(value: &mut T) -> u64 {
    (&raw mut *value) as u64
}

/// What conntrack is asked about a connection.
struct Question<A> {
    addresses: SocketTuple<A>,
    options: Options,
}

impl<A: KernelFamily> Question<A> {
    #[inline(always)]
    const fn of(tuple: &Tuple<A>) -> Self {
        Self { addresses: SocketTuple::of(tuple), options: Options::new(tuple.proto) }
    }

    /// [`look_up`].
    ///
    /// # Safety
    /// The context is valid.
    #[inline(always)]
    unsafe fn look_up(&mut self, context: *mut __sk_buff) -> u64 {
        let (addresses, options) = (pointer(&mut self.addresses), pointer(&mut self.options));
        // SAFETY: the caller's; addresses and options are valid for the call and have the lengths given.
        unsafe { look_up(context as u64, addresses, SocketTuple::<A>::LENGTH, options, Options::LENGTH) }
    }

    /// [`allocate`].
    ///
    /// # Safety
    /// The context is valid.
    #[inline(always)]
    unsafe fn allocate(&mut self, context: *mut __sk_buff) -> u64 {
        let (addresses, options) = (pointer(&mut self.addresses), pointer(&mut self.options));
        // SAFETY: as in `look_up`.
        unsafe { allocate(context as u64, addresses, SocketTuple::<A>::LENGTH, options, Options::LENGTH) }
    }
}

/// See [`crate::functions`], `ask_conntrack`.
#[inline(always)]
pub fn ask<A: KernelFamily>(context: *mut __sk_buff, desk: &mut KernelDesk<A>) -> u32 {
    // (Read once more: the program before this one had it in registers.)
    desk.parsed = match A::parse(&SkbPacket(&TcContext::new(context))) {
        Ok(parsed) => parsed,
        Err(_) => return Known::connection(false, 0).0,
    };
    let tuple = &desk.parsed.tuple;
    let mut question = Question::of(tuple);
    // SAFETY: the context is valid while the program runs; the connection is read before it is
    // released, and not afterwards.
    unsafe {
        let connection = question.look_up(context);
        if connection == 0 {
            return Known::NOTHING.0;
        }
        let state: u64;
        asm!("{state} = *(u8 *)({connection} + {offset})", connection = in(reg) connection, state = out(reg) state,
            offset = const kfunc::TCP_STATE, options(nostack));
        release(connection);
        Known::connection(question.options.direction != 0, state as u8).0
    }
}

/// See [`crate::functions`], `serve`.
#[inline(always)]
pub fn serve<A: KernelFamily>(point: u32, replaces: u32, desk: &mut KernelDesk<A>) -> u32 {
    let nothing = Outcome::pass(Reason::NoService);
    let KernelDesk { tools, parsed, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(Context::None, tools) else { return nothing.number() };
    let Point::Ingress(origin) = Point::from_number(point) else { return nothing.number() };
    ingress::serve(parsed, origin, FlowReference(replaces), &tables, desk).number()
}

/// See [`crate::functions`], `end_in_conntrack`.
#[inline(always)]
pub fn end<A: KernelFamily>(context: *mut __sk_buff, desk: &mut KernelDesk<A>) -> u32 {
    let tuple = &desk.parsed.tuple;
    let mut question = Question::of(tuple);
    // SAFETY: as in `ask`.
    unsafe {
        let connection = question.look_up(context);
        if connection == 0 {
            return UNDONE;
        }
        change_timeout(connection, 0);
        release(connection);
        // What has expired goes when it is looked for.
        let connection = question.look_up(context);
        if connection != 0 {
            release(connection);
        }
        DONE
    }
}

/// See [`crate::functions`], `write_down`.
#[inline(always)]
pub fn write_down<A: KernelFamily>(context: *mut __sk_buff, attempt: u32, desk: &mut KernelDesk<A>) -> u32 {
    const SOURCE: u64 = 0;
    const DESTINATION: u64 = 1;
    let KernelDesk { tools, parsed, desk, .. } = desk;
    let Some(tables) = KernelTables::off_the_hot_path(Context::None, tools) else { return UNDONE };
    let config = lb_common::datapath::Tables::<A>::config(&tables);
    let source = conntrack::source(&desk.new, attempt, config);
    let tuple = &parsed.tuple;
    let mut question = Question::of(tuple);
    let mut backend = AnyAddress { address: desk.new.flow.backend, rest: [0; 3] };
    let backend_port = u64::from(desk.new.flow.backend_port.get());
    // SAFETY: the context is valid while the program runs, and so are the addresses for the calls; what is in the making is inserted, and
    // what is inserted released, and neither used afterwards.
    unsafe {
        let connection = question.allocate(context);
        if connection == 0 {
            return Opened::error(InsertError::Full).0;
        }
        let mut refused = set_nat(connection, pointer(&mut backend), backend_port, DESTINATION) as u32;
        if let Some((address, port)) = source {
            let mut address = AnyAddress { address, rest: [0; 3] };
            refused |= set_nat(connection, pointer(&mut address), u64::from(port.get()), SOURCE) as u32;
        }
        let connection = insert(connection);
        if connection == 0 {
            return Opened::error(InsertError::Contended).0;
        }
        if refused != 0 {
            // (There is no way to give up what is in the making.)
            change_timeout(connection, 0);
        }
        release(connection);
        if refused != 0 {
            return Opened::error(InsertError::Full).0;
        }
    }
    flow_table::give_up::<A, _>(desk.new.replaces, &tables);
    Opened::IN_CONNTRACK.0
}

/// Hands a packet on to the program that asks netfilter, which is told where the packet was met, and which flow of ours is over. It comes
/// back only if there is no such program.
#[inline(always)]
pub fn hand_over<A: KernelFamily>(ctx: &TcContext, origin: Origin, desk: &mut KernelDesk<A>) {
    const CB: usize = core::mem::offset_of!(__sk_buff, cb);
    let replaces = desk.desk.opening.replaces.0;
    desk::give_back_early(desk);
    // SAFETY: the context is valid while the program runs, and this field is for programs to tell each other. (By its offset: the
    // verifier refuses a pointer to it.)
    unsafe {
        asm!(
            "*(u32 *)({skb} + {first}) = {origin}",
            "*(u32 *)({skb} + {second}) = {replaces}",
            skb = in(reg) ctx.skb.skb,
            first = const CB,
            second = const CB + 4,
            origin = in(reg) u64::from(Point::Ingress(origin).number()),
            replaces = in(reg) u64::from(replaces),
            options(nostack)
        );
        TAILS_CONNTRACK.tail_call(ctx, A::CONNTRACK_TAIL);
    }
}

/// What [`hand_over`] told.
#[inline(always)]
pub fn handover(ctx: &TcContext) -> Option<(Origin, FlowReference)> {
    // SAFETY: the context is valid while the program runs.
    let [origin, replaces, ..] = unsafe { (*ctx.skb.skb).cb };
    match Point::from_number(origin) {
        Point::Ingress(origin) => Some((origin, FlowReference(replaces))),
        Point::Egress => None,
    }
}

/// tc on a packet that netfilter has to be asked about; the rest as [`OnSkb`].
pub struct AfterNetfilter<'a, A> {
    ctx: &'a TcContext,
    skb: OnSkb<'a, A>,
    origin: Origin,
    replaces: FlowReference,
    is_by_netfilter: bool,
}

impl<'a, A: KernelFamily> AfterNetfilter<'a, A> {
    /// Nothing is known yet.
    #[inline(always)]
    pub const fn new(ctx: &'a TcContext, hook: Hook, origin: Origin, replaces: FlowReference) -> Self {
        let skb = OnSkb::new(ctx, hook, Point::Ingress(origin));
        Self { ctx, skb, origin, replaces, is_by_netfilter: false }
    }
}

/// The steps of making a flow here.
struct ConntrackOpener<A> {
    opener: Opener<A>,
    context: *mut __sk_buff,
}

impl<A: KernelFamily> Steps for ConntrackOpener<A> {
    #[inline(always)]
    fn answers(&mut self) -> Opened {
        self.opener.answers()
    }

    #[inline(always)]
    fn prepare_own(&mut self) -> Opened {
        self.opener.prepare_own()
    }

    #[inline(always)]
    fn prepare(&mut self) -> Opened {
        self.opener.prepare()
    }

    #[inline(always)]
    fn is_port_taken(&mut self) -> bool {
        self.opener.is_port_taken()
    }

    #[inline(always)]
    fn compose(&mut self, shares_port: bool) -> Opened {
        self.opener.compose(shares_port)
    }

    #[inline(always)]
    fn choose_port(&mut self) -> Opened {
        self.opener.choose_port()
    }

    #[inline(always)]
    fn insert(&mut self) -> Opened {
        self.opener.insert()
    }
}

impl<A: KernelFamily> ConntrackSteps for ConntrackOpener<A> {
    #[inline(always)]
    fn is_by_netfilter(&mut self) -> bool {
        A::is_by_netfilter(self.context, self.opener.desk()) != 0
    }

    #[inline(always)]
    fn write_down(&mut self, attempt: u32) -> Opened {
        Opened(A::write_down(self.context, attempt, self.opener.desk()))
    }
}

impl<A: KernelFamily> Program<A> for AfterNetfilter<'_, A> {
    type Action = i32;
    type Desk = KernelDesk<A>;

    const PASS: i32 = OnSkb::<A>::PASS;
    const DROP: i32 = OnSkb::<A>::DROP;

    #[inline(always)]
    fn look(&mut self, desk: &mut KernelDesk<A>) -> Outcome {
        let (number, context) = (desk.tools.number, self.ctx.skb.skb);
        let known = Known(lend(desk, || A::ask_conntrack(context, number)));
        match known.treatment(desk.parsed.tuple.proto, desk.parsed.flags) {
            Treatment::Passes => return Outcome::pass(Reason::Conntrack),
            Treatment::BeginsAgain => {
                lend(desk, || A::end_in_conntrack(context, number));
            }
            Treatment::Begins => {}
        }
        if !A::BY_FUNCTIONS {
            self.skb.parsed = desk.parsed;
        }
        let (point, replaces) = (Point::Ingress(self.origin).number(), self.replaces.0);
        Outcome::from_number(lend(desk, || A::serve(point, replaces, number)))
    }

    /// Nothing leaves here.
    #[inline(always)]
    fn judge_own(&mut self, _: &mut KernelDesk<A>) -> Outcome {
        Outcome::pass(Reason::NoService)
    }

    #[inline(always)]
    fn open(&mut self, desk: &mut KernelDesk<A>) -> Result<(), InsertError> {
        let (number, context, kind) = (desk.tools.number, self.ctx.skb.skb, desk.desk.opening.kind);
        let opener = Opener::<A>::new(Context::Skb(context), number);
        let lending = Lending::of(desk);
        let opened = conntrack::open(kind, &mut ConntrackOpener { opener, context });
        lending.end();
        if opened == Opened::IN_CONNTRACK {
            self.is_by_netfilter = true;
            return Ok(());
        }
        opened.result()
    }

    #[inline(always)]
    fn opening_proto(&self, desk: &KernelDesk<A>) -> Proto {
        self.skb.opening_proto(desk)
    }

    #[inline(always)]
    fn unmake(&mut self, desk: &mut KernelDesk<A>) {
        self.skb.unmake(desk);
    }

    #[inline(always)]
    fn may_answer(&mut self, desk: &mut KernelDesk<A>) -> bool {
        self.skb.may_answer(desk)
    }

    #[inline(always)]
    fn may_refuse(&mut self) -> bool {
        Program::<A>::may_refuse(&mut self.skb)
    }

    #[inline(always)]
    fn refuse(&mut self, desk: &mut KernelDesk<A>) -> Option<i32> {
        self.skb.refuse(desk)
    }

    #[inline(always)]
    fn translate(&mut self, outcome: Outcome, desk: &mut KernelDesk<A>) -> Outcome {
        if self.is_by_netfilter { outcome.then(Step::DELIVER) } else { self.skb.translate(outcome, desk) }
    }

    #[inline(always)]
    fn transmit(&mut self, desk: &mut KernelDesk<A>) -> i32 {
        self.skb.transmit(desk)
    }

    #[inline(always)]
    fn count(&mut self, outcome: Outcome, desk: &mut KernelDesk<A>) {
        if self.is_by_netfilter {
            count_service(&Tally::new(&desk.desk.new.flow), outcome, self.ctx.len() as usize);
        } else {
            self.skb.count(outcome, desk);
        }
    }

    #[inline(always)]
    fn later_fragment(&mut self, desk: &mut KernelDesk<A>) -> Outcome {
        self.skb.later_fragment(desk)
    }

    #[inline(always)]
    fn icmp_error(&mut self, desk: &mut KernelDesk<A>) -> Outcome {
        self.skb.icmp_error(desk)
    }

    #[inline(always)]
    fn log(&self, reason: u32, desk: &KernelDesk<A>) {
        self.skb.log(reason, desk);
    }
}
