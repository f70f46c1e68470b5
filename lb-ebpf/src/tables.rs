//! `lb_common`'s door to state, opened onto the maps.

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup, bpf_sock_addr, xdp_md};
use aya_ebpf::helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_ktime_get_coarse_ns};
use lb_common::abi::{
    BackendId, Config, Flow4, FlowSet4, FlowWord, Frontend4, Interface, Moment, RING_BLOCK, Service, WAYS,
};
use lb_common::addr::{Ipv4, Port, Proto};
use lb_common::datapath::flow_table::{self, InsertError};
use lb_common::datapath::ingress::{self, Opening};
use lb_common::datapath::xdp::Router;
use lb_common::datapath::{Backend, FlowSets, Route, Tables};

use crate::maps::{BACKENDS4, CONFIG, DESK, FLOWS4, INTERFACES, NAT4, RINGS, SERVICES4};

const AF_INET: u8 = 2;
const COPY_ATTEMPTS: usize = 3;
const FIB_SUCCESS: i64 = 0;
/// A route, but no neighbour yet.
const FIB_NO_NEIGHBOUR: i64 = 7;
/// A route, but the packet is too long for it.
const FIB_FRAGMENT: i64 = 8;

/// The context of the program at hand.
#[derive(Clone, Copy)]
pub enum Context {
    /// XDP.
    Xdp(*mut xdp_md),
    /// tc.
    Skb(*mut __sk_buff),
    /// A socket hook, which has no packet and no route.
    Socket(*mut bpf_sock_addr),
    /// A function that asks for neither.
    None,
}

impl Context {
    #[inline(always)]
    const fn pointer(self) -> *mut c_void {
        match self {
            Self::Xdp(context) => context.cast(),
            Self::Skb(context) => context.cast(),
            Self::Socket(context) => context.cast(),
            Self::None => core::ptr::null_mut(),
        }
    }

    /// Where the packet came in or goes out.
    #[inline(always)]
    pub fn interface(self) -> u32 {
        // SAFETY: contexts are valid while their program runs.
        unsafe {
            match self {
                Self::Xdp(context) => (*context).ingress_ifindex,
                Self::Skb(context) => (*context).ifindex,
                Self::Socket(_) | Self::None => 0,
            }
        }
    }
}

/// The maps, and what the kernel says about routes for the packet at hand.
pub struct KernelTables {
    config: &'static Config,
    context: Context,
}

impl KernelTables {
    /// Nothing only if the config map had no entry, which an array of one always has.
    #[inline(always)]
    pub fn new(context: Context) -> Option<Self> {
        Some(Self { config: CONFIG.get(0)?, context })
    }

    /// What the kernel's routing says: its code, and the desk with the answer.
    #[inline(always)]
    fn ask_route(&self, source: Ipv4, destination: Ipv4, length: u16) -> Option<(i64, &bpf_fib_lookup)> {
        let desk = DESK.get_ptr_mut(0)?;
        // SAFETY: this CPU's only desk; zero is a value of this plain C struct; context and query are
        // valid for the call, and the length is that of the struct.
        unsafe {
            let query = &mut (*desk).route;
            *query = core::mem::zeroed();
            query.family = AF_INET;
            query.ifindex = self.context.interface();
            query.__bindgen_anon_1.tot_len = length;
            query.__bindgen_anon_3.ipv4_src = source.to_be32();
            query.__bindgen_anon_4.ipv4_dst = destination.to_be32();
            let code =
                fib_lookup(self.context.pointer(), &raw mut *query, size_of::<bpf_fib_lookup>() as i32, 0);
            Some((code, query))
        }
    }

    #[inline(always)]
    fn interface(index: u32) -> Option<Interface> {
        // SAFETY: the value is copied at once; a concurrent update of four words of plain data can
        // at worst mix two valid descriptions of the same interface.
        unsafe { INTERFACES.get(index) }.copied()
    }
}

/// The compiler may not move memory accesses across.
#[inline(always)]
fn barrier() {
    // SAFETY: no instruction at all.
    unsafe { core::arch::asm!("", options(nostack)) };
}

impl FlowSets<Ipv4> for KernelTables {
    type Set = *mut FlowSet4;

    #[inline(always)]
    fn set(&self, index: u32) -> Option<Self::Set> {
        FLOWS4.get_ptr_mut(index)
    }

    #[inline(always)]
    fn word(&self, set: Self::Set, way: usize) -> FlowWord {
        // SAFETY: `set` is a live array element and `way < WAYS`, so the word lies inside it. Volatile,
        // since other CPUs write it.
        FlowWord(unsafe { word_pointer(set, way).read_volatile() })
    }

