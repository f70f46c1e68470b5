//! Every map, typed and sized from `lb_common::abi`. docs/maps.md says who writes and reads them.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray};
use lb_common::abi::{
    ADDRESS_WORDS, Affinity, AffinityKey, Backend, BackendId, BackendName, Config, FlowSet4, FlowSet6,
    Fragment, FragmentKey, Frontend4, Frontend6, HOOKS, Interface, NODE_PORT_WORDS, NatLine, REASONS,
    RING_BLOCK, STATION_SLOTS, Service, ServiceId, ServiceName, SocketFrontend, SocketPeer, TcpPeer, Traffic,
    capacity, tail,
};
use lb_common::addr::{Ipv4, Ipv6};

use crate::desk::KernelDesk;
use crate::refusals::Refusals;
use crate::routes::{KnownRoute, ROUTES};

/// Not preallocated: it takes the memory that its Services need.
#[map]
pub static SERVICES4: HashMap<Frontend4, Service> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);

#[map]
pub static SERVICES6: HashMap<Frontend6, Service> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);

#[map]
pub static BACKENDS: Array<Backend> = Array::with_max_entries(capacity::BACKENDS, 0);

#[map]
pub static BACKEND_FLOWS: Array<u64> = Array::with_max_entries(capacity::BACKENDS, 0);

#[map]
pub static RINGS: Array<[BackendId; RING_BLOCK as usize]> =
    Array::with_max_entries(capacity::RING_BLOCKS, BPF_F_MMAPABLE);

#[map]
pub static FLOWS4: Array<FlowSet4> = Array::with_max_entries(capacity::FLOW_SETS, BPF_F_MMAPABLE);

#[map]
pub static FLOWS6: Array<FlowSet6> = Array::with_max_entries(capacity::FLOW_SETS6, BPF_F_MMAPABLE);

#[map]
pub static ADDRESSES: Array<u64> = Array::with_max_entries(ADDRESS_WORDS, BPF_F_MMAPABLE);

#[map]
pub static CLIENTS: Array<u64> = Array::with_max_entries(ADDRESS_WORDS, BPF_F_MMAPABLE);

#[map]
pub static ENDPOINTS: Array<u64> = Array::with_max_entries(ADDRESS_WORDS, BPF_F_MMAPABLE);

#[map]
pub static NODE_PORTS: Array<u64> = Array::with_max_entries(NODE_PORT_WORDS, BPF_F_MMAPABLE);

#[map]
pub static NAT4: Array<NatLine> = Array::with_max_entries(capacity::NAT_LINES, 0);

#[map]
pub static NAT6: Array<NatLine> = Array::with_max_entries(capacity::NAT_LINES6, 0);

#[map]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity> =
    LruHashMap::with_max_entries(capacity::AFFINITIES, 0);

/// Keys are `lb_common::abi::SourceRange`s, whose first word is the trie's own.
#[map]
pub static SOURCE_RANGES: LpmTrie<[u8; 20], u32> = LpmTrie::with_max_entries(capacity::SOURCE_RANGES, 0);

/// Keys are `lb_common::abi::SourceToward`s, whose first word is the trie's own.
#[map]
pub static SOURCES: LpmTrie<[u8; 20], Ipv6> = LpmTrie::with_max_entries(capacity::SOURCES, 0);

#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment> =
    LruHashMap::with_max_entries(capacity::FRAGMENTS, 0);

#[map]
pub static SOCKET_PEERS: LruHashMap<SocketPeer, SocketFrontend> =
    LruHashMap::with_max_entries(capacity::SOCKET_PEERS, 0);

#[map]
pub static TCP_PEERS: Array<TcpPeer> = Array::with_max_entries(capacity::TCP_PEERS, 0);

#[map]
pub static TAILS_XDP: ProgramArray = ProgramArray::with_max_entries(tail::COUNT, 0);

#[map]
pub static TAILS_INGRESS: ProgramArray = ProgramArray::with_max_entries(tail::COUNT, 0);

#[map]
pub static TAILS_EGRESS: ProgramArray = ProgramArray::with_max_entries(tail::COUNT, 0);

/// Empty where netfilter is not asked.
#[map]
pub static TAILS_CONNTRACK: ProgramArray = ProgramArray::with_max_entries(tail::COUNT, 0);

#[map]
pub static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(capacity::INTERFACES, 0);

#[map]
pub static STATIONS: Array<u64> = Array::with_max_entries(STATION_SLOTS, 0);

#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(HOOKS * REASONS, 0);

#[map]
pub static SERVICE_TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(capacity::SERVICE_IDS, 0);

/// For people; no program reads it.
#[map]
pub static SERVICE_NAMES: HashMap<ServiceId, ServiceName> =
    HashMap::with_max_entries(capacity::SERVICE_IDS, BPF_F_NO_PREALLOC);

/// For people; no program reads it.
#[map]
pub static BACKEND_NAMES: HashMap<BackendId, BackendName> =
    HashMap::with_max_entries(capacity::BACKENDS, BPF_F_NO_PREALLOC);

/// The desks of a CPU: as many as `DESKS_TAKEN` has entries where its programs can interrupt each other.
#[map]
pub static DESK4: PerCpuArray<KernelDesk<Ipv4>> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub static DESK6: PerCpuArray<KernelDesk<Ipv6>> = PerCpuArray::with_max_entries(1, 0);

/// 1: somebody works at this desk. Nobody asks where programs cannot interrupt each other.
#[map]
pub static DESKS_TAKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(capacity::DESKS, 0);

#[map]
pub static ROUTES4: PerCpuArray<KnownRoute<Ipv4>> = PerCpuArray::with_max_entries(ROUTES, 0);

#[map]
pub static ROUTES6: PerCpuArray<KnownRoute<Ipv6>> = PerCpuArray::with_max_entries(ROUTES, 0);

#[map]
pub static REFUSALS: PerCpuArray<Refusals> = PerCpuArray::with_max_entries(1, 0);

/// 1 where programs of one CPU can interrupt each other. The agent says so before it loads them.
#[unsafe(no_mangle)]
pub static PREEMPTIBLE: Global<u8> = Global::new(0);
