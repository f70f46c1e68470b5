//! `lb_common`'s door to state, opened onto the maps.

mod flows;
mod router;

use core::ffi::c_void;
use core::marker::PhantomData;

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup, xdp_md};
use aya_ebpf::helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_jiffies64};
use aya_ebpf::maps::{Array, lpm_trie};
use lb_common::abi::{
    Affinity, AffinityKey, BackendId, Config, FlowReference, Fragment, FragmentKey, Interface, Moment,
    RING_BLOCK, Service, ServiceId, SourceRange, SourceToward, address_bit, endpoint_bit, port_bit,
};
use lb_common::addr::{Address, Port, Proto};
use lb_common::datapath::flow_table::Survey;
use lb_common::datapath::{Backend, Desk, Family, Hop, PacketTables, Route, Tables};

use crate::desk::{self, DeskNumber, Tools, lend};
use crate::family::KernelFamily;
use crate::maps::{
    ADDRESSES, AFFINITY, BACKENDS, CLIENTS, CONFIG, ENDPOINTS, FRAGMENTS, INTERFACES, NODE_PORTS, RINGS,
    SOURCE_RANGES, SOURCES,
};
use crate::order::{all_of, port_after};
use crate::packet::forget;
use crate::routes::{self, Asked, KnownRoute};

/// No packet is forwarded there: the address is this node's own.
const FIB_NOT_FORWARDED: i64 = 4;
/// `lo`: what the node itself sends is routed as if it came from there.
const LOOPBACK: u32 = 1;
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
    /// A function that asks for neither.
    None,
}

impl Context {
    #[inline(always)]
    const fn pointer(self) -> *mut c_void {
        match self {
            Self::Xdp(context) => context.cast(),
            Self::Skb(context) => context.cast(),
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
                Self::None => 0,
            }
        }
    }
}

/// What everyone may ask of the maps: packets and calls.
pub struct Maps<A> {
    config: &'static Config,
    /// Asked once for a packet.
    now: Moment,
    family: PhantomData<A>,
}

impl<A> Maps<A> {
    /// Nothing only if a map had not the entry asked for, which an array always has.
    #[inline(always)]
    pub fn new() -> Option<Self> {
        let config = CONFIG.get(0)?;
        Some(Self { config, now: moment(config), family: PhantomData })
    }
}

/// The maps, and what the kernel says about routes for the packet at hand.
pub struct KernelTables<A: KernelFamily> {
    maps: Maps<A>,
    context: Context,
    number: DeskNumber,
    /// Of the desk, which is this program's; only [`Self::ask_route`] uses it.
    route_query: *mut bpf_fib_lookup,
    /// The first look for a flow is made in place.
    probes: bool,
}

impl<A: KernelFamily> KernelTables<A> {
    /// Nothing only if a map had not the entry asked for, which an array always has.
    #[inline(always)]
    pub fn new(context: Context, tools: &mut Tools) -> Option<Self> {
        let route_query = &raw mut tools.route_query;
        Some(Self { maps: Maps::new()?, context, number: tools.number, route_query, probes: true })
    }

    /// For what most packets do not need: searches are calls, which cost less to verify.
    #[inline(always)]
    pub fn off_the_hot_path(context: Context, tools: &mut Tools) -> Option<Self> {
        Some(Self { probes: false, ..Self::new(context, tools)? })
    }

    /// What the kernel's routing says of a packet that came in here: its code, and its answer.
    #[inline(always)]
    fn ask_route(&self, source: A, destination: A, length: u16) -> (i64, &bpf_fib_lookup) {
        self.ask_route_from(self.context.interface(), source, destination, length)
    }

