//! Loads the object, pours a [`World`] into its maps, runs frames.

use std::collections::BTreeMap;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, ProgramArray};
use aya::programs::{Program, SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::{
    Affinity, AffinityKey, Config, Flow4, FlowSet4, FlowSet6, FlowWord, Fragment, FragmentKey, Frontend4,
    Frontend6, Hook, Interface, NatLine, RING_BLOCK, Reason, Role, Station, WAYS, counter_index, maps, tail,
};
use lb_kernel::programs::load::{OBJECT, fit_kernel};
use lb_testkit::fuzz::PACKET_HOOKS;
use lb_testkit::{Action, AddressFilter, EndpointFilter, NodePortFilter, STATION, World};
use zerocopy::FromBytes as _;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const TC_NEXT: u32 = u32::MAX;
const TC_DROP: u32 = 2;
const TC_REDIRECT: u32 = 7;

/// The programs, loaded and fed.
pub struct Kernel {
    ebpf: Ebpf,
    sets: u32,
    /// The kernel empties an array of programs that nobody holds.
    _tails: Vec<ProgramArray<MapData>>,
}

impl Kernel {
    /// Maps of its own, shared with nobody.
    pub fn new(world: &World) -> Self {
        Self::of(world, &PACKET_HOOKS)
    }

    /// The same with the programs of these hooks alone: loading is what takes longest.
    pub fn of(world: &World, hooks: &[Hook]) -> Self {
        let is_wanted =
            |name: &str| hooks.iter().any(|hook| name.trim_end_matches('6') == PROGRAMS[*hook as usize]);
        let config = &world.config;
        let sets = config.ipv4.flow_set_mask + 1;
        let mut loader = EbpfLoader::new();
        fit_kernel(&mut loader);
        let mut ebpf = loader
            .map_max_entries(maps::FLOWS4, sets)
            .map_max_entries(maps::FLOWS6, config.ipv6.flow_set_mask + 1)
            .map_max_entries(maps::NAT4, config.ipv4.nat_line_mask + 1)
            .map_max_entries(maps::NAT6, config.ipv6.nat_line_mask + 1)
            .map_max_entries(maps::RINGS, (world.ring_slots() as u32).div_ceil(RING_BLOCK).max(1))
            .load(OBJECT)
            .expect("the object loads; are you root?");
        let names = PROGRAMS.into_iter().chain(tail::PROGRAMS.map(|(.., name)| name));
        for name in names.filter(|name| is_wanted(name)) {
            match ebpf.program_mut(name).expect("the program is in the object") {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                other => panic!("{name} is a {:?}", other.prog_type()),
            }
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let mut tails = BTreeMap::new();
        for (array, index, name) in tail::PROGRAMS.into_iter().filter(|(.., name)| is_wanted(name)) {
            let map = tails.entry(array).or_insert_with(|| {
                let map = ebpf.take_map(array).expect("the map is in the object");
                ProgramArray::try_from(map).expect("a program array")
            });
            let fd = ebpf.program(name).expect("in the object").fd().expect("loaded");
            map.set(index, fd, 0).expect("set");
        }
        pour(&mut ebpf, world);
        Self { ebpf, sets, _tails: tails.into_values().collect() }
    }

    /// Forgets every flow, pick and fragment, as if just loaded; loading takes longer.
    pub fn forget(&mut self) {
        empty_array::<{ size_of::<FlowSet4>() }>(&mut self.ebpf, maps::FLOWS4);
        empty_array::<{ size_of::<FlowSet6>() }>(&mut self.ebpf, maps::FLOWS6);
        empty_array::<{ size_of::<NatLine>() }>(&mut self.ebpf, maps::NAT4);
        empty_array::<{ size_of::<NatLine>() }>(&mut self.ebpf, maps::NAT6);
        empty_hash::<{ size_of::<AffinityKey>() }, { size_of::<Affinity>() }>(&mut self.ebpf, maps::AFFINITY);
        empty_hash::<{ size_of::<FragmentKey>() }, { size_of::<Fragment>() }>(
            &mut self.ebpf,
            maps::FRAGMENTS,
        );
    }

    /// How many in a row are worth asking for: as many as are wanted where that is one call, a few where each is one.
    pub const fn in_a_row(hook: Hook, wanted: u32) -> u32 {
        if matches!(hook, Hook::UplinkXdp) { wanted } else { 4 }
    }

    /// Runs a frame through a hook's program.
    pub fn run(&self, hook: Hook, frame: &[u8]) -> (Action, Vec<u8>) {
        self.run_repeatedly(hook, frame, 1)
    }

    /// The same several times, each time with what came out before. Of tc each is a call of its own: a packet bears that it has been
    /// translated, and passes the second time.
    pub fn run_repeatedly(&self, hook: Hook, frame: &[u8], repeat: u32) -> (Action, Vec<u8>) {
        if hook == Hook::UplinkXdp {
            return self.call(hook, frame, repeat);
        }
        let mut outcome = self.call(hook, frame, 1);
        for _ in 1..repeat {
            outcome = self.call(hook, &outcome.1, 1);
        }
        outcome
    }

    fn call(&self, hook: Hook, frame: &[u8], repeat: u32) -> (Action, Vec<u8>) {
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat,
            ..TestRunOptions::default()
        };
        let name = PROGRAMS[hook as usize];
        let program = self.ebpf.program(name).expect("the program is in the object");
        let result = match program {
            Program::Xdp(program) => Xdp::test_run(program, options),
            Program::SchedClassifier(program) => SchedClassifier::test_run(program, options),
            _ => unreachable!("loaded above"),
        }
        .unwrap_or_else(|error| panic!("{name}: {error} {frame:02x?}"));
        let action = match (hook, result.return_value) {
            (Hook::UplinkXdp, XDP_PASS) => Action::Pass,
            (Hook::UplinkXdp, XDP_DROP) => Action::Drop,
            (Hook::UplinkXdp, XDP_TX) => Action::Send,
            (_, TC_NEXT) => Action::Pass,
            (_, TC_DROP) => Action::Drop,
            (_, TC_REDIRECT) => Action::Send,
            (_, code) => panic!("{name} returned {code}"),
        };
        out.truncate(result.data_size_out as usize);
        (action, out)
    }

    /// Every counter of a hook.
    pub fn counters(&self, hook: Hook) -> BTreeMap<u32, u64> {
        let counters = PerCpuArray::<&MapData, u64>::try_from(self.ebpf.map(maps::COUNTERS).expect("map"))
            .expect("a per-CPU array");
        let value = |reason: &Reason| {
            let per_cpu = counters.get(&counter_index(hook, *reason), 0).expect("counter");
            (*reason as u32, per_cpu.iter().sum())
        };
        Reason::ALL.iter().map(value).collect()
    }

    /// What the counters of a hook have gained.
    pub fn moved(&self, hook: Hook, before: &BTreeMap<u32, u64>) -> BTreeMap<Reason, u64> {
        let now = self.counters(hook);
        let gained = |reason: &Reason| {
            let number = *reason as u32;
            (*reason, now[&number] - before[&number])
        };
        Reason::ALL.iter().map(gained).filter(|(_, count)| *count > 0).collect()
    }

    /// Every live flow.
    pub fn live_flows(&self) -> Vec<Flow4> {
        const SIZE: usize = size_of::<FlowSet4>();
        let sets = Array::<&MapData, [u8; SIZE]>::try_from(self.ebpf.map(maps::FLOWS4).expect("map"))
            .expect("an array");
        let now = lb_kernel::maps::flows::now();
        let mut live = Vec::new();
        for index in 0..self.sets {
            let bytes = sets.get(&index, 0).expect("set");
            let set = FlowSet4::read_from_bytes(&bytes).expect("the size is right");
            let ways = (0..WAYS).filter(|way| FlowWord(set.words[*way]).is_live(now));
            live.extend(ways.map(|way| set.flows[way]));
        }
        live
    }
}

/// In the order of [`Hook`].
const PROGRAMS: [&str; 5] = ["uplink_xdp", "uplink_ingress", "uplink_egress", "pod_ingress", "pod_egress"];

fn pour(ebpf: &mut Ebpf, world: &World) {
    let mut configs =
        Array::<_, [u8; size_of::<Config>()]>::try_from(ebpf.map_mut(maps::CONFIG).expect("map"))
            .expect("array");
    let clock = lb_kernel::maps::flows::clock().expect("how long a tick lasts");
    configs.set(0, bytes(&Config { clock, ..world.config }), 0).expect("set");
    for ((address, port, proto), service) in &world.services {
        let value: [u8; 32] = bytes(service);
        if let Some(address) = address.unmapped() {
            let key: [u8; 8] = bytes(&Frontend4::new(address, *port, *proto));
            hash::<[u8; 8]>(ebpf, maps::SERVICES4).insert(key, value, 0).expect("insert");
        } else {
            let key: [u8; 20] = bytes(&Frontend6::new(*address, *port, *proto));
            hash::<[u8; 20]>(ebpf, maps::SERVICES6).insert(key, value, 0).expect("insert");
        }
    }
    add_bits(ebpf, maps::ADDRESSES, AddressFilter::of(world).words());
    add_bits(ebpf, maps::ENDPOINTS, EndpointFilter::of(world).words());
    add_bits(ebpf, maps::NODE_PORTS, NodePortFilter::of(world).words());
    // The loopback device, on which programs are test-run, as an uplink with XDP.
    let interface = Interface {
        role: Role::Uplink as u32,
        flags: Interface::XDP_SEES | Interface::XDP_SENDS,
        ..Interface::default()
    };
    let mut interfaces = HashMap::<_, u32, [u8; 32]>::try_from(ebpf.map_mut(maps::INTERFACES).expect("map"))
        .expect("a hash map");
    interfaces.insert(1, bytes(&interface), 0).expect("insert");
    let station = Station::new(1, STATION);
    Array::<_, u64>::try_from(ebpf.map_mut(maps::STATIONS).expect("map"))
        .and_then(|mut stations| stations.set(station.slot(0), station.0, 0))
        .expect("set");
    let mut ranges = LpmTrie::<_, [u8; 20], u32>::try_from(ebpf.map_mut(maps::SOURCE_RANGES).expect("map"))
        .expect("a trie");
    for range in &world.source_ranges {
        let [_, _, _, _, data @ ..] = bytes::<24>(range);
        ranges.insert(&Key::new(range.prefix_length, data), 1, 0).expect("insert");
    }
    let mut backends =
        Array::<_, [u8; 32]>::try_from(ebpf.map_mut(maps::BACKENDS).expect("map")).expect("array");
    for (id, backend) in &world.backends {
        backends.set(*id, bytes::<32>(backend), 0).expect("set");
    }
    let mut slots = vec![0; world.ring_slots()];
    for (offset, ring) in &world.rings {
        slots[*offset as usize..][..ring.len()].copy_from_slice(ring);
    }
    const BLOCK: usize = RING_BLOCK as usize;
    let mut rings =
        Array::<_, [u32; BLOCK]>::try_from(ebpf.map_mut(maps::RINGS).expect("map")).expect("array");
    for (index, chunk) in slots.chunks(BLOCK).enumerate() {
        let mut block = [0; BLOCK];
        block[..chunk.len()].copy_from_slice(chunk);
        rings.set(index as u32, block, 0).expect("set");
    }
}

/// Sets further bits of a filter.
fn add_bits(ebpf: &mut Ebpf, name: &str, words: impl Iterator<Item = (u32, u64)>) {
    let mut filter = Array::<_, u64>::try_from(ebpf.map_mut(name).expect("map")).expect("an array");
    for (index, bits) in words {
        let before = filter.get(&index, 0).expect("a word");
        filter.set(index, before | bits, 0).expect("set");
    }
}

fn empty_array<const SIZE: usize>(ebpf: &mut Ebpf, name: &str) {
    let mut array = Array::<_, [u8; SIZE]>::try_from(ebpf.map_mut(name).expect("map")).expect("an array");
    for index in 0..array.len() {
        array.set(index, [0; SIZE], 0).expect("set");
    }
}

fn empty_hash<const KEY: usize, const VALUE: usize>(ebpf: &mut Ebpf, name: &str) {
    let map = ebpf.map_mut(name).expect("map");
    let mut hash = HashMap::<_, [u8; KEY], [u8; VALUE]>::try_from(map).expect("a hash map");
    let keys: Vec<_> = hash.keys().collect::<Result<_, _>>().expect("keys");
    keys.iter().for_each(|key| hash.remove(key).expect("remove"));
}

fn hash<'a, K: aya::Pod>(ebpf: &'a mut Ebpf, name: &str) -> HashMap<&'a mut MapData, K, [u8; 32]> {
    HashMap::try_from(ebpf.map_mut(name).expect("map")).expect("a hash map")
}

fn bytes<const N: usize>(value: &(impl zerocopy::IntoBytes + zerocopy::Immutable)) -> [u8; N] {
    value.as_bytes().try_into().expect("the size of the map's type")
}
