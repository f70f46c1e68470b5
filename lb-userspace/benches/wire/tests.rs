//! Tests of what is pure in the bench `wire`.

#![expect(
    dead_code,
    reason = "only what is pure is tested here; the rest needs root and runs as the bench `wire`"
)]

mod case;
#[path = "../../../lb-ebpf/src/floors/layout.rs"]
mod layout;
mod rows;
mod rules;
mod sent;

use std::collections::BTreeSet;

use case::{Aim, Carrier, Case, Flows};
use lb_common::addr::{Ipv4, Proto};
use lb_testkit::Frame;
use rows::Measured;
use sent::Sent;

fn shunt(services: u32, flows: Flows) -> Case {
    Case { carrier: Carrier::Shunt(services), aim: Aim::Back, proto: Proto::UDP, flows }
}

#[test]
fn names_are_unique_and_every_floor_is_measured() {
    for all in [false, true] {
        let cases = case::list(all);
        let names: BTreeSet<_> = cases.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), cases.len());
        assert!(cases.iter().all(|case| cases.contains(&case.floor())));
    }
    let name = shunt(1, Flows::New).to_string();
    assert_eq!(name, "Shunt, 1 Service, sent back by XDP, masqueraded, new flows");
}

#[test]
fn there_are_as_many_services_as_asked_for_and_the_measured_one_is_last() {
    for count in [1, 1000, 10_000] {
        let services = rules::services(count);
        assert_eq!(services.len(), count as usize);
        let addresses: BTreeSet<_> = services.iter().map(|service| service.cluster_ip).collect();
        assert_eq!(addresses.len(), count as usize);
        let last = services.last().unwrap();
        assert_eq!((last.external_ip, last.endpoints.len()), (Some(Aim::Here.destination().0), 100));
    }
}

fn sent(from: [u8; 4]) -> Sent {
    let at = |address: [u8; 4], port| (Ipv4::from(std::net::Ipv4Addr::from(address)), port);
    let sample = Frame::udp(at(from, 10_000), at([10, 244, 2, 101], 8080)).build();
    Sent { sent: 1000, arrived: 1000, right: 1000, sample, nanos: 1, busy: 1.0 }
}

#[test]
fn frames_that_are_lost_or_not_what_they_should_be_are_a_problem() {
    let case = shunt(1, Flows::One);
    let good = sent([192, 0, 2, 1]);
    assert_eq!(good.problem(&case), None);
    let problem = |sent: Sent| sent.problem(&case).unwrap();
    assert!(problem(Sent { arrived: 994, ..good.clone() }).contains("994 of 1000"));
    assert!(problem(Sent { arrived: 1001, ..good.clone() }).contains("arrived"));
    assert!(problem(Sent { right: 0, ..good.clone() }).contains("destination"));
    assert!(problem(sent([64, 0, 0, 0])).contains("64.0.0.0"));
    let mut broken = good;
    broken.sample[40] ^= 1;
    assert!(problem(broken).contains("checksum"));
}

#[test]
fn rates_are_held_against_those_of_the_same_round() {
    let measured = |case, nanos: [f64; 3]| Measured { nanos: nanos.to_vec(), ..Measured::new(case) };
    let case = shunt(10_000, Flows::One);
    // A machine that is twice as slow in the second round.
    let all = [
        measured(case.floor(), [100.0, 200.0, 100.0]),
        measured(shunt(1, Flows::One), [125.0, 250.0, 125.0]),
        measured(case, [125.0, 250.0, 125.0]),
    ];
    let rows = rows::rows(&all, false);
    let row =
        |what: &str| rows.iter().find(|row| row["case"] == case.to_string() && row["what"] == what).unwrap();
    assert_eq!((&row("rate")["value"], &row("rate")["ratio"]), (&8.0.into(), &0.8.into()));
    assert_eq!(row("rate")["target"]["atLeast"], 0.8);
    assert_eq!(row("rate, against 1 Service")["ratio"], 1.0);
    assert!(rows.iter().all(|row| row["what"] != "rate, against nftables"), "which was not measured");
}
