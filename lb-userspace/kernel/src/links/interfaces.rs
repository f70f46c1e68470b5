//! Keeps the programs and the interface map in line with the interfaces there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use lb_common::abi::{Interface, Moment, Role, Station, XdpForward};
use lb_control::network::classify::Classified;
use lb_control::network::forward::{self, ForwardMode, PassedBy};
use lb_control::network::masquerade::Masquerade;
use lb_control::network::stations::Stations;
use lb_control::network::{Link, XdpAttached};
use tracing::{info, warn};

use super::{At, AttachError, Hooks, Trouble, XdpMode};
use crate::maps::InterfaceMaps;
use crate::programs::load::{
    POD_EGRESS, POD_INGRESS, ProgramSpec, UPLINK_EGRESS, UPLINK_INGRESS, UPLINK_XDP,
};
use crate::sys;

mod entries;
mod keep;

/// What an interface has got.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Served {
    role: Role,
    link: Link,
    masquerade: Masquerade,
    sources: Vec<(IpNet, IpAddr)>,
    /// How a program of ours hangs there: this agent's, or an earlier one's that has not been replaced yet.
    xdp: Option<XdpAttached>,
    /// It is this agent's.
    own_xdp: bool,
    /// Whether it sends by itself, and why.
    forward: XdpForward,
}

impl Served {
    fn name(&self) -> &str {
        &self.link.name
    }
}

/// What the programs are told of XDP on an interface.
///
/// Each bit errs to one side. tc that is not told of XDP's work takes packets XDP has just translated for a client's own
/// talk with the backend and forgets their flow, so [`Interface::XDP_SEES`] stands before a program does, and until it is
/// gone; where it stands alone, only such talk ends no flow. XDP may send only where the driver is set up for it, so
/// [`Interface::XDP_SENDS`] comes after the program and goes before it; without it, packets take the way through the stack.
/// Whenever an agent ends, what the map says is on the safe side.
const fn xdp_flags(xdp: Option<XdpAttached>, forward: XdpForward) -> u32 {
    match xdp {
        Some(_) if forward.sends() => Interface::XDP_SEES | Interface::XDP_SENDS,
        Some(_) => Interface::XDP_SEES,
        None => 0,
    }
}

/// Programs remember for a moment where XDP may send; then none does any more.
const ROUTES_FORGOTTEN: Duration = Duration::from_nanos(Moment::NANOS);

/// The interfaces this agent serves.
#[derive(Debug)]
pub struct Interfaces {
    hooks: Hooks,
    maps: InterfaceMaps,
    xdp_mode: XdpMode,
    forward_mode: ForwardMode,
    /// The host has rules that what XDP sends would pass by.
    passed_by: PassedBy,
    /// What the table of stations holds, once it has been read.
    stations: Option<Stations>,
    served: BTreeMap<u32, Served>,
    troubles: BTreeMap<u32, Vec<Trouble>>,
    started: bool,
    /// What entries of the map bear besides: [`Interface::KEPT`], or nothing.
    mark: u32,
    /// Names of interfaces that the keeper has served, until they are asked for.
    kept: Vec<String>,
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
    pub fn new(hooks: Hooks, maps: InterfaceMaps, xdp_mode: XdpMode, forward_mode: ForwardMode) -> Self {
        let (served, troubles) = (BTreeMap::new(), BTreeMap::new());
        let (passed_by, stations, started) = (PassedBy::default(), None, false);
        let (mark, kept) = (0, Vec::new());
        Self {
            hooks,
            maps,
            xdp_mode,
            forward_mode,
            passed_by,
            stations,
            served,
            troubles,
            started,
            mark,
            kept,
        }
    }

    /// The programs and where they hang.
    pub const fn hooks(&mut self) -> &mut Hooks {
        &mut self.hooks
    }

    /// Takes in whether the host has rules that what XDP sends would pass by. It counts from the next `apply` on.
    pub const fn set_host_rules(&mut self, host_rules: bool) {
        self.passed_by.host_rules = host_rules;
    }

    /// The same of rules of routing.
    pub const fn set_routing_rules(&mut self, routing_rules: bool) {
        self.passed_by.routing_rules = routing_rules;
    }

