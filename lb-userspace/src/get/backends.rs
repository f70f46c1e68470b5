//! `shunt get backends`: endpoints of Service ports.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{BackendId, maps};
use lb_kernel::maps::Maps;
use serde::Serialize;

use super::names::Names;
use super::table::or_dash;
use super::{Filter, Hint, Row};
use crate::exit::Error;

pub(super) const HINT: Hint = Hint {
    none: "no endpoints: the agent has not synced yet, or no EndpointSlice of a Service it serves has any",
    filtered: "no endpoint matches; try without name and --namespace",
};

/// An endpoint of a port of a Service.
#[derive(Clone, PartialEq, Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct BackendRow {
    namespace: String,
    service: String,
    port_name: String,
    pod: String,
    address: IpAddr,
    port: u16,
    node: String,
    local: bool,
    /// Flows sent to it since it was given its number.
    flows: u64,
    id: BackendId,
    generation: u32,
}

impl Row for BackendRow {
    const TITLES: &'static [&'static str] =
        &["NAMESPACE", "SERVICE", "PORT", "POD", "ADDRESS", "NODE", "FLOWS", "LOCAL", "ID", "GENERATION"];
    const NARROW: usize = 7;

    fn cells(&self) -> Vec<String> {
        vec![
            or_dash(&self.namespace),
            self.service.clone(),
            or_dash(&self.port_name),
            or_dash(&self.pod),
            SocketAddr::new(self.address, self.port).to_string(),
            or_dash(&self.node),
            self.flows.to_string(),
            if self.local { "yes" } else { "no" }.to_owned(),
            self.id.to_string(),
            self.generation.to_string(),
        ]
    }
}

/// Serving endpoints that `filter` lets through, sorted by name.
pub(super) fn rows(maps: &Maps, names: &Names, filter: &Filter) -> Result<Vec<BackendRow>, Error> {
    let failed = |map| move |source| Error::Map { map, source };
    let backends = maps.backends.entries().map_err(failed(maps::BACKENDS))?;
    let flows = maps.backend_flows.entries().map_err(failed(maps::BACKEND_FLOWS))?;
    let flows: BTreeMap<BackendId, u64> = flows.into_iter().filter(|(_, count)| *count > 0).collect();
    let mut rows: Vec<BackendRow> = backends
        .into_iter()
        .filter(|(_, backend)| backend.is_active())
        .map(|(id, backend)| (id, backend, names.service(backend.service)))
        .filter(|(_, _, named)| filter.takes(&named.namespace, &named.name))
        .map(|(id, backend, named)| BackendRow {
            namespace: named.namespace,
            service: named.name,
            port_name: named.port,
            pod: names.pod(id),
            address: backend.address.into(),
            port: backend.port.get(),
            node: names.node(id),
            local: backend.is_local(),
            flows: flows.get(&id).copied().unwrap_or(0),
            id,
            generation: backend.generation,
        })
        .collect();
    rows.sort_by(|a, b| {
        let key = |row: &BackendRow| {
            (
                row.namespace.clone(),
                row.service.clone(),
                row.port_name.clone(),
                row.pod.clone(),
                row.address,
                row.port,
            )
        };
        key(a).cmp(&key(b))
    });
    Ok(rows)
}
