//! Has netfilter forget UDP connections whose endpoint is gone, where it translates: they would go there for as long as somebody sends.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::SocketAddr;

use lb_common::addr::Proto;
use lb_control::network::netfilter::is_stale;
use lb_kernel::maps::Maps;
use lb_kernel::net::{conntrack, nat_table};

use super::host_rules::service_of;

/// Ends what is stale among the connections to one of `gone`; none: among all. Returns how many there were.
pub fn end_stale(maps: &Maps, gone: Option<&BTreeSet<SocketAddr>>) -> io::Result<u64> {
    if !nat_table::exists()? {
        // Netfilter translates nothing for us.
        return Ok(0);
    }
    let mut found = Vec::new();
    conntrack::each_translated(&mut |connection| {
        let is_wanted = gone.is_none_or(|gone| gone.contains(&connection.backend));
        if connection.proto == Proto::UDP.0 && is_wanted {
            found.push(connection);
        }
    })?;
    if found.is_empty() {
        return Ok(0);
    }
    let serving: HashSet<(u32, SocketAddr)> = maps
        .backends
        .entries()?
        .into_iter()
        .filter(|(_, backend)| backend.is_active())
        .map(|(_, backend)| (backend.service, SocketAddr::new(backend.address.into(), backend.port.get())))
        .map(|(service, address)| (service, SocketAddr::new(address.ip().to_canonical(), address.port())))
        .collect();
    let mut ended = 0;
    for connection in found {
        let service = service_of(maps, &connection)?;
        let serves = service.map(|service| serving.contains(&(service, connection.backend)));
        if is_stale(serves, gone.is_some()) {
            ended += u64::from(conntrack::forget(&connection)?);
        }
    }
    Ok(ended)
}
