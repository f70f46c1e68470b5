//! What must happen to which packet, one row a rule, on tables in memory.
//!
//! The same executor is held against the kernel by lb-userspace/tests/kernel.rs.

use lb_common::abi::{Backend4, FlowState, Frontend4, Hook, Reason, ServiceFlags};
use lb_common::addr::{Ipv4, Port, Proto};
use lb_common::datapath::{Parsed, Route, parse4};
use lb_common::testkit::{
    Action, Frame, MemoryTables, World, checksums_hold, client, fixtures, node, pod, remote_pod, run, vip,
};
use lb_common::wire::SlicePacket;

const FIN_ACK: u8 = 0x11;
const SYN_ACK: u8 = 0x12;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

fn parse(frame: &[u8]) -> Parsed<Ipv4> {
    parse4(&SlicePacket(&mut frame.to_vec())).expect("a frame this test built")
}

/// Runs a frame and asserts action and reason; returns what it became.
#[track_caller]
fn expect(tables: &MemoryTables, hook: Hook, frame: &Frame, action: Action, reason: Reason) -> Vec<u8> {
    let mut bytes = frame.build();
    let before = bytes.clone();
    assert_eq!(run(hook, &mut bytes, tables), (action, reason));
    if action == Action::Pass && matches!(reason, Reason::NoService | Reason::LeftToStack) {
        assert_eq!(bytes, before, "an untouched packet");
    }
    if action != Action::Drop {
        assert_eq!(checksums_hold(&bytes), Some(true), "checksums after {reason:?}");
    }
    bytes
}

#[test]
fn the_fixture_list_holds_in_memory() {
    for fixture in fixtures() {
        let tables = MemoryTables::new(&World::example());
        let mut outputs = Vec::new();
        for (index, step) in fixture.steps.iter().enumerate() {
            let mut bytes = step.bytes(&outputs);
            let outcome = run(step.hook, &mut bytes, &tables);
            assert_eq!(outcome, (step.action, step.reason), "{}, step {index}", fixture.name);
            if step.action != Action::Drop {
                assert_eq!(checksums_hold(&bytes), Some(true), "{}, step {index}", fixture.name);
            }
            outputs.push(bytes);
        }
    }
}

#[test]
fn a_pods_connection_is_translated_there_and_back() {
    let tables = MemoryTables::new(&World::example());
    let syn = Frame::tcp((pod(9), 40_000), (vip(1), 80));
    let there = parse(&expect(&tables, Hook::PodIngress, &syn, Action::Pass, Reason::NewFlow));
    assert_eq!(there.tuple.source, pod(9));
    assert!([pod(1), pod(2), pod(3)].contains(&there.tuple.destination));
    assert_eq!(there.tuple.destination_port, Port::new(8080));

    let backend = (there.tuple.destination, 8080);
    let answer = Frame::tcp(backend, (pod(9), 40_000)).flags(SYN_ACK);
    let back = parse(&expect(&tables, Hook::PodEgress, &answer, Action::Pass, Reason::Reply));
    assert_eq!((back.tuple.source, back.tuple.source_port), (vip(1), Port::new(80)));
    assert_eq!(tables.live_flows()[0].0.state(), FlowState::TCP_SYN_ACK);

    let ack = Frame::tcp((pod(9), 40_000), (vip(1), 80)).flags(ACK);
    let again = parse(&expect(&tables, Hook::PodIngress, &ack, Action::Pass, Reason::Forward));
    assert_eq!(again.tuple.destination, backend.0);
    assert_eq!(tables.live_flows()[0].0.state(), FlowState::TCP_ESTABLISHED);
}

#[test]
fn a_retried_syn_keeps_its_backend() {
    let tables = MemoryTables::new(&World::example());
    let syn = Frame::tcp((pod(9), 40_000), (vip(1), 80));
    let first = expect(&tables, Hook::PodIngress, &syn, Action::Pass, Reason::NewFlow);
    let second = expect(&tables, Hook::PodIngress, &syn, Action::Pass, Reason::Forward);
    assert_eq!(first, second);
}

#[test]
fn the_client_keeps_its_address_towards_a_pod_of_this_node() {
    let tables = MemoryTables::new(&World::example());
    for port in 1024..1100 {
        let syn = Frame::tcp((client(1), port), (node(), 30_082));
        let there = parse(&expect(&tables, Hook::UplinkXdp, &syn, Action::Pass, Reason::NewFlow));
        assert_eq!((there.tuple.source, there.tuple.destination), (client(1), pod(7)));
        let answer = Frame::tcp((pod(7), 8080), (client(1), port)).flags(SYN_ACK);
        let back = parse(&expect(&tables, Hook::UplinkEgress, &answer, Action::Pass, Reason::Reply));
        assert_eq!((back.tuple.source, back.tuple.source_port), (node(), Port::new(30_082)));
    }
}

