//! The flow table between two CPUs that load in any order they like, in every order that there is.
//!
//! [loom](https://docs.rs/loom) runs the table's own code, over memory in which a load may bring any value that the C11 model
//! allows. The fences here are what lb-ebpf's order.rs does with addresses, and what the kernel's atomic operations do. Without
//! the reader's two fences the model must find the record that is half one flow's and half another's.

use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lb_common::abi::{
    Affinity, BackendId, Config, Flow, FlowReference, FlowState, FlowWord, Fragment, FragmentKey, Moment,
    Service, ServiceId,
};
use lb_common::addr::{Ipv4, Port, Proto};
use lb_common::datapath::flow_table::{self, Found, NewFlow, Query};
use lb_common::datapath::{Backend, FlowSets, Tables, Tuple};
use lb_testkit::{client, pod, vip};
use loom::sync::Arc;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use loom::sync::atomic::{AtomicU64, fence};

const NOW: Moment = Moment(1_000_000);
const FRONTEND_PORT: u16 = 80;
const CLIENT_PORT: u16 = 40_000;

/// Where a reader waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Order {
    /// A record is loaded after its word.
    before: bool,
    /// The word is loaded again after the record.
    after: bool,
}

impl Order {
    const KEPT: Self = Self { before: true, after: true };
}

/// A set with one way to be had. In the others are connections that stay.
struct OneWay {
    order: Order,
    config: Config,
    word: AtomicU64,
    /// Who asks and what for; who answers. A record has more words; what is torn is torn between these two.
    halves: [AtomicU64; 2],
}

/// The way to be had.
const SHARED: usize = 0;

#[derive(Clone, Copy)]
struct Copied(Flow<Ipv4>);

impl Deref for Copied {
    type Target = Flow<Ipv4>;

    fn deref(&self) -> &Flow<Ipv4> {
        &self.0
    }
}

/// A flow of the client with this number to the backend with that one. Whole ones have the same twice.
fn mixed(client_number: u8, backend_number: u8) -> Flow<Ipv4> {
    Flow {
        client: client(client_number),
        frontend: vip(1),
        backend: pod(backend_number),
        nat: Ipv4::default(),
        client_port: Port::new(CLIENT_PORT),
        frontend_port: Port::new(FRONTEND_PORT),
        backend_port: Port::new(8080),
        nat_port: Port::default(),
        service: 1,
        backend_id: backend_number.into(),
        backend_generation: 1,
        proto: Proto::TCP,
        flags: 0,
        reserved: [0; 2],
        spare: [0; 6],
    }
}

impl OneWay {
    /// With the flow of client 1, which is half open.
    fn new(order: Order) -> Self {
        let tables =
            Self { order, config: Config::default(), word: AtomicU64::new(0), halves: Default::default() };
        tables.open(1);
        tables
    }

    /// Makes the flow of this client.
    fn open(&self, number: u8) {
        let mut new = NewFlow {
            flow: mixed(number, number),
            masquerade: Ipv4::default(),
            state: FlowState::TCP_SYN,
            replaces: false,
            hash: 0,
            port_holder: FlowReference::NONE,
        };
        flow_table::insert(&mut new, self).expect("the way is free, or holds a half-open flow");
    }

    /// The backend that this client's next packet is sent to.
    fn backend_of(&self, number: u8) -> Option<BackendId> {
        let tuple = Tuple {
            source: client(number),
            destination: vip(1),
            source_port: Port::new(CLIENT_PORT),
            destination_port: Port::new(FRONTEND_PORT),
            proto: Proto::TCP,
        };
        Some(flow_table::by_frontend(&tuple, self)?.flow.backend_id)
    }
}

/// Client 2 takes the way of client 1, while another CPU has a packet of the `asked` one: in every order. Panics when that is
/// sent to the other's backend.
fn every_order(order: Order, asked: u8) {
    let mut model = loom::model::Builder::new();
    // Reordering needs no more of them than there are CPUs.
    model.preemption_bound = Some(2);
    model.check(move || {
        let tables = Arc::new(OneWay::new(order));
        let other_cpu = {
            let tables = Arc::clone(&tables);
            loom::thread::spawn(move || tables.backend_of(asked))
        };
        tables.open(2);
        let backend = other_cpu.join().expect("the reader ends");
        assert!(
            backend.is_none_or(|backend| backend == BackendId::from(asked)),
            "{TORN}: {backend:?} for {asked}"
        );
    });
}

const TORN: &str = "half a record";

/// Whether some order shows a packet half a record.
fn tears(order: Order, asked: u8) -> bool {
    match catch_unwind(AssertUnwindSafe(|| every_order(order, asked))) {
        Ok(()) => false,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map_or("", String::as_str);
            assert!(text.contains(TORN), "{text}");
            true
        }
    }
}

#[test]
fn a_packet_sees_a_whole_record_or_none() {
    for asked in [1, 2] {
        every_order(Order::KEPT, asked);
    }
}

