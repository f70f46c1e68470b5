//! The store over real maps, and their adoption.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use aya::maps::{Array, Map, MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use lb_common::abi::{
    self, Backend, BackendName, FlowState, FlowWord, HOOKS, Moment, REASONS, Ring, Service, ServiceName,
    Text, address_bit,
};
use lb_common::addr::{Ipv4, Ipv6, Port};
use lb_control::model::{Frontend, Protocol};
use lb_control::seed::Wanted;
use lb_control::store::{Op, PodName, SourceRange, Store};
use lb_kernel::maps::config::ConfigMap;
use lb_kernel::maps::flows::now;
use lb_kernel::maps::store::BpfStore;
use lb_kernel::maps::{Access, Maps, counters};
use lb_kernel::pin::PinDir;
use lb_kernel::programs::load::{self, LoadError, Settings};

use crate::testbed::Testbed;

pub fn pins(testbed: &Testbed) -> PinDir {
    PinDir::new(testbed.bpffs())
}

pub fn load(testbed: &Testbed, flow_sets: Option<u32>) -> Result<load::Programs, LoadError> {
    load::load(&Settings { pins: pins(testbed), flow_sets })
}

pub fn open(testbed: &Testbed) -> Arc<Maps> {
    Maps::open(&pins(testbed), Access::Write).expect("maps").into()
}

fn store(testbed: &Testbed) -> BpfStore {
    let maps = open(testbed);
    BpfStore::new(maps.clone(), ConfigMap::open(maps).expect("readable"))
}

/// Of both families in turn.
fn frontend(last: u8, port: u16) -> Frontend {
    let (v4, v6) = (Ipv4::from_octets([10, 96, 0, last]), Ipv6::from_octets([last; 16]));
    let address = if port.is_multiple_of(2) { v4.into() } else { std::net::Ipv6Addr::from(v6).into() };
    Frontend::new(address, port, Protocol::Tcp)
}

fn backend(generation: u32) -> Backend {
    Backend {
        address: std::net::IpAddr::from([10, 1, 0, 5]).into(),
        port: Port::new(8080),
        flags: Backend::ACTIVE,
        generation,
        service: 3,
        reserved: 0,
    }
}

#[test]
fn what_is_written_is_read_back() {
    let testbed = Testbed::new();
    let _programs = load(&testbed, Some(512)).expect("loads");
    let mut store = store(&testbed);
    let ring = Ring { offset: 1000, length: 251 };
    let slots: Arc<[u32]> = (0..251).map(|slot| slot % 2 + 7).collect();
    // More than a batch of frontends and of backends.
    let services: Vec<_> = (0..5000_u16)
        .map(|port| {
            (frontend(1, port + 1), Service { id: 3, outside: ring, inside: ring, ..Service::default() })
        })
        .collect();
    let backends: Vec<_> = (0..5000).map(|id| (id, backend(1))).collect();
    let name = ServiceName::new("shop", "web", "http", 6);
    let pod = BackendName { target: Text::new("web-a"), node: Text::new("n1") };
    store
        .apply(&[
            Op::PutServiceNames(vec![(3, name)]),
            Op::PutBackendNames(vec![(7, PodName { target: "web-a".into(), node: "n1".into() })]),
            Op::PutBackends(backends.clone()),
            Op::WriteRing(ring, slots.clone()),
            Op::PutServices(services.clone()),
        ])
        .expect("written");
    // Another reader, as an agent that starts is.
    let mut reader = self::store(&testbed);
    let actual = reader.actual().expect("read");
    let mut found = actual.services;
    found.sort_by_key(|(frontend, _)| frontend.port);
    assert_eq!(found, services);
    assert_eq!(actual.backends.into_iter().collect::<Vec<_>>(), backends);
    assert_eq!(actual.rings.into_iter().collect::<Vec<_>>(), [((1000, 251), slots)]);
    assert_eq!(actual.service_names.into_iter().collect::<Vec<_>>(), [(3, name)]);
    assert_eq!(actual.backend_names.into_iter().collect::<Vec<_>>(), [(7, pod)]);

    // Keys that are not there, before, between and behind those that are, stop nothing.
    let mut gone: Vec<_> = services.iter().map(|(frontend, _)| *frontend).collect();
    gone.insert(0, frontend(2, 1));
    gone.insert(2500, frontend(2, 2));
    gone.push(frontend(2, 3));
    store
        .apply(&[
            Op::DeleteServices(gone),
            Op::DeleteServiceNames(vec![3, 4]),
            Op::DeleteBackendNames(vec![6, 7]),
        ])
        .expect("deleted");
    let actual = reader.actual().expect("read");
    assert!(actual.services.is_empty() && actual.service_names.is_empty() && actual.backend_names.is_empty());
    assert!(actual.rings.is_empty(), "no Service points at the ring");
}

