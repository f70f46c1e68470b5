//! `shunt get addresses`: the node's own addresses, and where nodePorts are served.

use lb_common::abi::{ServiceFlags, SourceRange, maps};
use lb_kernel::maps::Maps;
use lb_kernel::maps::store::networks;
use serde::Serialize;

use super::services::frontends;
use super::{Filter, Hint, Row};
use crate::exit::Error;

pub(super) const HINT: Hint = Hint {
    none: "nodePorts are served nowhere: the agent has not synced yet, or --nodeport-addresses leaves nothing",
    filtered: "this is no address of the node",
};

/// An address of the node, or a network that is its own as a whole.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct AddressRow {
    /// `address`, `localhost` or `network`.
    kind: &'static str,
    address: String,
    /// Whom nodePorts are served to there.
    clients: &'static str,
}

impl Row for AddressRow {
    const TITLES: &'static [&'static str] = &["ADDRESS", "KIND", "CLIENTS"];
    const NARROW: usize = 3;

    fn cells(&self) -> Vec<String> {
        vec![self.address.clone(), self.kind.to_owned(), self.clients.to_owned()]
    }
}

/// Addresses and networks, or the one of this name.
pub(super) fn rows(maps: &Maps, filter: &Filter) -> Result<Vec<AddressRow>, Error> {
    let addresses = frontends(maps)?.into_iter();
    let addresses = addresses.filter(|(_, service)| service.flags.has(ServiceFlags::NODE_ADDRESS));
    let mut rows: Vec<_> = addresses
        .map(|(frontend, service)| {
            let (kind, clients) = if service.flags.has(ServiceFlags::BROADCAST) {
                ("broadcast", "nobody")
            } else if !service.flags.has(ServiceFlags::NODE_PORTS) {
                ("address", "nobody")
            } else if frontend.address.is_loopback() {
                ("localhost", "processes of the node")
            } else {
                ("address", "everybody")
            };
            AddressRow { kind, address: frontend.address.to_string(), clients }
        })
        .collect();
    let failed = |source| Error::Map { map: maps::SOURCE_RANGES, source };
    let networks = networks(maps, SourceRange::NODE_NETWORKS).map_err(failed)?;
    let row = |network: ipnet::IpNet| AddressRow {
        kind: "network",
        address: network.to_string(),
        clients: "everybody",
    };
    rows.extend(networks.into_iter().map(row));
    rows.retain(|row| filter.takes("", &row.address));
    rows.sort();
    Ok(rows)
}
