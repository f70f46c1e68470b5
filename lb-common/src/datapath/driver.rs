//! The one way of a packet through a program, for both families and every hook: look, make the flow if it begins one, carry out.
//!
//! XDP, tc and the executor of the tests each say how they do a step ([`Program`]). In the kernel a step may be a function with a
//! stack of its own; then what it finds out lies on the desk, and its result is an [`Outcome`].

use super::Family;
use super::flow_table::InsertError;
use super::ingress::no_flow;
use super::outcome::{Outcome, Step};
use crate::abi::Reason;
use crate::addr::Proto;

/// How a program does the steps.
pub trait Program<A: Family> {
    /// What a program returns to the kernel.
    type Action: Copy;
    /// Where the steps lay what they hand on.
    type Desk;

    /// The packet goes on.
    const PASS: Self::Action;
    /// The packet ends here.
    const DROP: Self::Action;

    /// Parses the packet and finds its flow: [`super::look`].
    fn look(&mut self, desk: &mut Self::Desk) -> Outcome;

    /// Decides for a packet that may belong to a connection of the node's own: [`super::of_node`] for one that may be to a Service,
    /// then [`super::own::judge`].
    fn judge_own(&mut self, desk: &mut Self::Desk) -> Outcome;

    /// Makes the flow whose opening is on the desk, and lays it there.
    ///
    /// # Errors
    /// Why there can be no flow.
    fn open(&mut self, desk: &mut Self::Desk) -> Result<(), InsertError>;

    /// Hands a packet of [`Step::CONNTRACK`] on to the program that asks netfilter. It comes back only if there is none.
    #[inline(always)]
    fn hand_over(&mut self, _: &mut Self::Desk) {}

    /// Of which protocol the packet is that begins a flow.
    fn opening_proto(&self, desk: &Self::Desk) -> Proto;

    /// Unmakes the flow that [`Self::open`] has made.
    fn unmake(&mut self, desk: &mut Self::Desk);

    /// Whether an answer that this program sends by itself arrives; if not, the next one gives it.
    fn may_answer(&mut self, desk: &mut Self::Desk) -> bool;

    /// Whether one more refusal may be sent now.
    fn may_refuse(&mut self) -> bool;

    /// Turns the packet into the answer its sender gets; nothing if there is none.
    fn refuse(&mut self, desk: &mut Self::Desk) -> Option<Self::Action>;

    /// Gives the packet the addresses that its flow has for this leg: [`Step::DELIVER`], [`Step::TRANSMIT`], or [`Step::PASS`] and
    /// [`Step::DROP`] with the reason why not.
    fn translate(&mut self, outcome: Outcome, desk: &mut Self::Desk) -> Outcome;

    /// Sends the packet by the route found when it was translated.
    fn transmit(&mut self, desk: &mut Self::Desk) -> Self::Action;

    /// Counts a packet of the flow on the desk for its Service.
    fn count(&mut self, outcome: Outcome, desk: &mut Self::Desk);

    /// Treats a later fragment: [`Step::PASS`], [`Step::DROP`], or [`Step::TRANSMIT`] where one goes on by another way.
    fn later_fragment(&mut self, desk: &mut Self::Desk) -> Outcome;

    /// Treats an ICMP error: [`Step::PASS`] or [`Step::DROP`].
    fn icmp_error(&mut self, desk: &mut Self::Desk) -> Outcome;

    /// Says what has become of the packet, where somebody wants to know of each.
    fn log(&self, reason: u32, desk: &Self::Desk);
}

/// Drives a packet through a program: what to return, and the number of the [`Reason`] to count.
#[inline(always)]
pub fn drive<A: Family, P: Program<A>>(program: &mut P, desk: &mut P::Desk) -> (P::Action, u32) {
    let mut outcome = program.look(desk);
    if outcome.step() == Step::JUDGE_OWN {
        outcome = program.judge_own(desk);
    }
    if outcome.step() == Step::OPEN {
        outcome = match program.open(desk) {
            Ok(()) => outcome.then(Step::TRANSLATE),
            // A connection of the node's own, which goes on without a record.
            Err(_) if outcome.is_for(Reason::OwnConnection) => Outcome::pass(Reason::NoService),
            Err(error) => no_flow(error, program.opening_proto(desk)),
        };
    }
    let (action, reason) = carry_out(outcome, program, desk);
    program.log(reason, desk);
    (action, reason)
}

#[inline(always)]
fn carry_out<A: Family, P: Program<A>>(
    outcome: Outcome,
    program: &mut P,
    desk: &mut P::Desk,
) -> (P::Action, u32) {
    match outcome.step() {
        Step::TRANSLATE => {
            let done = program.translate(outcome, desk);
            match done.step() {
                Step::DELIVER => {
                    program.count(outcome, desk);
                    (P::PASS, outcome.reason())
                }
                Step::TRANSMIT => {
                    program.count(outcome, desk);
                    (program.transmit(desk), outcome.reason())
                }
                Step::PASS => {
                    if outcome.is_for(Reason::NewFlow) {
                        // Whoever the packet is left to begins the flow: it is one new flow, and not one that goes on.
                        program.unmake(desk);
                    }
                    (P::PASS, done.reason())
                }
                _ => (P::DROP, done.reason()),
            }
        }
        Step::DROP => (P::DROP, outcome.reason()),
        Step::REFUSE => {
            if !program.may_answer(desk) {
                return (P::PASS, Reason::LeftToStack as u32);
            }
            if !program.may_refuse() {
                return (P::DROP, Reason::RefusalLimited as u32);
            }
            match program.refuse(desk) {
                Some(action) => (action, outcome.reason()),
                None => (P::DROP, Reason::NoEndpointSilent as u32),
            }
        }
        Step::CONNTRACK => {
            program.hand_over(desk);
            (P::PASS, outcome.reason())
        }
        Step::LATER_FRAGMENT => {
            let done = program.later_fragment(desk);
            if done.step() == Step::TRANSMIT {
                return (program.transmit(desk), done.reason());
            }
            treated::<A, P>(done)
        }
        Step::ICMP_ERROR => treated::<A, P>(program.icmp_error(desk)),
        _ => (P::PASS, outcome.reason()),
    }
}

#[inline(always)]
fn treated<A: Family, P: Program<A>>(outcome: Outcome) -> (P::Action, u32) {
    (if outcome.step() == Step::DROP { P::DROP } else { P::PASS }, outcome.reason())
}