#[test]
fn source_ranges_of_both_families_are_one_map() {
    let testbed = Testbed::new();
    let _programs = load(&testbed, Some(512)).expect("loads");
    let mut store = store(&testbed);
    let range = |id, text: &str| (id, text.parse().expect("a range"));
    let mut ranges: BTreeSet<SourceRange> = [
        range(0, "0.0.0.0/0"),
        range(3, "192.0.2.0/24"),
        range(3, "192.0.2.0/25"),
        range(3, "2001:db8::/32"),
        range(abi::SourceRange::SERVICE_CIDRS, "10.96.0.0/12"),
        range(abi::SourceRange::SERVICE_CIDRS, "fd00::/108"),
    ]
    .into();
    // More than a batch.
    ranges.extend((0..5000).map(|i: u32| range(7, &format!("10.{}.{}.0/24", i / 256, i % 256))));
    store.apply(&[Op::PutSourceRanges(ranges.iter().copied().collect())]).expect("written");
    let mut reader = self::store(&testbed);
    assert_eq!(reader.actual().expect("read").source_ranges, ranges);
    // What is not there stops nothing.
    let gone = [range(3, "192.0.2.0/24"), range(3, "192.0.2.0/26"), range(0, "0.0.0.0/0")];
    store.apply(&[Op::DeleteSourceRanges(gone.to_vec())]).expect("deleted");
    ranges.retain(|range| !gone.contains(range));
    assert_eq!(reader.actual().expect("read").source_ranges, ranges);
}

#[test]
fn where_cluster_ips_are_looked_for_outlives_the_agent_and_leaves_the_rest_alone() {
    let testbed = Testbed::new();
    let _programs = load(&testbed, Some(512)).expect("loads");
    let mut first = store(&testbed);
    assert_eq!(first.actual().expect("read").cover, [None, None], "nothing is written yet");
    open(&testbed).config.put(&0, &abi::Config { hash_seed: 7, ..abi::Config::default() }).expect("written");
    let mut second = store(&testbed);
    let cover =
        [Some("10.96.0.0/12".parse().expect("a range")), Some("fd00::/108".parse().expect("a range"))];
    second.apply(&[Op::CoverServices(cover)]).expect("written");
    assert_eq!(store(&testbed).actual().expect("read").cover, cover);
    let config = open(&testbed).config.get(&0).expect("read").expect("there");
    assert_eq!(config.hash_seed, 7);
    assert_eq!(config.ipv4.service_mask, Ipv4::from_octets([0xff, 0xf0, 0, 0]));
    second.apply(&[Op::CoverServices([None, None])]).expect("written");
    let config = open(&testbed).config.get(&0).expect("read").expect("there");
    assert_eq!(config.ipv4.service_mask, Ipv4::from_octets([0xff; 4]), "nothing is inside");
}

