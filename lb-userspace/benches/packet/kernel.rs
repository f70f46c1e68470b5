//! The programs and the floors, loaded and fed.

use std::collections::BTreeMap;

use aya::maps::{Array, HashMap, MapData, PerCpuArray, ProgramArray};
use aya::programs::{Program, SchedClassifier, TestRun as _, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::{
    Config, Frontend4, Frontend6, Hook, Interface, RING_BLOCK, Reason, Role, Station, counter_index, maps,
    tail,
};
use lb_common::addr::{Ipv4, Port, Proto};
use lb_kernel::programs::FLOORS;
use lb_testkit::{AddressFilter, EndpointFilter, NodePortFilter, STATION, World};
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use nix::time::{ClockId, clock_gettime};

use crate::layout;

/// The words of `CONTROL`.
pub type Control = [u64; layout::CONTROL_WORDS];

/// A program, by the object it is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// Of the agent.
    Ours(&'static str),
    /// To compare with.
    Floor(&'static str),
}

impl Which {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours(name) | Self::Floor(name) => name,
        }
    }
}

/// What a run came to.
pub struct Ran {
    /// Nanoseconds of this thread for a packet.
    pub nanos: f64,
    /// The frame as it was left last.
    pub frame: Vec<u8>,
}

/// Maps of its own, shared with nobody.
pub struct Kernel {
    ours: Ebpf,
    floors: Ebpf,
    /// The kernel empties an array of programs that nobody holds.
    _tails: Vec<ProgramArray<MapData>>,
    target_xdp: ProgramArray<MapData>,
    target_tc: ProgramArray<MapData>,
}

/// In the order of [`Hook`].
pub const PROGRAMS: [&str; 5] =
    ["uplink_xdp", "uplink_ingress", "uplink_egress", "pod_ingress", "pod_egress"];
const FLOOR_PROGRAMS: [&str; 16] = [
    "floor_pass",
    "floor_next",
    "floor_swap",
    "floor_dnat",
    "xdp4_source",
    "xdp4_dest",
    "xdp4_nat",
    "xdp6_source",
    "xdp6_dest",
    "xdp6_nat",
    "tc4_source",
    "tc4_dest",
    "tc4_nat",
    "tc6_source",
    "tc6_dest",
    "tc6_nat",
];

impl Kernel {
    /// The object's programs, for this world. `uplink`: the interface that XDP may send from.
    pub fn new(object: &[u8], world: &World, uplink: u32) -> Result<Self> {
        let config = &world.config;
        let mut ours = EbpfLoader::new()
            .map_max_entries(maps::FLOWS4, config.ipv4.flow_set_mask + 1)
            .map_max_entries(maps::FLOWS6, config.ipv6.flow_set_mask + 1)
            .map_max_entries(maps::NAT4, config.ipv4.nat_line_mask + 1)
            .map_max_entries(maps::NAT6, config.ipv6.nat_line_mask + 1)
            .map_max_entries(maps::RINGS, (world.ring_slots() as u32).div_ceil(RING_BLOCK).max(1))
            .load(object)
            .into_diagnostic()
            .wrap_err("the programs do not load; are you root?")?;
        let mut floors =
            EbpfLoader::new().load(FLOORS).into_diagnostic().wrap_err("the floors do not load")?;
        load(&mut ours, PROGRAMS.into_iter().chain(tail::PROGRAMS.map(|(.., name)| name)))?;
        load(&mut floors, FLOOR_PROGRAMS)?;
        let mut tails = BTreeMap::new();
        for (array, index, name) in tail::PROGRAMS {
            if !tails.contains_key(array) {
                tails.insert(array, take_array(&mut ours, array)?);
            }
            let fd = program(&ours, name)?.fd().into_diagnostic()?;
            tails.get_mut(array).ok_or_else(|| miette!("{array}"))?.set(index, fd, 0).into_diagnostic()?;
        }
        let (target_xdp, target_tc) =
            (take_array(&mut floors, "TARGET_XDP")?, take_array(&mut floors, "TARGET_TC")?);
        pour(&mut ours, world, uplink)?;
        feed_floor(&mut floors, world)?;
        Ok(Self { ours, floors, _tails: tails.into_values().collect(), target_xdp, target_tc })
    }

    fn program(&self, which: Which) -> Result<&Program> {
        match which {
            Which::Ours(name) => program(&self.ours, name),
            Which::Floor(name) => program(&self.floors, name),
        }
    }

