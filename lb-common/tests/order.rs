//! The flow table between CPUs that load in any order they like, in every order that there is.
//!
//! [loom](https://docs.rs/loom) runs the table's own code, over memory in which a load may bring any value that the C11 model
//! allows. The fences here are what lb-ebpf's order.rs does with addresses, and what the kernel's atomic operations do. Each test
//! that something holds has others beside it: without what it rests on, the model must find the order in which it breaks.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, Mutex};

use lb_common::abi::{
    Affinity, BackendId, Config, Flow, FlowReference, FlowState, FlowWord, Fragment, FragmentKey, Moment,
    Progress, Service, ServiceId, SourceRange,
};
use lb_common::addr::{Ipv4, Port, Proto};
use lb_common::datapath::flow::Side;
use lb_common::datapath::flow_table::{self, InsertError, NewFlow};
use lb_common::datapath::{Backend, FlowSets, Hop, PacketTables, Tables, Tuple, select};
use lb_testkit::{blank_desk, blank_flow, client, node, pod, vip};
use loom::sync::Arc;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use loom::sync::atomic::{AtomicU64, fence};
use loom::thread::ThreadId;

const NOW: Moment = Moment(1_000_000);
const FRONTEND_PORT: u16 = 80;
const CLIENT_PORT: u16 = 40_000;
const NAT_PORT: u16 = 61_440;

/// What the table rests on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rests {
    /// A record is loaded after its word.
    before: bool,
    /// The word is loaded again after the record.
    after: bool,
    /// One CPU at a time makes a flow in a set.
    lock: bool,
    /// A word tells of each record that is written.
    generation: bool,
    /// Ports are taken by compare-and-swap.
    port: bool,
}

impl Rests {
    const ALL: Self = Self { before: true, after: true, lock: true, generation: true, port: true };
}

/// A way: its word, and a record of two halves: who asks, and who answers. A record has more words; what is torn is torn between
/// these two.
#[derive(Default)]
struct Way {
    word: AtomicU64,
    halves: [AtomicU64; 2],
}

/// A set with a few ways to be had. In the others are connections that stay.
struct OneSet {
    rests: Rests,
    config: Config,
    ways: Vec<Way>,
    /// Who holds the one port to masquerade with.
    slot: AtomicU64,
    /// Who has had it.
    given_up: Mutex<Vec<u32>>,
    /// Who has locked the set.
    holder: Mutex<Option<ThreadId>>,
}

/// A flow of the client with this number to the backend with that one. Whole ones have the same twice, or what a test expects.
fn mixed(client_number: u64, backend_number: u64) -> Flow<Ipv4> {
    let is_masqueraded = client_number >= MASQUERADED;
    Flow {
        client: client(client_number as u8),
        frontend: vip(1),
        backend: pod(backend_number as u8),
        nat: if is_masqueraded { node() } else { Ipv4::default() },
        client_port: port_of(client_number),
        frontend_port: Port::new(FRONTEND_PORT),
        backend_port: Port::new(8080),
        nat_port: Port::new(if is_masqueraded { NAT_PORT } else { 0 }),
        service: 1,
        backend_id: backend_number as u32,
        backend_generation: 1,
        proto: Proto::TCP,
        ..blank_flow()
    }
}

/// Clients from this number on are masqueraded.
const MASQUERADED: u64 = 100;
/// Two clients that their tags do not tell apart.
const TWINS: [u64; 2] = [50, 51];
/// From which ports.
static TWINS_PORTS: LazyLock<[u16; 2]> = LazyLock::new(|| {
    let tag = |twin: usize, port| {
        select::client_hash(client(TWINS[twin] as u8), Port::new(port), Proto::TCP, 0) >> 48
    };
    let tags: HashMap<u64, u16> = (1..=1000).map(|port| (tag(0, port), port)).collect();
    let pair = (1..=u16::MAX).find_map(|port| Some([*tags.get(&tag(1, port))?, port]));
    pair.expect("one of a thousand tags comes again in 65 535")
});

