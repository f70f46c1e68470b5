//! State in memory, behind the same door as the kernel's maps.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::vec::Vec;

use super::World;
use crate::abi::{Backend4, BackendId, Config, Flow4, FlowWord, Frontend4, Moment, Service, WAYS};
use crate::addr::{Ipv4, Port, Proto};
use crate::datapath::xdp::Router;
use crate::datapath::{Backend, FlowSets, Route, Tables};

/// A node's state. Flow words and NAT slots are atomic, as in the kernel, so threads may share it.
pub struct MemoryTables {
    config: Config,
    services: HashMap<Frontend4, Service>,
    backends: HashMap<BackendId, Backend4>,
    rings: Vec<BackendId>,
    words: Vec<AtomicU64>,
    flows: Vec<Mutex<Option<Flow4>>>,
    nat: Vec<AtomicU32>,
    now: AtomicU32,
    routes: HashMap<Ipv4, Route>,
}

impl MemoryTables {
    /// A node as the world describes it, at a moment a day after boot.
    pub fn new(world: &World) -> Self {
        let sets = world.config.flow_set_mask as usize + 1;
        let mut rings = std::vec![0; world.ring_slots()];
        for (offset, slots) in &world.rings {
            rings[*offset as usize..][..slots.len()].copy_from_slice(slots);
        }
        Self {
            config: world.config,
            services: world.services.iter().copied().collect(),
            backends: world.backends.iter().copied().collect(),
            rings,
            words: (0..sets * WAYS).map(|_| AtomicU64::new(0)).collect(),
            flows: (0..sets * WAYS).map(|_| Mutex::new(None)).collect(),
            nat: (0..=world.config.nat_slot_mask).map(|_| AtomicU32::new(0)).collect(),
            now: AtomicU32::new(Moment::steps(86_400)),
            routes: HashMap::new(),
        }
    }

    /// Lets time pass.
    pub fn pass_seconds(&self, seconds: u32) {
        self.now.fetch_add(Moment::steps(seconds) + 1, Ordering::SeqCst);
    }

    /// Sets the clock.
    pub fn set_now(&self, now: Moment) {
        self.now.store(now.0, Ordering::SeqCst);
    }

    /// Changes a backend.
    pub fn set_backend(&mut self, id: BackendId, backend: Backend4) {
        self.backends.insert(id, backend);
    }

    /// Changes a Service.
    pub fn set_service(&mut self, frontend: Frontend4, service: Service) {
        self.services.insert(frontend, service);
    }

    /// Lets XDP send packets for `destination` by itself.
    pub fn add_route(&mut self, destination: Ipv4, route: Route) {
        self.routes.insert(destination, route);
    }

    /// Every live flow.
    pub fn live_flows(&self) -> Vec<(FlowWord, Flow4)> {
        let now = self.now();
        let all = self.words.iter().zip(&self.flows);
        all.map(|(word, flow)| (FlowWord(word.load(Ordering::SeqCst)), flow))
            .filter(|(word, _)| word.is_live(now))
            .filter_map(|(word, flow)| Some((word, (*flow.lock().ok()?)?)))
            .collect()
    }
}

impl FlowSets<Ipv4> for MemoryTables {
    type Set = usize;

    fn set(&self, index: u32) -> Option<usize> {
        let first = index as usize * WAYS;
        (first < self.words.len()).then_some(first)
    }

    fn word(&self, set: usize, way: usize) -> FlowWord {
        FlowWord(self.words[set + way].load(Ordering::SeqCst))
    }

    fn swap_word(&self, set: usize, way: usize, old: FlowWord, new: FlowWord) -> bool {
        let word = &self.words[set + way];
        word.compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn clear_lock(&self, set: usize) {
        self.words[set].fetch_and(FlowWord(u64::MAX).unlocked().0, Ordering::SeqCst);
    }

    fn flow(&self, set: usize, way: usize) -> Flow4 {
        let nobody = Flow4 {
            client: Ipv4::default(),
            frontend: Ipv4::default(),
            backend: Ipv4::default(),
            nat: Ipv4::default(),
            client_port: Port::default(),
            frontend_port: Port::default(),
            backend_port: Port::default(),
            nat_port: Port::default(),
            service: 0,
            backend_id: 0,
            backend_generation: 0,
            proto: Proto(0),
            flags: 0,
            reserved: [0; 2],
            spare: [0; 6],
        };
        self.flows[set + way].lock().ok().and_then(|flow| *flow).unwrap_or(nobody)
    }

    fn put_flow(&self, set: usize, way: usize, flow: &Flow4) {
        if let Ok(mut slot) = self.flows[set + way].lock() {
            *slot = Some(*flow);
        }
    }

    fn nat_slot(&self, index: u32) -> Option<u32> {
        Some(self.nat.get(index as usize)?.load(Ordering::SeqCst))
    }

    fn swap_nat_slot(&self, index: u32, old: u32, new: u32) -> bool {
        let slot = &self.nat[index as usize];
        slot.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

impl Tables<Ipv4> for MemoryTables {
    fn config(&self) -> &Config {
        &self.config
    }

    fn service(&self, address: Ipv4, port: Port, proto: Proto) -> Option<&Service> {
        self.services.get(&Frontend4::new(address, port, proto))
    }

    fn ring_slot(&self, slot: u32) -> Option<BackendId> {
        self.rings.get(slot as usize).copied()
    }

    fn backend(&self, id: BackendId) -> Option<Backend<Ipv4>> {
        // An array has every entry, the unused ones zero.
        Some(Backend::from(self.backends.get(&id).unwrap_or(&Backend4::default())))
    }

    fn now(&self) -> Moment {
        Moment(self.now.load(Ordering::SeqCst))
    }

    fn masquerade_address(&self, _source: Ipv4, _destination: Ipv4) -> Ipv4 {
        self.config.node_address4
    }

    fn in_cluster_range(&self, source: Ipv4) -> Option<bool> {
        self.config.in_cluster_range4(source)
    }
}

impl Router<Ipv4> for MemoryTables {
    fn route(&self, _source: Ipv4, destination: Ipv4, _length: u16) -> Option<Route> {
        self.routes.get(&destination).copied()
    }
}