#[test]
fn counts_of_the_programs_outlive_a_rewrite_but_not_a_new_endpoint() {
    let testbed = Testbed::new();
    let _programs = load(&testbed, Some(512)).expect("loads");
    let maps = open(&testbed);
    let mut store = store(&testbed);
    store.apply(&[Op::PutBackends(vec![(7, backend(1))])]).expect("written");
    maps.backend_flows.put(&7, &42).expect("as a program would");
    let flows = || maps.backend_flows.get(&7).expect("read");
    store.apply(&[Op::PutBackends(vec![(7, Backend { flags: 0, ..backend(1) })])]).expect("written");
    assert_eq!(flows(), Some(42));
    store.apply(&[Op::ResetBackendFlows(vec![7]), Op::PutBackends(vec![(7, backend(2))])]).expect("written");
    assert_eq!(flows(), Some(0));
}

#[test]
fn a_full_map_is_named_with_what_to_do() {
    let testbed = Testbed::new();
    let _programs = load(&testbed, Some(512)).expect("loads");
    let mut store = store(&testbed);
    let beyond = Op::PutBackends(vec![(u32::MAX, backend(1))]);
    let message = store.apply(&[beyond]).expect_err("no such index").to_string();
    assert!(message.starts_with("map BACKENDS: ") && message.contains("262144"), "{message}");
    let outside = Op::WriteRing(Ring { offset: store.ring_slots() - 1, length: 2 }, vec![0, 0].into());
    let message = store.apply(&[outside]).expect_err("outside the arena").to_string();
    assert!(message.starts_with("map RINGS: ") && message.contains("outside the arena"), "{message}");
}

#[test]
fn addresses_of_frontends_concern_the_programs_for_good() {
    let testbed = Testbed::new();
    let _programs = load(&testbed, Some(512)).expect("loads");
    let mut store = store(&testbed);
    let filter = MapData::from_pin(pins(&testbed).map("ADDRESSES")).expect("pinned");
    let filter = Array::<_, u64>::try_from(Map::Array(filter)).expect("an array");
    let concerns = |frontend: Frontend| {
        let (word, bit) = match frontend.address {
            IpAddr::V4(address) => address_bit(Ipv4::from(address)),
            IpAddr::V6(address) => address_bit(Ipv6::from(address)),
        };
        filter.get(&word, 0).expect("a word") & bit != 0
    };
    let [v4, v6] = [frontend(1, 80), frontend(1, 81)];
    assert!(!concerns(v4) && !concerns(v6));
    store.apply(&[Op::PutServices([v4, v6].map(|it| (it, Service::default())).to_vec())]).expect("written");
    assert!(concerns(v4) && concerns(v6));
    // Its connections live on.
    store.apply(&[Op::DeleteServices(vec![v4, v6])]).expect("deleted");
    assert!(concerns(v4) && concerns(v6) && !concerns(frontend(2, 80)));
}

/// Whatever has damaged a pinned map, the rest of it is taken over, and what is wrong written anew.
#[test]
fn a_ring_that_is_none_holds_nothing_up() {
    let testbed = Testbed::new();
    let _programs = load(&testbed, Some(512)).expect("loads");
    let mut before = store(&testbed);
    let [good, bad] = [frontend(1, 80), frontend(2, 80)];
    for (offset, length) in [(before.ring_slots() - 1, 2), (u32::MAX, 1), (1, u32::MAX)] {
        let nowhere = Service { outside: Ring { offset, length }, ..Service::default() };
        before.apply(&[Op::PutServices(vec![(good, Service::default()), (bad, nowhere)])]).expect("written");
        let actual = store(&testbed).actual().expect("read");
        let found: HashMap<_, _> = actual.services.into_iter().collect();
        assert_eq!(found[&good], Service::default());
        assert_eq!(found[&bad].outside.length, 0, "nobody reads that ring");
        assert_ne!(found[&bad], Service::default(), "and it is not what anybody wants");
    }
}