fn port_of(client_number: u64) -> Port {
    let twin = TWINS.iter().position(|twin| *twin == client_number);
    Port::new(twin.map_or(CLIENT_PORT, |twin| TWINS_PORTS[twin]))
}

impl OneSet {
    fn new(rests: Rests, ways: usize) -> Self {
        let mut config = Config::default();
        (config.nat_port_first, config.nat_port_count) = (NAT_PORT, 1);
        let ways = (0..ways).map(|_| Way::default()).collect();
        Self {
            rests,
            config,
            ways,
            slot: AtomicU64::new(0),
            given_up: Mutex::default(),
            holder: Mutex::default(),
        }
    }

    fn is_holder(&self) -> bool {
        *self.holder.lock().expect("no test panics here") == Some(loom::thread::current().id())
    }

    /// Makes the flow of this client, which has this backend.
    fn open(&self, number: u64, backend: u64) -> Result<BackendId, InsertError> {
        let mut desk = blank_desk();
        let whole = mixed(number, backend);
        let flow = Flow { nat: Ipv4::default(), nat_port: Port::default(), ..whole };
        desk.new = NewFlow { flow, masquerade: whole.nat, state: FlowState::TCP_SYN, ..desk.new };
        flow_table::choose_port(self, &mut desk)?;
        flow_table::insert(self, &mut desk)?;
        Ok(desk.found.backend_id)
    }

    /// The backend that this client's next packet is sent to.
    fn backend_of(&self, number: u64) -> Option<BackendId> {
        let tuple = Tuple {
            source: client(number as u8),
            destination: vip(1),
            source_port: port_of(number),
            destination_port: Port::new(FRONTEND_PORT),
            proto: Proto::TCP,
        };
        Some(flow_table::by_frontend(&tuple, self, &mut blank_desk())?.flow.backend_id)
    }

    /// Clients and backends of all records that packets would find.
    fn all(&self) -> Vec<(u64, u64)> {
        let live = |way: &&Way| FlowWord(way.word.load(SeqCst)).is_live(NOW);
        let half = |way: &Way, half: usize| way.halves[half].load(SeqCst);
        self.ways.iter().filter(live).map(|way| (half(way, 0), half(way, 1))).collect()
    }
}

/// Runs `test` in every order in which threads are interrupted so many times. (Reordering needs no more than two; of three threads,
/// the orders with two are too many.)
fn every_order(interruptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(interruptions);
    model.max_branches = 10_000;
    model.check(test);
}

/// Whether some order breaks it in the way that is expected.
fn breaks(expected: &str, test: impl Fn() + Sync + Send + 'static) -> bool {
    match catch_unwind(AssertUnwindSafe(|| every_order(2, test))) {
        Ok(()) => false,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map_or("", String::as_str);
            assert!(text.contains(expected), "{text}");
            true
        }
    }
}

const TORN: &str = "half a record";
const LOST: &str = "not the one record";
const PORT: &str = "the port that";