/// NS2 through tc: destination at ingress, source at egress, and the mirror image.
#[test]
fn a_remote_backend_sees_the_node_through_tc() {
    let tables = MemoryTables::new(&World::example());
    let syn = Frame::tcp((client(1), 2000), (node(), 30_081));
    expect(&tables, Hook::UplinkXdp, &syn, Action::Pass, Reason::LeftToStack);
    let routed = parse(&expect(&tables, Hook::UplinkIngress, &syn, Action::Pass, Reason::Forward));
    assert_eq!((routed.tuple.source, routed.tuple.destination), (client(1), remote_pod(6)));

    let leaving = Frame::tcp((client(1), 2000), (remote_pod(6), 8080));
    let sent = parse(&expect(&tables, Hook::UplinkEgress, &leaving, Action::Pass, Reason::Masquerade));
    assert_eq!((sent.tuple.source, sent.tuple.destination), (node(), remote_pod(6)));
    let port = sent.tuple.source_port.get();
    assert!(port >= 61_000, "a masquerading port: {port}");

    let answer = Frame::tcp((remote_pod(6), 8080), (node(), port)).flags(SYN_ACK);
    let inside = parse(&expect(&tables, Hook::UplinkIngress, &answer, Action::Pass, Reason::MasqueradeReply));
    assert_eq!((inside.tuple.source, inside.tuple.destination), (remote_pod(6), client(1)));
    assert_eq!(inside.tuple.destination_port, Port::new(2000));

    let leaving = Frame::tcp((remote_pod(6), 8080), (client(1), 2000)).flags(SYN_ACK);
    let sent = parse(&expect(&tables, Hook::UplinkEgress, &leaving, Action::Pass, Reason::Reply));
    assert_eq!((sent.tuple.source, sent.tuple.source_port), (node(), Port::new(30_081)));
}

/// NS2 through XDP alone: one program run each way, TTL down by one.
#[test]
fn xdp_forwards_to_a_remote_backend_by_itself() {
    let mut tables = MemoryTables::new(&World::example());
    let route = Route { interface: 3, same_interface: true, destination_mac: [4; 6], source_mac: [6; 6] };
    tables.add_route(remote_pod(6), route);
    tables.add_route(client(1), route);
    let syn = Frame::tcp((client(1), 2000), (node(), 30_081));
    let bytes = expect(&tables, Hook::UplinkXdp, &syn, Action::Send, Reason::NewFlow);
    assert_eq!(bytes[..12], [[4; 6], [6; 6]].concat());
    let sent = parse(&bytes);
    assert_eq!((sent.tuple.source, sent.tuple.destination), (node(), remote_pod(6)));
    assert_eq!(sent.ttl, 63);

    let port = sent.tuple.source_port.get();
    let answer = Frame::tcp((remote_pod(6), 8080), (node(), port)).flags(SYN_ACK);
    let back = parse(&expect(&tables, Hook::UplinkXdp, &answer, Action::Send, Reason::MasqueradeReply));
    assert_eq!((back.tuple.source, back.tuple.source_port), (node(), Port::new(30_081)));
    assert_eq!((back.tuple.destination, back.tuple.destination_port), (client(1), Port::new(2000)));

    let last_hop = Frame::tcp((client(1), 2000), (node(), 30_081)).ttl(1);
    expect(&tables, Hook::UplinkXdp, &last_hop, Action::Pass, Reason::LeftToStack);
}

