//! What passes between the attachment and its keeper.

use std::collections::BTreeMap;

use lb_control::network::classify::Classified;
use lb_control::network::keeping;
use tracing::{info, warn};

use super::Attachment;
use crate::keeper::Orders;

impl Attachment {
    /// Takes in what the keeper has served.
    pub(super) fn take_over_from_keeper(&mut self) {
        let kept = self.interfaces.take_kept();
        if kept.is_empty() {
            return;
        }
        info!(interfaces = kept.join(","), "the keeper had attached these in the agent's place");
        self.state.send_modify(|state| state.kept += kept.len() as u64);
        // It may have written there.
        if let Err(error) = self.config.restore() {
            self.not_written = true;
            warn!(%error, "cannot write the configuration map");
        }
    }

    /// Tells the keeper what has been served.
    pub(super) fn tell_keeper(&mut self, wanted: &BTreeMap<u32, Classified>) {
        let mut orders = Orders::new(&self.facts.selection);
        (orders.xdp_mode, orders.xdp_forward, orders.host_rules) = self.interfaces.modes();
        orders.in_line = keeping::fingerprint(wanted);
        self.keeper.tell(&orders, self.interfaces.hooks().programs());
    }
}
