//! Which Service a destination belongs to: its frontends first, then the nodePorts, as kube-proxy has it.
//!
//! A nodePort is one entry, under the unspecified address, and which addresses it is served at stands apart: no product of the two.

use super::Family;
use super::tables::{PacketTables, Tables};
use crate::abi::{ConfigFlags, Service, ServiceFlags, SourceRange};
use crate::addr::{Port, Proto};

/// The Service at a destination, and the address that its frontend stands under. `memory` is for the question; what it held is lost.
#[inline(always)]
pub fn find<'a, A: Family, T: Tables<A>>(
    address: A,
    port: Port,
    proto: Proto,
    tables: &'a T,
    memory: &mut SourceRange,
) -> Option<(&'a Service, A)> {
    // Nobody is there, but nodePorts stand there.
    if address == A::UNSPECIFIED {
        return None;
    }
    if let Some(service) = tables.service(address, port, proto) {
        return Some((service, address));
    }
    if !tables.is_node_port(port) || !serves_node_ports(address, tables, memory) {
        return None;
    }
    Some((tables.service(A::UNSPECIFIED, port, proto)?, A::UNSPECIFIED))
}

/// Whether nodePorts are served at an address.
#[inline(always)]
fn serves_node_ports<A: Family, T: Tables<A>>(address: A, tables: &T, memory: &mut SourceRange) -> bool {
    if let Some(node) = tables.service(address, Port::default(), Proto::NODE) {
        return node.flags.has(ServiceFlags::NODE_PORTS);
    }
    if !tables.config().flags.has(ConfigFlags::NODE_NETWORKS) {
        return false;
    }
    *memory = SourceRange::of(SourceRange::NODE_NETWORKS, address);
    tables.in_source_range(memory)
}

/// Whether an address is the node's own, by itself.
#[inline(always)]
pub fn is_nodes<A: Family, T: Tables<A>>(address: A, tables: &T) -> bool {
    tables.service(address, Port::default(), Proto::NODE).is_some()
}

/// Whether Services have ports of an address that is not the node's own.
#[inline(always)]
pub fn is_external<A: Family, T: PacketTables<A>>(address: A, tables: &T) -> bool {
    tables.may_concern(address)
        && address != A::config(tables.config()).node_address
        && tables.service(address, Port::default(), Proto::EXTERNAL).is_some()
        && !is_nodes(address, tables)
}

/// Whether a packet to a port may be for a nodePort in one of the networks that are the node's own as a whole, whose addresses no
/// filter knows.
#[inline(always)]
pub fn may_be_in_node_networks<A: Family, T: Tables<A>>(port: Port, tables: &T) -> bool {
    tables.config().flags.has(ConfigFlags::NODE_NETWORKS) && tables.is_node_port(port)
}