    /// The program that the restoring ones go on with.
    pub fn aim(&mut self, which: Which) -> Result<()> {
        let (ebpf, name) = match which {
            Which::Ours(name) => (&self.ours, name),
            Which::Floor(name) => (&self.floors, name),
        };
        let program = program(ebpf, name)?;
        let fd = program.fd().into_diagnostic()?;
        let array = match program {
            Program::Xdp(_) => &mut self.target_xdp,
            _ => &mut self.target_tc,
        };
        array.set(0, fd, 0).into_diagnostic()
    }

    /// What the restoring programs make.
    pub fn control(&mut self, control: Control) -> Result<()> {
        let mut map = array_mut::<Control>(&mut self.floors, "CONTROL")?;
        map.set(0, control, 0).into_diagnostic()
    }

    /// The masquerading port of a flow.
    pub fn keep_port(&mut self, flow: u32, port: u16) -> Result<()> {
        array_mut::<u32>(&mut self.floors, "NAT_PORTS")?.set(flow, u32::from(port), 0).into_diagnostic()
    }

    /// Runs a program `repeat` times; `interface` 0: as if the packet had come in from the loopback device.
    pub fn run(&self, which: Which, frame: &[u8], repeat: u32, interface: u32) -> Result<Ran> {
        let mut out = vec![0; frame.len() + 256];
        let program = self.program(which)?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> =
            [0, frame.len() as u32, 0, interface, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let with_context = interface != 0 && matches!(program, Program::Xdp(_));
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: with_context.then_some(&context),
            repeat,
            ..TestRunOptions::default()
        };
        let before = cpu_nanos();
        let result = match program {
            Program::Xdp(program) => Xdp::test_run(program, options),
            Program::SchedClassifier(program) => SchedClassifier::test_run(program, options),
            other => return Err(miette!("{} is a {:?}", which.name(), other.prog_type())),
        }
        .into_diagnostic()
        .wrap_err_with(|| format!("{} on {} bytes", which.name(), frame.len()))?;
        let took = cpu_nanos() - before;
        out.truncate(result.data_size_out as usize);
        Ok(Ran { nanos: took as f64 / f64::from(repeat), frame: out })
    }

    /// Attaches the program that does nothing: the kernel takes test packets only from devices with XDP.
    pub fn attach_pass(&mut self, interface: &str) -> Result<()> {
        match self.floors.program_mut("floor_pass") {
            Some(Program::Xdp(program)) => {
                program.attach(interface, XdpMode::default()).into_diagnostic().map(|_| ())
            }
            _ => Err(miette!("no program floor_pass")),
        }
    }

    /// Every counter of a hook.
    pub fn counters(&self, hook: Hook) -> Result<BTreeMap<Reason, u64>> {
        let map = self.ours.map(maps::COUNTERS).ok_or_else(|| miette!("no map COUNTERS"))?;
        let counters = PerCpuArray::<&MapData, u64>::try_from(map).into_diagnostic()?;
        let value = |reason: &Reason| {
            let per_cpu = counters.get(&counter_index(hook, *reason), 0).into_diagnostic()?;
            Ok((*reason, per_cpu.iter().sum()))
        };
        Reason::ALL.iter().map(value).collect()
    }

    /// What the counters of a hook have gained.
    pub fn moved(&self, hook: Hook, before: &BTreeMap<Reason, u64>) -> Result<BTreeMap<Reason, u64>> {
        let now = self.counters(hook)?;
        Ok(now
            .into_iter()
            .map(|(reason, count)| (reason, count - before.get(&reason).copied().unwrap_or(0)))
            .filter(|(_, count)| *count > 0)
            .collect())
    }
}

/// Time this thread has run, on no matter what.
fn cpu_nanos() -> u64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

fn load(ebpf: &mut Ebpf, names: impl IntoIterator<Item = &'static str>) -> Result<()> {
    for name in names {
        let loaded = match ebpf.program_mut(name) {
            Some(Program::Xdp(program)) => program.load(),
            Some(Program::SchedClassifier(program)) => program.load(),
            _ => return Err(miette!("the object has no program {name}")),
        };
        loaded.into_diagnostic().wrap_err(name)?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a Program> {
    ebpf.program(name).ok_or_else(|| miette!("the object has no program {name}"))
}

fn take_array(ebpf: &mut Ebpf, name: &str) -> Result<ProgramArray<MapData>> {
    let map = ebpf.take_map(name).ok_or_else(|| miette!("the object has no map {name}"))?;
    ProgramArray::try_from(map).into_diagnostic()
}

fn array_mut<'a, V: aya::Pod>(ebpf: &'a mut Ebpf, name: &str) -> Result<Array<&'a mut MapData, V>> {
    let map = ebpf.map_mut(name).ok_or_else(|| miette!("the object has no map {name}"))?;
    Array::try_from(map).into_diagnostic()
}

