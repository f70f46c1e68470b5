//! `lb_common`'s door to state, opened onto the maps.

mod flows;

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup, bpf_sock_addr, xdp_md};
use aya_ebpf::helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_jiffies64};
use aya_ebpf::maps::{Array, lpm_trie};
use lb_common::abi::{
    Affinity, AffinityKey, BackendId, Config, Flow, FlowReference, FlowSet, Fragment, FragmentKey, Interface,
    Moment, RING_BLOCK, Service, ServiceId, SourceRange, address_bit,
};
use lb_common::addr::{Address, Port, Proto};
use lb_common::datapath::flow_table::{self, Found, InsertError, Query};
use lb_common::datapath::opening::Opening;
use lb_common::datapath::xdp::Router;
use lb_common::datapath::{Backend, Family, Route, Tables};

use crate::apart::make_flow;
use crate::desk::{self, DeskNumber};
use crate::family::KernelFamily;
use crate::functions::DONE;
use crate::maps::{
    ADDRESSES, AFFINITY, BACKENDS, CLIENTS, CONFIG, Desk, FRAGMENTS, INTERFACES, REFUSALS, RINGS,
    SOURCE_RANGES,
};
use crate::order::{all_of, port_after};
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
    /// Nothing only if a map had not the entry asked for, which an array always has.
    #[inline(always)]
    pub fn new(context: Context, desk: DeskNumber) -> Option<Self> {
        let config = CONFIG.get(0)?;
        let desk = desk::at::<A>(desk)?;
        Some(Self { config, now: moment(config), context, desk, searches_apart: A::APART })
    }

    /// For what most packets do not need: searches are calls, which cost less to verify.
    #[inline(always)]
    pub fn off_the_hot_path(context: Context, desk: DeskNumber) -> Option<Self> {
        Some(Self { searches_apart: true, ..Self::new(context, desk)? })
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

    /// The desk of the program at hand.
    #[inline(always)]
    pub const fn desk(&self) -> *mut Desk<A> {
        self.desk
    }

    /// What the kernel's routing says: its code, and the desk with the answer.
    #[inline(always)]
    fn ask_route(&self, source: A, destination: A, length: u16) -> Option<(i64, &bpf_fib_lookup)> {
        let desk = self.desk;
        // SAFETY: this program's own desk; zeros are a value of this plain C struct of whole words; context and
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
        if desk::is_preemptible() {
            // Whoever comes in between would find half an entry.
            return None;
        }
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

/// Whether the bit of an address is set in a filter.
#[inline(always)]
fn has_bit<A: Address>(filter: &Array<u64>, address: A) -> bool {
    let (word, bit) = address_bit(address);
    filter.get(word).is_none_or(|word| word & bit != 0)
}

/// The compiler may not move memory accesses across.
#[inline(always)]
pub fn barrier() {
    // SAFETY: no instruction at all.
    unsafe { core::arch::asm!("", options(nostack)) };
}

impl<A: KernelFamily> Tables<A> for KernelTables<A> {
    #[inline(always)]
    fn config(&self) -> &Config {
        self.config
    }

    #[inline(always)]
    fn may_concern(&self, address: A) -> bool {
        has_bit(&ADDRESSES, address)
    }

    #[inline(always)]
    fn is_noted(&self, client: A) -> bool {
        has_bit(&CLIENTS, client)
    }

    #[inline(always)]
    fn note_client(&self, client: A) {
        use core::intrinsics::AtomicOrdering::SeqCst;
        let (word, bit) = address_bit(client);
        let Some(word) = CLIENTS.get_ptr_mut(word) else { return };
        // SAFETY: a live array element, aligned to its eight bytes; the result is not used.
        unsafe { core::intrinsics::atomic_or::<u64, u64, { SeqCst }>(word, bit) };
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
            // SAFETY: plain words, without padding.
            let port = port_after(all_of(unsafe { core::mem::transmute::<Service, [u64; 4]>(copy) }), port);
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
        forget(value as usize, self.now.0) as u32
    }

    #[inline(always)]
    fn find(&self, query: &Query<A>) -> Option<Found<&'static Flow<A>, *mut FlowSet<A>>> {
        if !A::APART && self.searches_apart {
            return flow_table::search(query, self);
        }
        if !self.searches_apart {
            let (found, unsure) = flow_table::glance(query, self);
            if !unsure {
                return found;
            }
        }
        // SAFETY: this program's own desk.
        unsafe { (*self.desk).query = *query };
        let reference = FlowReference(A::search(desk::number(self.desk)));
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
        const ADDRESS_BITS: u32 = 128;
        let key = SourceRange::new(service, source.to_mapped(), ADDRESS_BITS);
        let is_in = |key: *const SourceRange| {
            // SAFETY: `key` is valid, and has the 24 bytes of the trie's packed key. (That one the compiler would fill byte
            // by byte.)
            SOURCE_RANGES.get(unsafe { &*key.cast::<lpm_trie::Key<[u8; 20]>>() }).is_some()
        };
        if self.desk.is_null() {
            return is_in(&raw const key);
        }
        // SAFETY: this program's own desk.
        unsafe { (*self.desk).source_range = key };
        // SAFETY: as above.
        is_in(unsafe { &raw const (*self.desk).source_range })
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: this program's own desk. The value is copied at once; entries are replaced, never changed
        // in place.
        unsafe {
            (*self.desk).fragment.0 = *key;
            let key = &(*self.desk).fragment.0;
            FRAGMENTS.get(key).copied()
        }
    }

    #[inline(always)]
    fn note_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        // SAFETY: this program's own desk. A failure costs this datagram.
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
        // SAFETY: this CPU's slot of a per-CPU map. Who comes in between may send one more or less.
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
        // SAFETY: this program's own desk.
        unsafe { (*desk).opening = *opening };
        if A::APART {
            return Err(InsertError::Postponed);
        }
        match make_flow::<A>(self.context, desk::number(desk)) {
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
        if let Some((known, asked)) = self.known_route(source, destination)
            && let Some(route) = known.answer(&asked, length)
        {
            return Some(route);
        }
        if !A::APART {
            return self.ask_for_route(source, destination, length, || (source, destination));
        }
        // SAFETY: this program's own desk.
        unsafe { (*self.desk).journey = (source, destination, length) };
        // SAFETY: as above; the function has put the route there.
        (A::route(self.context, desk::number(self.desk)) == DONE).then(|| unsafe { (*self.desk).target })
    }
}

impl<A: KernelFamily> KernelTables<A> {
    /// Asks the kernel what [`Router::route`] is about, and remembers the answer. `again` says source and destination once
    /// more: to keep them, and where the answer belongs, would take room on the stack.
    #[inline(always)]
    pub fn ask_for_route(
        &self,
        source: A,
        destination: A,
        length: u16,
        again: impl FnOnce() -> (A, A),
    ) -> Option<Route> {
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
        let (source, destination) = again();
        if let Some((known, asked)) = self.known_route(source, destination) {
            known.note(&asked, &route, longest);
        }
        Some(route)
    }
}
