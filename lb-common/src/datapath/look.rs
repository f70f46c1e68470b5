//! The first step: what a packet is, and which flow it belongs to.

use super::desk::Desk;
use super::fragment::Direction;
use super::outcome::{Outcome, Step};
use super::parse::Parsed;
use super::tables::PacketTables;
use super::{Family, Origin, egress, ingress};
use crate::abi::Reason;
use crate::wire::Packet;

/// Where a packet is met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// On its way into the node.
    Ingress(Origin),
    /// On its way out of an interface.
    Egress,
}

impl Point {
    /// Which way the packet goes.
    #[inline(always)]
    pub const fn direction(self) -> Direction {
        match self {
            Self::Ingress(_) => Direction::Ingress,
            Self::Egress => Direction::Egress,
        }
    }

    /// For a function's argument.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        match self {
            Self::Ingress(Origin::Wire) => 0,
            Self::Ingress(Origin::Uplink) => 1,
            Self::Ingress(Origin::Pod) => 2,
            Self::Egress | Self::Ingress(Origin::Node) => 3,
        }
    }

    /// The inverse of [`Point::number`].
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Ingress(Origin::Wire),
            1 => Self::Ingress(Origin::Uplink),
            2 => Self::Ingress(Origin::Pod),
            _ => Self::Egress,
        }
    }
}

/// Reads a packet. `is_for_us`: whether its frame is addressed to this node; asked where others' may turn up, for what may concern us.
///
/// XDP sees a packet before anybody: it leaves all fragments to tc, which sees the later ones by themselves, and ICMP errors.
///
/// # Errors
/// What becomes of it without a look at any table.
#[inline(always)]
pub fn read<A: Family, P: Packet>(
    packet: &P,
    point: Point,
    is_for_us: impl Fn() -> bool,
) -> Result<Parsed<A>, Outcome> {
    let is_xdp = matches!(point, Point::Ingress(Origin::Wire));
    let asks = matches!(point, Point::Ingress(Origin::Wire | Origin::Uplink));
    let parsed = A::parse(packet);
    let concerns = match parsed {
        Err(Reason::Fragment | Reason::IcmpError) if is_xdp => {
            return Err(Outcome::pass(Reason::LeftToStack));
        }
        Ok(_) | Err(Reason::Fragment | Reason::IcmpError) => true,
        Err(_) => false,
    };
    // (Asked in one place: of several the compiler would make a function.)
    if asks && concerns && !is_for_us() {
        return Err(Outcome::pass(Reason::NotForUs));
    }
    match parsed {
        Ok(parsed) if is_xdp && parsed.first_fragment => Err(Outcome::pass(Reason::LeftToStack)),
        Ok(parsed) => Ok(parsed),
        Err(Reason::Fragment) => Err(Outcome::new(Step::LATER_FRAGMENT, Reason::Fragment)),
        Err(Reason::IcmpError) => Err(Outcome::new(Step::ICMP_ERROR, Reason::IcmpError)),
        Err(reason) => Err(Outcome::pass(reason)),
    }
}

/// Finds the flow of a packet.
#[inline(always)]
pub fn find<A: Family, T: PacketTables<A>>(
    parsed: &Parsed<A>,
    point: Point,
    tables: &T,
    desk: &mut Desk<A>,
) -> Outcome {
    match point {
        Point::Ingress(origin) => ingress::ingress(parsed, origin, tables, desk),
        Point::Egress => egress::egress(parsed, tables, desk),
    }
}
