//! Every map, typed and sized from `lb_common::abi`. docs/maps.md says who writes and reads them.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_fib_lookup};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use lb_common::abi::{
    Backend4, BackendId, BackendName, Config, FlowSet4, Frontend4, HOOKS, Interface, REASONS, RING_BLOCK,
    Service, ServiceId, ServiceName, SocketPeer4, Traffic, capacity,
};
use lb_common::addr::Ipv4;
use lb_common::datapath::flow_table::NewFlow;
use lb_common::datapath::ingress::Opening;
use lb_common::datapath::refuse::UNREACHABLE_LENGTH;

/// Not preallocated: it takes the memory that its Services need.
#[map]
pub static SERVICES4: HashMap<Frontend4, Service> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);

#[map]
pub static BACKENDS4: Array<Backend4> = Array::with_max_entries(capacity::BACKENDS, 0);

#[map]
pub static RINGS: Array<[BackendId; RING_BLOCK as usize]> =
    Array::with_max_entries(capacity::RING_BLOCKS, BPF_F_MMAPABLE);

#[map]
pub static FLOWS4: Array<FlowSet4> = Array::with_max_entries(capacity::FLOW_SETS, BPF_F_MMAPABLE);

#[map]
pub static NAT4: Array<u32> = Array::with_max_entries(capacity::NAT_SLOTS, 0);

#[map]
pub static SOCKET_PEERS4: LruHashMap<SocketPeer4, Frontend4> =
    LruHashMap::with_max_entries(capacity::SOCKET_PEERS, 0);

#[map]
pub static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(capacity::INTERFACES, 0);

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

/// What is too large for the 512 bytes of stack. One packet at a time uses it on a CPU.
pub struct Desk {
    /// A flow to be made.
    pub opening: Opening<Ipv4>,
    /// The flow in the making.
    pub new: NewFlow<Ipv4>,
    /// A question about routes and its answer.
    pub route: bpf_fib_lookup,
    /// What a client gets when nobody serves.
    pub answer: [u8; UNREACHABLE_LENGTH],
}

#[map]
pub static DESK: PerCpuArray<Desk> = PerCpuArray::with_max_entries(1, 0);

/// The desk's room for an answer.
#[inline(always)]
pub fn desk_answer() -> Option<&'static mut [u8; UNREACHABLE_LENGTH]> {
    // SAFETY: this CPU's only desk; one packet at a time is refused on a CPU, and it asks once.
    DESK.get_ptr_mut(0).map(|desk| unsafe { &mut (*desk).answer })
}

/// 1 where the kernel has bpf_set_retval (5.18). The agent clears it before loading elsewhere; the
/// verifier then skips the call, and a refused connect fails with EPERM.
#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u8> = Global::new(1);
