//! The flow table: sets of eight flows in a mmapable array, found by a hash of the client alone.
//!
//! Both directions of a flow share the client, so one record serves both. A set starts with eight
//! words, one cache line, that say all a search or an eviction needs to know; each record has a cache
//! line to itself. The word is the only thing changed by compare-and-swap:
//!
//! | bits | 0..8 | 8 | 9..16 | 16..32 | 32..64 |
//! |---|---|---|---|---|---|
//! | | [`FlowState`] | way 0: the set is locked for insertion; others: see [`FlowWord::overflow_way`] | generation: one more for each record written | tag: hash bits not used for the set | [`Moment`] it expires |
//!
//! A writer claims a way by swapping in [`FlowState::BUSY`], writes the record, then stores the final
//! word. A reader compares tag and record, then looks at the word again.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{BackendId, ServiceId};
use crate::addr::{Port, Proto};

/// Flows to a set.
pub const WAYS: usize = 8;

/// Masquerading ports to a line of the NAT index: neighbours towards the same backend, in one cache line. With as
/// many lines as sets there are two to a flow, so that half of them stay free.
pub const NAT_LINE: usize = 16;

/// Who holds each port of a line: [`FlowReference`]s.
pub type NatLine = [u32; NAT_LINE];

/// A point in time: `CLOCK_MONOTONIC_COARSE` in steps of 2^26 ns (67 ms). Wraps after nine years.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Moment(pub u32);

impl Moment {
    const SHIFT: u32 = 26;
    /// Nanoseconds from one to the next.
    pub const NANOS: u64 = 1 << Self::SHIFT;

    /// From nanoseconds since boot.
    #[inline(always)]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self((nanos >> Self::SHIFT) as u32)
    }

    /// Steps that make up `seconds`, rounded down.
    #[inline(always)]
    pub const fn steps(seconds: u32) -> u32 {
        ((seconds as u64 * 1_000_000_000) >> Self::SHIFT) as u32
    }

    /// Steps from `earlier` to `self`; 0 when `earlier` lies ahead, as another CPU's clock may.
    #[inline(always)]
    pub const fn since(self, earlier: Self) -> u32 {
        let steps = self.0.wrapping_sub(earlier.0);
        if steps > u32::MAX / 2 { 0 } else { steps }
    }

    /// Milliseconds from `earlier` to `self`.
    pub const fn millis_since(self, earlier: Self) -> u64 {
        ((self.since(earlier) as u64) << Self::SHIFT) / 1_000_000
    }
}

/// How far a flow has come. The number is part of the ABI; unknown numbers are never written.
///
/// A number and not an enum: the verifier would follow every variant of a match through the rest of
/// the program.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct FlowState(pub u8);

impl FlowState {
    /// The way holds nothing.
    pub const FREE: Self = Self(0);
    /// A CPU is writing the record.
    pub const BUSY: Self = Self(1);
    /// TCP: the client has spoken, the backend has not.
    pub const TCP_SYN: Self = Self(2);
    /// TCP: the backend has answered, the client has not confirmed.
    pub const TCP_SYN_ACK: Self = Self(3);
    /// UDP: the client has spoken, the backend has not.
    pub const UDP_NEW: Self = Self(4);
    /// UDP: the backend has answered. Most flows end here: a question and its answer.
    pub const UDP_REPLIED: Self = Self(5);
    /// UDP: the client has spoken again after an answer.
    pub const UDP_ESTABLISHED: Self = Self(6);
    /// TCP: both sides have spoken.
    pub const TCP_ESTABLISHED: Self = Self(7);
    /// TCP: the client has sent FIN.
    pub const TCP_CLIENT_FIN: Self = Self(8);
    /// TCP: the backend has sent FIN.
    pub const TCP_BACKEND_FIN: Self = Self(9);
    /// TCP: both have sent FIN.
    pub const TCP_CLOSED: Self = Self(10);
    /// TCP: the client has sent RST.
    pub const TCP_CLIENT_RESET: Self = Self(11);
    /// TCP: the backend has sent RST.
    pub const TCP_BACKEND_RESET: Self = Self(12);

    /// Number of states.
    pub const COUNT: usize = 13;

