//! What the keeper attaches in the agent's place, and how the agent takes it in.

use std::collections::BTreeMap;

use lb_common::abi::{Config, Interface, Station};
use lb_control::network::classify::{self, Classified};
use lb_control::network::forward::ForwardMode;
use tracing::warn;

use super::{Interfaces, belongs, tc_programs};
use crate::links::{Hooks, XdpMode};
use crate::maps::InterfaceMaps;
use crate::programs::load::{POD_EGRESS, POD_INGRESS, UPLINK_EGRESS, UPLINK_INGRESS, UPLINK_XDP};

impl Interfaces {
    /// For the keeper: marks what it serves, and lets be what hangs.
    pub fn of_keeper(hooks: Hooks, maps: InterfaceMaps) -> Self {
        let interfaces =
            Self::new(hooks.that_replace_nothing(), maps, XdpMode::default(), ForwardMode::default());
        Self { mark: Interface::KEPT, ..interfaces }
    }

    /// Takes in what the agent was told. It counts from the next [`Self::keep`] on.
    pub const fn set_modes(&mut self, xdp_mode: XdpMode, forward_mode: ForwardMode, host_rules: bool) {
        (self.xdp_mode, self.forward_mode) = (xdp_mode, forward_mode);
        self.passed_by.host_rules = host_rules;
    }

    /// How XDP is attached, whether it sends on, and whether the host has rules that this would pass by.
    pub const fn modes(&self) -> (XdpMode, ForwardMode, bool) {
        (self.xdp_mode, self.forward_mode, self.passed_by.host_rules)
    }

    /// Serves what of `wanted` is not served, and leaves nothing. Whether all is served then.
    ///
    /// Two may be at this at once: whoever comes second finds the pins of the first.
    pub fn keep(&mut self, wanted: &BTreeMap<u32, Classified>) -> bool {
        // Others write the maps too: nothing is known from the last time.
        (self.stations, self.served, self.troubles) = (None, BTreeMap::new(), BTreeMap::new());
        let lacking: Vec<(&u32, &Classified)> = wanted.iter().filter(|(i, c)| self.lacks(**i, c)).collect();
        if lacking.is_empty() {
            return true;
        }
        let told = self.tell_stations(wanted).and_then(|()| self.write_stations(wanted));
        if let Err(error) = told {
            warn!(%error, "cannot write whom frames may be for; tc serves what XDP leaves");
        }
        for (index, classified) in &lacking {
            self.take_off_other_role(**index, classified);
            self.serve(**index, classified);
        }
        lacking.into_iter().all(|(index, classified)| !self.lacks(*index, classified))
    }

    fn lacks(&self, index: u32, classified: &Classified) -> bool {
        let Ok(Some(entry)) = self.maps.interfaces.get(&index) else { return true };
        let hangs = || tc_programs(classified.role).into_iter().all(|it| self.hooks.hangs(it, index));
        // What the agent has written of an interface is the agent's to change.
        let is_ours = entry.flags & Interface::KEPT != 0;
        let has_changed = is_ours && !self.speaks_as(&entry, classified);
        entry.role != classified.role as u32 || has_changed || !hangs()
    }

    fn speaks_as(&self, entry: &Interface, classified: &Classified) -> bool {
        let wanted = Self::sources(classified.masquerade);
        (entry.masquerade4, entry.masquerade6) == wanted
    }

    /// Where one address is all that XDP compares with, it may be that of an interface that is gone: then the table says it.
    fn tell_stations(&self, wanted: &BTreeMap<u32, Classified>) -> std::io::Result<()> {
        let only = classify::only_station(wanted).map_or(0, Station::only);
        match self.maps.config.get(&0)? {
            Some(config) if config.station != 0 && config.station != only => {
                self.maps.config.put(&0, &Config { station: 0, ..config })
            }
            _ => Ok(()),
        }
    }

    /// An interface has one role: programs of the other one would take its packets for something else.
    fn take_off_other_role(&self, index: u32, classified: &Classified) {
        let all = [POD_INGRESS, POD_EGRESS, UPLINK_INGRESS, UPLINK_EGRESS, UPLINK_XDP];
        for program in all.into_iter().filter(|it| !belongs(it.name, classified.role, true)) {
            if let Err(error) = self.hooks.detach(program.name, index) {
                warn!(interface = classified.link.name, %error, "cannot take a program off");
            }
        }
    }

    /// Finds out what the keeper has served since the agent looked last.
    pub(super) fn note_kept(&mut self, wanted: &BTreeMap<u32, Classified>) {
        let is_kept = |index: &u32| {
            let entry = self.maps.interfaces.get(index).ok().flatten();
            entry.is_some_and(|entry| entry.flags & Interface::KEPT != 0)
        };
        let new = wanted.iter().filter(|(index, _)| !self.served.contains_key(index));
        let kept: Vec<String> =
            new.filter(|(index, _)| is_kept(index)).map(|(_, it)| it.link.name.clone()).collect();
        if !kept.is_empty() {
            // It has written there as well.
            self.stations = None;
            self.kept.extend(kept);
        }
    }

    /// Names of interfaces that the keeper has served in this agent's place or an earlier one's, each once.
    pub fn take_kept(&mut self) -> Vec<String> {
        std::mem::take(&mut self.kept)
    }
}
