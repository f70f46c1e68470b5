//! Keeps the programs and the interface map in line with the interfaces there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use lb_common::abi::{Interface, Role};
use tracing::{info, warn};

use super::links::{At, AttachError, Hooks, XdpMode};
use super::load::{POD_EGRESS, POD_INGRESS, ProgramSpec, UPLINK_EGRESS, UPLINK_INGRESS, UPLINK_XDP};
use super::maps::Maps;
use crate::net::XdpAttached;
use crate::net::classify::{Classified, Masquerade};

/// What an interface has got.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Served {
    role: Role,
    name: String,
    masquerade: Masquerade,
    xdp: Option<XdpAttached>,
}

/// One interface that is not served as it should be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Trouble {
    /// Its name.
    pub interface: String,
    /// What is wrong and what to do.
    pub message: String,
    /// Packets of this interface are not translated at all.
    pub fatal: bool,
}

/// The interfaces this agent serves.
#[derive(Debug)]
pub struct Interfaces {
    hooks: Hooks,
    maps: Arc<Maps>,
    xdp_mode: XdpMode,
    served: BTreeMap<u32, Served>,
    troubles: BTreeMap<u32, Vec<Trouble>>,
    started: bool,
}

const fn tc_programs(role: Role) -> [ProgramSpec; 2] {
    match role {
        Role::Uplink => [UPLINK_INGRESS, UPLINK_EGRESS],
        Role::Pod => [POD_INGRESS, POD_EGRESS],
    }
}

/// Whether a program belongs on an interface with this role.
fn belongs(program: &str, role: Role, xdp: bool) -> bool {
    tc_programs(role).iter().any(|spec| spec.name == program)
        || (role == Role::Uplink && xdp && program == UPLINK_XDP.name)
}

impl Interfaces {
    /// Serves interfaces with `hooks` and says so in the interface map.
    pub const fn new(hooks: Hooks, maps: Arc<Maps>, xdp_mode: XdpMode) -> Self {
        Self { hooks, maps, xdp_mode, served: BTreeMap::new(), troubles: BTreeMap::new(), started: false }
    }

    /// The programs and where they hang.
    pub const fn hooks(&mut self) -> &mut Hooks {
        &mut self.hooks
    }