fn put_words(ebpf: &mut Ebpf, name: &str, words: impl Iterator<Item = (u32, u64)>) -> Result<()> {
    let mut filter = array_mut::<u64>(ebpf, name)?;
    for (index, bits) in words {
        filter.set(index, bits, 0).into_diagnostic()?;
    }
    Ok(())
}

fn hash_mut<'a, K: aya::Pod, V: aya::Pod>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<HashMap<&'a mut MapData, K, V>> {
    let map = ebpf.map_mut(name).ok_or_else(|| miette!("the object has no map {name}"))?;
    HashMap::try_from(map).into_diagnostic()
}

fn bytes<const N: usize>(value: &(impl zerocopy::IntoBytes + zerocopy::Immutable)) -> Result<[u8; N]> {
    value.as_bytes().try_into().into_diagnostic().wrap_err("a map's type has changed")
}

fn pour(ebpf: &mut Ebpf, world: &World, uplink: u32) -> Result<()> {
    let clock = lb_kernel::maps::flows::clock().into_diagnostic()?;
    let config = bytes(&Config { clock, station: Station::only(STATION), ..world.config })?;
    array_mut::<[u8; size_of::<Config>()]>(ebpf, maps::CONFIG)?.set(0, config, 0).into_diagnostic()?;
    for ((address, port, proto), service) in &world.services {
        let value: [u8; 32] = bytes(service)?;
        if let Some(address) = address.unmapped() {
            let key: [u8; 8] = bytes(&Frontend4::new(address, *port, *proto))?;
            hash_mut::<[u8; 8], [u8; 32]>(ebpf, maps::SERVICES4)?.insert(key, value, 0).into_diagnostic()?;
        } else {
            let key: [u8; 20] = bytes(&Frontend6::new(*address, *port, *proto))?;
            hash_mut::<[u8; 20], [u8; 32]>(ebpf, maps::SERVICES6)?.insert(key, value, 0).into_diagnostic()?;
        }
    }
    put_words(ebpf, maps::ADDRESSES, AddressFilter::of(world).words())?;
    put_words(ebpf, maps::ENDPOINTS, EndpointFilter::of(world).words())?;
    put_words(ebpf, maps::NODE_PORTS, NodePortFilter::of(world).words())?;
    let interface = Interface {
        role: Role::Uplink as u32,
        flags: Interface::XDP_SEES | Interface::XDP_SENDS,
        ..Interface::default()
    };
    for index in [1, uplink] {
        let mut interfaces = hash_mut::<u32, [u8; 32]>(ebpf, maps::INTERFACES)?;
        interfaces.insert(index, bytes(&interface)?, 0).into_diagnostic()?;
        let station = Station::new(index, STATION);
        array_mut::<u64>(ebpf, maps::STATIONS)?.set(station.slot(0), station.0, 0).into_diagnostic()?;
    }
    for (id, backend) in &world.backends {
        array_mut::<[u8; 32]>(ebpf, maps::BACKENDS)?.set(*id, bytes(backend)?, 0).into_diagnostic()?;
    }
    let mut slots = vec![0; world.ring_slots()];
    for (offset, ring) in &world.rings {
        slots[*offset as usize..][..ring.len()].copy_from_slice(ring);
    }
    const BLOCK: usize = RING_BLOCK as usize;
    let mut rings = array_mut::<[u32; BLOCK]>(ebpf, maps::RINGS)?;
    for (index, chunk) in slots.chunks(BLOCK).enumerate() {
        let mut block = [0; BLOCK];
        block[..chunk.len()].copy_from_slice(chunk);
        rings.set(index as u32, block, 0).into_diagnostic()?;
    }
    Ok(())
}

/// The floor knows the same frontends; each stands for itself, so that packets stay what they are.
fn feed_floor(ebpf: &mut Ebpf, world: &World) -> Result<()> {
    let mut services = hash_mut::<[u8; 8], [u32; 2]>(ebpf, "FLOOR_SERVICES")?;
    let key = |address: Ipv4, port: Port, proto: Proto| bytes::<8>(&Frontend4::new(address, port, proto));
    for ((address, port, proto), _) in &world.services {
        if let Some(address) = address.unmapped() {
            let value = [address.to_be32(), u32::from(port.to_be16())];
            services.insert(key(address, *port, *proto)?, value, 0).into_diagnostic()?;
        }
    }
    Ok(())
}