#[test]
fn the_traffic_of_service_ids_is_forgotten_on_every_cpu() {
    let testbed = Testbed::new();
    let _programs = load(&testbed, Some(512)).expect("loads");
    let map = MapData::from_pin(pins(&testbed).map("SERVICE_TRAFFIC")).expect("pinned");
    let mut traffic = PerCpuArray::<_, [u64; 3]>::try_from(Map::PerCpuArray(map)).expect("an array");
    let cpus = nr_cpus().expect("a number");
    // More ids than are made zero at a time.
    let (reset, kept) = (30_000, 30_000);
    for id in [0, 1, reset - 1, kept] {
        let values = PerCpuValues::try_from(vec![[1, 2, 3]; cpus]).expect("one for each");
        traffic.set(id, values, 0).expect("written");
    }
    store(&testbed).apply(&[Op::ResetServiceTraffic((0..reset).collect())]).expect("reset");
    let maps = open(&testbed);
    let flows = |id| counters::traffic(&maps, id).expect("read").flows;
    assert_eq!([0, 1, reset - 1, kept].map(flows), [0, 0, 0, cpus as u64]);
}

/// Flows lie where the seed puts their clients: an agent that starts leaves it alone while one lives.
#[test]
fn the_seed_in_force_stays_as_long_as_a_flow_lives() {
    let testbed = Testbed::new();
    let _programs = load(&testbed, Some(512)).expect("loads");
    let settle = |wanted| store(&testbed).settle_seed(wanted).expect("settled");
    let in_force = || open(&testbed).config.get(&0).expect("readable").map(|config| config.hash_seed);
    assert_eq!((settle(Wanted::Derived(7)), in_force()), (7, Some(7)), "the first agent");
    assert_eq!((settle(Wanted::Derived(8)), in_force()), (8, Some(8)), "no flow depends on it");

    let map = MapData::from_pin(pins(&testbed).map("FLOWS6")).expect("pinned");
    let mut flows = Array::<_, [u64; 120]>::try_from(Map::Array(map)).expect("an array");
    let mut flow = |expires| {
        let mut set = [0; 120];
        set[3] = FlowWord::new(1, FlowState::TCP_ESTABLISHED, expires).0;
        flows.set(5, set, 0).expect("written");
    };
    flow(Moment(now().0 + Moment::steps(60)));
    assert_eq!((settle(Wanted::Derived(9)), in_force()), (8, Some(8)), "a flow lives");
    assert_eq!((settle(Wanted::Given(10)), in_force()), (10, Some(10)), "somebody wants another");
    flow(Moment(1));
    assert_eq!((settle(Wanted::Derived(9)), in_force()), (9, Some(9)), "it has ended");
}

#[test]
fn maps_of_another_size_are_kept_and_of_another_layout_refused() {
    let testbed = Testbed::new();
    drop(load(&testbed, Some(1024)).expect("loads"));
    let _programs = load(&testbed, Some(512)).expect("a size is no reason to forget flows");
    let maps = Maps::open(&pins(&testbed), Access::Read).expect("maps");
    assert_eq!((maps.flows4.sets(), maps.flows6.sets()), (1024, 512));
    assert_eq!((maps.nat4.info().max_entries, maps.nat6.info().max_entries), (1024, 512));
    drop(maps);
    // Other counters: they start anew.
    let counters = pins(&testbed).map("COUNTERS");
    std::fs::remove_file(&counters).expect("removed");
    let smaller = PerCpuArray::<_, u64>::create(8, 0).expect("a map");
    smaller.pin(&counters).expect("pinned");
    drop(load(&testbed, Some(512)).expect("loads"));
    let maps = Maps::open(&pins(&testbed), Access::Read).expect("maps");
    assert_eq!(maps.counters.info().max_entries, HOOKS * REASONS);
    drop(maps);
    // Another map under this name: as if an older build had laid it out differently.
    let config = pins(&testbed).map("CONFIG");
    std::fs::remove_file(&config).expect("removed");
    std::fs::rename(pins(&testbed).map("INTERFACES"), &config).expect("renamed");
    let message = load(&testbed, Some(512)).expect_err("another layout").to_string();
    assert!(message.contains("CONFIG has another layout") && message.contains("shunt cleanup"), "{message}");
}