#[test]
fn a_pod_that_reaches_itself_sees_the_node() {
    let mut world = World::new();
    world.add((vip(9), 80), Proto::TCP, ServiceFlags::default(), &[(pod(1), 8080, true)]);
    let tables = MemoryTables::new(&world);
    let syn = Frame::tcp((pod(1), 5000), (vip(9), 80));
    let turned = parse(&expect(&tables, Hook::PodIngress, &syn, Action::Pass, Reason::NewFlow));
    assert_eq!((turned.tuple.source, turned.tuple.destination), (pod(1), pod(1)));

    let returning = Frame::tcp((pod(1), 5000), (pod(1), 8080));
    let seen = parse(&expect(&tables, Hook::PodEgress, &returning, Action::Pass, Reason::Masquerade));
    assert_eq!((seen.tuple.source, seen.tuple.destination), (node(), pod(1)));

    let port = seen.tuple.source_port.get();
    let answer = Frame::tcp((pod(1), 8080), (node(), port)).flags(SYN_ACK);
    let turned = parse(&expect(&tables, Hook::PodIngress, &answer, Action::Pass, Reason::MasqueradeReply));
    assert_eq!((turned.tuple.destination, turned.tuple.destination_port), (pod(1), Port::new(5000)));
    let returning = Frame::tcp((pod(1), 8080), (pod(1), 5000)).flags(SYN_ACK);
    let seen = parse(&expect(&tables, Hook::PodEgress, &returning, Action::Pass, Reason::Reply));
    assert_eq!((seen.tuple.source, seen.tuple.source_port), (vip(9), Port::new(80)));
}

#[test]
fn nobody_serves_is_said_at_once() {
    let tables = MemoryTables::new(&World::example());
    for hook in [Hook::UplinkXdp, Hook::UplinkIngress, Hook::PodIngress] {
        let syn = Frame::tcp((client(1), 2000), (vip(3), 80)).tcp_options(5);
        let bytes = expect(&tables, hook, &syn, Action::Send, Reason::RefusedReset);
        let reset = parse(&bytes);
        assert_eq!((reset.tuple.source, reset.tuple.destination), (vip(3), client(1)));
        assert_eq!((reset.tuple.source_port, reset.tuple.destination_port), (Port::new(80), Port::new(2000)));
        assert_eq!(reset.flags.0, RST | ACK);
        // RFC 9293: sequence 0, and the SYN is acknowledged.
        assert_eq!(bytes[38..46], [0, 0, 0, 0, 1, 2, 3, 5]);

        let data = Frame::tcp((client(1), 2000), (vip(3), 80)).flags(ACK).payload(b"hello");
        let bytes = expect(&tables, hook, &data, Action::Send, Reason::RefusedReset);
        assert_eq!((parse(&bytes).flags.0, &bytes[38..42]), (RST, &[5, 6, 7, 8][..]));

        let reset = Frame::tcp((client(1), 2000), (vip(3), 80)).flags(RST);
        expect(&tables, hook, &reset, Action::Drop, Reason::Stray);

        let datagram = Frame::udp((client(1), 2000), (vip(3), 80));
        let mut bytes = datagram.build();
        assert_eq!(run(hook, &mut bytes, &tables), (Action::Send, Reason::RefusedUnreachable));
        assert_eq!(checksums_hold(&bytes), Some(true));
        assert_eq!((bytes[23], &bytes[34..36]), (1, &[3, 3][..]), "ICMP port unreachable");
        assert_eq!(bytes[42..70], datagram.build()[14..42], "quotes what it answers");
    }
    assert!(tables.live_flows().is_empty());
}

#[test]
fn policy_local_without_a_local_endpoint_is_silence() {
    let tables = MemoryTables::new(&World::example());
    let syn = Frame::tcp((client(1), 2000), (vip(4), 80));
    expect(&tables, Hook::UplinkXdp, &syn, Action::Drop, Reason::NoLocalEndpoint);
}

#[test]
fn a_client_outside_the_cluster_range_is_masqueraded_to_a_cluster_ip() {
    let mut world = World::new();
    world.add((vip(9), 80), Proto::TCP, ServiceFlags::default(), &[(remote_pod(1), 8080, false)]);
    let tables = MemoryTables::new(&world);
    for (source, masqueraded) in [(client(1), true), (remote_pod(9), false)] {
        let syn = Frame::tcp((source, 2000), (vip(9), 80));
        expect(&tables, Hook::UplinkIngress, &syn, Action::Pass, Reason::NewFlow);
        let leaving = Frame::tcp((source, 2000), (remote_pod(1), 8080));
        let (action, reason) = run(Hook::UplinkEgress, &mut leaving.build(), &tables);
        assert_eq!(action, Action::Pass);
        assert_eq!(reason == Reason::Masquerade, masqueraded, "{source}");
    }
}

