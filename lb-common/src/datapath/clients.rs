//! Which local clients may have flows: one bit tells of the others, so that their packets need no look at the flow table. Those are
//! the pods that reach Services by their sockets, and those that only serve.

use super::Family;
use super::tables::PacketTables;
use crate::abi::{Config, ConfigFlags};

/// Whether a client that does not come out of a pod's interface is one of the cluster's, as far as `detect-local-mode` can
/// tell. By interface it is not, whatever its address.
#[inline(always)]
pub fn is_local<A: Family>(address: A, config: &Config) -> Option<bool> {
    if config.flags.has(ConfigFlags::LOCAL_INTERFACE) {
        return Some(false);
    }
    let family = A::config(config);
    if !config.flags.has(ConfigFlags::LOCAL_RANGE) || family.local_mask == A::UNSPECIFIED {
        return None;
    }
    Some(address.masked(family.local_mask) == family.local_network)
}

/// Whether a client may have flows: it surely has none if not. Who is not known to be local may have some.
#[inline(always)]
pub fn may_have_flows<A: Family, T: PacketTables<A>>(client: A, tables: &T) -> bool {
    let config = tables.config();
    !config.flags.has(ConfigFlags::CLIENTS_NOTED)
        || is_local(client, config) != Some(true)
        || tables.is_noted(client)
}

/// A flow is about to be made for this client.
#[inline(always)]
pub fn note<A: Family, T: PacketTables<A>>(client: A, tables: &T) {
    if is_local(client, tables.config()) == Some(true) && !tables.is_noted(client) {
        tables.note_client(client);
    }
}