    #[inline(always)]
    fn swap_word(&self, set: Self::Set, way: usize, old: FlowWord, new: FlowWord) -> bool {
        use core::intrinsics::AtomicOrdering::SeqCst;
        // SAFETY: as above; eight-byte words are aligned.
        unsafe {
            core::intrinsics::atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(
                word_pointer(set, way),
                old.0,
                new.0,
            )
            .1
        }
    }

    #[inline(always)]
    fn clear_lock(&self, set: Self::Set) {
        use core::intrinsics::AtomicOrdering::SeqCst;
        barrier();
        let mask = FlowWord(u64::MAX).unlocked().0;
        // SAFETY: as above; the result is not used.
        unsafe {
            core::intrinsics::atomic_and::<u64, u64, { SeqCst }>(word_pointer(set, 0), mask);
        }
    }

    #[inline(always)]
    fn flow(&self, set: Self::Set, way: usize) -> Flow4 {
        barrier();
        // SAFETY: as for `word`. Another CPU may be writing the record: the caller compares the word
        // before and after and throws a torn copy away; every bit pattern is a valid `Flow4`.
        let flow = unsafe { flow_pointer(set, way).read() };
        barrier();
        flow
    }

    #[inline(always)]
    fn put_flow(&self, set: Self::Set, way: usize, flow: &Flow4) {
        barrier();
        // SAFETY: as for `word`; the word says that this CPU alone writes the record.
        unsafe { flow_pointer(set, way).write(*flow) };
        barrier();
    }

    #[inline(always)]
    fn nat_slot(&self, index: u32) -> Option<u32> {
        let slot = NAT4.get_ptr(index)?;
        // SAFETY: a live array element; volatile, since other CPUs write it.
        Some(unsafe { slot.read_volatile() })
    }

    #[inline(always)]
    fn swap_nat_slot(&self, index: u32, old: u32, new: u32) -> bool {
        use core::intrinsics::AtomicOrdering::SeqCst;
        let Some(slot) = NAT4.get_ptr_mut(index) else { return false };
        // SAFETY: a live array element, aligned to four bytes.
        unsafe { core::intrinsics::atomic_cxchg::<u32, { SeqCst }, { SeqCst }>(slot, old, new).1 }
    }
}

#[inline(always)]
fn word_pointer(set: *mut FlowSet4, way: usize) -> *mut u64 {
    // SAFETY: `way & 7` lies inside the array of eight; the mask is what the verifier wants to see.
    unsafe { (&raw mut (*set).words).cast::<u64>().add(way & (WAYS - 1)) }
}

#[inline(always)]
fn flow_pointer(set: *mut FlowSet4, way: usize) -> *mut Flow4 {
    // SAFETY: as for `word_pointer`.
    unsafe { (&raw mut (*set).flows).cast::<Flow4>().add(way & (WAYS - 1)) }
}

impl Tables<Ipv4> for KernelTables {
    #[inline(always)]
    fn config(&self) -> &Config {
        self.config
    }

    #[inline(always)]
    fn service(&self, address: Ipv4, port: Port, proto: Proto) -> Option<&Service> {
        // SAFETY: entries are replaced, never changed in place. What is read through the reference may be
        // another entry's by then; whoever needs more than its being there uses `service_copy`.
        unsafe { SERVICES4.get(Frontend4::new(address, port, proto)) }
    }

    #[inline(always)]
    fn service_copy(&self, address: Ipv4, port: Port, proto: Proto) -> Option<Service> {
        // The memory of a replaced entry may be another entry's at once (bpf_mem_alloc, Linux 6.1), so a
        // copy counts only if a second look shows the same.
        for _ in 0..COPY_ATTEMPTS {
            let first = *self.service(address, port, proto)?;
            barrier();
            if *self.service(address, port, proto)? == first {
                return Some(first);
            }
        }
        None
    }

