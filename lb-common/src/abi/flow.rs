//! The flow table: sets of eight flows in a mmapable array, found by a hash of the client alone.
//!
//! Both directions of a flow share the client, so one record serves both. A set starts with eight
//! words, one cache line, that say all a search or an eviction needs to know; each record has a cache
//! line to itself. The word is the only thing changed by compare-and-swap:
//!
//! | bits | 0..8 | 8..16 | 16..32 | 32..64 |
//! |---|---|---|---|---|
//! | | [`FlowState`] | zero | tag: hash bits not used for the set | [`Moment`] last seen |
//!
//! A writer claims a way by swapping in [`FlowState::Busy`], writes the record, then stores the final
//! word. A reader compares tag and record, then looks at the word again.

use core::fmt;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{BackendId, ServiceId};
use crate::addr::{Port, Proto};

/// Flows to a set.
pub const WAYS: usize = 8;

/// A point in time: `CLOCK_MONOTONIC_COARSE` in steps of 2^26 ns (67 ms). Wraps after nine years.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Moment(pub u32);

impl Moment {
    const SHIFT: u32 = 26;

    /// From nanoseconds since boot.
    #[inline(always)]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self((nanos >> Self::SHIFT) as u32)
    }

    /// Steps that make up `seconds`, rounded down.
    #[inline(always)]
    pub const fn steps(seconds: u32) -> u32 {
        (seconds as u64 * 1_000_000_000 >> Self::SHIFT) as u32
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

/// How far a flow has come. The number is part of the ABI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FlowState {
    /// The way holds nothing.
    Free = 0,
    /// A CPU is writing the record.
    Busy = 1,
    /// TCP: the client has spoken, the backend has not.
    TcpSyn = 2,
    /// TCP: the backend has answered, the client has not confirmed.
    TcpSynAck = 3,
    /// TCP: both sides have spoken.
    TcpEstablished = 4,
    /// TCP: the client has sent FIN.
    TcpClientFin = 5,
    /// TCP: the backend has sent FIN.
    TcpBackendFin = 6,
    /// TCP: both have sent FIN, or one RST.
    TcpClosed = 7,
    /// UDP: the client has spoken, the backend has not.
    UdpNew = 8,
    /// UDP: both sides have spoken.
    UdpEstablished = 9,
}

impl FlowState {
    /// The state a word holds. Unknown numbers read as [`FlowState::Free`].
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Busy,
            2 => Self::TcpSyn,
            3 => Self::TcpSynAck,
            4 => Self::TcpEstablished,
            5 => Self::TcpClientFin,
            6 => Self::TcpBackendFin,
            7 => Self::TcpClosed,
            8 => Self::UdpNew,
            9 => Self::UdpEstablished,
            _ => Self::Free,
        }
    }

    /// Seconds without a packet after which the way may be used again.
    ///
    /// Established TCP outlives Linux's own keepalive (7200 s + 9 × 75 s), so a connection its owner
    /// still checks is never forgotten first.
    #[inline(always)]
    pub const fn timeout_seconds(self) -> u32 {
        match self {
            Self::Free => 0,
            Self::Busy => 5,
            Self::TcpSyn | Self::TcpSynAck => 60,
            Self::TcpEstablished => 8 * 3600,
            Self::TcpClientFin | Self::TcpBackendFin => 3600,
            Self::TcpClosed => 20,
            Self::UdpNew => 30,
            Self::UdpEstablished => 180,
        }
    }

    /// A flow that only one side has vouched for. It may be replaced by a newer one when its set is
    /// full; all others may not, so a flood of first packets cannot push out live flows.
    #[inline(always)]
    pub const fn is_half_open(self) -> bool {
        matches!(self, Self::TcpSyn | Self::TcpSynAck | Self::UdpNew)
    }
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Free => "free",
            Self::Busy => "busy",
            Self::TcpSyn => "syn",
            Self::TcpSynAck => "syn-ack",
            Self::TcpEstablished | Self::UdpEstablished => "established",
            Self::TcpClientFin => "client-fin",
            Self::TcpBackendFin => "backend-fin",
            Self::TcpClosed => "closed",
            Self::UdpNew => "new",
        })
    }
}

/// The word of one way; see the module's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct FlowWord(pub u64);

impl FlowWord {
    /// Puts a word together.
    #[inline(always)]
    pub const fn new(tag: u16, state: FlowState, seen: Moment) -> Self {
        Self(state as u64 | (tag as u64) << 16 | (seen.0 as u64) << 32)
    }

    /// How far the flow has come.
    #[inline(always)]
    pub const fn state(self) -> FlowState {
        FlowState::from_bits(self.0 as u8)
    }

    /// When the last packet came.
    #[inline(always)]
    pub const fn seen(self) -> Moment {
        Moment((self.0 >> 32) as u32)
    }

    /// Hash bits of the client.
    #[inline(always)]
    pub const fn tag(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The same flow, state and time changed.
    #[inline(always)]
    #[must_use]
    pub const fn moved_to(self, state: FlowState, seen: Moment) -> Self {
        Self::new(self.tag(), state, seen)
    }

    /// Whether the way may be used for another flow.
    #[inline(always)]
    pub const fn is_expired(self, now: Moment) -> bool {
        let state = self.state();
        matches!(state, FlowState::Free) || now.since(self.seen()) > Moment::steps(state.timeout_seconds())
    }

    /// Whether the way holds a flow that packets may use.
    #[inline(always)]
    pub const fn is_live(self, now: Moment) -> bool {
        !matches!(self.state(), FlowState::Busy) && !self.is_expired(now)
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
    /// The address the backend sees instead of the client's; unspecified: the client's own.
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
    /// [`super::Backend4::generation`] when the flow was made.
    pub backend_generation: u32,
    /// TCP or UDP.
    pub proto: Proto,
    /// Zero.
    pub reserved: [u8; 3],
    /// Zero. Brings an IPv4 record to one cache line.
    pub spare: [u32; 6],
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
