//! What is to be done with a packet, in one number: what one step of a program hands to the next.
//!
//! A number and not an enum: functions in the kernel return numbers, and the verifier would follow every variant through the rest
//! of the program.

use super::rewrite::Translation;
use crate::abi::{Flow, Reason};
use crate::addr::Address;

/// What is to be done, why, and for which leg of a flow.
///
/// | bits | 0..8 | 8..16 | 16..24 |
/// |---|---|---|---|
/// | | [`Reason`] | [`Step`] | [`Leg`], of [`Step::TRANSLATE`] |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Outcome(u32);

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step(pub u32);

impl Step {
    /// The packet goes on untouched.
    pub const PASS: Self = Self(0);
    /// It ends here.
    pub const DROP: Self = Self(1);
    /// Nobody serves: its sender is told at once.
    pub const REFUSE: Self = Self(2);
    /// It begins a flow: the one whose opening lies on the desk.
    pub const OPEN: Self = Self(3);
    /// It belongs to the flow on the desk, and gets other addresses.
    pub const TRANSLATE: Self = Self(4);
    /// It is a later fragment, which has no ports.
    pub const LATER_FRAGMENT: Self = Self(5);
    /// It is an ICMP error, which quotes a packet.
    pub const ICMP_ERROR: Self = Self(6);
    /// It has its new addresses, and goes on to the kernel's own forwarding.
    pub const DELIVER: Self = Self(7);
    /// It has its new addresses, and the program sends it by the route on the desk.
    pub const TRANSMIT: Self = Self(8);
    /// It may belong to a connection of the node's own: its opening is on the desk, in case.
    pub const JUDGE_OWN: Self = Self(9);
    /// It is this node's own, and has no flow: its Service is looked for.
    pub const SERVE: Self = Self(11);
    /// Netfilter may know its connection, and is asked by a program of its own.
    pub const CONNTRACK: Self = Self(10);
}

/// Which of a flow's packets one is: whose, and where it is met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leg(pub u32);

impl Leg {
    /// Client to frontend, on its way in.
    pub const REQUEST: Self = Self(0);
    /// Backend to the masquerading address, on its way in.
    pub const MASQUERADED_REPLY: Self = Self(1);
    /// Backend to client, on its way out.
    pub const REPLY: Self = Self(2);
    /// Backend to client, on its way out, with the port that the flow carries through the kernel.
    pub const SHARED_REPLY: Self = Self(3);
    /// Client to backend, on its way out: the backend is to see another address.
    pub const MASQUERADE: Self = Self(4);
    /// This node to a frontend, on its way out: it goes to the backend by another way than it was sent.
    pub const NODE_REQUEST: Self = Self(5);
    /// Backend to this node, on its way in; or on its way out, if the backend is this node too.
    pub const NODE_REPLY: Self = Self(6);

    /// Whether the packet goes on by another way than the one it is on.
    #[inline(always)]
    pub const fn turns_off(self) -> bool {
        self.0 >= Self::NODE_REQUEST.0
    }

    /// The addresses that the packet gets at this point of its way through the kernel.
    ///
    /// A reply keeps its source until it leaves: with the frontend's address, which may be the node's own, the kernel would take
    /// it for a martian.
    #[inline(always)]
    pub fn translation<A: Address>(self, flow: &Flow<A>) -> Translation<A> {
        match self {
            Self::REQUEST => {
                let translation = Translation::destination(flow.backend, flow.backend_port);
                if flow.shares_port() {
                    translation.with_source(flow.client, flow.nat_port)
                } else {
                    translation
                }
            }
            Self::MASQUERADED_REPLY => {
                let port = if flow.shares_port() { flow.nat_port } else { flow.client_port };
                Translation::destination(flow.client, port)
            }
            Self::REPLY => Translation::source(flow.frontend, flow.frontend_port),
            Self::SHARED_REPLY => Translation::source(flow.frontend, flow.frontend_port)
                .with_destination(flow.client, flow.client_port),
            Self::MASQUERADE => Translation::source(flow.nat, flow.nat_port),
            Self::NODE_REQUEST => {
                Translation::destination(flow.backend, flow.backend_port).with_source(flow.nat, flow.nat_port)
            }
            _ => Translation::source(flow.frontend, flow.frontend_port)
                .with_destination(flow.client, flow.client_port),
        }
    }

    /// All that changes on the packet's way through this node, where it takes that way in one step; and whether that leads out of
    /// the node again.
    #[inline(always)]
    pub fn whole_translation<A: Address>(self, flow: &Flow<A>) -> (Translation<A>, bool) {
        if self == Self::MASQUERADED_REPLY {
            let destination = Translation::destination(flow.client, flow.client_port);
            return (destination.with_source(flow.frontend, flow.frontend_port), true);
        }
        let destination = Translation::destination(flow.backend, flow.backend_port);
        if flow.nat == A::UNSPECIFIED {
            return (destination, false);
        }
        (destination.with_source(flow.nat, flow.nat_port), flow.nat != flow.client)
    }
}

impl Outcome {
    /// To do `step`, because of `reason`.
    #[inline(always)]
    pub const fn new(step: Step, reason: Reason) -> Self {
        Self(step.0 << 8 | reason as u32)
    }

    /// The packet goes on untouched.
    #[inline(always)]
    pub const fn pass(reason: Reason) -> Self {
        Self::new(Step::PASS, reason)
    }

    /// The packet ends here.
    #[inline(always)]
    pub const fn drop(reason: Reason) -> Self {
        Self::new(Step::DROP, reason)
    }

    /// The packet's sender is told that nobody serves.
    #[inline(always)]
    pub const fn refuse(reason: Reason) -> Self {
        Self::new(Step::REFUSE, reason)
    }

    /// The packet belongs to the flow on the desk.
    #[inline(always)]
    pub const fn translate(leg: Leg, reason: Reason) -> Self {
        Self(leg.0 << 16 | Step::TRANSLATE.0 << 8 | reason as u32)
    }

    /// The packet begins the flow whose opening is on the desk, and is then translated for this leg.
    #[inline(always)]
    pub const fn open(leg: Leg, reason: Reason) -> Self {
        Self(leg.0 << 16 | Step::OPEN.0 << 8 | reason as u32)
    }

    /// The same packet after another step.
    #[inline(always)]
    pub const fn then(self, step: Step) -> Self {
        Self(self.0 & !0xff00 | step.0 << 8)
    }

    /// From a function's result.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// For a function's argument or result.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// What is to be done.
    #[inline(always)]
    pub const fn step(self) -> Step {
        Step(self.0 >> 8 & 0xff)
    }

    /// Number of the [`Reason`]: of the one counter that the packet moves.
    #[inline(always)]
    pub const fn reason(self) -> u32 {
        self.0 & 0xff
    }

    /// Whether that is the reason.
    #[inline(always)]
    pub const fn is_for(self, reason: Reason) -> bool {
        self.reason() == reason as u32
    }

    /// Of the packets of a flow, which.
    #[inline(always)]
    pub const fn leg(self) -> Leg {
        Leg(self.0 >> 16 & 0xff)
    }
}