#[test]
fn a_record_loaded_before_its_word_is_half_the_former_flows() {
    assert!(tears(Order { before: false, ..Order::KEPT }, 2));
}

#[test]
fn a_word_loaded_again_before_the_record_hides_that_another_took_the_way() {
    assert!(tears(Order { after: false, ..Order::KEPT }, 1));
}

impl FlowSets<Ipv4> for OneWay {
    type Set = ();
    type Copied = Copied;

    fn set(&self, index: u32) -> Option<()> {
        (index == 0).then_some(())
    }

    fn word(&self, (): (), way: usize) -> FlowWord {
        match way {
            SHARED => FlowWord(self.word.load(Relaxed)),
            _ => FlowWord::new(!0, FlowState::FREE, NOW).moved_to(FlowState::TCP_ESTABLISHED, NOW),
        }
    }

    /// `BPF_CMPXCHG` is fully ordered (Documentation/bpf/standardization/instruction-set.rst).
    fn swap_word(&self, (): (), way: usize, old: FlowWord, new: FlowWord) -> bool {
        assert_eq!(way, SHARED, "only what is shared is written");
        fence(SeqCst);
        let swapped = self.word.compare_exchange(old.0, new.0, SeqCst, SeqCst).is_ok();
        fence(SeqCst);
        swapped
    }

    fn clear_lock(&self, (): ()) {
        fence(SeqCst);
        self.word.fetch_and(FlowWord(u64::MAX).unlocked().0, SeqCst);
        fence(SeqCst);
    }

    const READS_IN_ORDER: bool = false;

    fn fits(&self, (): (), _: usize, test: impl Fn(&Flow<Ipv4>) -> bool) -> bool {
        let [client, backend] = [0, 1].map(|half: usize| self.halves[half].load(Relaxed) as u8);
        test(&mixed(client, backend))
    }

    fn flow(&self, (): (), way: usize, _: FlowWord) -> Copied {
        assert_eq!(way, SHARED, "no other way has their tags");
        if self.order.before {
            fence(Acquire);
        }
        let [client, backend] = [0, 1].map(|half: usize| self.halves[half].load(Relaxed) as u8);
        Copied(mixed(client, backend))
    }

    fn word_after(&self, _: Copied, (): (), way: usize) -> FlowWord {
        if self.order.after {
            fence(Acquire);
        }
        FlowSets::word(self, (), way)
    }

    fn copy(&self, flow: &Flow<Ipv4>) -> Copied {
        Copied(*flow)
    }

    fn put_flow(&self, (): (), _: usize, flow: &Flow<Ipv4>) {
        self.halves[0].store(flow.client.octets()[3].into(), Relaxed);
        self.halves[1].store(flow.backend_id.into(), Relaxed);
    }

    fn fetch_flow(&self, (): (), _: usize) {}

    type NatLine = ();

    fn nat_line(&self, _: u32) -> Option<()> {
        None
    }

    fn nat_slot(&self, (): (), _: usize) -> FlowReference {
        FlowReference::NONE
    }

    fn swap_nat_slot(&self, (): (), _: usize, _: FlowReference, _: FlowReference) -> bool {
        false
    }
}

impl Tables<Ipv4> for OneWay {
    fn config(&self) -> &Config {
        &self.config
    }

    fn now(&self) -> Moment {
        NOW
    }

    /// As the programs do it.
    fn find(&self, query: &Query<Ipv4>) -> Option<Found<Copied, ()>> {
        let (found, unsure) = flow_table::glance(query, self);
        if unsure { flow_table::search(query, self) } else { found }
    }

    fn may_concern(&self, _: Ipv4) -> bool {
        true
    }

    fn is_noted(&self, _: Ipv4) -> bool {
        true
    }

    fn note_client(&self, _: Ipv4) {}

    fn service(&self, _: Ipv4, _: Port, _: Proto) -> Option<&Service> {
        None
    }

    fn ring_slot(&self, _: u32) -> Option<BackendId> {
        None
    }

    fn backend(&self, _: BackendId) -> Option<Backend<Ipv4>> {
        None
    }

    fn seen_by_xdp(&self) -> bool {
        true
    }

    fn affinity(&self, _: Ipv4, _: ServiceId) -> Option<Affinity> {
        None
    }

    fn note_affinity(&self, _: Ipv4, _: ServiceId, _: Affinity) {}

    fn in_source_range(&self, _: ServiceId, _: Ipv4) -> bool {
        true
    }

    fn fragment(&self, _: &FragmentKey) -> Option<Fragment> {
        None
    }

    fn note_fragment(&self, _: &FragmentKey, _: &Fragment) {}

    fn may_refuse(&self) -> bool {
        false
    }

    fn masquerade_address(&self, _: Ipv4, _: Ipv4) -> Ipv4 {
        Ipv4::default()
    }
}
