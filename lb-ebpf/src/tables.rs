//! `lb_common`'s door to state, opened onto the maps.

use core::ffi::c_void;
use core::mem::offset_of;

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup, bpf_sock_addr, xdp_md};
use aya_ebpf::helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_jiffies64};
use lb_common::abi::{
    Affinity, AffinityKey, BackendId, Config, Flow, FlowReference, FlowSet, FlowWord, Fragment, FragmentKey,
    Interface, Moment, NAT_LINE, NatLine, RING_BLOCK, Service, ServiceId, WAYS, address_bit,
};
use lb_common::addr::{Port, Proto};
use lb_common::datapath::flow_table::{self, Found, InsertError, Query};
use lb_common::datapath::opening::Opening;
use lb_common::datapath::xdp::Router;
use lb_common::datapath::{Backend, Family, FlowSets, Route, Tables};

use crate::family::{KernelFamily, exact_source};
use crate::functions::DONE;
use crate::maps::{
    ADDRESSES, AFFINITY, BACKENDS, CONFIG, Desk, FRAGMENTS, INTERFACES, REFUSALS, RINGS, SOURCE_RANGES,
};
use crate::packet::forget;
use crate::routes::{self, Asked, KnownRoute};

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
pub struct KernelTables<A: KernelFamily> {
    config: &'static Config,
    /// Asked once for a packet.
    now: Moment,
    context: Context,
    desk: *mut Desk<A>,
    /// Flows are searched for by a function, not in place.
    searches_apart: bool,
}

impl<A: KernelFamily> KernelTables<A> {
    /// Nothing only if a map of one entry had none, which an array always has.
    #[inline(always)]
    pub fn new(context: Context) -> Option<Self> {
        let config = CONFIG.get(0)?;
        Some(Self { config, now: moment(config), context, desk: A::desk()?, searches_apart: A::APART })
    }

    /// For what most packets do not need: searches are calls, which cost less to verify.
    #[inline(always)]
    pub fn off_the_hot_path(context: Context) -> Option<Self> {
        Some(Self { searches_apart: true, ..Self::new(context)? })
    }

    /// For socket hooks: they look up no flows, and packets may come in between while they run, so they
    /// have no desk.
    #[inline(always)]
    pub fn without_desk(context: *mut bpf_sock_addr) -> Option<Self> {
        let desk = core::ptr::null_mut();
        let context = Context::Socket(context);
        let config = CONFIG.get(0)?;
        Some(Self { config, now: moment(config), context, desk, searches_apart: true })
    }

    /// This CPU's desk.
    #[inline(always)]
    pub const fn desk(&self) -> *mut Desk<A> {
        self.desk
    }

    /// What the kernel's routing says: its code, and the desk with the answer.
    #[inline(always)]
    fn ask_route(&self, source: A, destination: A, length: u16) -> Option<(i64, &bpf_fib_lookup)> {
        let desk = self.desk;
        // SAFETY: this CPU's only desk; zeros are a value of this plain C struct of whole words; context and
        // query are valid for the call, and the length is that of the struct.
        unsafe {
            let query = &mut (*desk).route;
            // Word by word, as in `copy`.
            const WORDS: usize = size_of::<bpf_fib_lookup>() / size_of::<u32>();
            for word in 0..WORDS {
                (&raw mut *query).cast::<u32>().add(word).write_volatile(0);
            }
            query.ifindex = self.context.interface();
            query.__bindgen_anon_1.tot_len = length;
            A::ask(query, source, destination);
            let code =
                fib_lookup(self.context.pointer(), &raw mut *query, size_of::<bpf_fib_lookup>() as i32, 0);
            Some((code, query))
        }
    }

    /// The kernel's answer in our words.
    #[inline(always)]
    fn found_route(&self, found: &bpf_fib_lookup) -> Route {
        Route {
            interface: found.ifindex,
            same_interface: found.ifindex == self.context.interface(),
            destination_mac: found.dmac,
            source_mac: found.smac,
        }
    }

    /// What the kernel said a moment ago about such packets, and the place for what it says now. Of packets that come
    /// from the wire alone: for those of this node it depends on more.
    #[inline(always)]
    fn known_route(&self, source: A, destination: A) -> Option<(&'static mut KnownRoute<A>, Asked<A>)> {
        let Context::Xdp(_) = self.context else { return None };
        let place = A::known_route(routes::place(source, destination))?;
        let asked = Asked { source, destination, ingress: self.context.interface(), moment: self.now };
        // SAFETY: this CPU's slot of a per-CPU map, which nothing else uses while this program runs.
        Some((unsafe { &mut *place }, asked))
    }

