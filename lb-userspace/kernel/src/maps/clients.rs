//! Makes the filter of local clients complete.
//!
//! Programs note each local client before they make a flow for it. But flows may be older than the knowledge who is local: the
//! node's pod range comes from the API server, and a new agent may have other flags.

use std::io;
use std::net::IpAddr;

use lb_common::abi::Config;
use lb_common::datapath::Family;
use lb_common::datapath::clients::is_local;
use zerocopy::FromBytes;

use super::Maps;
use super::config::ConfigMap;
use super::mmap::{FilterMemory, FlowMemory};
use crate::sys;

/// Notes the clients of all flows there are, if that has yet to be done.
///
/// # Errors
/// A map cannot be read or written. Programs then look at every packet.
pub fn complete(maps: &Maps, config_map: &ConfigMap) -> io::Result<()> {
    let Some((config, locals)) = config_map.lacks_clients() else { return Ok(()) };
    // From then on all programs note who is local by this configuration.
    sys::wait_for_programs();
    note(&maps.flows4, &config, &maps.clients)?;
    note(&maps.flows6, &config, &maps.clients)?;
    // A program loads the flag and the bits in any order: whoever sees the flag must have begun after the bits were there.
    sys::wait_for_programs();
    config_map.clients_are_noted(locals)
}

fn note<A: Family + FromBytes + Into<IpAddr>>(
    flows: &FlowMemory<A>,
    config: &Config,
    clients: &FilterMemory,
) -> io::Result<()> {
    let flows = flows.mapped()?;
    let local = flows.clients().filter(|client| is_local(*client, config) == Some(true));
    local.for_each(|client| clients.note(client.into()));
    Ok(())
}
