//! The filter of local clients over real maps.

use aya::Pod;
use aya::maps::{Array, Map, MapData};
use lb_common::abi::{ConfigFlags, FlowSet4, FlowState, FlowWord, Moment, WAYS, address_bit};
use lb_common::addr::Ipv4;
use lb_kernel::maps::clients::complete;
use lb_kernel::maps::config::ConfigMap;
use lb_kernel::maps::flows::now;

use crate::store::{load, open, pins};
use crate::testbed::Testbed;

/// A [`FlowSet4`] in words of eight bytes: those of the ways, then eight to a record, which begins with the client.
type Set = [u64; size_of::<FlowSet4>() / size_of::<u64>()];

fn array<T: Pod>(testbed: &Testbed, name: &str) -> Array<MapData, T> {
    let map = MapData::from_pin(pins(testbed).map(name)).expect("pinned");
    Array::try_from(Map::Array(map)).expect("an array")
}

#[test]
fn clients_with_flows_are_noted_before_the_programs_rely_on_it() {
    let testbed = Testbed::new();
    let _programs = load(&testbed, Some(512)).expect("loads");
    // Flows of an agent that did not know who is local.
    let [local, ended, foreign] = [[10, 244, 1, 7], [10, 244, 1, 8], [192, 0, 2, 7]].map(Ipv4::from_octets);
    let later = Moment(now().0 + Moment::steps(60));
    let mut set: Set = [0; _];
    for (way, (client, expires)) in
        [(local, later), (ended, Moment(1)), (foreign, later)].into_iter().enumerate()
    {
        set[way] = FlowWord::new(1, FlowState::TCP_ESTABLISHED, expires).0;
        let [a, b, c, d] = client.octets();
        set[WAYS * (way + 1)] = u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]);
    }
    array::<Set>(&testbed, "FLOWS4").set(5, set, 0).expect("written");

    let maps = open(&testbed);
    let config = ConfigMap::open(maps.clone()).expect("readable");
    let noted = |client: Ipv4| {
        let (word, bit) = address_bit(client);
        array::<u64>(&testbed, "CLIENTS").get(&word, 0).expect("a word") & bit != 0
    };
    let relied_on =
        || maps.config.get(&0).expect("readable").is_some_and(|it| it.flags.has(ConfigFlags::CLIENTS_NOTED));
    let local_range = |network: [u8; 4]| {
        let change = |it: &mut lb_common::abi::Config| {
            it.flags = ConfigFlags::LOCAL_RANGE;
            (it.ipv4.local_network, it.ipv4.local_mask) =
                (Ipv4::from_octets(network), Ipv4::from_octets([255, 255, 0, 0]));
        };
        config.change(change).expect("written")
    };
    complete(&maps, &config).expect("nothing to do");
    assert!(!relied_on(), "nobody is known to be local yet");
    assert!(local_range([10, 244, 0, 0]));
    // Others are local while an earlier idea is looked through, and then the same again.
    let (_, locals) = config.lacks_clients().expect("lacking");
    assert!(local_range([192, 0, 0, 0]) && local_range([10, 244, 0, 0]));
    config.clients_are_noted(locals).expect("written");
    assert!(!relied_on(), "flows may have been made without a note in between");
    complete(&maps, &config).expect("completed");
    assert!(relied_on());
    // Programs' clocks lag: the flow that has ended may not have for them.
    assert_eq!([local, ended, foreign].map(noted), [true, true, false]);

    assert!(!local_range([10, 244, 0, 0]), "the same range is no change");
    assert!(relied_on());
    let restarted = ConfigMap::open(maps.clone()).expect("readable");
    assert!(restarted.lacks_clients().is_none(), "programs have gone on noting clients");
    assert!(local_range([192, 0, 0, 0]));
    assert!(!relied_on(), "others are local now");
}
