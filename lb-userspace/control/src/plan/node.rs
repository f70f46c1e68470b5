//! What belongs to the node and not to a Service: the ranges of ClusterIPs, and where nodePorts are served.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::abi::{Service, ServiceFlags, ServiceId, SourceRange};

use super::{Draft, Planner};
use crate::model::{Frontend, sorted};
use crate::network::addresses::NodePortPlaces;

/// In place of a Service port: the ranges of ClusterIPs.
pub(super) const SERVICE_CIDRS: ServiceId = SourceRange::SERVICE_CIDRS;
/// In place of a Service port: the networks nodePorts are served in.
pub(super) const NODE_NETWORKS: ServiceId = SourceRange::NODE_NETWORKS;

/// Whether ranges under this id are those of a Service port.
pub(super) const fn is_of_service(id: ServiceId) -> bool {
    id != SERVICE_CIDRS && id != NODE_NETWORKS
}

/// What the node wants in the maps.
#[derive(Clone, Copy, Debug)]
pub struct OfNode<'a> {
    /// The ranges ClusterIPs are taken from, as far as known.
    pub service_cidrs: &'a BTreeSet<IpNet>,
    /// Where nodePorts are served.
    pub node_ports: &'a NodePortPlaces,
}

/// What of it is in force.
#[derive(Debug, Default)]
pub(super) struct NodeState {
    pub(super) service_cidrs: BTreeSet<IpNet>,
    pub(super) networks: BTreeSet<IpNet>,
    /// Addresses that nodePorts are served at.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Whether the programs look at the networks.
    pub(super) asks_networks: bool,
}

impl Planner {
    pub(super) fn plan_node(&mut self, wanted: OfNode<'_>, is_first: bool, draft: &mut Draft) {
        let OfNode { service_cidrs, node_ports } = wanted;
        let known = std::mem::take(&mut self.node.service_cidrs);
        self.plan_ranges(SERVICE_CIDRS, &known, service_cidrs, draft);
        self.node.service_cidrs.clone_from(service_cidrs);
        let known = std::mem::take(&mut self.node.networks);
        self.plan_ranges(NODE_NETWORKS, &known, &node_ports.networks, draft);
        self.node.networks.clone_from(&node_ports.networks);

        let value = Service { flags: ServiceFlags::NODE_ADDRESS, ..Service::default() };
        let wanted = node_ports.addresses();
        let (gone, new) = sorted::changes(self.node.addresses.iter().copied(), wanted.iter().copied());
        draft.touched.extend(gone.into_iter().map(Frontend::node));
        for address in new {
            self.publish(Frontend::node(address), value, None, draft);
        }
        if is_first {
            // What was found is swept out but for what is wanted.
            draft.kept.extend(wanted.iter().map(|address| Frontend::node(*address)));
        }
    }

    fn plan_ranges(
        &mut self,
        id: ServiceId,
        known: &BTreeSet<IpNet>,
        wanted: &BTreeSet<IpNet>,
        draft: &mut Draft,
    ) {
        let of = |range: &IpNet| (id, *range);
        draft.source_ranges.extend(wanted.difference(known).map(of));
        draft.gone_source_ranges.extend(known.difference(wanted).map(of));
        self.source_ranges = self.source_ranges + wanted.len() - known.len();
    }

    /// Whether the programs are to be told otherwise about networks.
    pub(super) fn changed_networks(&mut self) -> Option<bool> {
        let wanted = !self.node.networks.is_empty();
        (std::mem::replace(&mut self.node.asks_networks, wanted) != wanted).then_some(wanted)
    }
}