#[test]
fn tcp_keeps_a_backend_that_left_and_udp_does_not() {
    let world = World::example();
    let mut tables = MemoryTables::new(&world);
    let tcp = Frame::tcp((pod(9), 40_000), (vip(1), 80)).flags(ACK);
    let udp = Frame::udp((pod(9), 40_000), (vip(2), 53));
    let to = parse(&expect(&tables, Hook::PodIngress, &tcp, Action::Pass, Reason::NewFlow));
    let first = parse(&expect(&tables, Hook::PodIngress, &udp, Action::Pass, Reason::NewFlow));
    expect(&tables, Hook::PodIngress, &udp, Action::Pass, Reason::Forward);

    // Every backend of both Services goes, and each id gets a new endpoint.
    for (id, backend) in &world.backends {
        let other = Ipv4::from_octets([10, 244, 1, 100 + *id as u8]);
        tables.set_backend(*id, Backend4 { address: other, generation: backend.generation + 1, ..*backend });
    }
    let kept = parse(&expect(&tables, Hook::PodIngress, &tcp, Action::Pass, Reason::Forward));
    assert_eq!(kept.tuple.destination, to.tuple.destination);
    let moved = parse(&expect(&tables, Hook::PodIngress, &udp, Action::Pass, Reason::NewFlow));
    assert_ne!(moved.tuple.destination, first.tuple.destination);
    // A new connection from the same port is a new choice.
    let syn = Frame::tcp((pod(9), 40_000), (vip(1), 80));
    let moved = parse(&expect(&tables, Hook::PodIngress, &syn, Action::Pass, Reason::NewFlow));
    assert_ne!(moved.tuple.destination, to.tuple.destination);
    assert_eq!(tables.live_flows().len(), 2, "the old records are gone");
}

#[test]
fn a_closed_port_may_be_used_again() {
    let tables = MemoryTables::new(&World::example());
    let syn = Frame::tcp((pod(9), 40_000), (vip(1), 80));
    let to = parse(&expect(&tables, Hook::PodIngress, &syn, Action::Pass, Reason::NewFlow)).tuple;
    let fin = Frame::tcp((pod(9), 40_000), (vip(1), 80)).flags(FIN_ACK);
    let answer = |flags| Frame::tcp((to.destination, 8080), (pod(9), 40_000)).flags(flags);
    expect(&tables, Hook::PodEgress, &answer(SYN_ACK), Action::Pass, Reason::Reply);
    expect(&tables, Hook::PodIngress, &fin, Action::Pass, Reason::Forward);
    assert_eq!(tables.live_flows()[0].0.state(), FlowState::TCP_CLIENT_FIN);
    expect(&tables, Hook::PodEgress, &answer(FIN_ACK), Action::Pass, Reason::Reply);
    assert_eq!(tables.live_flows()[0].0.state(), FlowState::TCP_CLOSED);
    expect(&tables, Hook::PodIngress, &syn, Action::Pass, Reason::NewFlow);
    assert_eq!(tables.live_flows()[0].0.state(), FlowState::TCP_SYN);
}

#[test]
fn flows_are_forgotten_in_time_and_not_earlier() {
    let tables = MemoryTables::new(&World::example());
    let syn = Frame::tcp((pod(9), 40_000), (vip(1), 80));
    expect(&tables, Hook::PodIngress, &syn, Action::Pass, Reason::NewFlow);
    tables.pass_seconds(55);
    assert_eq!(tables.live_flows().len(), 1);
    tables.pass_seconds(10);
    assert_eq!(tables.live_flows().len(), 0, "half-open flows last a minute");

    let to = parse(&expect(&tables, Hook::PodIngress, &syn, Action::Pass, Reason::NewFlow)).tuple;
    let answer = Frame::tcp((to.destination, 8080), (pod(9), 40_000)).flags(SYN_ACK);
    let ack = Frame::tcp((pod(9), 40_000), (vip(1), 80)).flags(ACK);
    expect(&tables, Hook::PodEgress, &answer, Action::Pass, Reason::Reply);
    expect(&tables, Hook::PodIngress, &ack, Action::Pass, Reason::Forward);
    // The kernel's keepalive looks after 7200 s and gives up 675 s later.
    tables.pass_seconds(7200 + 675);
    expect(&tables, Hook::PodIngress, &ack, Action::Pass, Reason::Forward);
}

