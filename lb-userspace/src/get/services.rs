//! `shunt get services`: frontends and what is behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{Ring, Service, ServiceFlags, ServiceId, maps};
use lb_common::addr::Port;
use lb_control::model::Frontend;
use lb_kernel::maps::{Maps, counters};
use serde::Serialize;

use super::names::{self, Names};
use super::table::{bytes, or_dash};
use super::{Filter, Hint, Row};
use crate::exit::Error;

pub(super) const HINT: Hint = Hint {
    none: "no Services: the agent has not synced yet, or there are none it serves (see its log for problems)",
    filtered: "no Service matches; try without name and --namespace",
};

/// A frontend of a port of a Service.
#[derive(Clone, PartialEq, Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceRow {
    namespace: String,
    name: String,
    port_name: String,
    /// `cluster`, `external` or `nodePort`; a nodePort has the unspecified address, and `shunt get addresses` says where it is served.
    frontend: &'static str,
    address: IpAddr,
    port: u16,
    proto: String,
    /// Endpoints for clients from outside this node.
    endpoints: usize,
    /// Endpoints for pods and processes of this node.
    endpoints_inside: usize,
    ring_length: u32,
    affinity_seconds: u32,
    /// `cluster` or `local`: where endpoints for clients from outside this node are.
    policy: &'static str,
    /// Ranges that may come, of this family; none: everybody may.
    source_ranges: Option<usize>,
    /// What happens with no endpoint, for clients from outside.
    when_empty: &'static str,
    flows: u64,
    packets: u64,
    bytes: u64,
    service_id: ServiceId,
}

impl Row for ServiceRow {
    const TITLES: &'static [&'static str] = &[
        "NAMESPACE",
        "NAME",
        "PORT",
        "KIND",
        "FRONTEND",
        "ENDPOINTS",
        "FLOWS",
        "PACKETS",
        "BYTES",
        "INSIDE",
        "POLICY",
        "RING",
        "AFFINITY",
        "SOURCES",
        "EMPTY",
        "ID",
    ];
    const NARROW: usize = 9;

    fn cells(&self) -> Vec<String> {
        let affinity =
            if self.affinity_seconds == 0 { "-".into() } else { format!("{}s", self.affinity_seconds) };
        vec![
            or_dash(&self.namespace),
            self.name.clone(),
            or_dash(&self.port_name),
            self.frontend.to_owned(),
            format!("{}/{}", SocketAddr::new(self.address, self.port), self.proto),
            self.endpoints.to_string(),
            self.flows.to_string(),
            self.packets.to_string(),
            bytes(self.bytes),
            self.endpoints_inside.to_string(),
            self.policy.to_owned(),
            self.ring_length.to_string(),
            affinity,
            self.source_ranges.map_or_else(|| "any".to_owned(), |count| count.to_string()),
            self.when_empty.to_owned(),
            self.service_id.to_string(),
        ]
    }
}

/// Frontends that `filter` lets through, sorted by name. Flows, packets and bytes are those of the port
/// of the Service, whichever frontend they came by.
pub(super) fn rows(maps: &Maps, names: &Names, filter: &Filter) -> Result<Vec<ServiceRow>, Error> {
    let failed = |map| move |source| Error::Map { map, source };
    let mut rings: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    let mut endpoints = |ring: Ring| -> Result<usize, Error> {
        if let Some(known) = rings.get(&(ring.offset, ring.length)) {
            return Ok(*known);
        }
        let slots = maps.rings.read(ring.offset, ring.length).map_err(failed(maps::RINGS))?;
        let count = slots.into_iter().collect::<BTreeSet<_>>().len();
        rings.insert((ring.offset, ring.length), count);
        Ok(count)
    };
    let ranges = source_ranges(maps)?;
    let mut rows = Vec::new();
    for (frontend, service) in frontends(maps)? {
        let named = names.service(service.id);
        if frontend.is_of_an_address() || !filter.takes(&named.namespace, &named.name) {
            continue;
        }
        let traffic = counters::traffic(maps, service.id).map_err(failed(maps::SERVICE_TRAFFIC))?;
        rows.push(ServiceRow {
            namespace: named.namespace,
            name: named.name,
            port_name: named.port,
            frontend: kind(frontend.address, service),
            address: frontend.address,
            port: frontend.port,
            proto: names::proto(frontend.proto),
            endpoints: endpoints(service.outside)?,
            endpoints_inside: endpoints(service.inside)?,
            ring_length: service.outside.length,
            affinity_seconds: service.affinity_seconds,
            policy: if service.flags.has(ServiceFlags::OUTSIDE_IS_LOCAL) { "local" } else { "cluster" },
            source_ranges: service
                .flags
                .has(ServiceFlags::CHECK_SOURCES)
                .then(|| ranges.get(&(service.id, frontend.address.is_ipv4())).copied().unwrap_or(0)),
            when_empty: if service.flags.has(ServiceFlags::DROP_OUTSIDE) { "drop" } else { "refuse" },
            flows: traffic.flows,
            packets: traffic.packets,
            bytes: traffic.bytes,
            service_id: service.id,
        });
    }
    rows.sort_by(|a, b| {
        let key = |row: &ServiceRow| {
            (
                row.namespace.clone(),
                row.name.clone(),
                row.port_name.clone(),
                row.frontend,
                row.address,
                row.port,
            )
        };
        key(a).cmp(&key(b))
    });
    Ok(rows)
}

/// Number of permitted ranges of each Service port, those of IPv4 apart.
fn source_ranges(maps: &Maps) -> Result<BTreeMap<(ServiceId, bool), usize>, Error> {
    let failed = |source| Error::Map { map: maps::SOURCE_RANGES, source };
    let mut counts = BTreeMap::new();
    for (range, _) in maps.source_ranges.entries().map_err(failed)? {
        let v4 = range.address.unmapped().is_some();
        *counts.entry((ServiceId::from_be_bytes(range.service), v4)).or_default() += 1;
    }
    Ok(counts)
}

/// What both families' clients aim at.
pub(super) fn frontends(maps: &Maps) -> Result<Vec<(Frontend, Service)>, Error> {
    let failed = |map| move |source| Error::Map { map, source };
    let v4 = maps.services4.entries().map_err(failed(maps::SERVICES4))?;
    let v6 = maps.services6.entries().map_err(failed(maps::SERVICES6))?;
    let at = |address, port: Port, proto| Frontend { address, port: port.get(), proto };
    let v4 = v4.into_iter().map(|(key, service)| (at(key.address.into(), key.port, key.proto), service));
    let v6 = v6.into_iter().map(|(key, service)| (at(key.address.into(), key.port, key.proto), service));
    Ok(v4.chain(v6).collect())
}

const fn kind(address: IpAddr, service: Service) -> &'static str {
    if address.is_unspecified() {
        "nodePort"
    } else if service.flags.has(ServiceFlags::EXTERNAL) {
        "external"
    } else {
        "cluster"
    }
}