    #[inline(always)]
    fn ring_slot(&self, slot: u32) -> Option<BackendId> {
        let block = RINGS.get(slot / RING_BLOCK)?;
        block.get((slot % RING_BLOCK) as usize).copied()
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<Backend<Ipv4>> {
        BACKENDS4.get(id).map(Backend::from)
    }

    #[inline(always)]
    fn now(&self) -> Moment {
        // SAFETY: the helper has no arguments.
        Moment::from_nanos(unsafe { bpf_ktime_get_coarse_ns() })
    }

    #[inline(always)]
    fn forget_history(&self, value: u32) -> u32 {
        let mut value = value as u64;
        // Mixed in and out again: the verifier does not know what it is, nor that it cancels.
        let unknown = self.config.hash_seed;
        // SAFETY: arithmetic on registers.
        unsafe {
            core::arch::asm!(
                "{value} ^= {unknown}",
                "{value} ^= {unknown}",
                value = inout(reg) value,
                unknown = in(reg) unknown,
                options(nomem, nostack)
            );
        }
        value as u32
    }

    #[inline(always)]
    fn open(&self, opening: &Opening<Ipv4>) -> Result<Flow4, InsertError> {
        let Some(desk) = DESK.get_ptr_mut(0) else { return Err(InsertError::Contended) };
        // SAFETY: this CPU's only desk, and nothing else that uses it runs until we are done.
        unsafe { (*desk).opening = *opening };
        let prepared = match self.context {
            Context::Xdp(context) => prepare_from_xdp(context),
            Context::Skb(context) => prepare_from_skb(context),
            Context::None | Context::Socket(_) => return Err(InsertError::Contended),
        };
        let code = if prepared == DONE { insert_flow() } else { prepared };
        match code {
            // SAFETY: as above; the record on the desk is the one in the table.
            DONE => Ok(unsafe { (*desk).new.flow }),
            FULL => Err(InsertError::Full),
            NO_PORTS => Err(InsertError::NatPortsExhausted),
            NO_BACKEND => Err(InsertError::NoBackend),
            _ => Err(InsertError::Contended),
        }
    }

    #[inline(always)]
    fn masquerade_address(&self, source: Ipv4, destination: Ipv4) -> Ipv4 {
        let node = self.config.node_address4;
        let Some((code, found)) = self.ask_route(source, destination, 0) else { return node };
        if code != FIB_SUCCESS && code != FIB_NO_NEIGHBOUR && code != FIB_FRAGMENT {
            return node;
        }
        match Self::interface(found.ifindex) {
            Some(interface) if interface.masquerade4 != Ipv4::default() => interface.masquerade4,
            _ => node,
        }
    }

    #[inline(always)]
    fn in_cluster_range(&self, source: Ipv4) -> Option<bool> {
        self.config.in_cluster_range4(source)
    }
}

impl Router<Ipv4> for KernelTables {
    #[inline(always)]
    fn route(&self, source: Ipv4, destination: Ipv4, length: u16) -> Option<Route> {
        let (code, found) = self.ask_route(source, destination, length)?;
        if code != FIB_SUCCESS {
            return None;
        }
        let same_interface = found.ifindex == self.context.interface();
        if !same_interface && Self::interface(found.ifindex)?.flags & Interface::XDP == 0 {
            return None;
        }
        Some(Route {
            interface: found.ifindex,
            same_interface,
            destination_mac: found.dmac,
            source_mac: found.smac,
        })
    }
}

const DONE: u32 = 0;
const FULL: u32 = InsertError::Full as u32;
const NO_PORTS: u32 = InsertError::NatPortsExhausted as u32;
const NO_BACKEND: u32 = InsertError::NoBackend as u32;

/// Picks a backend for the opening on the desk. A global function: the verifier checks it once, by
/// itself, and the programs stay small.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prepare_from_xdp(context: *mut xdp_md) -> u32 {
    prepare(Context::Xdp(context))
}

/// As [`prepare_from_xdp`], for tc.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prepare_from_skb(context: *mut __sk_buff) -> u32 {
    prepare(Context::Skb(context))
}

#[inline(always)]
fn prepare(context: Context) -> u32 {
    let (Some(tables), Some(desk)) = (KernelTables::new(context), DESK.get_ptr_mut(0)) else {
        return InsertError::Contended as u32;
    };
    // SAFETY: this CPU's only desk; the caller has filled `opening` in and waits.
    unsafe {
        match ingress::prepare(&(*desk).opening, &tables) {
            Ok(new) => {
                (*desk).new = new;
                DONE
            }
            Err(error) => error as u32,
        }
    }
}

/// Makes the flow on the desk.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn insert_flow() -> u32 {
    let (Some(tables), Some(desk)) = (KernelTables::new(Context::None), DESK.get_ptr_mut(0)) else {
        return InsertError::Contended as u32;
    };
    // SAFETY: this CPU's only desk; the caller has filled `new` in and waits.
    match flow_table::insert(unsafe { &mut (*desk).new }, &tables) {
        Ok(()) => DONE,
        Err(error) => error as u32,
    }
}