    /// What is wrong now.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.troubles.values().flatten().cloned().collect()
    }

    /// Number of interfaces served.
    pub fn count(&self) -> usize {
        self.served.len()
    }

    /// Brings programs and map to what `wanted` says, by index. Interfaces served before and wanted the
    /// same are not touched, unless something was wrong with them.
    pub fn apply(&mut self, wanted: &BTreeMap<u32, Classified>) {
        self.leave(wanted);
        for (index, classified) in wanted {
            self.serve(*index, classified);
        }
        if !self.started {
            self.sweep(wanted);
            self.started = true;
        }
    }

    /// Whether another `apply` with the same interfaces could put something right.
    pub fn wants_retry(&self) -> bool {
        self.troubles.values().flatten().any(|trouble| trouble.fatal)
    }

    fn leave(&mut self, wanted: &BTreeMap<u32, Classified>) {
        let gone = |(index, served): (&u32, &Served)| {
            let stays = wanted.get(index).is_some_and(|w| w.role == served.role);
            (!stays).then_some(*index)
        };
        for index in self.served.iter().filter_map(gone).collect::<Vec<_>>() {
            if let Some(served) = self.served.remove(&index) {
                for program in tc_programs(served.role).into_iter().chain([UPLINK_XDP]) {
                    if let Err(error) = self.hooks.detach(program.name, index) {
                        warn!(interface = served.name, %error, "cannot take a program off");
                    }
                }
                if let Err(error) = self.maps.interfaces.remove(&index) {
                    warn!(interface = served.name, %error, "cannot take the interface out of the map");
                }
                info!(interface = served.name, "left");
            }
        }
        self.troubles.retain(|index, _| wanted.contains_key(index));
    }

    fn serve(&mut self, index: u32, classified: &Classified) {
        let known = self.served.get(&index);
        let unchanged = known.is_some_and(|served| {
            served.role == classified.role
                && served.name == classified.link.name
                && served.masquerade == classified.masquerade
        });
        if unchanged && !self.troubles.contains_key(&index) {
            return;
        }
        let mut served = Served {
            role: classified.role,
            name: classified.link.name.clone(),
            masquerade: classified.masquerade,
            xdp: known.and_then(|served| served.xdp),
        };
        let first_time = known.is_none();
        let mut troubles = Vec::new();
        let mut trouble = |message: String, fatal| {
            troubles.push(Trouble { interface: classified.link.name.clone(), message, fatal });
        };
        // The map first: a program must know the interface it runs on.
        if let Err(error) = self.write(index, &served) {
            trouble(format!("cannot write the interface map: {error}"), true);
        }
        let driver = driver(classified);
        let at = At { index, name: &classified.link.name, driver: &driver, xdp: classified.link.xdp };
        let mut gone = false;
        for program in tc_programs(classified.role) {
            match self.hooks.attach_tc(program, at) {
                Ok(()) => {}
                Err(AttachError::Gone { .. }) => gone = true,
                Err(error) => trouble(error.to_string(), true),
            }
        }
        if classified.role == Role::Uplink && served.xdp.is_none() && !gone {
            match self.hooks.attach_xdp(UPLINK_XDP, at, self.xdp_mode) {
                Ok((attached, warning)) => {
                    served.xdp = attached;
                    if let Some(warning) = warning {
                        warn!("{warning}");
                    }
                }
                Err(AttachError::Gone { .. }) => gone = true,
                Err(error) => trouble(format!("{error}; tc serves this interface"), false),
            }
            if let Err(error) = self.write(index, &served) {
                trouble(format!("cannot write the interface map: {error}"), true);
            }
        }
        if gone {
            // Its removal is on the way through netlink.
            return;
        }
        if first_time {
            info!(
                interface = served.name,
                role = role_label(served.role),
                xdp = served.xdp.map_or("off", XdpAttached::label),
                tc = ?self.hooks.tc_kind(),
                "attached"
            );
        }
        self.served.insert(index, served);
        let before = if troubles.is_empty() {
            self.troubles.remove(&index)
        } else {
            self.troubles.insert(index, troubles.clone())
        };
        // Each trouble is told once, not at every try.
        let before: BTreeSet<Trouble> = before.into_iter().flatten().collect();
        for trouble in troubles.iter().filter(|trouble| !before.contains(trouble)) {
            warn!(interface = trouble.interface, "{}", trouble.message);
        }
    }

    fn write(&self, index: u32, served: &Served) -> std::io::Result<()> {
        // Answers to what is masqueraded go there.
        let Masquerade { v4, v6 } = served.masquerade;
        v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)).for_each(|it| self.maps.addresses.note(it));
        let entry = Interface {
            role: served.role as u32,
            masquerade4: served.masquerade.v4.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
            flags: match served.xdp {
                Some(XdpAttached::Native | XdpAttached::Offloaded) => {
                    Interface::XDP_SEES | Interface::XDP_SENDS
                }
                Some(XdpAttached::Generic) => Interface::XDP_SEES,
                None => 0,
            },
            reserved: 0,
            masquerade6: served.masquerade.v6.unwrap_or(Ipv6Addr::UNSPECIFIED).into(),
        };
        self.maps.interfaces.put(&index, &entry)
    }

    /// Takes off what an earlier agent left on interfaces that are not served any more.
    fn sweep(&mut self, wanted: &BTreeMap<u32, Classified>) {
        let xdp = self.xdp_mode != XdpMode::Off;
        let keep = |program: &str, index: u32| {
            wanted.get(&index).is_some_and(|classified| belongs(program, classified.role, xdp))
        };
        if let Err(error) = self.hooks.sweep(keep) {
            warn!(%error, "cannot take off what an earlier agent left");
        }
        let stale = self.maps.interfaces.entries().map(|entries| {
            entries
                .into_iter()
                .map(|(index, _)| index)
                .filter(|i| !wanted.contains_key(i))
                .collect::<Vec<_>>()
        });
        if let Err(error) = stale.and_then(|stale| self.maps.interfaces.remove_all(&stale)) {
            warn!(%error, "cannot clear the interface map");
        }
    }
}

/// Lower-case word for people and JSON.
pub const fn role_label(role: Role) -> &'static str {
    match role {
        Role::Uplink => "uplink",
        Role::Pod => "pod",
    }
}

fn driver(classified: &Classified) -> String {
    let name = &classified.link.name;
    let driver = || {
        let link = std::fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    };
    classified.link.kind.clone().or_else(driver).unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_belong_by_role() {
        let cases = [
            ("uplink_xdp", Role::Uplink, true, true),
            ("uplink_xdp", Role::Uplink, false, false),
            ("uplink_xdp", Role::Pod, true, false),
            ("uplink_egress", Role::Uplink, false, true),
            ("pod_ingress", Role::Uplink, true, false),
            ("pod_ingress", Role::Pod, true, true),
            ("old_name", Role::Pod, true, false),
        ];
        for (program, role, xdp, expected) in cases {
            assert_eq!(belongs(program, role, xdp), expected, "{program} {role:?} {xdp}");
        }
    }
}