/// Clients take the way of client 1 from each other, each on a CPU, while another CPU has a packet of the `asked` one. Panics when
/// that is sent to the other's backend.
fn a_packet_among(rests: Rests, writers: &'static [u64], asked: u64) -> impl Fn() + Sync + Send + 'static {
    move || {
        let tables = Arc::new(OneSet::new(rests, 1));
        tables.open(if writers.contains(&TWINS[1]) { TWINS[0] } else { 1 }, asked.min(1)).ok();
        let [here, others @ ..] = writers else { unreachable!("somebody writes") };
        let others: Vec<_> = others
            .iter()
            .map(|number| {
                let (tables, number) = (Arc::clone(&tables), *number);
                loom::thread::spawn(move || tables.open(number, number).is_ok())
            })
            .collect();
        let reader = {
            let tables = Arc::clone(&tables);
            loom::thread::spawn(move || tables.backend_of(asked))
        };
        let _ = tables.open(*here, *here);
        for other in others {
            other.join().expect("a writer ends");
        }
        let backend = reader.join().expect("the reader ends");
        let first = asked.min(1);
        let is_right =
            |backend| u64::from(backend) == asked || asked == TWINS[0] && u64::from(backend) == first;
        assert!(backend.is_none_or(is_right), "{TORN}: {backend:?} for {asked}");
    }
}

#[test]
fn a_packet_sees_a_whole_record_or_none() {
    for asked in [1, 2] {
        every_order(2, a_packet_among(Rests::ALL, &[2], asked));
    }
    for asked in [1, 2, 3] {
        every_order(1, a_packet_among(Rests::ALL, &[2, 3], asked));
    }
}

#[test]
fn a_record_loaded_before_its_word_is_half_the_former_flows() {
    assert!(breaks(TORN, a_packet_among(Rests { before: false, ..Rests::ALL }, &[2], 2)));
}

#[test]
fn a_word_loaded_again_before_the_record_hides_that_another_took_the_way() {
    assert!(breaks(TORN, a_packet_among(Rests { after: false, ..Rests::ALL }, &[2], 1)));
}

/// Where a tag does not tell two clients apart, the generation does.
#[test]
fn clients_of_one_tag_are_told_apart_by_the_generation() {
    every_order(2, a_packet_among(Rests::ALL, &[TWINS[1]], TWINS[0]));
    let without = Rests { generation: false, ..Rests::ALL };
    assert!(breaks(TORN, a_packet_among(without, &[TWINS[1]], TWINS[0])));
}

/// So many CPUs have the first packet of the same flow, and each has chosen another backend. Panics unless there is one record in
/// the end, and it is what each of them was told.
fn first_packets(rests: Rests, cpus: u64) -> impl Fn() + Sync + Send + 'static {
    move || {
        let tables = Arc::new(OneSet::new(rests, 2));
        let others: Vec<_> = (2..=cpus)
            .map(|backend| {
                let tables = Arc::clone(&tables);
                loom::thread::spawn(move || tables.open(9, backend))
            })
            .collect();
        let mut outcomes = vec![tables.open(9, 1)];
        outcomes.extend(others.into_iter().map(|other| other.join().expect("it ends")));
        let all = tables.all();
        assert_eq!(all.len(), 1, "{LOST}: {all:?}, {outcomes:?}");
        let told = outcomes.iter().all(|outcome| match outcome {
            Ok(backend) => u64::from(*backend) == all[0].1,
            Err(error) => *error == InsertError::Contended,
        });
        assert!(told, "{LOST}: {all:?}, {outcomes:?}");
    }
}

#[test]
fn a_flow_is_made_once() {
    every_order(2, first_packets(Rests::ALL, 2));
    every_order(1, first_packets(Rests::ALL, 3));
    assert!(breaks(LOST, first_packets(Rests { lock: false, ..Rests::ALL }, 2)));
}

/// So many clients want the one port. Panics unless one has it in the end.
fn one_port(rests: Rests, clients: u64) -> impl Fn() + Sync + Send + 'static {
    move || {
        let tables = Arc::new(OneSet::new(rests, clients as usize));
        let others: Vec<_> = (1..clients)
            .map(|number| {
                let tables = Arc::clone(&tables);
                loom::thread::spawn(move || tables.open(MASQUERADED + number, 1))
            })
            .collect();
        let mut outcomes = vec![tables.open(MASQUERADED, 1)];
        outcomes.extend(others.into_iter().map(|other| other.join().expect("it ends")));
        // (One that is half-open gives its port up to the next: not to two.)
        let mut given_up = tables.given_up.lock().expect("no test panics here").clone();
        given_up.sort_unstable();
        assert!(given_up.is_sorted_by(|one, next| one < next), "{PORT} two have: {given_up:?}, {outcomes:?}");
        let slot = FlowReference(tables.slot.load(SeqCst) as u32);
        let holds = |way: usize| {
            let word = FlowWord(tables.ways[way].word.load(SeqCst));
            word.is_live(NOW) && slot == FlowReference::new(0, way, word)
        };
        let holders = (0..tables.ways.len()).filter(|way| holds(*way)).count();
        assert_eq!(holders, 1, "{PORT} nobody has: {outcomes:?}");
    }
}

