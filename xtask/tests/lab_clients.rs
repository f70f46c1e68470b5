//! What depends on who the client is: session affinity, loadBalancerSourceRanges, addresses that nobody has.
mod lab_support;

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use lab_support::frames::{Datagram, Wire, strangers};
use lab_support::paths::{Asker, Frontend};
use lab_support::{CHANGE, Checks, ECHO, FAMILIES, Numbered, PACE, Scene, WEB, eventually, options};
use lb_lab::pod::UDP_PORT;
use lb_lab::{
    Endpoint, Family, Layout, Netns, NodeId, PodKind, Service, SocketLb, UPLINK, XdpMode, at, poll_every,
};

/// Services with session affinity; more than one, so that no test passes by chance.
const STICKY: [Numbered; 6] =
    [Numbered(60), Numbered(61), Numbered(62), Numbered(63), Numbered(64), Numbered(65)];
/// Services whose affinity lasts two seconds.
const FLEETING: [Numbered; 12] = {
    let mut services = [Numbered(70); 12];
    let mut index = 0;
    while index < services.len() {
        services[index] = Numbered(70 + index as u8);
        index += 1;
    }
    services
};
const PODS: [&str; 3] = ["a1", "a2", "b1"];

fn apply(scene: &Scene, service: &Service, pods: &[&str]) {
    let endpoints: Vec<Endpoint> = pods.iter().map(|pod| scene.endpoint(pod)).collect();
    scene.lab.apply(service, &endpoints).expect("a manifest");
}

fn sticky(number: Numbered) -> Service {
    number.service(&format!("sticky-{}", number.0)).affinity(600)
}

/// The one pod that answers `count` connections; an error says what else happened.
fn one_pod(from: &Netns, to: SocketAddr, count: u32) -> Result<String, String> {
    let report = from.http(to, count).map_err(|error| error.to_string())?;
    let mut pods = report.answers.keys();
    match (pods.next(), pods.next()) {
        (Some(pod), None) if report.failures.is_empty() => Ok(pod.clone()),
        _ => Err(format!("{:?} {:?}", report.answers, report.failures)),
    }
}

/// Waits until node A's agent has carried out what was applied so far: a Service that is applied now comes after.
fn in_force(scene: &Scene, marker: Numbered) {
    let service = marker.service(&format!("marker-{}", marker.0));
    scene.lab.apply(&service, &[scene.endpoint("b1")]).expect("a manifest");
    for family in FAMILIES {
        let to = at(marker.cluster_ip_of(*family), WEB);
        eventually("the Services", || {
            scene.pod("visitor").http(to, 1).is_ok_and(|report| report.answered() == 1)
        });
    }
}

fn affinity_scene() -> Scene {
    let scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    for number in STICKY {
        apply(&scene, &sticky(number), &PODS);
    }
    for number in FLEETING {
        apply(&scene, &number.service(&format!("fleeting-{}", number.0)).affinity(2), &PODS);
    }
    in_force(&scene, Numbered(66));
    scene
}