    /// Seconds without a packet after which the way may be used again.
    ///
    /// Established TCP outlives Linux's own keepalive (7200 s + 9 × 75 s), so a connection its owner
    /// still checks is never forgotten first. Ended TCP outlives Linux's TIME-WAIT, so that no other client gets a masquerading
    /// port on which a backend still refuses it: 60 s, and an eighth more at most, by which such timers are late
    /// (<https://lwn.net/Articles/646950/>).
    const TIMEOUT_SECONDS: [u32; Self::COUNT] = [0, 5, 60, 60, 30, 30, 180, 8100, 3600, 3600, 70, 70, 70];

    /// Steps without a packet after which the way may be used again.
    #[inline(always)]
    pub fn timeout(self) -> u32 {
        // As long as the index may be: what comes after the states is never looked at.
        static STEPS: [u32; 16] = {
            let mut steps = [0; 16];
            let mut state = 0;
            while state < FlowState::COUNT {
                steps[state] = Moment::steps(FlowState::TIMEOUT_SECONDS[state]);
                state += 1;
            }
            steps
        };
        STEPS.get(self.0 as usize & 0xf).copied().unwrap_or(0)
    }

    /// A flow that its client has not vouched for by speaking after the backend did. It may be replaced
    /// by a newer one when its set is full, so a flood of first packets cannot push out live flows.
    #[inline(always)]
    pub const fn is_half_open(self) -> bool {
        self.0 >= Self::TCP_SYN.0 && self.0 <= Self::UDP_REPLIED.0
    }

    /// UDP that its client has not vouched for by speaking after the backend did.
    #[inline(always)]
    pub const fn is_unvouched_udp(self) -> bool {
        self.0 == Self::UDP_NEW.0 || self.0 == Self::UDP_REPLIED.0
    }

    /// TCP whose both sides have vouched for it, and that is not over: established, or closed by one side.
    #[inline(always)]
    pub const fn is_connected(self) -> bool {
        self.0 >= Self::TCP_ESTABLISHED.0 && self.0 <= Self::TCP_BACKEND_FIN.0
    }

    /// A connection that is over: both sides have said so, or one has given up.
    #[inline(always)]
    pub const fn has_ended(self) -> bool {
        self.0 >= Self::TCP_CLOSED.0
    }

    /// The name people read.
    pub const fn label(self) -> &'static str {
        match self {
            Self::FREE => "free",
            Self::BUSY => "busy",
            Self::TCP_SYN => "syn",
            Self::TCP_SYN_ACK => "syn-ack",
            Self::UDP_NEW => "new",
            Self::UDP_REPLIED => "replied",
            Self::TCP_ESTABLISHED | Self::UDP_ESTABLISHED => "established",
            Self::TCP_CLIENT_FIN => "client-fin",
            Self::TCP_BACKEND_FIN => "backend-fin",
            Self::TCP_CLOSED => "closed",
            Self::TCP_CLIENT_RESET => "client-reset",
            Self::TCP_BACKEND_RESET => "backend-reset",
            _ => "unknown",
        }
    }
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

impl fmt::Debug for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// The word of one way; see the module's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct FlowWord(pub u64);

impl FlowWord {
    /// Way 0: the set is locked. Other ways: flows of the set are elsewhere. Belongs to the set, and outlasts every flow.
    const MARK: u64 = 1 << 8;
    const GENERATION: u64 = 0x7f << 9;
    const TAG: u64 = 0xffff << 16;

    /// Puts a word together.
    #[inline(always)]
    pub const fn new(tag: u16, state: FlowState, expires: Moment) -> Self {
        Self(state.0 as u64 | (tag as u64) << 16 | (expires.0 as u64) << 32)
    }

    /// How far the flow has come.
    #[inline(always)]
    pub const fn state(self) -> FlowState {
        FlowState(self.0 as u8)
    }

    /// When the way may be used again.
    #[inline(always)]
    pub const fn expires(self) -> Moment {
        Moment((self.0 >> 32) as u32)
    }

    /// When the last packet came, to within a second.
    pub fn seen(self) -> Moment {
        Moment(self.expires().0.wrapping_sub(self.state().timeout()))
    }

    /// One more for each record written, of 128.
    #[inline(always)]
    pub const fn generation(self) -> u8 {
        (self.0 >> 9 & 0x7f) as u8
    }

