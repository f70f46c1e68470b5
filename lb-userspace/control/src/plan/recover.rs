//! Takes over what a former agent left in the maps.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::abi::{Backend, BackendId, BackendName, Ring, ServiceId, ServiceName};

use super::node::is_of_service;
use super::rings::{Member, slots};
use super::{AddressPort, Draft, Planner};
use crate::allocate::RingArena;
use crate::model::Frontend;
use crate::store::Actual;

/// The active backends of one Service port, by address and port.
type BackendsByAddress = BTreeMap<AddressPort, (BackendId, Backend)>;

/// What was found and nobody has claimed yet.
#[derive(Debug)]
pub(super) struct Recovered {
    /// Ids by name; several when names were cut short, the highest first.
    ids: HashMap<ServiceName, Vec<ServiceId>>,
    backends: HashMap<ServiceId, BackendsByAddress>,
    names: BTreeMap<BackendId, BackendName>,
    /// Rings that frontends of an id point at.
    rings: HashMap<ServiceId, BTreeSet<(u32, u32)>>,
    slots: BTreeMap<(u32, u32), Arc<[BackendId]>>,
    frontends: Vec<Frontend>,
    /// Permitted sources by id.
    source_ranges: HashMap<ServiceId, BTreeSet<IpNet>>,
    /// Ids that have no name: their frontends tell nobody whose they are.
    nameless: BTreeSet<ServiceId>,
    /// A second backend for the same endpoint.
    doubles: Vec<(BackendId, Backend)>,
}

impl Recovered {
    pub(super) fn new(actual: Actual, arena: &mut RingArena) -> Self {
        let mut ids: HashMap<ServiceName, Vec<ServiceId>> = HashMap::new();
        for (id, name) in actual.service_names.iter().rev() {
            ids.entry(*name).or_default().push(*id);
        }
        let mut backends: HashMap<_, BackendsByAddress> = HashMap::new();
        let mut doubles = Vec::new();
        for (id, backend) in actual.backends.into_iter().filter(|(_, backend)| backend.is_active()) {
            let endpoint = (backend.address.into(), backend.port.get());
            match backends.entry(backend.service).or_default().entry(endpoint) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert((id, backend));
                }
                std::collections::btree_map::Entry::Occupied(_) => doubles.push((id, backend)),
            }
        }
        let mut rings: HashMap<_, BTreeSet<_>> = HashMap::new();
        let mut reserved = BTreeMap::new();
        for (_, service) in &actual.services {
            for ring in [service.outside, service.inside] {
                let key = (ring.offset, ring.length);
                // Rings that overlap, which no agent writes, cannot be trusted.
                if ring.length > 0 && *reserved.entry(key).or_insert_with(|| arena.reserve(ring)) {
                    rings.entry(service.id).or_default().insert(key);
                }
            }
        }
        let mut source_ranges: HashMap<_, BTreeSet<_>> = HashMap::new();
        for (id, range) in actual.source_ranges.iter().filter(|(id, _)| is_of_service(*id)) {
            source_ranges.entry(*id).or_default().insert(*range);
        }
        let of_services = actual.services.iter().filter(|(frontend, _)| !frontend.is_of_an_address());
        let nameless = of_services.map(|(_, service)| service.id).chain(source_ranges.keys().copied());
        Self {
            ids,
            backends,
            names: actual.backend_names,
            rings,
            slots: actual.rings,
            nameless: nameless.filter(|id| !actual.service_names.contains_key(id)).collect(),
            source_ranges,
            frontends: actual.services.into_iter().map(|(frontend, _)| frontend).collect(),
            doubles,
        }
    }

    /// The id a Service port had.
    pub(super) fn take_id(&mut self, name: &ServiceName) -> Option<ServiceId> {
        self.ids.get_mut(name)?.pop()
    }

    /// The sources that the Service port let in.
    pub(super) fn take_source_ranges(&mut self, id: ServiceId) -> BTreeSet<IpNet> {
        self.source_ranges.remove(&id).unwrap_or_default()
    }

    /// The backend an endpoint had, and its name.
    pub(super) fn take_backend(
        &mut self,
        service: ServiceId,
        endpoint: AddressPort,
    ) -> Option<(BackendId, Backend, Option<BackendName>)> {
        let (id, backend) = self.backends.get_mut(&service)?.remove(&endpoint)?;
        Some((id, backend, self.names.remove(&id)))
    }

    /// A ring of the Service port that holds just what a new one would.
    pub(super) fn take_ring(
        &mut self,
        service: ServiceId,
        members: &[Member],
        length: u32,
        seed: u64,
    ) -> Option<Ring> {
        let rings = self.rings.get_mut(&service)?;
        let candidates: Vec<_> = rings.iter().filter(|ring| ring.1 == length).copied().collect();
        if candidates.is_empty() {
            return None;
        }
        let wanted = slots(members, length, seed);
        let found = candidates.into_iter().find(|ring| self.slots.get(ring) == Some(&wanted))?;
        rings.remove(&found);
        Some(Ring { offset: found.0, length: found.1 })
    }
}

impl Planner {
    /// Takes out everything that was found and that no Service has claimed.
    pub(super) fn sweep(&mut self, recovered: Recovered, draft: &mut Draft) {
        draft.touched.extend(recovered.frontends);
        for (id, backend) in
            recovered.backends.into_values().flat_map(BTreeMap::into_values).chain(recovered.doubles)
        {
            self.retire(id, backend.service, (backend.address.into(), backend.port.get()), false, draft);
        }
        draft.retire.sort_unstable_by_key(|(id, _)| *id);
        // Names of backends that a former agent retired without getting to the name.
        let retired: BTreeSet<_> = draft.retire.iter().map(|(id, _)| *id).collect();
        let renamed: BTreeSet<_> = draft.backend_names.iter().map(|(id, _)| *id).collect();
        let stale = recovered.names.into_keys().filter(|id| !retired.contains(id) && !renamed.contains(id));
        draft.gone_backend_names.extend(stale);
        draft.gone_backend_names.sort_unstable();
        draft.gone_backend_names.dedup();
        for id in recovered.ids.into_values().flatten() {
            draft.gone_service_names.push(id);
            draft.freed.services.push(id);
        }
        draft.gone_service_names.sort_unstable();
        draft.freed.services.extend(recovered.nameless);
        for (id, ranges) in recovered.source_ranges {
            self.source_ranges -= ranges.len();
            draft.gone_source_ranges.extend(ranges.into_iter().map(|range| (id, range)));
        }
        draft.gone_source_ranges.sort_unstable();
        let rings = recovered.rings.into_values().flatten();
        draft.freed.rings.extend(rings.map(|(offset, length)| Ring { offset, length }));
    }
}
