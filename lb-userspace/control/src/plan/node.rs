//! What belongs to the node and not to a Service: the ranges of ClusterIPs, and where nodePorts are served.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::abi::{Service, ServiceFlags, ServiceId, SourceRange};

use lb_common::addr::Proto;

use super::{Draft, Planner};
use crate::model::{Frontend, NodePortPlaces, sorted};

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
    /// Every address of the node, sorted.
    pub own: &'a [IpAddr],
    /// What is everybody's on its networks.
    pub broadcasts: &'a BTreeSet<IpAddr>,
}

/// What of it is in force.
#[derive(Debug, Default)]
pub(super) struct NodeState {
    pub(super) service_cidrs: BTreeSet<IpNet>,
    pub(super) networks: BTreeSet<IpNet>,
    /// The node's own addresses, and what they are.
    pub(super) addresses: BTreeMap<IpAddr, Kind>,
    /// Whether the programs look at the networks.
    pub(super) asks_networks: bool,
}

/// What an address of the node is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    /// NodePorts are served there.
    NodePorts,
    /// They are not.
    Silent,
    /// It is everybody's.
    Broadcast,
}

impl Kind {
    /// As the entry says.
    pub(super) const fn of(flags: ServiceFlags) -> Self {
        if flags.has(ServiceFlags::BROADCAST) {
            Self::Broadcast
        } else if flags.has(ServiceFlags::NODE_PORTS) {
            Self::NodePorts
        } else {
            Self::Silent
        }
    }
}

/// What the entry of an address holds.
fn value_of(kind: Kind) -> Service {
    let own = ServiceFlags::NODE_ADDRESS;
    let flags = match kind {
        Kind::NodePorts => own.with(ServiceFlags::NODE_PORTS),
        Kind::Silent => own,
        Kind::Broadcast => own.with(ServiceFlags::BROADCAST),
    };
    Service { flags, ..Service::default() }
}

/// Every address once, and what it is; all sorted.
fn addresses(serving: &[IpAddr], own: &[IpAddr], broadcasts: &BTreeSet<IpAddr>) -> Vec<(IpAddr, Kind)> {
    let (_, silent) = sorted::changes(serving.iter().copied(), own.iter().copied());
    let mut all: BTreeMap<IpAddr, Kind> = broadcasts.iter().map(|it| (*it, Kind::Broadcast)).collect();
    all.extend(silent.into_iter().map(|it| (it, Kind::Silent)));
    all.extend(serving.iter().map(|it| (*it, Kind::NodePorts)));
    all.into_iter().collect()
}

impl Planner {
    pub(super) fn plan_node(&mut self, wanted: OfNode<'_>, is_first: bool, draft: &mut Draft) {
        let OfNode { service_cidrs, node_ports, own, broadcasts } = wanted;
        let known = std::mem::take(&mut self.node.service_cidrs);
        self.plan_ranges(SERVICE_CIDRS, &known, service_cidrs, draft);
        self.node.service_cidrs.clone_from(service_cidrs);
        let known = std::mem::take(&mut self.node.networks);
        self.plan_ranges(NODE_NETWORKS, &known, &node_ports.networks, draft);
        self.node.networks.clone_from(&node_ports.networks);

        let wanted = addresses(node_ports.addresses(), own, broadcasts);
        let known = self.node.addresses.iter().map(|(address, kind)| (*address, *kind));
        let (gone, new) = sorted::changes(known, wanted.iter().copied());
        draft.touched.extend(gone.into_iter().map(|(address, _)| Frontend::node(address)));
        let mut ports: BTreeSet<u16> = new
            .iter()
            .flat_map(|(address, _)| self.external_at(*address))
            .map(|frontend| frontend.port)
            .collect();
        for (address, kind) in new {
            self.publish(Frontend::node(address), value_of(kind), None, draft);
        }
        let at_own = |frontend: &Frontend| {
            self.external.contains(frontend) && self.node.addresses.contains_key(&frontend.address)
        };
        let inserted = draft.insert.iter().map(|(frontend, ..)| frontend);
        ports.extend(inserted.filter(|frontend| at_own(frontend)).map(|frontend| frontend.port));
        draft.own_ports.extend(ports);
        if is_first {
            // What was found is swept out but for what is wanted.
            draft.kept.extend(wanted.iter().map(|(address, _)| Frontend::node(*address)));
        }
    }

    /// The external frontends at an address.
    fn external_at(&self, address: IpAddr) -> impl Iterator<Item = &Frontend> {
        let least = Frontend { address, port: 0, proto: Proto(0) };
        let most = Frontend { address, port: u16::MAX, proto: Proto(u8::MAX) };
        self.external.range(least..=most)
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