    #[inline(always)]
    fn interface(index: u32) -> Option<Interface> {
        // SAFETY: the value is copied at once; a concurrent update of four words of plain data can
        // at worst mix two valid descriptions of the same interface.
        unsafe { INTERFACES.get(index) }.copied()
    }
}

#[inline(always)]
fn moment(config: &Config) -> Moment {
    // SAFETY: the helper has no arguments; the verifier replaces it by a load.
    config.clock.moment(unsafe { bpf_jiffies64() })
}

/// The compiler may not move memory accesses across.
#[inline(always)]
fn barrier() {
    // SAFETY: no instruction at all.
    unsafe { core::arch::asm!("", options(nostack)) };
}

impl<A: KernelFamily> FlowSets<A> for KernelTables<A> {
    type Set = *mut FlowSet<A>;
    /// Lies on the desk: records of IPv6 are too large for the stack.
    type Copied = &'static Flow<A>;

    #[inline(always)]
    fn set(&self, index: u32) -> Option<Self::Set> {
        A::flow_set(index)
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
    fn fits(&self, set: Self::Set, way: usize, test: impl Fn(&Flow<A>) -> bool) -> bool {
        barrier();
        // SAFETY: as for `word`. Another CPU may be writing the record; every bit pattern is a valid
        // `Flow`, and the answer is checked on a copy.
        let fits = test(unsafe { &*flow_pointer(set, way) });
        barrier();
        fits
    }

    #[inline(always)]
    fn flow(&self, set: Self::Set, way: usize) -> &'static Flow<A> {
        barrier();
        // SAFETY: as for `fits`; the caller compares the word before and after and throws a torn copy away.
        let copy = self.copy(unsafe { &*flow_pointer(set, way) });
        barrier();
        copy
    }

    #[inline(always)]
    fn copy(&self, flow: &Flow<A>) -> &'static Flow<A> {
        // All but the spare room at its end.
        const { assert!(offset_of!(Flow<A>, spare) % size_of::<u64>() == 0) };
        let from = (&raw const *flow).cast::<u64>();
        // SAFETY: this CPU's only desk, on which there is one such copy at a time. Records and desk lie in map
        // values, on multiples of eight bytes. Word by word, for what the compiler makes of a copy is a call.
        unsafe {
            let to = (&raw mut (*self.desk).found).cast::<u64>();
            for word in 0..offset_of!(Flow<A>, spare) / size_of::<u64>() {
                to.add(word).write_volatile(from.add(word).read_volatile());
            }
            &(*self.desk).found
        }
    }

    #[inline(always)]
    fn put_flow(&self, set: Self::Set, way: usize, flow: &Flow<A>) {
        barrier();
        // SAFETY: as for `word`; the word says that this CPU alone writes the record.
        unsafe { flow_pointer(set, way).write(*flow) };
        barrier();
    }

    #[inline(always)]
    fn fetch_flow(&self, set: Self::Set, way: usize) {
        // SAFETY: as for `word`. The spare room at the record's end is always zero, and nothing reads it: to write it
        // makes the processor ask for the line and go on, where a load would hold up all that follows.
        unsafe { (&raw mut (*flow_pointer(set, way)).spare).cast::<u32>().write_volatile(0) };
    }

    type NatLine = *mut NatLine;

    #[inline(always)]
    fn nat_line(&self, index: u32) -> Option<Self::NatLine> {
        A::nat_line(index)
    }

    #[inline(always)]
    fn nat_slot(&self, line: Self::NatLine, place: usize) -> FlowReference {
        // SAFETY: `line` is a live array element; volatile, since other CPUs write it.
        FlowReference(unsafe { slot_pointer(line, place).read_volatile() })
    }

    #[inline(always)]
    fn swap_nat_slot(
        &self,
        line: Self::NatLine,
        place: usize,
        old: FlowReference,
        new: FlowReference,
    ) -> bool {
        use core::intrinsics::AtomicOrdering::SeqCst;
        // SAFETY: as above, aligned to four bytes.
        unsafe {
            core::intrinsics::atomic_cxchg::<u32, { SeqCst }, { SeqCst }>(
                slot_pointer(line, place),
                old.0,
                new.0,
            )
            .1
        }
    }
}