type ByAddresses = (Asker, &'static [fn(Numbered) -> Frontend]);

/// Who asks, and by which addresses of a Service: all of them lead to the same pod.
const BY_ALL_ADDRESSES: &[ByAddresses] = &[
    (
        Asker::Outside,
        &[Frontend::ClusterIp, Frontend::ExternalIp, Frontend::Balancer, |service| {
            Frontend::NodePort(service, NodeId::A)
        }],
    ),
    (
        Asker::Pod("visitor"),
        &[Frontend::ClusterIp, Frontend::ExternalIp, |service| Frontend::NodePort(service, NodeId::A)],
    ),
    (Asker::Node(NodeId::A), &[Frontend::ClusterIp, Frontend::Balancer, Frontend::Loopback]),
];

/// Each client's pod for each Service; the clients' pods differ somewhere.
fn chosen(scene: &Scene, checks: &mut Checks, family: Family) -> Vec<Vec<String>> {
    let mut table = Vec::new();
    for (asker, frontends) in BY_ALL_ADDRESSES {
        let mut row = Vec::new();
        for service in STICKY {
            let pods: Vec<_> = frontends
                .iter()
                .map(|frontend| {
                    let (address, web, _) = frontend(service).target(scene, family);
                    one_pod(asker.netns(scene), at(address, web), 8)
                })
                .collect();
            let same = pods[0].is_ok() && pods.iter().all(|pod| pod == &pods[0]);
            checks.holds("one pod", same, || format!("{asker:?}, Service {}, {family}: {pods:?}", service.0));
            row.push(pods[0].clone().unwrap_or_default());
        }
        table.push(row);
    }
    table
}

#[test]
fn a_client_keeps_its_pod_until_the_pod_or_the_time_is_gone() {
    let mut scene = affinity_scene();
    let mut checks = Checks::new();
    let mut before = Vec::new();
    for family in FAMILIES.iter().copied() {
        before.push(chosen(&scene, &mut checks, family));
    }
    let all: Vec<&String> = before.iter().flatten().flatten().collect();
    let many = PODS.iter().all(|pod| all.iter().any(|chosen| chosen == pod));
    checks
        .holds("a choice", many, || format!("clients and Services should differ in their pods: {before:?}"));

    fleeting(&scene, &mut checks);

    // The endpoint goes: its clients go to another, the others stay.
    for number in STICKY {
        apply(&scene, &sticky(number), &["a2", "b1"]);
    }
    in_force(&scene, Numbered(67));
    for (family, before) in FAMILIES.iter().copied().zip(&before) {
        let after = chosen(&scene, &mut checks, family);
        for (before, after) in before.iter().flatten().zip(after.iter().flatten()) {
            let well = after != "a1" && (before == "a1" || before == after);
            checks.holds("a pod leaves", well, || format!("{family}: {before} before and {after} after"));
        }
    }
    shared_by_sockets(&mut scene, &mut checks);
    checks.finish(&mut scene);
}

/// An affinity of two seconds: kept while asked more often, and forgotten after.
fn fleeting(scene: &Scene, checks: &mut Checks) {
    let askers = [Asker::Outside, Asker::Pod("visitor"), Asker::Node(NodeId::A)];
    let all = FAMILIES.iter().flat_map(|family| askers.map(|asker| (*family, asker)));
    let all: Vec<(Family, Asker)> = all.collect();
    let ask = |services: &[Numbered]| -> Vec<Vec<_>> {
        let one = |family, asker: Asker, service: &Numbered| {
            one_pod(asker.netns(scene), at(service.cluster_ip_of(family), WEB), 1)
        };
        all.iter()
            .map(|(family, asker)| services.iter().map(|it| one(*family, *asker, it)).collect())
            .collect()
    };
    // Each connection begins the two seconds anew: three of them pass.
    let asked: Vec<Vec<Vec<_>>> = (0..6)
        .map(|_| {
            thread::sleep(Duration::from_millis(500));
            ask(&FLEETING[..1])
        })
        .collect();
    for (index, who) in all.iter().enumerate() {
        let pods: Vec<_> = asked.iter().map(|time| &time[index][0]).collect();
        let same = pods.iter().all(|pod| pod.is_ok() && *pod == pods[0]);
        checks.holds("refreshed", same, || format!("{who:?}: {pods:?}"));
    }
    let before = ask(&FLEETING);
    thread::sleep(Duration::from_millis(2300));
    for ((who, before), after) in all.iter().zip(before).zip(ask(&FLEETING)) {
        // That all twelve choose again what they had has a chance of two in a million.
        let well = before != after && before.iter().chain(&after).all(Result::is_ok);
        checks.holds("forgotten", well, || format!("{who:?}: {before:?} {after:?}"));
    }
}

/// A pod's packets and its sockets, once hooks serve them, are the same client.
fn shared_by_sockets(scene: &mut Scene, checks: &mut Checks) {
    let ask = |scene: &Scene, family: Family| -> Vec<Option<String>> {
        let own = scene.lab.pod("visitor").ip(family).to_string();
        let of = |service: Numbered| {
            let url = format!("http://{}/", at(service.cluster_ip_of(family), WEB));
            // A socket that is bound says who its client is.
            let words = ["curl", "--silent", "--noproxy", "*", "--max-time", "2", "--interface", &own, &url];
            let text = scene.pod("visitor").run(&words).ok()?;
            text.split_ascii_whitespace().next().map(str::to_owned)
        };
        STICKY.map(of).to_vec()
    };
    let before: Vec<_> = FAMILIES.iter().map(|family| ask(scene, *family)).collect();
    let agent = scene.lab.agent(NodeId::A);
    agent.stop().expect("the agent to end");
    agent.options_mut().socket_lb = SocketLb::All;
    agent.start().expect("the agent again");
    let after: Vec<_> = FAMILIES.iter().map(|family| ask(scene, *family)).collect();
    let well = before == after && before.iter().flatten().all(Option::is_some);
    checks.holds("packets and sockets", well, || format!("{before:?} by packets, {after:?} by sockets"));
}

#[test]
fn source_ranges_hold_for_load_balancer_addresses_alone() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    let (ranged, everywhere) = (Numbered(50), Numbered(51));
    let lab = &scene.lab;
    // The client's own address is in, a second one of it is not; nor are pods.
    let only_client = |service: Service| {
        FAMILIES.iter().fold(service, |service, family| {
            service.source_range(format!(" {}/{} ", lab.plan().client_ip(*family), family.bits()))
        })
    };
    apply(&scene, &only_client(ranged.service("ranged")), &["a1", "b1"]);
    let service = everywhere.service("everywhere").restricted_everywhere();
    apply(&scene, &only_client(service), &["a1", "b1"]);
    for family in FAMILIES.iter().copied() {
        let (client, wire) = (lab.plan().client_ip(family), lab.plan().of(family).wire);
        let other = wire.host(77);
        lab.client().ip(&format!("addr add {} dev {UPLINK}", wire.host_with_prefix(77))).expect("an address");
        let curl = |from: &Netns, source: Option<IpAddr>, frontend: Frontend| {
            let (address, web, _) = frontend.target(&scene, family);
            let (source, url) = (source.map(|it| it.to_string()), format!("http://{}/", at(address, web)));
            let mut words = vec!["curl", "--silent", "--noproxy", "*", "--max-time", "0.7", "--fail"];
            words.extend(source.iter().flat_map(|source| ["--interface", source.as_str()]));
            words.push(&url);
            from.exec(&words).expect("curl").status.code()
        };
        let balancer = Frontend::Balancer(ranged);
        let served = poll_every(PACE, "the Service", CHANGE, || {
            (curl(lab.client(), Some(client), balancer) == Some(0)).then_some(())
        });
        checks.holds("allowed", served.is_ok(), || format!("{family}: the allowed client is not served"));
        // 28: curl's exit code for a time-out.
        let denied = curl(lab.client(), Some(other), balancer);
        checks.holds("denied", denied == Some(28), || format!("{family}: {other} ends with {denied:?}"));
        let denied = curl(scene.pod("visitor"), None, balancer);
        checks.holds("denied", denied == Some(28), || format!("{family}: a pod ends with {denied:?}"));
        for frontend in
            [Frontend::NodePort(ranged, NodeId::A), Frontend::ExternalIp(ranged), Frontend::ClusterIp(ranged)]
        {
            let served = curl(lab.client(), Some(other), frontend);
            checks.holds("other addresses", served == Some(0), || {
                format!("{family}: {other} at {frontend:?} ends with {served:?}")
            });
        }
        for frontend in [
            Frontend::Balancer(everywhere),
            Frontend::NodePort(everywhere, NodeId::A),
            Frontend::ExternalIp(everywhere),
            Frontend::ClusterIp(everywhere),
        ] {
            let ends = [client, other].map(|source| curl(lab.client(), Some(source), frontend));
            checks.holds("everywhere", ends == [Some(0), Some(28)], || {
                format!("{family}: at {frontend:?} the two end with {ends:?}")
            });
        }
    }
    checks.finish(&mut scene);
}