#[test]
fn a_flood_of_first_packets_never_evicts_an_established_flow() {
    let mut world = World::example();
    world.config.flow_set_mask = 0;
    let tables = MemoryTables::new(&world);
    for port in 1..=8 {
        let syn = Frame::tcp((pod(9), port), (vip(1), 80));
        let to = parse(&expect(&tables, Hook::PodIngress, &syn, Action::Pass, Reason::NewFlow)).tuple;
        if port <= 7 {
            let answer = Frame::tcp((to.destination, 8080), (pod(9), port)).flags(SYN_ACK);
            expect(&tables, Hook::PodEgress, &answer, Action::Pass, Reason::Reply);
            let ack = Frame::tcp((pod(9), port), (vip(1), 80)).flags(ACK);
            expect(&tables, Hook::PodIngress, &ack, Action::Pass, Reason::Forward);
        }
    }
    // Seven established flows, and one way through which the flood goes.
    for port in 1000..2000 {
        let syn = Frame::tcp((client(1), port), (vip(1), 80));
        expect(&tables, Hook::UplinkXdp, &syn, Action::Pass, Reason::NewFlow);
    }
    for port in 1..=7 {
        let ack = Frame::tcp((pod(9), port), (vip(1), 80)).flags(ACK);
        expect(&tables, Hook::PodIngress, &ack, Action::Pass, Reason::Forward);
    }
    let established = |(word, _): &(lb_common::abi::FlowWord, _)| !word.state().is_half_open();
    assert_eq!(tables.live_flows().iter().filter(|flow| established(flow)).count(), 7);
}

#[test]
fn a_full_set_refuses_visibly() {
    let mut world = World::example();
    world.config.flow_set_mask = 0;
    let tables = MemoryTables::new(&world);
    for port in 1..=8 {
        let syn = Frame::tcp((pod(9), port), (vip(1), 80));
        let to = parse(&expect(&tables, Hook::PodIngress, &syn, Action::Pass, Reason::NewFlow)).tuple;
        let answer = Frame::tcp((to.destination, 8080), (pod(9), port)).flags(SYN_ACK);
        expect(&tables, Hook::PodEgress, &answer, Action::Pass, Reason::Reply);
        let ack = Frame::tcp((pod(9), port), (vip(1), 80)).flags(ACK);
        expect(&tables, Hook::PodIngress, &ack, Action::Pass, Reason::Forward);
    }
    let syn = Frame::tcp((pod(8), 1), (vip(1), 80));
    expect(&tables, Hook::PodIngress, &syn, Action::Send, Reason::FlowTableFull);
}

