//! State in memory, behind the same door as the kernel's maps.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::vec::Vec;

use super::World;
use super::world::{AddressFilter, EndpointFilter, NodePortFilter};
use lb_common::abi::{
    self, Affinity, AffinityKey, BackendId, Config, Flow, FlowReference, FlowWord, Fragment, FragmentKey,
    Moment, NAT_LINE, Progress, Service, ServiceId, SourceRange, WAYS,
};
use lb_common::addr::{Address, Ipv4, Ipv6, Port, Proto};
use lb_common::datapath::flow::Side;
use lb_common::datapath::xdp::Router;
use lb_common::datapath::{Backend, Desk, Family, FlowSets, Hop, PacketTables, Route, Tables};

/// A frontend of either family: address (IPv4-mapped), port, protocol.
pub type Frontend = (Ipv6, Port, Proto);

/// The flow table of one family. Words and NAT slots are atomic, as in the kernel.
pub struct FamilyTables<A> {
    words: Vec<AtomicU64>,
    flows: Vec<Mutex<Option<Flow<A>>>>,
    nat: Vec<AtomicU32>,
    routes: HashMap<Ipv6, Route>,
    hops: HashMap<Ipv6, Hop>,
}

impl<A: Family> FamilyTables<A> {
    fn new(config: &Config) -> Self {
        let family = A::config(config);
        let ways = (family.flow_set_mask as usize + 1) * WAYS;
        Self {
            words: (0..ways).map(|_| AtomicU64::new(0)).collect(),
            flows: (0..ways).map(|_| Mutex::new(None)).collect(),
            nat: (0..(family.nat_line_mask as usize + 1) * NAT_LINE).map(|_| AtomicU32::new(0)).collect(),
            routes: HashMap::new(),
            hops: HashMap::new(),
        }
    }
}

/// A family whose flows [`MemoryTables`] keep.
pub trait Kept: Family {
    /// Its tables.
    fn tables(all: &MemoryTables) -> &FamilyTables<Self>;
}

impl Kept for Ipv4 {
    fn tables(all: &MemoryTables) -> &FamilyTables<Self> {
        &all.ipv4
    }
}

impl Kept for Ipv6 {
    fn tables(all: &MemoryTables) -> &FamilyTables<Self> {
        &all.ipv6
    }
}

/// A node's state, which threads may share.
pub struct MemoryTables {
    config: Config,
    services: HashMap<Frontend, Service>,
    addresses: AddressFilter,
    node_ports: NodePortFilter,
    endpoints: EndpointFilter,
    clients: Mutex<AddressFilter>,
    backends: HashMap<BackendId, abi::Backend>,
    rings: Vec<BackendId>,
    source_ranges: Vec<SourceRange>,
    affinities: Mutex<HashMap<AffinityKey, Affinity>>,
    fragments: Mutex<HashMap<FragmentKey, Fragment>>,
    refusals: Mutex<(Moment, u32)>,
    now: AtomicU32,
    sends: AtomicBool,
    others_send: bool,
    ipv4: FamilyTables<Ipv4>,
    ipv6: FamilyTables<Ipv6>,
}

impl MemoryTables {
    /// A node as the world describes it, at a moment a day after boot.
    pub fn new(world: &World) -> Self {
        let mut tables = Self {
            config: world.config,
            services: HashMap::new(),
            addresses: AddressFilter::of(world),
            node_ports: NodePortFilter::of(world),
            endpoints: EndpointFilter::of(world),
            clients: Mutex::new(AddressFilter::empty()),
            backends: HashMap::new(),
            rings: Vec::new(),
            source_ranges: Vec::new(),
            affinities: Mutex::default(),
            fragments: Mutex::default(),
            refusals: Mutex::new((Moment::default(), 0)),
            now: AtomicU32::new(Moment::steps(86_400)),
            sends: AtomicBool::new(true),
            others_send: false,
            ipv4: FamilyTables::new(&world.config),
            ipv6: FamilyTables::new(&world.config),
        };
        tables.pour(world);
        tables
    }