#[inline(always)]
fn word_pointer<A>(set: *mut FlowSet<A>, way: usize) -> *mut u64 {
    // SAFETY: `way & 7` lies inside the array of eight; the mask is what the verifier wants to see.
    unsafe { (&raw mut (*set).words).cast::<u64>().add(way & (WAYS - 1)) }
}

#[inline(always)]
fn flow_pointer<A>(set: *mut FlowSet<A>, way: usize) -> *mut Flow<A> {
    // SAFETY: as for `word_pointer`.
    unsafe { (&raw mut (*set).flows).cast::<Flow<A>>().add(way & (WAYS - 1)) }
}

#[inline(always)]
fn slot_pointer(line: *mut NatLine, place: usize) -> *mut u32 {
    // SAFETY: as for `word_pointer`, with sixteen.
    unsafe { line.cast::<u32>().add(place & (NAT_LINE - 1)) }
}

impl<A: KernelFamily> Tables<A> for KernelTables<A> {
    #[inline(always)]
    fn config(&self) -> &Config {
        self.config
    }

    #[inline(always)]
    fn may_concern(&self, address: A) -> bool {
        let (word, bit) = address_bit(address);
        ADDRESSES.get(word).is_none_or(|word| word & bit != 0)
    }

    #[inline(always)]
    fn service(&self, address: A, port: Port, proto: Proto) -> Option<&Service> {
        address.service(port, proto)
    }

