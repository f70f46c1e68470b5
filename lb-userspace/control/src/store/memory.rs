//! A store in memory, for tests: checks every change, and can be told to fail.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lb_common::abi::{
    Backend, BackendId, BackendName, Ring, Service, ServiceFlags, ServiceId, ServiceName, maps,
};
use lb_common::maglev::LENGTHS;

use super::{Actual, Cover, Op, SourceRange, Store, StoreError};
use crate::model::Frontend;
use crate::seed::Wanted;

/// A store in memory. Clones share the content, as agents share pinned maps.
#[derive(Clone, Debug)]
pub struct MemStore(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    services: HashMap<Frontend, Service>,
    backends: BTreeMap<BackendId, Backend>,
    /// The Service of each active backend, for looking up many at once.
    active: Vec<Option<ServiceId>>,
    service_names: BTreeMap<ServiceId, ServiceName>,
    /// Service ids whose traffic is that of an earlier Service port.
    worn: BTreeSet<ServiceId>,
    backend_names: BTreeMap<BackendId, BackendName>,
    slots: Vec<Option<BackendId>>,
    /// How many times each ring, by offset and length, is pointed at.
    in_force: BTreeMap<(u32, u32), usize>,
    source_ranges: BTreeSet<SourceRange>,
    cover: Cover,
    asks_node_networks: bool,
    ops: Vec<Op>,
    violations: Vec<String>,
    /// Entries that may still be written before the next failure.
    budget: Option<usize>,
    frontend_limit: usize,
    seed: Option<u64>,
}

impl MemStore {
    /// An empty store with room for `ring_slots` slots.
    pub fn new(ring_slots: u32) -> Self {
        Self(Arc::new(Mutex::new(State {
            services: HashMap::new(),
            backends: BTreeMap::new(),
            active: Vec::new(),
            service_names: BTreeMap::new(),
            worn: BTreeSet::new(),
            backend_names: BTreeMap::new(),
            slots: vec![None; ring_slots as usize],
            in_force: BTreeMap::new(),
            source_ranges: BTreeSet::new(),
            cover: Cover::default(),
            asks_node_networks: false,
            ops: Vec::new(),
            violations: Vec::new(),
            budget: None,
            frontend_limit: usize::MAX,
            seed: None,
        })))
    }

    /// Writes `entries` more entries, then fails once.
    pub fn fail_after(&self, entries: usize) {
        self.lock().budget = Some(entries);
    }

    /// Refuses new frontends beyond `limit`, like a full map.
    pub fn limit_frontends(&self, limit: usize) {
        self.lock().frontend_limit = limit;
    }

    /// The changes applied since the last call, those of failed calls included.
    pub fn take_ops(&self) -> Vec<Op> {
        std::mem::take(&mut self.lock().ops)
    }