    /// Replaces all that an agent writes; what packets have left behind stays.
    pub fn pour(&mut self, world: &World) {
        let end = |(offset, slots): &(u32, Vec<BackendId>)| *offset as usize + slots.len();
        self.rings = std::vec![0; world.rings.iter().map(end).max().unwrap_or(0)];
        for (offset, slots) in &world.rings {
            self.rings[*offset as usize..][..slots.len()].copy_from_slice(slots);
        }
        self.config = world.config;
        self.addresses.note_all(world);
        self.node_ports.note_all(world);
        self.endpoints.note_all(world);
        self.services = world.services.iter().copied().collect();
        self.backends = world.backends.iter().copied().collect();
        self.source_ranges.clone_from(&world.source_ranges);
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
    pub fn set_backend(&mut self, id: BackendId, backend: abi::Backend) {
        self.endpoints.note(&backend);
        self.backends.insert(id, backend);
    }

    /// Changes a Service.
    pub fn set_service(&mut self, frontend: Frontend, service: Service) {
        self.addresses.note(frontend.0);
        self.node_ports.note(&frontend);
        self.services.insert(frontend, service);
    }

    /// Takes a Service out.
    pub fn remove_service(&mut self, frontend: Frontend) {
        self.services.remove(&frontend);
    }

    /// From now on no packet is let pass for its addresses alone.
    pub fn let_all_addresses_concern(&mut self) {
        self.addresses = AddressFilter::full();
        self.clients = Mutex::new(AddressFilter::full());
    }

    /// Lets XDP send packets for `destination` by itself.
    pub fn add_route(&mut self, destination: impl Address, route: Route) {
        let destination = destination.to_mapped();
        self.ipv4.routes.insert(destination, route);
        self.ipv6.routes.insert(destination, route);
    }

    /// Routes what this node sends to `destination`.
    pub fn add_hop(&mut self, destination: impl Address, hop: Hop) {
        let destination = destination.to_mapped();
        self.ipv4.hops.insert(destination, hop);
        self.ipv6.hops.insert(destination, hop);
    }

    /// Has packets that leave be somebody else's, not this node's own.
    pub fn let_others_send(&mut self) {
        self.others_send = true;
    }

    /// Has XDP send nothing by itself, or all that it can.
    pub fn let_xdp_send(&self, sends: bool) {
        self.sends.store(sends, Ordering::SeqCst);
    }

    /// Whether XDP sends by itself.
    pub fn sends(&self) -> bool {
        self.sends.load(Ordering::SeqCst)
    }

    /// Whether one more refusal may be sent now.
    pub fn may_refuse(&self) -> bool {
        let now = Moment(self.now.load(Ordering::SeqCst));
        let Ok(mut bucket) = self.refusals.lock() else { return false };
        if bucket.0 != now {
            *bucket = (now, 0);
        }
        bucket.1 += 1;
        self.config.refusal_limit == 0 || bucket.1 <= self.config.refusal_limit
    }

    fn record<A: Kept>(&self, way: usize) -> Flow<A> {
        A::tables(self).flows[way].lock().ok().and_then(|flow| *flow).unwrap_or_else(blank_flow)
    }

    /// Every live IPv4 flow.
    pub fn live_flows(&self) -> Vec<(FlowWord, Flow<Ipv4>)> {
        self.live()
    }

    /// Every live flow of a family.
    pub fn live<A: Kept>(&self) -> Vec<(FlowWord, Flow<A>)> {
        let now = Tables::<A>::now(self);
        let tables = A::tables(self);
        let all = tables.words.iter().zip(&tables.flows);
        all.map(|(word, flow)| (FlowWord(word.load(Ordering::SeqCst)), flow))
            .filter(|(word, _)| word.is_live(now))
            .filter_map(|(word, flow)| Some((word, (*flow.lock().ok()?)?)))
            .collect()
    }
}

impl<A: Kept> FlowSets<A> for MemoryTables {
    type Set = usize;

    fn set(&self, index: u32) -> Option<usize> {
        let first = index as usize * WAYS;
        (first < A::tables(self).words.len()).then_some(first)
    }

    fn word(&self, set: usize, way: usize) -> FlowWord {
        FlowWord(A::tables(self).words[set + way].load(Ordering::SeqCst))
    }