#[test]
fn addresses_that_no_network_carries_are_not_served() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    scene.lab.add_pod(NodeId::A, "receiver", PodKind::Idle).expect("a pod");
    let received = Numbered(51);
    apply(&scene, &received.service("received"), &["receiver"]);
    let lab = &scene.lab;
    let mut sink = scene.pod("receiver").sink(UDP_PORT).expect("a receiver");
    let wire = Wire::new(lab.client(), lab.node(NodeId::A));
    let port = received.node_port(ECHO);
    for family in FAMILIES.iter().copied() {
        let (client, node) = (lab.plan().client_ip(family), lab.node_ip(NodeId::A, family));
        let mut honest = |what: &str, already: u64| {
            eventually(what, || {
                wire.send(&Datagram { from: at(client, 4000), to: at(node, port) });
                sink.look().expect("a report").of(family) > already
            });
            sink.look().expect("a report")
        };
        let before = honest("a datagram to arrive", 0);
        strangers(client, node, port).iter().for_each(|datagram| wire.send(datagram));
        // What was sent before has gone its way when this one has arrived.
        let after = honest("another datagram to arrive", before.of(family));
        let from: Vec<&IpAddr> = after.received.keys().filter(|from| Family::of(**from) == family).collect();
        checks.holds("strangers", from == [&client], || {
            format!("{family}: the pod should have heard from {client} alone, not from {from:?}")
        });
    }
    drop(sink);
    let lines = lab.node(NodeId::A).run(&["sysctl", "-a", "-r", "route_localnet"]).expect("sysctl");
    let untouched = lines.lines().count() > 1 && lines.lines().all(|line| line.ends_with("= 0"));
    checks.holds("route_localnet", untouched, || lines);
    checks.finish(&mut scene);
}