/// The same two clients, and a third CPU with a packet from the backend to that port. Panics when it finds half a record.
fn an_answer_to_one_port() {
    let tables = Arc::new(OneSet::new(Rests::ALL, 2));
    let other = {
        let tables = Arc::clone(&tables);
        loom::thread::spawn(move || tables.open(MASQUERADED + 1, MASQUERADED + 1).is_ok())
    };
    let answer = {
        let tables = Arc::clone(&tables);
        loom::thread::spawn(move || {
            let backend = (pod(MASQUERADED as u8), Port::new(8080));
            let (port, mut desk) = (Port::new(NAT_PORT), blank_desk());
            let found = flow_table::by_nat_port(backend, port, Proto::TCP, &*tables, &mut desk);
            found.map(|found| (found.flow.client, u64::from(found.flow.backend_id)))
        })
    };
    let _ = tables.open(MASQUERADED, MASQUERADED);
    other.join().expect("it ends");
    let found = answer.join().expect("it ends");
    let is_whole = found.is_none_or(|it| it == (client(MASQUERADED as u8), MASQUERADED));
    assert!(is_whole, "{TORN}: {found:?}");
}

#[test]
fn a_port_is_held_once() {
    every_order(2, one_port(Rests::ALL, 2));
    every_order(1, an_answer_to_one_port);
    assert!(breaks(PORT, one_port(Rests { port: false, ..Rests::ALL }, 2)));
}

impl FlowSets<Ipv4> for OneSet {
    type Set = ();

    fn set(&self, index: u32) -> Option<()> {
        (index == 0).then_some(())
    }

    fn word(&self, (): (), way: usize) -> FlowWord {
        let Some(way) = self.ways.get(way) else {
            return FlowWord::new(!0, FlowState::FREE, NOW).moved_to(FlowState::TCP_ESTABLISHED, NOW);
        };
        let word = way.word.load(Relaxed);
        if FlowWord(word).is_locked() && !self.is_holder() {
            // Whoever waits for the lock lets the others go on.
            loom::thread::yield_now();
        }
        FlowWord(word)
    }

    /// `BPF_CMPXCHG` is fully ordered (Documentation/bpf/standardization/instruction-set.rst).
    fn swap_word(&self, (): (), way: usize, old: FlowWord, new: FlowWord) -> bool {
        if !self.rests.lock && new == old.locked() {
            return true;
        }
        const GENERATION: u64 = 0x7f << 9;
        let [old, new] =
            [old, new].map(|word| if self.rests.generation { word.0 } else { word.0 & !GENERATION });
        fence(SeqCst);
        let swapped = self.ways[way].word.compare_exchange(old, new, SeqCst, SeqCst).is_ok();
        fence(SeqCst);
        if swapped && new & !old == FlowWord::mark().0 {
            *self.holder.lock().expect("no test panics here") = Some(loom::thread::current().id());
        }
        swapped
    }

    fn clear_lock(&self, (): ()) {
        *self.holder.lock().expect("no test panics here") = None;
        fence(SeqCst);
        self.ways[0].word.fetch_and(FlowWord(u64::MAX).unlocked().0, SeqCst);
        fence(SeqCst);
    }

    fn mark(&self, (): (), _: usize) {
        unreachable!("there is one set");
    }

    const READS_IN_ORDER: bool = false;

    fn fits(&self, (): (), way: usize, test: impl Fn(&Flow<Ipv4>) -> bool) -> bool {
        let [client, backend] = [0, 1].map(|half: usize| self.ways[way].halves[half].load(Relaxed));
        test(&mixed(client, backend))
    }