    fn swap_word(&self, set: usize, way: usize, old: FlowWord, new: FlowWord) -> bool {
        let word = &A::tables(self).words[set + way];
        word.compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn clear_lock(&self, set: usize) {
        A::tables(self).words[set].fetch_and(FlowWord(u64::MAX).unlocked().0, Ordering::SeqCst);
    }

    fn mark(&self, set: usize, way: usize) {
        A::tables(self).words[set + way].fetch_or(FlowWord::mark().0, Ordering::SeqCst);
    }

    const READS_IN_ORDER: bool = false;

    fn fits(&self, set: usize, way: usize, test: impl Fn(&Flow<A>) -> bool) -> bool {
        test(&self.record(set + way))
    }

    fn copy_flow(&self, set: usize, way: usize, _: FlowWord, copy: &mut Flow<A>) -> FlowWord {
        // As in the kernel: what moves on is not copied.
        *copy = Flow { progress: Progress::default(), ..self.record(set + way) };
        FlowSets::<A>::word(self, set, way)
    }

    fn progress(&self, set: usize, way: usize) -> Progress {
        self.record::<A>(set + way).progress
    }

    fn note_progress(&self, set: usize, way: usize, side: Side, [sent, acknowledged]: [u32; 2]) {
        if let Ok(mut flow) = A::tables(self).flows[set + way].lock()
            && let Some(flow) = flow.as_mut()
        {
            flow.progress.sent[side as usize] = sent;
            flow.progress.acknowledged[side as usize] = acknowledged;
        }
    }

    fn note_unanswered_syn(&self, set: usize, way: usize, moment: u32) {
        if let Ok(mut flow) = A::tables(self).flows[set + way].lock()
            && let Some(flow) = flow.as_mut()
        {
            flow.progress.unanswered_syn = moment;
        }
    }

    fn put_flow(&self, set: usize, way: usize, flow: &Flow<A>) {
        if let Ok(mut slot) = A::tables(self).flows[set + way].lock() {
            *slot = Some(*flow);
        }
    }

    fn fetch_flow(&self, _: usize, _: usize) {}

    type NatLine = usize;

    fn nat_line(&self, index: u32) -> Option<usize> {
        let first = index as usize * NAT_LINE;
        (first < A::tables(self).nat.len()).then_some(first)
    }

    fn nat_slot(&self, line: usize, place: usize) -> FlowReference {
        FlowReference(A::tables(self).nat[line + place].load(Ordering::SeqCst))
    }

    fn swap_nat_slot(&self, line: usize, place: usize, old: FlowReference, new: FlowReference) -> bool {
        let slot = &A::tables(self).nat[line + place];
        slot.compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

impl<A: Kept> Tables<A> for MemoryTables {
    fn config(&self) -> &Config {
        &self.config
    }

    fn service(&self, address: A, port: Port, proto: Proto) -> Option<&Service> {
        self.services.get(&(address.to_mapped(), port, proto))
    }

    fn is_node_port(&self, port: Port) -> bool {
        self.node_ports.has(port)
    }

    fn ring_slot(&self, slot: u32) -> Option<BackendId> {
        self.rings.get(slot as usize).copied()
    }

    fn backend(&self, id: BackendId) -> Option<Backend<A>> {
        // An array has every entry, the unused ones zero.
        Some(Backend::from(self.backends.get(&id).unwrap_or(&abi::Backend::default())))
    }

    fn now(&self) -> Moment {
        Moment(self.now.load(Ordering::SeqCst))
    }

    fn affinity(&self, client: A, service: ServiceId) -> Option<Affinity> {
        let key = AffinityKey { client: client.to_mapped(), service };
        self.affinities.lock().ok()?.get(&key).copied()
    }

    fn note_affinity(&self, client: A, service: ServiceId, affinity: Affinity) {
        if let Ok(mut all) = self.affinities.lock() {
            all.insert(AffinityKey { client: client.to_mapped(), service }, affinity);
        }
    }

    fn in_source_range(&self, address: &SourceRange) -> bool {
        let source = u128::from_be_bytes(address.address.octets());
        self.source_ranges.iter().any(|range| {
            let bits = range.prefix_length - 32;
            let network = u128::from_be_bytes(range.address.octets());
            let shift = 128 - bits;
            let same = if shift == 128 { true } else { source >> shift == network >> shift };
            range.service == address.service && same
        })
    }
}

impl<A: Kept> PacketTables<A> for MemoryTables {
    fn may_concern(&self, address: A) -> bool {
        self.addresses.has(address)
    }

    fn may_be_endpoint(&self, address: A, port: Port) -> bool {
        self.endpoints.has(address, port)
    }

    fn is_noted(&self, client: A) -> bool {
        self.clients.lock().map_or(true, |clients| clients.has(client))
    }

    fn note_client(&self, client: A) {
        if let Ok(mut clients) = self.clients.lock() {
            clients.note(client.to_mapped());
        }
    }

    fn is_switched(&self) -> bool {
        false
    }

    fn seen_by_xdp(&self) -> bool {
        // What goes by tc in tests has gone by XDP first.
        true
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.lock().ok()?.get(key).copied()
    }

    fn note_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        if let Ok(mut all) = self.fragments.lock() {
            all.insert(*key, *fragment);
        }
    }

    fn masquerade_address(&self, _source: A, _destination: A) -> A {
        A::config(&self.config).node_address
    }

    fn is_sent_by_node(&self) -> bool {
        !self.others_send
    }

    fn next_hop(&self, _source: A, destination: A) -> Hop {
        A::tables(self).hops.get(&destination.to_mapped()).copied().unwrap_or(Hop::UNKNOWN)
    }

    fn turns_back(&self, _source: A, destination: A) -> bool {
        A::tables(self).hops.get(&destination.to_mapped()) == Some(&ARRIVAL)
    }
}

impl<A: Kept> Router<A> for MemoryTables {
    fn route(&self, _source: A, destination: A, _length: u16, _: &mut Desk<A>) -> Option<Route> {
        if !self.sends() {
            return None;
        }
        A::tables(self).routes.get(&destination.to_mapped()).copied()
    }
}

/// The interface that packets come in by, among the hops.
pub const ARRIVAL: Hop = Hop(1);

/// A record of zeros.
pub fn blank_flow<A: Address>() -> Flow<A> {
    Flow {
        client: A::UNSPECIFIED,
        frontend: A::UNSPECIFIED,
        backend: A::UNSPECIFIED,
        nat: A::UNSPECIFIED,
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
        progress: Progress::default(),
        spare: 0,
    }
}
