//! Takes in what sources and the network tell. Touches no map.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Reconciler, replace};
use crate::convert;
use crate::desired::{self, NodeView};
use crate::model::{Family, Frontend, Kind, Node, ObjectRef, ServiceKey, Slice, SliceKey, sorted};
use crate::network::NodeAddresses;
use crate::seed;
use crate::source::{Event, Object, Sourced};

impl Reconciler {
    /// Takes in what a source tells.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Applied(sourced) => self.apply(sourced),
            Event::Deleted(reference) => self.delete(&reference),
            Event::Reset { kind, objects } => {
                self.begin_list(kind);
                for sourced in objects {
                    debug_assert_eq!(sourced.object.kind(), kind);
                    self.take_listed(sourced);
                }
                self.end_list(kind);
            }
            Event::ListBegun(kind) => self.begin_list(kind),
            Event::Listed(sourced) => self.take_listed(sourced),
            Event::Unreadable(reference) => {
                if let Some(listed) = self.listed.get_mut(&reference.kind) {
                    listed.insert(reference);
                }
            }
            Event::ListEnded(kind) => self.end_list(kind),
            Event::Cluster(identity) => self.cluster_seed = Some(seed::of_cluster(&identity)),
            Event::Synced => self.synced = true,
            Event::Problems(problems) => {
                self.problems_changed |= self.source_problems != problems;
                self.source_problems = problems;
            }
        }
    }

    /// The addresses of this node.
    pub fn set_node_addresses(&mut self, addresses: NodeAddresses) {
        let mut own = addresses.own;
        own.sort();
        own.dedup();
        let places = addresses.node_ports;
        let serves_node_ports = Family::ALL.map(|family| places.has(family));
        if places != self.node_ports {
            self.node_ports = places;
            self.node_dirty = true;
        }
        if addresses.broadcasts != self.broadcasts {
            self.broadcasts = addresses.broadcasts;
            self.node_dirty = true;
        }
        self.look(NodeView { serves_node_ports, own, ..self.node_view.clone() });
    }

    /// The ClusterIPs and ports at which programs of this node listen.
    pub fn set_listeners(&mut self, listeners: Arc<BTreeSet<Frontend>>) {
        self.look(NodeView { listeners, ..self.node_view.clone() });
    }

    /// Takes in how this node is now. What matters to every Service rarely changes; addresses of nodes do, and matter to those
    /// that have business at them.
    fn look(&mut self, view: NodeView) {
        let old = std::mem::replace(&mut self.node_view, view);
        let view = &self.node_view;
        if old == *view {
            return;
        }
        self.node_dirty |= view.service_ranges != old.service_ranges || view.own != old.own;
        let but_addresses = NodeView {
            own: view.own.clone(),
            others: view.others.clone(),
            listeners: view.listeners.clone(),
            ..old.clone()
        };
        if but_addresses != *view {
            self.dirty.extend(self.catalog.services().map(|service| service.key.clone()));
            return;
        }
        let of_own = sorted::changes(old.own, view.own.iter().copied());
        let of_others = sorted::changes(old.others, view.others.iter().copied());
        let mut changed: HashSet<IpAddr> =
            [of_own, of_others].into_iter().flat_map(|(gone, new)| gone.into_iter().chain(new)).collect();
        changed.extend(old.listeners.symmetric_difference(&view.listeners).map(|it| it.address));
        self.dirty.extend(self.catalog.services_at(&changed).into_iter().cloned());
    }

    fn apply(&mut self, sourced: Sourced) {
        let reference = sourced.object.reference();
        let origin = sourced.origin.as_ref();
        let problems = match &sourced.object {
            Object::Service(object) => {
                let (service, problems) = convert::service(object, &reference, origin);
                let key = ServiceKey { namespace: reference.namespace.clone(), name: reference.name.clone() };
                if self.catalog.set_service(&key, service) {
                    self.dirty.insert(key);
                    self.config.observer.changes(1, 0);
                }
                problems
            }
            Object::EndpointSlice(object) => {
                let (slice, problems) =
                    convert::endpoint_slice(object, &reference, &self.config.node_name, origin);
                let key = SliceKey { namespace: reference.namespace.clone(), name: reference.name.clone() };
                self.set_slice(&key, slice);
                problems
            }
            // The source has made EndpointSlices of it.
            Object::Endpoints(_) => Vec::new(),
            Object::Node(object) => {
                let node = convert::node(object);
                if *reference.name == *self.config.node_name {
                    self.set_node(Some(node));
                    self.nodes.ours(true);
                } else {
                    self.set_other_node(&reference.name, Some(node));
                }
                self.judge_nodes();
                Vec::new()
            }
            Object::ServiceCidr(object) => {
                let (ranges, problems) = convert::service_cidr(object, &reference, origin);
                self.service_cidrs.insert(reference.clone(), ranges);
                self.look_at_ranges();
                problems
            }
        };
        let problems = Some(problems).filter(|problems| !problems.is_empty());
        self.problems_changed |= replace(&mut self.object_problems, &reference, problems);
    }

    fn delete(&mut self, reference: &ObjectRef) {
        self.problems_changed |= self.object_problems.remove(reference).is_some();
        let (namespace, name) = (reference.namespace.clone(), reference.name.clone());
        match reference.kind {
            Kind::Service => {
                let key = ServiceKey { namespace, name };
                if self.catalog.set_service(&key, None) {
                    self.dirty.insert(key);
                    self.config.observer.changes(1, 0);
                }
            }
            Kind::EndpointSlice => {
                self.set_slice(&SliceKey { namespace, name }, None);
            }
            Kind::Endpoints => {}
            Kind::Node => {
                if *name == *self.config.node_name {
                    self.set_node(None);
                    self.nodes.ours(false);
                } else {
                    self.set_other_node(&name, None);
                }
                self.judge_nodes();
            }
            Kind::ServiceCidr => {
                self.service_cidrs.remove(reference);
                self.look_at_ranges();
            }
        }
    }

    fn set_slice(&mut self, key: &SliceKey, slice: Option<Slice>) {
        if let Some(slice) = &slice {
            let known = self.catalog.slice(key).and_then(|known| known.triggered);
            self.facts.trigger(slice.family, slice.triggered.filter(|time| known != Some(*time)));
        }
        let concerned = self.catalog.set_slice(key, slice);
        if concerned.is_empty() {
            return;
        }
        self.config.observer.changes(0, 1);
        if concerned.iter().any(desired::is_api_service) {
            let configured = self.config.api_servers.iter().copied();
            let api_servers = configured.chain(self.catalog.api_servers()).collect();
            self.look(NodeView { api_servers, ..self.node_view.clone() });
        }
        self.dirty.extend(concerned);
    }

    fn set_node(&mut self, node: Option<Node>) {
        let ranges = node.iter().flat_map(|node| &node.pod_cidrs).filter_map(|text| convert::network(text));
        let pod_ranges = self.config.pod_ranges.iter().copied().chain(ranges).collect();
        let zone = node.as_ref().and_then(|node| node.zone.clone());
        self.look(NodeView { pod_ranges, zone, ..self.node_view.clone() });
        self.node = node.map(Arc::new);
    }

    /// Another node: its addresses may be endpoints.
    fn set_other_node(&mut self, name: &Arc<str>, node: Option<Node>) {
        self.nodes.other(name, node.map(|node| node.addresses));
        let others = self.nodes.addresses_of_others();
        self.look(NodeView { others, ..self.node_view.clone() });
    }

    fn judge_nodes(&mut self) {
        self.problems_changed |= self.nodes.judge(&self.config.node_name, self.config.has_nodes);
    }

    fn look_at_ranges(&mut self) {
        let known = self.service_cidrs.values().flatten().chain(&self.config.service_cidrs);
        let service_ranges = known.copied().collect();
        self.look(NodeView { service_ranges, ..self.node_view.clone() });
    }

    fn begin_list(&mut self, kind: Kind) {
        self.listed.insert(kind, BTreeSet::new());
    }

    /// An object of a list is how it is, whatever becomes of the list.
    fn take_listed(&mut self, sourced: Sourced) {
        let reference = sourced.object.reference();
        if let Some(listed) = self.listed.get_mut(&reference.kind) {
            listed.insert(reference);
        }
        self.apply(sourced);
    }

    fn end_list(&mut self, kind: Kind) {
        let listed = self.listed.remove(&kind).unwrap_or_default();
        let known: Vec<ObjectRef> = match kind {
            Kind::Service => self.catalog.services().map(|service| service.key.object()).collect(),
            Kind::EndpointSlice => self.catalog.slice_keys().map(SliceKey::object).collect(),
            Kind::Endpoints => Vec::new(),
            Kind::Node => {
                let ours: Arc<str> = self.config.node_name.as_str().into();
                let names = self.nodes.others().cloned().chain([ours]);
                names.map(|name| ObjectRef::new(Kind::Node, "", name)).collect()
            }
            Kind::ServiceCidr => self.service_cidrs.keys().cloned().collect(),
        };
        let wrong = self.object_problems.keys().filter(|reference| reference.kind == kind).cloned();
        let gone: Vec<_> =
            known.into_iter().chain(wrong).filter(|reference| !listed.contains(reference)).collect();
        for reference in &gone {
            self.delete(reference);
        }
        if kind == Kind::Node {
            let is_ours = |reference: &ObjectRef| *reference.name == *self.config.node_name;
            // One that cannot be read is there.
            self.nodes.ours(listed.iter().any(is_ours));
            self.nodes.listed();
            self.judge_nodes();
        }
        // A list is the moment to look at everything, also at what did not change.
        if matches!(kind, Kind::Service | Kind::EndpointSlice) {
            self.dirty.extend(self.catalog.services().map(|service| service.key.clone()));
        }
    }
}