    /// Rules that changes broke, in words; empty when all was well.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// What it holds.
    pub fn contents(&self) -> Actual {
        self.lock().actual()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panicking test leaves nothing half-done that the next reader could not bear.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemStore {
    fn actual(&mut self) -> Result<Actual, StoreError> {
        let mut state = self.lock();
        state.spend(maps::SERVICES4)?;
        Ok(state.actual())
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), StoreError> {
        let mut state = self.lock();
        for op in ops {
            state.ops.push(op.clone());
            state.apply(op)?;
        }
        Ok(())
    }

    /// As if flows lived all the time.
    fn settle_seed(&mut self, wanted: Wanted) -> Result<u64, StoreError> {
        let mut state = self.lock();
        state.spend(maps::CONFIG)?;
        Ok(match wanted {
            Wanted::Given(seed) => *state.seed.insert(seed),
            Wanted::Derived(seed) => *state.seed.get_or_insert(seed),
        })
    }

    fn ring_slots(&self) -> u32 {
        // Made from a u32.
        self.lock().slots.len() as u32
    }
}

impl State {
    fn actual(&self) -> Actual {
        let mut services: Vec<_> =
            self.services.iter().map(|(frontend, service)| (*frontend, *service)).collect();
        services.sort_by_key(|(frontend, _)| *frontend);
        let rings = services.iter().flat_map(|(_, service)| [service.outside, service.inside]);
        let rings = rings.filter(|ring| ring.length > 0).map(|ring| {
            let slots = self.ring(ring).iter().map(|slot| slot.unwrap_or(0)).collect();
            ((ring.offset, ring.length), slots)
        });
        Actual {
            rings: rings.collect(),
            services: services.clone(),
            backends: self.backends.clone(),
            service_names: self.service_names.clone(),
            backend_names: self.backend_names.clone(),
            source_ranges: self.source_ranges.clone(),
            cover: self.cover,
            asks_node_networks: self.asks_node_networks,
        }
    }

    fn ring(&self, ring: Ring) -> &[Option<BackendId>] {
        let start = ring.offset as usize;
        self.slots.get(start..start + ring.length as usize).unwrap_or_default()
    }

    /// Counts one entry; fails when the budget is used up.
    fn spend(&mut self, map: &'static str) -> Result<(), StoreError> {
        match &mut self.budget {
            None => Ok(()),
            Some(0) => {
                self.budget = None;
                Err(StoreError { map, source: io::ErrorKind::OutOfMemory.into(), hint: None })
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::PutServiceNames(entries) => {
                for (id, name) in entries {
                    self.spend(maps::SERVICE_NAMES)?;
                    if self.worn.contains(id) {
                        self.violations.push(format!("Service id {id} begins with another's traffic"));
                    }
                    self.service_names.insert(*id, *name);
                }
            }
            Op::PutBackendNames(entries) => {
                for (id, name) in entries {
                    self.spend(maps::BACKEND_NAMES)?;
                    self.backend_names.insert(*id, name.record());
                }
            }
            Op::ResetServiceTraffic(ids) => {
                for id in ids {
                    self.spend(maps::SERVICE_TRAFFIC)?;
                    self.worn.remove(id);
                }
            }
            Op::ResetBackendFlows(ids) => {
                for _ in ids {
                    self.spend(maps::BACKEND_FLOWS)?;
                }
            }
            Op::PutBackends(entries) => {
                for (id, backend) in entries {
                    self.spend(maps::BACKENDS)?;
                    self.check_backend(*id, backend);
                    self.backends.insert(*id, *backend);
                    if self.active.len() <= *id as usize {
                        self.active.resize(*id as usize + 1, None);
                    }
                    self.active[*id as usize] = backend.is_active().then_some(backend.service);
                }
            }
            Op::WriteRing(ring, slots) => {
                self.spend(maps::RINGS)?;
                self.write_ring(*ring, slots);
            }
            Op::PutServices(entries) => {
                for (frontend, service) in entries {
                    self.spend(services_map(frontend))?;
                    if self.services.len() >= self.frontend_limit && !self.services.contains_key(frontend) {
                        let source = io::ErrorKind::StorageFull.into();
                        return Err(StoreError { map: services_map(frontend), source, hint: None });
                    }
                    self.check_service(*frontend, service);
                    self.put_service(*frontend, Some(*service));
                }
            }
            Op::DeleteServices(frontends) => {
                for frontend in frontends {
                    self.spend(services_map(frontend))?;
                    self.put_service(*frontend, None);
                }
            }
            Op::PutSourceRanges(ranges) => {
                for range in ranges {
                    self.spend(maps::SOURCE_RANGES)?;
                    self.source_ranges.insert(*range);
                }
            }
            Op::CoverServices(cover) => {
                self.spend(maps::CONFIG)?;
                let outside = |address| !cover.iter().flatten().any(|range| range.contains(&address));
                let left = self.services.keys().find(|key| key.is_whole() && outside(key.address));
                if let Some(frontend) = left {
                    self.violations.push(format!("{frontend} is left outside of {cover:?}"));
                }
                self.cover = *cover;
            }
            Op::NotePorts(_) => {}
            Op::AskNodeNetworks(asks) => {
                self.spend(maps::CONFIG)?;
                self.asks_node_networks = *asks;
            }
            Op::DeleteSourceRanges(ranges) => {
                for range in ranges {
                    self.spend(maps::SOURCE_RANGES)?;
                    let checked = |service: &Service| {
                        service.id == range.0 && service.flags.has(ServiceFlags::CHECK_SOURCES)
                    };
                    let last = !self.source_ranges.iter().any(|other| other.0 == range.0 && other != range);
                    if let Some((frontend, _)) =
                        self.services.iter().filter(|_| last).find(|(_, service)| checked(service))
                    {
                        self.violations.push(format!("{frontend} lets nobody in any more"));
                    }
                    self.source_ranges.remove(range);
                }
            }
            Op::DeleteServiceNames(ids) => {
                for id in ids {
                    self.spend(maps::SERVICE_NAMES)?;
                    let mut frontends =
                        self.services.iter().filter(|(frontend, _)| !frontend.is_of_an_address());
                    if let Some((frontend, _)) = frontends.find(|(_, service)| service.id == *id) {
                        self.violations
                            .push(format!("{frontend} has Service id {id}, whose name is taken out"));
                    }
                    self.service_names.remove(id);
                    self.worn.insert(*id);
                }
            }
            Op::DeleteBackendNames(ids) => {
                for id in ids {
                    self.spend(maps::BACKEND_NAMES)?;
                    if self.backends.get(id).is_some_and(Backend::is_active) {
                        self.violations.push(format!("backend {id} is active, but its name is taken out"));
                    }
                    self.backend_names.remove(id);
                }
            }
        }
        Ok(())
    }

    /// The Service of a backend, if it is active.
    fn service_of(&self, id: BackendId) -> Option<ServiceId> {
        self.active.get(id as usize).copied().flatten()
    }

    fn check_backend(&mut self, id: BackendId, new: &Backend) {
        let Some(old) = self.backends.get(&id) else { return };
        let same = (old.address, old.port, old.service) == (new.address, new.port, new.service);
        if !same && new.is_active() && new.generation == old.generation {
            self.violations.push(format!("backend {id} gets another endpoint, but the same generation"));
        }
        if !same && old.is_active() {
            self.violations.push(format!("backend {id} gets another endpoint while it is active"));
        }
        if old.is_active() && !new.is_active() {
            let same = |service: &Service| service.id == old.service;
            let used = self.services.iter().filter(|(_, service)| same(service)).find(|(_, service)| {
                [service.outside, service.inside].into_iter().any(|ring| self.ring(ring).contains(&Some(id)))
            });
            if let Some((frontend, _)) = used {
                self.violations.push(format!("backend {id} is retired, but {frontend} still leads to it"));
            }
        }
    }

    fn write_ring(&mut self, ring: Ring, slots: &[BackendId]) {
        let (start, end) = (ring.offset as usize, ring.offset as usize + ring.length as usize);
        if slots.len() != ring.length as usize || end > self.slots.len() {
            self.violations.push(format!("{ring:?} does not fit {} slots", slots.len()));
            return;
        }
        if let Some(id) = slots.iter().find(|id| self.service_of(**id).is_none()) {
            self.violations.push(format!("{ring:?} is written with backend {id}, which is not active"));
        }
        let new: Vec<_> = slots.iter().copied().map(Some).collect();
        let longest = LENGTHS[LENGTHS.len() - 1];
        let near = (ring.offset.saturating_sub(longest), 0)..(ring.offset + ring.length, 0);
        let overlapped = self.in_force.range(near).map(|(other, _)| *other).find(|other| {
            // Writing again what is there is what a second attempt does.
            let again = *other == (ring.offset, ring.length) && self.slots[start..end] == new[..];
            other.0 + other.1 > ring.offset && !again
        });
        if let Some(other) = overlapped {
            self.violations.push(format!("{ring:?} is written over {other:?}, which is in force"));
        }
        self.slots[start..end].copy_from_slice(&new);
    }

    fn put_service(&mut self, frontend: Frontend, service: Option<Service>) {
        let rings =
            |service: Service| [service.outside, service.inside].map(|ring| (ring.offset, ring.length));
        let old = match service {
            Some(service) => {
                for ring in rings(service).into_iter().filter(|ring| ring.1 > 0) {
                    *self.in_force.entry(ring).or_default() += 1;
                }
                self.services.insert(frontend, service)
            }
            None => self.services.remove(&frontend),
        };
        for ring in old.into_iter().flat_map(rings) {
            if let Entry::Occupied(mut entry) = self.in_force.entry(ring) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }

    fn check_service(&mut self, frontend: Frontend, service: &Service) {
        if frontend.is_whole() {
            if !self.cover.iter().flatten().any(|range| range.contains(&frontend.address)) {
                self.violations.push(format!("{frontend} lies outside of {:?}", self.cover));
            }
            return;
        }
        if frontend.is_node() || frontend.is_external_address() {
            return;
        }
        let open = !self.source_ranges.iter().any(|range| range.0 == service.id);
        if service.flags.has(ServiceFlags::CHECK_SOURCES) && open {
            self.violations.push(format!("{frontend} lets nobody in"));
        }
        if !self.service_names.contains_key(&service.id) {
            self.violations.push(format!("{frontend} gets Service id {}, which has no name", service.id));
        }
        let rings = [Some(service.outside), Some(service.inside).filter(|ring| *ring != service.outside)];
        for ring in rings.into_iter().flatten().filter(|ring| ring.length > 0) {
            let slots = self.ring(ring);
            if slots.is_empty() {
                self.violations.push(format!("{frontend} points at {ring:?}, outside of the arena"));
                continue;
            }
            let wrong = slots.iter().find(|slot| slot.and_then(|id| self.service_of(id)) != Some(service.id));
            if let Some(slot) = wrong {
                let message = format!("{frontend} points at {ring:?}, where a slot holds {slot:?}");
                self.violations.push(message);
            }
        }
    }
}

const fn services_map(frontend: &Frontend) -> &'static str {
    if frontend.address.is_ipv4() { maps::SERVICES4 } else { maps::SERVICES6 }
}