    fn forward(&self, link: &Link, xdp: Option<XdpAttached>) -> XdpForward {
        forward::forward(self.forward_mode, link, xdp, self.passed_by)
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
        self.note_kept(wanted);
        self.leave(wanted);
        // Before programs: XDP leaves alone what is for nobody it knows.
        if let Err(error) = self.write_stations(wanted) {
            // Read anew, and written, the next time.
            self.stations = None;
            warn!(%error, "cannot write whom frames may be for; tc serves what XDP leaves");
        }
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

    fn write_stations(&mut self, wanted: &BTreeMap<u32, Classified>) -> std::io::Result<()> {
        let uplinks = wanted.iter().filter(|(_, classified)| classified.role == Role::Uplink);
        let all = uplinks.flat_map(|(index, classified)| {
            classified.stations.iter().map(|address| Station::new(*index, *address))
        });
        let all = all.collect();
        let stations = match &mut self.stations {
            Some(stations) => stations,
            None => self.stations.insert(Stations::new(self.maps.stations.entries()?)),
        };
        let change = stations.change(&all);
        for (slot, word) in change.writes {
            self.maps.stations.put(&slot, &word)?;
        }
        if !change.left_out.is_empty() {
            let count = change.left_out.len();
            warn!("no room for {count} Ethernet addresses of uplinks: tc serves them, not XDP");
        }
        Ok(())
    }

    fn leave(&mut self, wanted: &BTreeMap<u32, Classified>) {
        let gone = |(index, served): (&u32, &Served)| {
            let stays = wanted.get(index).is_some_and(|w| w.role == served.role);
            (!stays).then_some(*index)
        };
        for index in self.served.iter().filter_map(gone).collect::<Vec<_>>() {
            if let Some(served) = self.served.remove(&index) {
                // (An interface that is gone is sent nothing.)
                if wanted.contains_key(&index) {
                    self.send_no_more(index, &served);
                }
                for program in tc_programs(served.role).into_iter().chain([UPLINK_XDP]) {
                    if let Err(error) = self.hooks.detach(program.name, index) {
                        warn!(interface = served.name(), %error, "cannot take a program off");
                    }
                }
                let removed =
                    self.maps.interfaces.remove(&index).and_then(|_| match served.sources.is_empty() {
                        true => Ok(()),
                        false => self.remove_sources(|key| key.interface() == index),
                    });
                if let Err(error) = removed {
                    warn!(interface = served.name(), %error, "cannot take the interface out of the map");
                }
                info!(interface = served.name(), "left");
            }
        }
        self.troubles.retain(|index, _| wanted.contains_key(index));
    }

    fn serve(&mut self, index: u32, classified: &Classified) {
        let known = self.served.get(&index);
        let unchanged = known.is_some_and(|served| {
            served.role == classified.role
                && served.link.name == classified.link.name
                && served.masquerade == classified.masquerade
                && served.sources == classified.sources
                && served.forward == self.forward(&served.link, served.xdp)
        });
        if unchanged && !self.troubles.contains_key(&index) {
            return;
        }
        let driver = driver(classified);
        let at = At { index, name: &classified.link.name, driver: &driver, xdp: classified.link.xdp };
        let uplink = classified.role == Role::Uplink;
        let in_place = match known {
            Some(served) => served.xdp,
            // What cannot be read shows again when XDP is attached.
            None if uplink => self.hooks.xdp_in_place(UPLINK_XDP, at).ok().flatten(),
            None => None,
        };
        let mut served = Served {
            role: classified.role,
            link: classified.link.clone(),
            masquerade: classified.masquerade,
            sources: classified.sources.clone(),
            xdp: in_place,
            own_xdp: known.is_some_and(|served| served.own_xdp),
            forward: self.forward(&classified.link, in_place),
        };
        let first_time = known.is_none();
        let known_forward = known.map(|served| served.forward);
        let mut troubles = Vec::new();
        let mut trouble = |message: String, fatal| {
            troubles.push(Trouble { interface: classified.link.name.clone(), message, fatal });
        };
        if known.is_none_or(|known| known.sources != served.sources)
            && let Err(error) = self.write_sources(index, &served.sources)
        {
            trouble(format!("cannot write the map of sources: {error}"), true);
        }
        // The map first: a program must know the interface it runs on.
        if let Err(error) = self.write(index, &served) {
            trouble(format!("cannot write the interface map: {error}"), true);
        }
        let mut gone = false;
        for program in tc_programs(classified.role) {
            match self.hooks.attach_tc(program, at) {
                Ok(()) => {}
                Err(AttachError::Gone { .. }) => gone = true,
                Err(error) => trouble(error.to_string(), true),
            }
        }
        // (The keeper lets be what hangs.)
        let lets_be = self.mark != 0 && in_place.is_some();
        if uplink && !served.own_xdp && !gone && !lets_be {
            match self.attach_xdp(at, &mut served) {
                Ok(None) => {}
                Ok(Some(warning)) => warn!("{warning}"),
                Err(AttachError::Gone { .. }) => gone = true,
                Err(error) => trouble(format!("{error}; tc serves this interface"), false),
            }
            served.forward = self.forward(&served.link, served.xdp);
            if let Err(error) = self.write(index, &served) {
                trouble(format!("cannot write the interface map: {error}"), true);
            }
        }
        if gone {
            // Its removal is on the way through netlink.
            return;
        }
        if known_forward.is_some_and(|before| before != served.forward) {
            info!(interface = served.name(), xdp_forward = forward::in_words(served.forward), "changed");
        }
        if first_time {
            info!(
                interface = served.name(),
                role = role_label(served.role),
                xdp = served.xdp.map_or("off", XdpAttached::label),
                xdp_forward = forward::in_words(served.forward),
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

    /// Attaches XDP as the mode says and notes how it hangs then. The map is brought to where it errs on the safe side; to
    /// write how things are afterwards is the caller's.
    fn attach_xdp(&mut self, at: At<'_>, served: &mut Served) -> Result<Option<String>, AttachError> {
        let in_place = served.xdp;
        let mode = match self.xdp_mode {
            XdpMode::Auto if !forward::takes_xdp(&served.link) => XdpMode::Off,
            mode => mode,
        };
        if !mode.keeps(in_place) {
            if in_place.is_some() {
                self.send_no_more(at.index, served);
            } else if mode != XdpMode::Off {
                self.put(at.index, served, Interface::XDP_SEES);
            }
        }
        let attached = self.hooks.attach_xdp(UPLINK_XDP, at, mode, in_place);
        served.own_xdp = matches!(attached, Ok((Some(_), _)));
        served.xdp = match &attached {
            Ok((xdp, _)) => *xdp,
            // Whatever it was that failed, what hangs there now is what counts.
            Err(_) => self.hooks.xdp_in_place(UPLINK_XDP, at).ok().flatten(),
        };
        if in_place.is_some() && served.xdp.is_none() {
            // What it translated has passed tc then.
            sys::wait_for_programs();
        }
        attached.map(|(_, warning)| warning)
    }

    /// Has XDP send nothing to an interface any more, whose program is about to go.
    fn send_no_more(&self, index: u32, served: &Served) {
        if xdp_flags(served.xdp, served.forward) & Interface::XDP_SENDS == 0 {
            return;
        }
        self.put(index, served, Interface::XDP_SEES);
        std::thread::sleep(ROUTES_FORGOTTEN);
        sys::wait_for_programs();
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
        if let Err(error) = self.remove_sources(|key| !wanted.contains_key(&key.interface())) {
            warn!(%error, "cannot clear the map of sources");
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
    fn xdp_sees_and_sends_where_it_may() {
        assert_eq!(xdp_flags(None, XdpForward::NoXdp), 0);
        assert_eq!(xdp_flags(Some(XdpAttached::Generic), XdpForward::NoXdp), Interface::XDP_SEES);
        let native = Some(XdpAttached::Native);
        assert_eq!(xdp_flags(native, XdpForward::Card), Interface::XDP_SEES | Interface::XDP_SENDS);
        assert_eq!(xdp_flags(native, XdpForward::Virtual), Interface::XDP_SEES);
    }

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