#[test]
fn masquerading_ports_run_out_visibly_and_come_back() {
    let mut world = World::example();
    world.config.nat_port_count = 4;
    let tables = MemoryTables::new(&world);
    let mut refused = 0;
    for port in 1..=20 {
        let mut syn = Frame::tcp((client(1), port), (node(), 30_081)).build();
        match run(Hook::UplinkIngress, &mut syn, &tables) {
            (Action::Pass, Reason::NewFlow) => {
                run(Hook::UplinkEgress, &mut syn, &tables);
                let seen = parse(&syn).tuple;
                let peer = (seen.source, seen.source_port.get());
                let answer = Frame::tcp((seen.destination, 8080), peer).flags(SYN_ACK);
                let reason = Reason::MasqueradeReply;
                expect(&tables, Hook::UplinkIngress, &answer, Action::Pass, reason);
                let ack = Frame::tcp((client(1), port), (node(), 30_081)).flags(ACK);
                expect(&tables, Hook::UplinkIngress, &ack, Action::Pass, Reason::Forward);
            }
            (Action::Send, Reason::NatPortsExhausted) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(refused >= 16, "4 ports, 20 clients, {refused} refused");
    let ports: std::collections::HashSet<_> =
        tables.live_flows().iter().map(|(_, flow)| flow.nat_port).collect();
    assert_eq!(ports.len(), tables.live_flows().len(), "no port is shared");
    tables.pass_seconds(8200);
    let syn = Frame::tcp((client(2), 1), (node(), 30_081));
    expect(&tables, Hook::UplinkIngress, &syn, Action::Pass, Reason::NewFlow);
}

/// A flood of first packets to one backend does not take its ports from those who mean it.
#[test]
fn half_open_flows_give_their_ports_up() {
    let mut world = World::example();
    world.config.nat_port_count = 4;
    let tables = MemoryTables::new(&world);
    for port in 1..200 {
        let syn = Frame::tcp((client(1), port), (node(), 30_081));
        expect(&tables, Hook::UplinkIngress, &syn, Action::Pass, Reason::NewFlow);
    }
    // One that lost its port gets another with its next packet.
    let again = Frame::tcp((client(1), 1), (node(), 30_081)).flags(ACK);
    expect(&tables, Hook::UplinkIngress, &again, Action::Pass, Reason::NewFlow);
}

/// Nothing that one side alone can send makes a flow that cannot be evicted.
#[test]
fn one_sided_packets_leave_a_flow_half_open() {
    let tables = MemoryTables::new(&World::example());
    let to = |flags| Frame::tcp((client(1), 1), (vip(1), 80)).flags(flags);
    expect(&tables, Hook::UplinkXdp, &to(RST), Action::Drop, Reason::Stray);
    expect(&tables, Hook::UplinkXdp, &to(SYN_ACK), Action::Drop, Reason::Stray);
    let there = parse(&expect(&tables, Hook::UplinkXdp, &to(0x02), Action::Pass, Reason::NewFlow)).tuple;
    let state = || tables.live_flows()[0].0.state();
    for flags in [ACK, FIN_ACK, 0x00, 0x01, 0x03] {
        expect(&tables, Hook::UplinkXdp, &to(flags), Action::Pass, Reason::Forward);
        assert!(state().is_half_open(), "{flags:#x}: {:?}", state());
    }
    // After the backend's answer, a segment that acknowledges nothing is nobody's.
    let answer = Frame::tcp((there.destination, 8080), (client(1), 1)).flags(SYN_ACK);
    expect(&tables, Hook::UplinkEgress, &answer, Action::Pass, Reason::Reply);
    for flags in [0x00, 0x01, 0x08] {
        expect(&tables, Hook::UplinkXdp, &to(flags), Action::Pass, Reason::Forward);
        assert_eq!(state(), FlowState::TCP_SYN_ACK);
    }
    expect(&tables, Hook::UplinkXdp, &to(ACK), Action::Pass, Reason::Forward);
    assert_eq!(state(), FlowState::TCP_ESTABLISHED);
}

/// A RST that both ends ignore (RFC 5961) does not end the flow for us either.
#[test]
fn a_connection_survives_a_reset_that_was_not_its_own() {
    let tables = MemoryTables::new(&World::example());
    let to = |flags| Frame::tcp((client(1), 1), (vip(1), 80)).flags(flags);
    let there = parse(&expect(&tables, Hook::UplinkXdp, &to(0x02), Action::Pass, Reason::NewFlow)).tuple;
    let from = |flags| Frame::tcp((there.destination, 8080), (client(1), 1)).flags(flags);
    expect(&tables, Hook::UplinkEgress, &from(SYN_ACK), Action::Pass, Reason::Reply);
    expect(&tables, Hook::UplinkXdp, &to(ACK), Action::Pass, Reason::Forward);
    expect(&tables, Hook::UplinkXdp, &to(RST), Action::Pass, Reason::Forward);
    assert_eq!(tables.live_flows()[0].0.state(), FlowState::TCP_CLOSED);
    tables.pass_seconds(2);
    expect(&tables, Hook::UplinkEgress, &from(ACK), Action::Pass, Reason::Reply);
    assert_eq!(tables.live_flows()[0].0.state(), FlowState::TCP_ESTABLISHED);
}

/// A direct connection from a port that a finished one had through a Service is its own.
#[test]
fn a_direct_connection_is_not_taken_for_a_finished_one() {
    let mut world = World::new();
    world.add((vip(9), 80), Proto::TCP, ServiceFlags::default(), &[(pod(1), 8080, true)]);
    let tables = MemoryTables::new(&world);
    let through = |flags| Frame::tcp((pod(9), 1), (vip(9), 80)).flags(flags);
    let back = |flags| Frame::tcp((pod(1), 8080), (pod(9), 1)).flags(flags);
    expect(&tables, Hook::PodIngress, &through(0x02), Action::Pass, Reason::NewFlow);
    expect(&tables, Hook::PodEgress, &back(SYN_ACK), Action::Pass, Reason::Reply);
    expect(&tables, Hook::PodIngress, &through(ACK), Action::Pass, Reason::Forward);
    expect(&tables, Hook::PodIngress, &through(FIN_ACK), Action::Pass, Reason::Forward);
    expect(&tables, Hook::PodEgress, &back(FIN_ACK), Action::Pass, Reason::Reply);

    let direct = Frame::tcp((pod(9), 1), (pod(1), 8080));
    expect(&tables, Hook::PodIngress, &direct, Action::Pass, Reason::NoService);
    expect(&tables, Hook::PodEgress, &back(SYN_ACK), Action::Pass, Reason::NoService);
}

/// The same client port to two frontends of one backend: four ways through, each told apart.
#[test]
fn one_client_port_to_two_frontends_of_one_backend_is_two_flows() {
    let mut world = World::new();
    let none = ServiceFlags::default();
    world.add((vip(3), 80), Proto::TCP, none, &[(pod(3), 8080, true)]);
    world.add((vip(4), 80), Proto::TCP, none, &[(pod(3), 8080, true)]);
    let external = ServiceFlags::EXTERNAL;
    world.add((node(), 30_080), Proto::TCP, external, &[(pod(3), 8080, true)]);
    world.add((node(), 30_081), Proto::TCP, external, &[(remote_pod(3), 8080, false)]);
    world.add((node(), 30_082), Proto::TCP, external, &[(remote_pod(3), 8080, false)]);
    let tables = MemoryTables::new(&world);
    let rows = [
        (
            pod(9),
            Hook::PodIngress,
            Hook::PodEgress,
            Hook::PodIngress,
            Hook::PodEgress,
            [(vip(3), 80), (vip(4), 80)],
        ),
        (
            client(1),
            Hook::UplinkXdp,
            Hook::PodEgress,
            Hook::PodIngress,
            Hook::UplinkEgress,
            [(vip(3), 80), (node(), 30_080)],
        ),
        (
            client(1),
            Hook::UplinkIngress,
            Hook::UplinkEgress,
            Hook::UplinkIngress,
            Hook::UplinkEgress,
            [(node(), 30_081), (node(), 30_082)],
        ),
    ];
    for (who, enter, towards, back, leave, frontends) in rows {
        let mut seen = Vec::new();
        for frontend in frontends {
            // There: what the backend gets.
            let mut there = Frame::tcp((who, 1234), frontend).build();
            assert_eq!(run(enter, &mut there, &tables), (Action::Pass, Reason::NewFlow));
            run(towards, &mut there, &tables);
            assert_eq!(checksums_hold(&there), Some(true));
            seen.push((frontend, parse(&there).tuple));
        }
        assert_ne!(seen[0].1.source_port, seen[1].1.source_port, "told apart by port: {seen:?}");
        for (frontend, tuple) in seen {
            // Back: the backend answers what it saw, and the client gets it from whom it asked.
            let backend = (tuple.destination, tuple.destination_port.get());
            let mut answer =
                Frame::tcp(backend, (tuple.source, tuple.source_port.get())).flags(SYN_ACK).build();
            run(back, &mut answer, &tables);
            run(leave, &mut answer, &tables);
            let back = parse(&answer).tuple;
            assert_eq!((back.source, back.source_port.get()), frontend);
            assert_eq!((back.destination, back.destination_port.get()), (who, 1234));
            assert_eq!(checksums_hold(&answer), Some(true));
        }
    }
}

#[test]
fn what_is_not_ours_passes_untouched_under_its_reason() {
    let tables = MemoryTables::new(&World::example());
    let good = Frame::tcp((client(1), 2000), (vip(1), 80)).build();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = good.clone();
        change(&mut frame);
        frame
    };
    let rows: [(&str, Vec<u8>, Reason); 12] = [
        ("ARP", with(&|f| f[12..14].copy_from_slice(&[8, 6])), Reason::NotIpv4),
        ("IPv6", with(&|f| f[12..14].copy_from_slice(&[0x86, 0xdd])), Reason::NotIpv4),
        ("VLAN tag", with(&|f| f[12..14].copy_from_slice(&[0x81, 0])), Reason::NotIpv4),
        ("version 6 in an IPv4 frame", with(&|f| f[14] = 0x65), Reason::Malformed),
        ("header shorter than 20 bytes", with(&|f| f[14] = 0x44), Reason::Malformed),
        ("length beyond the frame", with(&|f| f[16] = 0x40), Reason::Malformed),
        ("TCP data offset of 4 words", with(&|f| f[46] = 0x40), Reason::Malformed),
        ("cut inside the TCP header", with(&|f| f.truncate(50)), Reason::Malformed),
        ("more fragments", with(&|f| f[20] = 0x20), Reason::Fragment),
        ("last fragment", with(&|f| f[21] = 0x10), Reason::Fragment),
        ("ICMP", with(&|f| f[23] = 1), Reason::OtherProtocol),
        ("to 127.0.0.1", with(&|f| f[30..34].copy_from_slice(&[127, 0, 0, 1])), Reason::Martian),
    ];
    for (name, frame, reason) in rows {
        for hook in [Hook::UplinkXdp, Hook::UplinkIngress, Hook::UplinkEgress, Hook::PodIngress] {
            let mut after = frame.clone();
            assert_eq!(run(hook, &mut after, &tables), (Action::Pass, reason), "{name}");
            assert_eq!(after, frame, "{name}");
        }
    }
}

#[test]
fn ip_options_and_missing_udp_checksums_are_carried() {
    let tables = MemoryTables::new(&World::example());
    let syn = Frame::tcp((pod(9), 1), (vip(1), 80)).ip_options(10);
    expect(&tables, Hook::PodIngress, &syn, Action::Pass, Reason::NewFlow);
    let datagram = Frame::udp((pod(9), 1), (vip(2), 53)).without_checksum();
    let bytes = expect(&tables, Hook::PodIngress, &datagram, Action::Pass, Reason::NewFlow);
    assert_eq!(bytes[40..42], [0, 0], "no checksum stays no checksum");
}

#[test]
fn two_nodes_choose_alike() {
    let (mut a, mut b) = (World::new(), World::new());
    let entry = |n: u8, here: bool| (pod(n), 8080, here);
    a.add(
        (vip(1), 80),
        Proto::TCP,
        ServiceFlags::default(),
        &[entry(1, true), entry(2, true), entry(3, false)],
    );
    // Another node: other locality, and other ids, since it has seen other Services before.
    b.add((vip(2), 80), Proto::TCP, ServiceFlags::default(), &[entry(7, true)]);
    b.add(
        (vip(1), 80),
        Proto::TCP,
        ServiceFlags::default(),
        &[entry(1, false), entry(2, false), entry(3, true)],
    );
    let (a, b) = (MemoryTables::new(&a), MemoryTables::new(&b));
    for n in 0..10_000_u16 {
        let syn = Frame::tcp((client((n >> 8) as u8), 1024 + n), (vip(1), 80)).build();
        let (mut on_a, mut on_b) = (syn.clone(), syn);
        run(Hook::PodIngress, &mut on_a, &a);
        run(Hook::PodIngress, &mut on_b, &b);
        assert_eq!(parse(&on_a).tuple.destination, parse(&on_b).tuple.destination);
    }
}

#[test]
fn a_frontend_is_exact() {
    let world = World::example();
    let mut tables = MemoryTables::new(&world);
    let (key, service) = world.services[0];
    tables.set_service(Frontend4::new(vip(77), key.port, Proto::UDP), service);
    for frame in [
        Frame::tcp((client(1), 1), (vip(1), 81)),
        Frame::udp((client(1), 1), (vip(1), 80)),
        Frame::tcp((client(1), 1), (vip(77), 80)),
    ] {
        expect(&tables, Hook::UplinkXdp, &frame, Action::Pass, Reason::NoService);
    }
}

/// A port whose connection has ended is given out again before its twenty seconds are over.
#[test]
fn masquerading_ports_do_not_wait_for_closed_connections() {
    let mut world = World::example();
    world.config.nat_port_count = 4;
    let tables = MemoryTables::new(&world);
    for port in 1..200 {
        let syn = Frame::tcp((client(1), port), (node(), 30_081));
        expect(&tables, Hook::UplinkIngress, &syn, Action::Pass, Reason::NewFlow);
        let reset = Frame::tcp((client(1), port), (node(), 30_081)).flags(RST);
        expect(&tables, Hook::UplinkIngress, &reset, Action::Pass, Reason::Forward);
        let closed = |(word, _): &(lb_common::abi::FlowWord, _)| word.state() == FlowState::TCP_CLOSED;
        assert!(tables.live_flows().iter().all(closed));
    }
}

/// Clients whose own ports lie where ports for shared flows are drawn from.
#[test]
fn a_shared_flows_port_is_never_one_the_client_speaks_from() {
    let mut world = World::example();
    (world.config.nat_port_first, world.config.nat_port_count) = (20_000, 400);
    let tables = MemoryTables::new(&world);
    let mut seen = Vec::new();
    for port in 20_000..20_100 {
        for frontend in [(vip(5), 80), (vip(6), 80)] {
            let syn = Frame::tcp((pod(9), port), frontend);
            let there = parse(&expect(&tables, Hook::PodIngress, &syn, Action::Pass, Reason::NewFlow)).tuple;
            seen.push((port, frontend, there));
        }
    }
    for (port, frontend, there) in seen {
        let answer = Frame::tcp((there.destination, 8080), (there.source, there.source_port.get()));
        let answer = answer.flags(SYN_ACK);
        let back = parse(&expect(&tables, Hook::PodEgress, &answer, Action::Pass, Reason::Reply)).tuple;
        assert_eq!((back.source, back.source_port.get()), frontend, "client port {port}");
        assert_eq!(back.destination_port.get(), port);
    }
}