    /// Hash bits of the client.
    #[inline(always)]
    pub const fn tag(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The same flow after a packet at `now`.
    #[inline(always)]
    #[must_use]
    pub fn moved_to(self, state: FlowState, now: Moment) -> Self {
        let expires = now.0.wrapping_add(state.timeout());
        let kept = self.0 & (Self::TAG | Self::GENERATION | Self::MARK);
        Self(kept | state.0 as u64 | (expires as u64) << 32)
    }

    /// Another record in the same way.
    #[inline(always)]
    #[must_use]
    pub const fn renewed(self, tag: u16) -> Self {
        let generation = (self.0 + (1 << 9)) & Self::GENERATION;
        Self(self.0 & !(Self::TAG | Self::GENERATION) | generation | (tag as u64) << 16)
    }

    /// Whether a record read between two looks at its word, `self` the later one, is whole. Time and
    /// state may have moved on.
    #[inline(always)]
    pub const fn settles(self, before: Self) -> bool {
        let same = Self::TAG | Self::GENERATION;
        self.0 & same == before.0 & same && self.state().0 > FlowState::BUSY.0
    }

    /// Whether a CPU is making a flow in this set (way 0 only).
    #[inline(always)]
    pub const fn is_locked(self) -> bool {
        self.0 & Self::MARK != 0
    }

    /// With the lock bit.
    #[inline(always)]
    #[must_use]
    pub const fn locked(self) -> Self {
        Self(self.0 | Self::MARK)
    }

    /// Without the lock bit.
    #[inline(always)]
    #[must_use]
    pub const fn unlocked(self) -> Self {
        Self(self.0 & !Self::MARK)
    }

    /// The way whose mark says that flows of clients with this tag may be in another set than their first. (Four ways say so for
    /// all tags: nothing is lost when one stands for several.)
    #[inline(always)]
    pub const fn overflow_way(tag: u16) -> usize {
        WAYS / 2 + (tag as usize / WAYS) % (WAYS / 2)
    }

    /// Whether the mark of [`Self::overflow_way`] is set.
    #[inline(always)]
    pub const fn is_overflowed(self) -> bool {
        self.0 & Self::MARK != 0
    }

    /// The mark alone: what is added to a word, in one atomic step.
    #[inline(always)]
    #[must_use]
    pub const fn mark() -> Self {
        Self(Self::MARK)
    }

    /// Steps left until the way may be used again; 0 or less: now.
    #[inline(always)]
    pub const fn remaining(self, now: Moment) -> i32 {
        self.expires().0.wrapping_sub(now.0) as i32
    }

    /// Whether the way holds a flow that packets may use.
    #[inline(always)]
    pub const fn is_live(self, now: Moment) -> bool {
        self.state().0 > FlowState::BUSY.0 && self.remaining(now) > 0
    }
}

/// Which flow: where it is, and the generation of its record there, so that a look at the word tells whether it still is.
/// (After 128 records it may be taken for another; whoever must be sure looks at the record.)
///
/// | bits | 0..25 | 25..32 |
/// |---|---|---|
/// | | 1 + set × 8 + way; 0: none | generation |
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct FlowReference(pub u32);

impl FlowReference {
    /// No flow.
    pub const NONE: Self = Self(0);
    /// Sets of the largest table whose flows can all be named.
    pub const MAX_SETS: u32 = 1 << 21;

    const PLACE: u32 = (1 << 25) - 1;

    /// The flow in a way whose word is `word`.
    #[inline(always)]
    pub const fn new(set: u32, way: usize, word: FlowWord) -> Self {
        Self((set * WAYS as u32 + way as u32 + 1) | ((word.generation() as u32) << 25))
    }

    /// Set and way.
    #[inline(always)]
    pub fn place(self) -> Option<(u32, usize)> {
        let place = (self.0 & Self::PLACE).checked_sub(1)?;
        Some((place / WAYS as u32, place as usize % WAYS))
    }

    /// Whether the flow is still the one in the way whose word is `word`.
    #[inline(always)]
    pub const fn is_current(self, word: FlowWord) -> bool {
        self.0 >> 25 == word.generation() as u32
    }
}

/// One flow: who speaks to whom, under which addresses. `A` is the address of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flow<A> {
    /// Who opened it.
    pub client: A,
    /// What it aimed at.
    pub frontend: A,
    /// Who answers.
    pub backend: A,
    /// The address the backend sees, with `nat_port`; unspecified: the client's own and its port.
    pub nat: A,
    /// Port of `client`.
    pub client_port: Port,
    /// Port of `frontend`.
    pub frontend_port: Port,
    /// Port of `backend`.
    pub backend_port: Port,
    /// Port of `nat`.
    pub nat_port: Port,
    /// Which Service port.
    pub service: ServiceId,
    /// Which endpoint.
    pub backend_id: BackendId,
    /// [`super::Backend::generation`] when the flow was made.
    pub backend_generation: u32,
    /// TCP, UDP or SCTP.
    pub proto: Proto,
    /// [`Flow::SHARED_PORT`], [`Flow::OWN`] and [`Flow::OF_NODE`].
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// TCP: how far both sides have come. Moves on while the flow lives, where the rest of the record stays as it is.
    pub progress: Progress,
    /// Zero. Brings an IPv4 record to one cache line.
    pub spare: u32,
}