    fn copy_flow(&self, (): (), way: usize, _: FlowWord, copy: &mut Flow<Ipv4>) -> FlowWord {
        if self.rests.before {
            fence(Acquire);
        }
        let [client, backend] = [0, 1].map(|half: usize| self.ways[way].halves[half].load(Relaxed));
        *copy = mixed(client, backend);
        if self.rests.after {
            fence(Acquire);
        }
        FlowSets::word(self, (), way)
    }

    fn put_flow(&self, (): (), way: usize, flow: &Flow<Ipv4>) {
        let number = flow.client.octets()[3].into();
        self.ways[way].halves[0].store(number, Relaxed);
        self.ways[way].halves[1].store(flow.backend_id.into(), Relaxed);
    }

    fn fetch_flow(&self, (): (), _: usize) {}

    fn progress(&self, (): (), _: usize) -> Progress {
        Progress::default()
    }

    fn note_progress(&self, (): (), _: usize, _: Side, _: [u32; 2]) {}

    fn note_unanswered_syn(&self, (): (), _: usize, _: u32) {}

    type NatLine = ();

    fn nat_line(&self, _: u32) -> Option<()> {
        Some(())
    }

    fn nat_slot(&self, (): (), _: usize) -> FlowReference {
        FlowReference(self.slot.load(Relaxed) as u32)
    }

    fn swap_nat_slot(&self, (): (), _: usize, old: FlowReference, new: FlowReference) -> bool {
        fence(SeqCst);
        let swapped = if self.rests.port {
            self.slot.compare_exchange(old.0.into(), new.0.into(), SeqCst, SeqCst).is_ok()
        } else {
            let is_there = self.slot.load(SeqCst) == u64::from(old.0);
            self.slot.store(new.0.into(), SeqCst);
            is_there
        };
        fence(SeqCst);
        if swapped {
            self.given_up.lock().expect("no test panics here").push(old.0);
        }
        swapped
    }
}

impl Tables<Ipv4> for OneSet {
    fn config(&self) -> &Config {
        &self.config
    }

    fn now(&self) -> Moment {
        NOW
    }

    fn service(&self, _: Ipv4, _: Port, _: Proto) -> Option<&Service> {
        None
    }

    fn is_node_port(&self, _port: Port) -> bool {
        false
    }

    fn ring_slot(&self, _: u32) -> Option<BackendId> {
        None
    }

    fn backend(&self, _: BackendId) -> Option<Backend<Ipv4>> {
        None
    }

    fn affinity(&self, _: Ipv4, _: ServiceId) -> Option<Affinity> {
        None
    }

    fn note_affinity(&self, _: Ipv4, _: ServiceId, _: Affinity) {}

    fn in_source_range(&self, _: &SourceRange) -> bool {
        true
    }
}

impl PacketTables<Ipv4> for OneSet {
    fn is_sent_by_node(&self) -> bool {
        false
    }

    fn next_hop(&self, _: Ipv4, _: Ipv4) -> Hop {
        Hop::UNKNOWN
    }

    fn turns_back(&self, _: Ipv4, _: Ipv4) -> bool {
        false
    }

    fn may_be_endpoint(&self, _: Ipv4, _: Port) -> bool {
        true
    }

    fn may_concern(&self, _: Ipv4) -> bool {
        true
    }

    fn is_noted(&self, _: Ipv4) -> bool {
        true
    }

    fn note_client(&self, _: Ipv4) {}

    fn seen_by_xdp(&self) -> bool {
        true
    }

    fn is_switched(&self) -> bool {
        false
    }

    fn fragment(&self, _: &FragmentKey) -> Option<Fragment> {
        None
    }

    fn note_fragment(&self, _: &FragmentKey, _: &Fragment) {}

    fn masquerade_address(&self, _: Ipv4, _: Ipv4) -> Ipv4 {
        Ipv4::default()
    }
}