    /// The same of one that comes from `interface`.
    #[inline(always)]
    fn ask_route_from(
        &self,
        interface: u32,
        source: A,
        destination: A,
        length: u16,
    ) -> (i64, &bpf_fib_lookup) {
        // SAFETY: this program's own desk, and nobody else looks at this part of it; zeros are a value of this plain C struct of
        // whole words; context and query are valid for the call, and the length is that of the struct.
        unsafe {
            let query = &mut *self.route_query;
            // Word by word, for what the compiler makes of a copy is a call.
            const WORDS: usize = size_of::<bpf_fib_lookup>() / size_of::<u32>();
            for word in 0..WORDS {
                (&raw mut *query).cast::<u32>().add(word).write_volatile(0);
            }
            query.ifindex = interface;
            query.__bindgen_anon_1.tot_len = length;
            A::ask(query, source, destination);
            let code =
                fib_lookup(self.context.pointer(), &raw mut *query, size_of::<bpf_fib_lookup>() as i32, 0);
            (code, query)
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
        let asked = Asked { source, destination, ingress: self.context.interface(), moment: self.maps.now };
        // SAFETY: this CPU's slot of a per-CPU map, which nothing else uses while this program runs.
        Some((unsafe { &mut *place }, asked))
    }

    /// Whether XDP may send out of an interface.
    #[inline(always)]
    pub fn sends(interface: u32) -> bool {
        Self::interface(interface).is_some_and(|interface| interface.flags & Interface::XDP_SENDS != 0)
    }

    /// With which address flows are masqueraded that leave by an interface; nothing if it has none.
    #[inline(always)]
    fn source(index: u32, toward: A) -> Option<A> {
        let interface = Self::interface(index)?;
        if interface.flags & Interface::MANY_SOURCES != 0 {
            let key = SourceToward::new(index, toward.to_mapped(), 128);
            // SAFETY: it has the 24 bytes of the trie's packed key.
            let key = unsafe { &*(&raw const key).cast::<lpm_trie::Key<[u8; 20]>>() };
            if let Some(address) = SOURCES.get(key) {
                return Some(A::from_mapped(*address));
            }
        }
        Some(A::masquerade(&interface)).filter(|address| *address != A::UNSPECIFIED)
    }

    #[inline(always)]
    fn interface(index: u32) -> Option<Interface> {
        // SAFETY: the value is copied at once; a concurrent update of four words of plain data can
        // at worst mix two valid descriptions of the same interface.
        unsafe { INTERFACES.get(index) }.copied()
    }
}

/// The time by the kernel's clock.
#[inline(always)]
pub fn moment(config: &Config) -> Moment {
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

impl<A: KernelFamily> Tables<A> for Maps<A> {
    #[inline(always)]
    fn config(&self) -> &Config {
        self.config
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
    fn service(&self, address: A, port: Port, proto: Proto) -> Option<&Service> {
        address.service(port, proto)
    }

    #[inline(always)]
    fn is_node_port(&self, port: Port) -> bool {
        let (word, bit) = port_bit(port);
        NODE_PORTS.get(word).is_none_or(|word| word & bit != 0)
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
    fn in_source_range(&self, address: &SourceRange) -> bool {
        // SAFETY: it has the 24 bytes of the trie's packed key. (That one the compiler would fill byte by byte.)
        let key = unsafe { &*(&raw const *address).cast::<lpm_trie::Key<[u8; 20]>>() };
        SOURCE_RANGES.get(key).is_some()
    }
}

/// The same as the maps say.
impl<A: KernelFamily> Tables<A> for KernelTables<A> {
    #[inline(always)]
    fn config(&self) -> &Config {
        self.maps.config()
    }

    #[inline(always)]
    fn now(&self) -> Moment {
        self.maps.now()
    }

    #[inline(always)]
    fn forget_history(&self, value: u32) -> u32 {
        self.maps.forget_history(value)
    }

    #[inline(always)]
    fn service(&self, address: A, port: Port, proto: Proto) -> Option<&Service> {
        self.maps.service(address, port, proto)
    }

    #[inline(always)]
    fn is_node_port(&self, port: Port) -> bool {
        self.maps.is_node_port(port)
    }

    #[inline(always)]
    fn service_copy(&self, found: &Service, address: A, port: Port, proto: Proto) -> Option<Service> {
        self.maps.service_copy(found, address, port, proto)
    }

    #[inline(always)]
    fn ring_slot(&self, slot: u32) -> Option<BackendId> {
        self.maps.ring_slot(slot)
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<Backend<A>> {
        self.maps.backend(id)
    }

    #[inline(always)]
    fn affinity(&self, client: A, service: ServiceId) -> Option<Affinity> {
        self.maps.affinity(client, service)
    }

    #[inline(always)]
    fn note_affinity(&self, client: A, service: ServiceId, affinity: Affinity) {
        self.maps.note_affinity(client, service, affinity);
    }

    #[inline(always)]
    fn in_source_range(&self, address: &SourceRange) -> bool {
        self.maps.in_source_range(address)
    }
}

impl<A: KernelFamily> PacketTables<A> for KernelTables<A> {
    #[inline(always)]
    fn may_concern(&self, address: A) -> bool {
        has_bit(&ADDRESSES, address)
    }

    #[inline(always)]
    fn may_be_endpoint(&self, address: A, port: Port) -> bool {
        let (word, bit) = endpoint_bit(address, port);
        ENDPOINTS.get(word).is_none_or(|word| word & bit != 0)
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
    fn seen_by_xdp(&self) -> bool {
        match self.context {
            Context::Skb(_) => Self::interface(self.context.interface())
                .is_some_and(|interface| interface.flags & Interface::XDP_SEES != 0),
            Context::Xdp(_) | Context::None => false,
        }
    }

    #[inline(always)]
    fn is_switched(&self) -> bool {
        Self::interface(self.context.interface())
            .is_some_and(|interface| interface.flags & Interface::SWITCHED != 0)
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: the value is copied at once; entries are replaced, never changed in place.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn note_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        // A failure costs this datagram.
        let _ = FRAGMENTS.insert(key, fragment, 0);
    }

    #[inline(always)]
    fn masquerade_address(&self, source: A, destination: A) -> A {
        let node = <A as Family>::config(self.maps.config).node_address;
        let known = || self.known_route(A::UNSPECIFIED, destination);
        if let Some(address) = known().and_then(|(known, asked)| known.masquerade(&asked)) {
            return address;
        }
        let from = if self.is_sent_by_node() { LOOPBACK } else { self.context.interface() };
        let (code, found) = self.ask_route_from(from, source, destination, 0);
        if code != FIB_SUCCESS && code != FIB_NO_NEIGHBOUR && code != FIB_FRAGMENT {
            return node;
        }
        let address = Self::source(found.ifindex, A::toward(found, destination)).unwrap_or(node);
        // (Looked up again: to keep it would take room on the stack.)
        if let Some((known, asked)) = known() {
            known.note_masquerade(&asked, address);
        }
        address
    }

    #[inline(always)]
    fn is_sent_by_node(&self) -> bool {
        match self.context {
            // SAFETY: the context is valid while the program runs.
            Context::Skb(context) => unsafe { (*context).ingress_ifindex == 0 },
            Context::Xdp(_) | Context::None => false,
        }
    }

    #[inline(always)]
    fn next_hop(&self, source: A, destination: A) -> Hop {
        let Context::Skb(_) = self.context else { return Hop::UNKNOWN };
        match self.ask_route_from(LOOPBACK, source, destination, 0) {
            (FIB_NOT_FORWARDED, _) => Hop::HERE,
            (FIB_SUCCESS | FIB_NO_NEIGHBOUR | FIB_FRAGMENT, found) => Hop(found.ifindex),
            _ => Hop::UNKNOWN,
        }
    }

    #[inline(always)]
    fn turns_back(&self, source: A, destination: A) -> bool {
        let (code, found) = self.ask_route(source, destination, 0);
        matches!(code, FIB_SUCCESS | FIB_NO_NEIGHBOUR | FIB_FRAGMENT)
            && found.ifindex == self.context.interface()
    }

    #[inline(always)]
    fn probes(&self) -> bool {
        self.probes
    }

    #[inline(always)]
    fn search_set(&self, choice: u32, desk: &mut Desk<A>) -> FlowReference {
        FlowReference(lend(desk, || A::search_set(choice, self.number)))
    }

    #[inline(always)]
    fn survey_set(&self, choice: u32, desk: &mut Desk<A>) -> Survey {
        let survey = lend(desk, || A::survey_set(choice, self.number));
        // (The compiler knows the function's bounds; the verifier wants to see a mask.)
        Survey(self.forget_history(survey))
    }

    #[inline(always)]
    fn look_in_line(&self, attempt: u32, desk: &mut Desk<A>) -> u32 {
        lend(desk, || A::look_in_line(attempt, self.number))
    }
}
