//! A packet's way in steps that are functions of their own, one after the other: for addresses so long
//! that no two steps fit on the stack together.
//!
//! What one step finds out lies on the desk for the next; what it returns is an [`Outcome`].

use lb_common::abi::Reason;
use lb_common::datapath::flow_table::{self, InsertError};
use lb_common::datapath::{Parsed, Tables, Verdict, ingress};

use crate::desk::{self, DeskNumber};
use crate::family::KernelFamily;
use crate::functions::DONE;
use crate::tables::{Context, KernelTables};

/// A verdict without its addresses, in a number: what to do, and the [`Reason`].
#[derive(Clone, Copy)]
pub struct Outcome(u32);

impl Outcome {
    /// Goes on untouched.
    pub const PASS: u32 = 0;
    /// Ends here.
    pub const DROP: u32 = 1;
    /// Is answered.
    pub const REFUSE: u32 = 2;
    /// Goes on as the desk says.
    pub const TRANSLATE: u32 = 3;
    /// Is sent as the desk says.
    pub const FORWARD: u32 = 4;
    /// Is judged again once the flow on the desk is made.
    pub const POSTPONED: u32 = 5;

    /// What, and why.
    #[inline(always)]
    pub const fn new(what: u32, reason: Reason) -> Self {
        Self(what << 8 | reason as u32)
    }

    /// From a function's result.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// For a function's result.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// What to do.
    #[inline(always)]
    pub const fn what(self) -> u32 {
        self.0 >> 8
    }

    /// Number of the [`Reason`].
    #[inline(always)]
    pub const fn reason(self) -> u32 {
        self.0 & 0xff
    }
}

/// Puts a verdict on the desk.
#[inline(always)]
pub fn put<A: KernelFamily>(parsed: &Parsed<A>, verdict: Verdict<A>, tables: &KernelTables<A>) -> Outcome {
    let reason = verdict.reason();
    let what = match verdict {
        Verdict::Pass(_) => Outcome::PASS,
        Verdict::Drop(_) => Outcome::DROP,
        Verdict::Refuse(_) if !tables.may_refuse() => {
            return Outcome::new(Outcome::DROP, Reason::RefusalLimited);
        }
        Verdict::Refuse(_) => Outcome::REFUSE,
        Verdict::Postponed => Outcome::POSTPONED,
        Verdict::Translate(translation, tally) => {
            // SAFETY: this program's own desk.
            unsafe { (*tables.desk()).translated = (*parsed, translation, tally) };
            Outcome::TRANSLATE
        }
        Verdict::Forward(translation, route, tally) => {
            // SAFETY: as above.
            unsafe {
                (*tables.desk()).translated = (*parsed, translation, tally);
                (*tables.desk()).target = route;
            }
            Outcome::FORWARD
        }
    };
    Outcome::new(what, reason)
}

/// Makes the flow whose opening is on the desk: [`DONE`], or an [`InsertError`] as a number.
#[inline(always)]
pub fn make_flow<A: KernelFamily>(context: Context, desk: DeskNumber) -> u32 {
    let prepared = A::prepare(context, desk);
    if prepared != DONE {
        return prepared;
    }
    flow_table::until_won(InsertError::Contended as u32, || A::insert(desk))
}

/// Judges a packet, and once more when a flow had to be made for it first. The reason of the desk's tally is
/// [`Reason::NewFlow`] then.
#[inline(always)]
pub fn judge<A: KernelFamily>(context: Context, direction: u32, number: DeskNumber) -> Outcome {
    let outcome = Outcome::from_number(A::look(context, direction, number));
    if outcome.what() != Outcome::POSTPONED {
        return outcome;
    }
    let code = make_flow::<A>(context, number);
    let Some(desk) = desk::at::<A>(number) else {
        return Outcome::new(Outcome::DROP, Reason::FlowTableContended);
    };
    if code != DONE {
        // SAFETY: this program's own desk.
        let proto = unsafe { (*desk).opening.tuple.proto };
        let error = match code {
            code if code == InsertError::Full as u32 => InsertError::Full,
            code if code == InsertError::NatPortsExhausted as u32 => InsertError::NatPortsExhausted,
            code if code == InsertError::NoBackend as u32 => InsertError::NoBackend,
            code if code == InsertError::SourceDenied as u32 => InsertError::SourceDenied,
            _ => InsertError::Contended,
        };
        let verdict: Verdict<A> = ingress::no_flow(error, proto);
        return Outcome::new(
            if matches!(verdict, Verdict::Drop(_)) { Outcome::DROP } else { Outcome::REFUSE },
            verdict.reason(),
        );
    }
    let outcome = Outcome::from_number(A::look(context, direction, number));
    match outcome.what() {
        Outcome::POSTPONED => Outcome::new(Outcome::DROP, Reason::FlowTableContended),
        what @ (Outcome::TRANSLATE | Outcome::FORWARD) => {
            // SAFETY: this program's own desk.
            unsafe { (*desk).translated.2.reason = Reason::NewFlow };
            Outcome::new(what, Reason::NewFlow)
        }
        _ => outcome,
    }
}