    #[inline(always)]
    fn service_copy(&self, found: &Service, address: A, port: Port, proto: Proto) -> Option<Service> {
        // The memory of a replaced entry may be another entry's at once (bpf_mem_alloc, Linux 6.1), so a
        // copy counts only if a second look shows the same.
        let mut found = found;
        for _ in 0..COPY_ATTEMPTS {
            let copy = *found;
            barrier();
            found = address.service(port, proto)?;
            if *found == copy {
                return Some(copy);
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
    fn backend(&self, id: BackendId) -> Option<Backend<A>> {
        BACKENDS.get(id).map(Backend::from)
    }

    #[inline(always)]
    fn now(&self) -> Moment {
        self.now
    }

    #[inline(always)]
    fn forget_history(&self, value: u32) -> u32 {
        forget(value as usize, self.config.hash_seed as u32) as u32
    }

    #[inline(always)]
    fn find(&self, query: &Query<A>) -> Option<Found<&'static Flow<A>, *mut FlowSet<A>>> {
        if !self.searches_apart {
            let (found, unsure) = flow_table::glance(query, self);
            if !unsure {
                return found;
            }
        }
        // SAFETY: this CPU's only desk.
        unsafe { (*self.desk).query = *query };
        let reference = FlowReference(A::search());
        let (set, way) = flow_table::locate(reference, self)?;
        // SAFETY: as above; the search has put both there.
        let (word, flow) = unsafe { ((*self.desk).word, &(*self.desk).found) };
        Some(Found { set, way, word, flow, reference })
    }

    #[inline(always)]
    fn seen_by_xdp(&self) -> bool {
        match self.context {
            Context::Skb(_) => Self::interface(self.context.interface())
                .is_some_and(|interface| interface.flags & Interface::XDP_SEES != 0),
            Context::Xdp(_) | Context::Socket(_) | Context::None => false,
        }
    }

    #[inline(always)]
    fn affinity(&self, client: A, service: ServiceId) -> Option<Affinity> {
        let key = AffinityKey { client: client.to_mapped(), service };
        // SAFETY: the value is copied at once. Programs change it in place, word by word; a mix of two
        // endpoints' words fits the generation of neither.
        unsafe { AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn note_affinity(&self, client: A, service: ServiceId, affinity: Affinity) {
        let key = AffinityKey { client: client.to_mapped(), service };
        // In place where there is an entry: an update in a full LRU map evicts others.
        match AFFINITY.get_ptr_mut(key) {
            // SAFETY: a live map element.
            Some(entry) => unsafe { *entry = affinity },
            // A failure costs the client its affinity, not the connection.
            None => drop(AFFINITY.insert(key, affinity, 0)),
        }
    }

    #[inline(always)]
    fn in_source_range(&self, service: ServiceId, source: A) -> bool {
        SOURCE_RANGES.get(exact_source(service, source)).is_some()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: this CPU's only desk. The value is copied at once; entries are replaced, never changed
        // in place.
        unsafe {
            (*self.desk).fragment.0 = *key;
            let key = &(*self.desk).fragment.0;
            FRAGMENTS.get(key).copied()
        }
    }

    #[inline(always)]
    fn note_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        // SAFETY: this CPU's only desk. A failure costs this datagram.
        unsafe {
            (*self.desk).fragment = (*key, *fragment);
            let (key, fragment) = &(*self.desk).fragment;
            let _ = FRAGMENTS.insert(key, fragment, 0);
        }
    }

    #[inline(always)]
    fn may_refuse(&self) -> bool {
        let limit = self.config.refusal_limit;
        let Some(refusals) = REFUSALS.get_ptr_mut(0) else { return false };
        let now = self.now();
        // SAFETY: this CPU's slot of a per-CPU map.
        unsafe {
            if (*refusals).moment != now {
                (*refusals).moment = now;
                (*refusals).sent = 0;
            }
            (*refusals).sent += 1;
            limit == 0 || (*refusals).sent <= limit
        }
    }

    #[inline(always)]
    fn open(&self, opening: &Opening<A>) -> Result<&'static Flow<A>, InsertError> {
        const FULL: u32 = InsertError::Full as u32;
        const NO_PORTS: u32 = InsertError::NatPortsExhausted as u32;
        const NO_BACKEND: u32 = InsertError::NoBackend as u32;
        const DENIED: u32 = InsertError::SourceDenied as u32;
        let desk = self.desk;
        // SAFETY: this CPU's only desk, and nothing else that uses it runs until we are done.
        unsafe { (*desk).opening = *opening };
        if A::APART {
            return Err(InsertError::Postponed);
        }
        let prepared = A::prepare(self.context);
        let code = if prepared == DONE { A::insert() } else { prepared };
        match code {
            // SAFETY: as above; the record on the desk is the one in the table.
            DONE => Ok(unsafe { &(*desk).new.flow }),
            FULL => Err(InsertError::Full),
            NO_PORTS => Err(InsertError::NatPortsExhausted),
            NO_BACKEND => Err(InsertError::NoBackend),
            DENIED => Err(InsertError::SourceDenied),
            _ => Err(InsertError::Contended),
        }
    }

    #[inline(always)]
    fn masquerade_address(&self, source: A, destination: A) -> A {
        let node = <A as Family>::config(self.config).node_address;
        let known = || self.known_route(A::UNSPECIFIED, destination);
        if let Some(address) = known().and_then(|(known, asked)| known.masquerade(&asked)) {
            return address;
        }
        let Some((code, found)) = self.ask_route(source, destination, 0) else { return node };
        if code != FIB_SUCCESS && code != FIB_NO_NEIGHBOUR && code != FIB_FRAGMENT {
            return node;
        }
        let address = match Self::interface(found.ifindex).map(|interface| A::masquerade(&interface)) {
            Some(address) if address != A::UNSPECIFIED => address,
            _ => node,
        };
        // (Looked up again: to keep it would take room on the stack.)
        if let Some((known, asked)) = known() {
            known.note_masquerade(&asked, address);
        }
        address
    }
}

impl<A: KernelFamily> Router<A> for KernelTables<A> {
    #[inline(always)]
    fn route(&self, source: A, destination: A, length: u16) -> Option<Route> {
        let known = || self.known_route(source, destination);
        if let Some(route) = known().and_then(|(known, asked)| known.answer(&asked, length)) {
            return Some(route);
        }
        let (code, found) = self.ask_route(source, destination, length)?;
        if code != FIB_SUCCESS {
            return None;
        }
        let route = self.found_route(found);
        if !route.same_interface && Self::interface(route.interface)?.flags & Interface::XDP_SENDS == 0 {
            return None;
        }
        // SAFETY: with this code the kernel has written the length that fits (Linux 5.13), or left the packet's.
        let longest = unsafe { found.__bindgen_anon_1.mtu_result };
        if let Some((known, asked)) = known() {
            known.note(&asked, &route, longest);
        }
        Some(route)
    }
}
