//! `shunt get interfaces`: interfaces with programs of ours, and how those hang there.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use lb_common::abi::{Interface, Role, XdpForward, maps};
use lb_common::addr::Address;
use lb_control::network::{Network, classify, forward};
use lb_kernel::links::interfaces::role_label;
use lb_kernel::links::{interface_name, link};
use lb_kernel::maps::Maps;
use lb_kernel::net::watch;
use lb_kernel::pin::{self, PinDir};
use lb_kernel::sys;
use serde::Serialize;

use super::table::or_dash;
use super::{Filter, Hint, Row};
use crate::exit::Error;

pub(super) const HINT: Hint = Hint {
    none: "no interfaces: the agent has found neither an uplink nor a pod's interface in this network namespace",
    filtered: "no interface of this name is served",
};

/// One program on one interface.
#[derive(Clone, PartialEq, Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct Hook {
    program: String,
    /// `tcx`, `clsact`, `xdp native` or `xdp generic`.
    mode: String,
    program_id: Option<u32>,
}

/// An interface we serve.
#[derive(Clone, PartialEq, Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct InterfaceRow {
    name: String,
    index: u32,
    role: String,
    /// Sources of masqueraded flows, one for each family that has one.
    masquerade: Vec<String>,
    hooks: Vec<Hook>,
    /// Whether XDP sends out of it by itself, and why; of uplinks.
    xdp_forward: Option<&'static str>,
}

impl Row for InterfaceRow {
    const TITLES: &'static [&'static str] =
        &["NAME", "ROLE", "HOOKS", "XDP FORWARD", "INDEX", "MASQUERADE", "PROGRAMS"];
    const NARROW: usize = 4;

    fn cells(&self) -> Vec<String> {
        let hooks: Vec<String> =
            self.hooks.iter().map(|hook| format!("{} ({})", hook.program, hook.mode)).collect();
        let ids: Vec<String> =
            self.hooks.iter().filter_map(|hook| Some(hook.program_id?.to_string())).collect();
        vec![
            self.name.clone(),
            self.role.clone(),
            or_dash(&hooks.join(", ")),
            or_dash(self.xdp_forward.unwrap_or_default()),
            self.index.to_string(),
            or_dash(&self.masquerade.join(",")),
            or_dash(&ids.join(",")),
        ]
    }
}

/// Interfaces that `filter` lets through, sorted by name.
pub(super) fn rows(maps: &Maps, pins: &PinDir, filter: &Filter) -> Result<Vec<InterfaceRow>, Error> {
    let entries = maps.interfaces.entries().map_err(|source| Error::Map { map: maps::INTERFACES, source })?;
    let failed = |source| Error::System { what: format!("cannot read {}", pins.links().display()), source };
    let network = network()?;
    let xdp: BTreeMap<u32, &'static str> =
        network.links.values().filter_map(|link| Some((link.index, link.xdp?.0.label()))).collect();
    let mut hooks = tc_and_xdp(pins, &xdp).map_err(failed)?;
    let left_out = classify::left_out(&network).into_iter().map(|name| InterfaceRow {
        index: network.links.values().find(|link| link.name == name).map_or(0, |link| link.index),
        name,
        role: "left out".to_owned(),
        masquerade: Vec::new(),
        hooks: Vec::new(),
        xdp_forward: None,
    });
    let mut rows: Vec<InterfaceRow> = entries
        .into_iter()
        .map(|(index, entry)| InterfaceRow {
            name: interface_name(index).unwrap_or_else(|| format!("<gone {index}>")),
            index,
            role: role(entry),
            masquerade: masquerade(&entry),
            hooks: hooks.remove(&index).unwrap_or_default(),
            xdp_forward: forward_of(&entry),
        })
        .chain(left_out)
        .filter(|row| filter.name.as_ref().is_none_or(|name| *name == row.name))
        .collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

fn forward_of(entry: &Interface) -> Option<&'static str> {
    let of_uplink = entry.role == Role::Uplink as u32;
    of_uplink.then(|| XdpForward::from_number(entry.forward).map_or("unknown", forward::in_words))
}

fn masquerade(entry: &Interface) -> Vec<String> {
    let v4 = Some(entry.masquerade4).filter(|address| *address != Address::UNSPECIFIED);
    let v6 = Some(entry.masquerade6).filter(|address| *address != Address::UNSPECIFIED);
    v4.map(|address| address.to_string()).into_iter().chain(v6.map(|address| address.to_string())).collect()
}

fn role(entry: Interface) -> String {
    let known = [Role::Uplink, Role::Pod].into_iter().find(|role| *role as u32 == entry.role);
    known.map_or_else(|| format!("role {}", entry.role), |role| role_label(role).to_owned())
}

fn tc_and_xdp(pins: &PinDir, xdp: &BTreeMap<u32, &'static str>) -> io::Result<BTreeMap<u32, Vec<Hook>>> {
    let mut found: BTreeMap<u32, Vec<Hook>> = BTreeMap::new();
    for name in pin::entries(&pins.links())? {
        let (program, Some(index)) = pin::parse_link(&name) else { continue };
        let pinned = match sys::obj_get(&pins.links().join(&name), false) {
            Ok(pinned) => pinned,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let info = link::info(pinned.as_fd())?;
        // The interface is gone, and the agent has not come to remove the pin yet.
        if info.interface() != index {
            continue;
        }
        let mode = if info.is_xdp() {
            format!("xdp {}", xdp.get(&index).unwrap_or(&"off"))
        } else {
            "tcx".to_owned()
        };
        let hook = Hook { program: program.to_owned(), mode, program_id: Some(info.prog_id) };
        found.entry(index).or_default().push(hook);
    }
    for name in pin::entries(&pins.filters())? {
        if let (program, Some(index)) = pin::parse_link(&name) {
            let hook = Hook { program: program.to_owned(), mode: "clsact".to_owned(), program_id: None };
            found.entry(index).or_default().push(hook);
        }
    }
    Ok(found)
}

fn network() -> Result<Network, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "cannot start the runtime".into(), source })?;
    Ok(runtime.block_on(watch::snapshot())?)
}
