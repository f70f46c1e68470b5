//! How many refusals may be sent.

use lb_common::abi::Moment;

use crate::maps::{CONFIG, REFUSALS};
use crate::tables::moment;

/// How many refusals a CPU has sent in one moment.
pub struct Refusals {
    /// When.
    pub moment: Moment,
    /// How many.
    pub sent: u32,
}

/// Whether one more may be sent now.
#[inline(always)]
pub fn may_refuse() -> bool {
    let (Some(config), Some(refusals)) = (CONFIG.get(0), REFUSALS.get_ptr_mut(0)) else { return false };
    let now = moment(config);
    // SAFETY: this CPU's slot of a per-CPU map. Who comes in between may send one more or less.
    unsafe {
        if (*refusals).moment != now {
            (*refusals).moment = now;
            (*refusals).sent = 0;
        }
        (*refusals).sent += 1;
        config.refusal_limit == 0 || (*refusals).sent <= config.refusal_limit
    }
}