/// How far the two sides of a TCP connection have come, in sequence numbers of their own; 0: not known.
///
/// Behind by less than [`Progress::LAG`], and by nothing when either side's packet is the first for a second: to write down each
/// packet would cost a cache line that goes from CPU to CPU with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Progress {
    /// The number after the last that client and backend have sent.
    pub sent: [u32; 2],
    /// The number that client and backend expect of the other next.
    pub acknowledged: [u32; 2],
    /// The [`Moment`] of a SYN in the middle of the connection that the backend has not answered; 0: there is none.
    pub unanswered_syn: u32,
}

impl Progress {
    /// Bytes that a side may be ahead of what is written down.
    pub const LAG: u32 = 1 << 15;
}

impl<A> Flow<A> {
    /// The client's port also speaks to this backend under another frontend. On its way through the
    /// kernel, and to the backend, this flow carries `nat_port` in place of the client's port.
    pub const SHARED_PORT: u8 = 1;
    /// A connection of the node's own, which shares a port with Services ([`crate::datapath::own`]): `frontend` is `backend`.
    pub const OWN: u8 = 2;
    /// This node itself asks a Service, and no socket hook has served it ([`crate::datapath::of_node`]). Always with
    /// [`Flow::SHARED_PORT`]: what the client's port says to the backend itself is something else.
    pub const OF_NODE: u8 = 4;

    /// Whether this client, from this port, opened it.
    #[inline(always)]
    pub fn is_of(&self, client: A, port: Port, proto: Proto) -> bool
    where
        A: Copy + PartialEq,
    {
        self.client == client && self.client_port == port && self.proto == proto
    }

    /// Writes it field by field. (Of a copy the compiler for BPF makes a call.)
    #[inline(always)]
    pub fn write_to(self, place: &mut Self) {
        place.client = self.client;
        place.frontend = self.frontend;
        place.backend = self.backend;
        place.nat = self.nat;
        place.client_port = self.client_port;
        place.frontend_port = self.frontend_port;
        place.backend_port = self.backend_port;
        place.nat_port = self.nat_port;
        place.service = self.service;
        place.backend_id = self.backend_id;
        place.backend_generation = self.backend_generation;
        place.proto = self.proto;
        place.flags = self.flags;
        place.reserved = self.reserved;
        place.progress = self.progress;
        place.spare = self.spare;
    }

    /// Whether [`Flow::OWN`] is set.
    #[inline(always)]
    pub const fn is_own(&self) -> bool {
        self.flags & Self::OWN != 0
    }

    /// Whether [`Flow::OF_NODE`] is set.
    #[inline(always)]
    pub const fn is_of_node(&self) -> bool {
        self.flags & Self::OF_NODE != 0
    }

    /// Whether this node is the client, so that answers end here.
    #[inline(always)]
    pub const fn has_answers_here(&self) -> bool {
        self.flags & (Self::OWN | Self::OF_NODE) != 0
    }

    /// Whether the backend sees an address of this node, to which it answers.
    #[inline(always)]
    pub fn is_masqueraded(&self) -> bool
    where
        A: PartialEq,
    {
        self.nat != self.client || self.has_answers_here()
    }

    /// Whether [`Flow::SHARED_PORT`] is set.
    #[inline(always)]
    pub const fn shares_port(&self) -> bool {
        self.flags & Self::SHARED_PORT != 0
    }
}

/// One set: eight words, then eight records.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowSet<A> {
    /// [`FlowWord`]s.
    pub words: [u64; WAYS],
    /// Records; valid where the word says so.
    pub flows: [Flow<A>; WAYS],
}

const _: () = assert!(size_of::<Flow<crate::addr::Ipv4>>() == 64);
const _: () = assert!(size_of::<FlowSet<crate::addr::Ipv4>>() == 576);
const _: () = assert!(size_of::<FlowSet<crate::addr::Ipv6>>() == 960);
