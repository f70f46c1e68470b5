//! Where the host has rules of its own, netfilter translates: which flows, and with whose address.
//!
//! Rules before the kernel's DNAT must see a packet as it came, those behind it a packet that conntrack calls translated. So a new
//! flow is written into conntrack in place of our own table, and its packets pass untouched. Who gets it is decided as ever.

use super::Family;
use super::clients::is_local;
use super::desk::Desk;
use super::flow_table::{InsertError, NewFlow};
use super::ingress::Origin;
use super::opening::{self, Opened, Opening, OpeningKind, Steps};
use super::outcome::{Outcome, Step};
use super::parse::TcpFlags;
use super::tables::{Backend, PacketTables, Tables};
use crate::abi::{Config, ConfigFlags, FlowReference, Reason};
use crate::addr::{Port, Proto};

/// Whether netfilter has to be asked before a packet begins a flow.
#[inline(always)]
pub fn is_asked<A: Family, T: Tables<A>>(tables: &T) -> bool {
    tables.config().flags.has(ConfigFlags::ASK_CONNTRACK)
}

/// Has netfilter asked. XDP comes before it, and leaves the packet to tc.
#[inline(always)]
pub(super) fn ask<A: Family>(origin: Origin, replaces: FlowReference, desk: &mut Desk<A>) -> Outcome {
    if matches!(origin, Origin::Wire) {
        return Outcome::pass(Reason::LeftToStack);
    }
    desk.opening.replaces = replaces;
    Outcome::new(Step::CONNTRACK, Reason::Conntrack)
}

/// What netfilter says of a packet: a number, as functions in the kernel have no other result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known(pub u32);

/// What is to be done with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Treatment {
    /// The packet belongs to a connection that netfilter translates.
    Passes,
    /// It begins one.
    Begins,
    /// It begins one in the place of another that is over, which has to go first.
    BeginsAgain,
}

impl Known {
    /// It knows no such connection.
    pub const NOTHING: Self = Self(0);
    const SOMETHING: u32 = 1;
    const REPLY: u32 = 2;

    /// It knows the connection. `state`: one of `enum tcp_conntrack`; of other protocols anything.
    #[inline(always)]
    pub const fn connection(is_reply: bool, state: u8) -> Self {
        Self(Self::SOMETHING | if is_reply { Self::REPLY } else { 0 } | (state as u32) << 8)
    }

    /// What becomes of the packet. Netfilter itself would begin a connection that is over anew, without our translation.
    #[inline(always)]
    pub const fn treatment(self, proto: Proto, flags: TcpFlags) -> Treatment {
        const TIME_WAIT: u32 = 7;
        const CLOSE: u32 = 8;
        if self.0 & Self::SOMETHING == 0 {
            return Treatment::Begins;
        }
        let state = self.0 >> 8 & 0xff;
        let is_over = state == TIME_WAIT || state == CLOSE;
        if proto.0 == Proto::TCP.0 && flags.opens() && is_over && self.0 & Self::REPLY == 0 {
            Treatment::BeginsAgain
        } else {
            Treatment::Passes
        }
    }
}

/// Whether netfilter translates a new flow.
///
/// Not SCTP, which the kernel offers programs no way to write down. Not a flow between two pods that are switched to each other: the
/// answer would keep its address. Nor one of a pod to an endpoint that is no pod: what masquerades those, the CNI's rules, does not
/// look at what conntrack holds already.
#[inline(always)]
pub fn is_by_netfilter<A: Family>(
    opening: &Opening<A>,
    backend: &Backend<A>,
    is_masqueraded: bool,
    is_switched: bool,
    config: &Config,
) -> bool {
    if !config.flags.has(ConfigFlags::BY_CONNTRACK) || opening.tuple.proto == Proto::SCTP {
        return false;
    }
    match opening.origin {
        Origin::Wire | Origin::Node => false,
        Origin::Uplink => true,
        Origin::Pod if backend.is_local() => is_masqueraded || !is_switched,
        Origin::Pod => is_masqueraded || is_local(backend.address, config) == Some(true),
    }
}

/// The same of the flow on the desk.
#[inline(always)]
pub fn is_by_netfilter_here<A: Family, T: PacketTables<A>>(tables: &T, desk: &Desk<A>) -> bool {
    let new = &desk.new;
    let is_masqueraded = new.masquerade != A::UNSPECIFIED && new.masquerade != new.flow.client;
    is_by_netfilter(
        &desk.opening,
        &desk.chosen.backend,
        is_masqueraded,
        tables.is_switched(),
        tables.config(),
    )
}

/// How often another port is tried before a flow is given up: each time somebody else has just taken it.
pub const ATTEMPTS: u32 = 16;

/// The source that a backend is to see; nothing: the client as it is. Port 0: netfilter keeps the client's if it can, else looks for one
/// of the same kind.
///
/// Our own masquerading ports are left to our own flows, whose answers are looked for first.
#[inline(always)]
pub fn source<A: Family>(new: &NewFlow<A>, attempt: u32, config: &Config) -> Option<(A, Port)> {
    let flow = &new.flow;
    let is_kept = new.masquerade == A::UNSPECIFIED;
    if is_kept && attempt == 0 {
        return None;
    }
    let address = if is_kept { flow.client } else { new.masquerade };
    let client_port = flow.client_port.get();
    let is_ours = client_port.wrapping_sub(config.nat_port_first) < config.nat_port_count;
    if attempt == 0 && !is_ours && !flow.shares_port() {
        return Some((address, Port::default()));
    }
    // (Ephemeral ports; of privileged ones those that servers do not use.)
    let (first, count) = if flow.client_port.is_privileged() { (600, 424) } else { (32_768, 28_232) };
    let step = (new.hash >> 16).wrapping_add(attempt.wrapping_mul(0x9e37)) & 0xffff;
    let port = (step * count) >> 16;
    Some((address, Port::new(first + port as u16)))
}

/// The steps of making a flow, netfilter's among them.
pub trait ConntrackSteps: Steps {
    /// [`is_by_netfilter_here`].
    fn is_by_netfilter(&mut self) -> bool;

    /// Writes the flow on the desk into conntrack, with the [`source`] of this attempt: [`Opened::IN_CONNTRACK`], or an error, of which
    /// [`InsertError::Contended`] may pass.
    fn write_down(&mut self, attempt: u32) -> Opened;
}

/// Makes the flow whose opening, of this kind, is on the desk: [`Opened::DONE`], [`Opened::IN_CONNTRACK`], or an error.
#[inline(always)]
pub fn open(kind: OpeningKind, steps: &mut impl ConntrackSteps) -> Opened {
    let opened = opening::write(kind, steps);
    if !opened.is_written() {
        return opened;
    }
    if !steps.is_by_netfilter() {
        return opening::make(steps, opened);
    }
    let contended = Opened::error(InsertError::Contended);
    for attempt in 0..ATTEMPTS {
        let written = steps.write_down(attempt);
        if written != contended {
            return written;
        }
    }
    contended
}
