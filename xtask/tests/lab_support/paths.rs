//! The packet paths of the design, as checks on a scene.
use std::net::Ipv4Addr;

use xtask::lab::NodeId;

use super::{
    ALL, BEYOND, Checks, ELSEWHERE, EMPTY, FAR, INNER, LOCAL, NEAR, SELF, Scene, balancer, cluster_ip,
    external_ip, node_port,
};

/// NS1 to NS4: from outside.
pub fn from_outside(scene: &Scene, checks: &mut Checks) {
    let lab = &scene.lab;
    let outside = lab.client();
    let client = lab.plan().client();
    let (node_a, node_b) = (lab.node_address(NodeId::A), lab.node_address(NodeId::B));

    for at in [node_port(NEAR, node_a), external_ip(NEAR), balancer(NEAR)] {
        checks.answered("NS1", outside, at, &["a1"], Some(client));
    }
    checks.answered("NS1", outside, node_port(FAR, node_b), &["b1"], Some(client));

    for at in [node_port(FAR, node_a), external_ip(FAR), balancer(FAR)] {
        checks.answered("NS2", outside, at, &["b1"], Some(node_a));
    }
    checks.answered("NS2", outside, node_port(NEAR, node_b), &["a1"], Some(node_b));
    checks.answered(
        "NS2 to an endpoint outside",
        outside,
        node_port(BEYOND, node_a),
        &["outsider"],
        Some(node_a),
    );

    for at in [node_port(LOCAL, node_a), external_ip(LOCAL), balancer(LOCAL)] {
        checks.answered("NS3", outside, at, &["a1"], Some(client));
    }
    checks.answered("NS3", outside, node_port(LOCAL, node_b), &["b1"], Some(client));
    checks.silent("NS3 without a local endpoint", outside, node_port(ELSEWHERE, node_a));
    checks.answered("NS3", outside, node_port(ELSEWHERE, node_b), &["b1"], Some(client));

    checks.answered("NS4", outside, cluster_ip(NEAR), &["a1"], Some(client));
    checks.answered("NS4", outside, cluster_ip(FAR), &["b1"], Some(node_a));

    for at in [node_port(EMPTY, node_a), external_ip(EMPTY), balancer(EMPTY), cluster_ip(EMPTY)] {
        checks.refused("R1", outside, at);
    }
}

/// EW1 to EW4, and H3 when the sockets of pods are served: from pods.
pub fn from_pods(scene: &Scene, checks: &mut Checks) {
    let lab = &scene.lab;
    let (node_a, node_b) = (lab.node_address(NodeId::A), lab.node_address(NodeId::B));
    for name in ["visitor", "a2"] {
        let (pod, address) = (scene.pod(name), lab.pod(name).address());
        checks.answered("EW1", pod, cluster_ip(NEAR), &["a1"], Some(address));
        checks.answered("EW2", pod, cluster_ip(FAR), &["b1"], Some(address));
        checks.answered("EW2 to an endpoint outside", pod, cluster_ip(BEYOND), &["outsider"], Some(address));
        for at in [node_port(NEAR, node_a), external_ip(NEAR), balancer(NEAR)] {
            checks.answered("EW4", pod, at, &["a1"], Some(address));
        }
        checks.answered("EW4", pod, node_port(FAR, node_a), &["b1"], Some(address));
        checks.answered("EW4 at the other node", pod, node_port(FAR, node_b), &["b1"], Some(address));
        checks.answered("EW4 at the other node", pod, node_port(NEAR, node_b), &["a1"], Some(node_b));
        checks.answered("EW4, Local, none here", pod, node_port(ELSEWHERE, node_a), &["b1"], Some(address));
        checks.refused("R1", pod, cluster_ip(EMPTY));
        checks.refused("R1", pod, node_port(EMPTY, node_a));
    }
    checks.answered("EW3", scene.pod("a2"), cluster_ip(SELF), &["a2"], None);
    checks.answered("EW3 by nodePort", scene.pod("a2"), node_port(SELF, node_a), &["a2"], None);
    checks.answered("EW1", scene.pod("b1"), cluster_ip(ALL), &["a1", "a2", "b1"], None);
}

/// What pods see only where packets are translated, not sockets.
pub fn from_pods_by_packets(scene: &Scene, checks: &mut Checks) {
    from_pods(scene, checks);
    checks.silent("iTP Local, none here", scene.pod("visitor"), cluster_ip(INNER));
    // The pod sees a node address, never itself; which one depends on the layout.
    let itself = scene.pod("a2").http(xtask::lab::at(SELF.cluster_ip(), super::WEB), 1);
    let own = scene.lab.pod("a2").address().into();
    let masked =
        itself.as_ref().is_ok_and(|report| report.answered() == 1 && !report.clients.contains_key(&own));
    checks.holds("EW3", masked, || format!("the pod should not see itself as its client: {itself:?}"));
}

/// H1 and H2: from the nodes' own processes.
pub fn from_hosts(scene: &Scene, checks: &mut Checks) {
    let lab = &scene.lab;
    let (node_a, node_b) = (lab.node_address(NodeId::A), lab.node_address(NodeId::B));
    let host = lab.node(NodeId::A);
    // Towards local pods the kernel chooses the source by the layout's device.
    for at in [cluster_ip(NEAR), node_port(NEAR, node_a), external_ip(NEAR), balancer(NEAR)] {
        checks.answered("H1", host, at, &["a1"], None);
    }
    for at in [cluster_ip(FAR), node_port(FAR, node_a), external_ip(FAR), balancer(FAR)] {
        checks.answered("H1", host, at, &["b1"], Some(node_a));
    }
    checks.answered("H1 at the other node", host, node_port(FAR, node_b), &["b1"], Some(node_a));
    checks.answered("H1, Local, none here", host, node_port(ELSEWHERE, node_a), &["b1"], Some(node_a));
    checks.answered("H1 to an endpoint outside", host, cluster_ip(BEYOND), &["outsider"], Some(node_a));
    checks.answered("H2", host, node_port(NEAR, Ipv4Addr::LOCALHOST), &["a1"], None);
    checks.answered("H2", host, node_port(FAR, Ipv4Addr::LOCALHOST), &["b1"], Some(node_a));
    for at in [cluster_ip(EMPTY), node_port(EMPTY, node_a), node_port(EMPTY, Ipv4Addr::LOCALHOST)] {
        checks.refused("R1", host, at);
    }
    checks.answered("H1", lab.node(NodeId::B), cluster_ip(ALL), &["a1", "a2", "b1"], None);
}

/// P: what matches no Service is untouched.
pub fn passed(scene: &Scene, checks: &mut Checks) {
    let lab = &scene.lab;
    let askers = [lab.client(), scene.pod("visitor"), lab.node(NodeId::A), lab.node(NodeId::B)];
    for asker in askers {
        for name in ["a1", "b1"] {
            let pod = lab.pod(name).address();
            checks.answered("P", asker, (pod, 80, 7000), &[name], None);
            checks.refused("P, a closed port", asker, (pod, 81, 81));
            let size = asker
                .run(&["curl", "--silent", "--noproxy", "*", &format!("http://{pod}/big")])
                .map(|big| big.len());
            let whole = size.as_ref().is_ok_and(|size| *size == xtask::lab::pod::BIG);
            checks.holds("P, one megabyte", whole, || format!("{name} from {}: {size:?}", asker.name()));
            let large = asker.udp_of_size(xtask::lab::at(pod, 7000), 5, 4000);
            let whole = large.as_ref().is_ok_and(|report| report.answered() == 5);
            checks.holds("P, fragments", whole, || format!("{name} from {}: {large:?}", asker.name()));
        }
    }
    checks.refused(
        "P, a port that is no nodePort",
        lab.client(),
        (lab.node_address(NodeId::A), 29999, 29999),
    );
}

/// Spread: every pod of three gets a third, from everywhere.
pub fn spread(scene: &Scene, checks: &mut Checks) {
    let lab = &scene.lab;
    let node_a = lab.node_address(NodeId::A);
    let (_, web, _) = cluster_ip(ALL);
    for (from, to) in [
        (lab.client(), xtask::lab::at(node_a, ALL.node_port(super::WEB))),
        (scene.pod("visitor"), xtask::lab::at(ALL.cluster_ip(), web)),
        (lab.node(NodeId::A), xtask::lab::at(ALL.cluster_ip(), web)),
    ] {
        let report = from.http(to, 3000);
        let even = report.as_ref().is_ok_and(|report| {
            report.failures.is_empty()
                && ["a1", "a2", "b1"].iter().all(|pod| (report.share(pod) - 1.0 / 3.0).abs() < 0.05)
        });
        checks.holds("spread", even, || format!("3000 requests from {} to {to}: {report:?}", from.name()));
    }
}

/// The same client ports, to the same pod, by one address after the other.
pub fn ports_again(scene: &Scene, checks: &mut Checks) {
    let lab = &scene.lab;
    for (from, node) in [(lab.client(), NodeId::A), (scene.pod("visitor"), NodeId::A)] {
        for address in [NEAR.cluster_ip(), NEAR.external_ip(), NEAR.balancer(), lab.node_address(node)] {
            let port =
                if address == lab.node_address(node) { NEAR.node_port(super::ECHO) } else { super::ECHO };
            let report = from.udp_from_ports(xtask::lab::at(address, port), 20, 25000);
            let well = report.as_ref().is_ok_and(|report| report.answered() == 20);
            checks.holds("a port used again", well, || {
                format!("{address}:{port} from {}: {report:?}", from.name())
            });
        }
    }
}

/// Two nodes choose the same pod for the same client, port and address.
pub fn agreement(scene: &Scene, checks: &mut Checks) {
    const FLOWS: u32 = 300;
    let lab = &scene.lab;
    let to = xtask::lab::at(ALL.external_ip(), super::ECHO);
    let mut chosen = Vec::new();
    for node in NodeId::ALL {
        let via = format!("route replace {} via {}", lab.plan().v4.external, lab.node_address(node));
        lab.client().ip(&via).expect("a route");
        chosen.push(lab.client().udp_from_ports(to, FLOWS, 20000));
    }
    let back = format!("route replace {} via {}", lab.plan().v4.external, lab.node_address(NodeId::A));
    lab.client().ip(&back).expect("a route");
    match chosen.as_slice() {
        [Ok(one), Ok(two)] => {
            let differing =
                one.by_port.iter().filter(|(port, pod)| two.by_port.get(port) != Some(pod)).count();
            let complete = one.by_port.len() == FLOWS as usize && two.by_port.len() == FLOWS as usize;
            checks.holds("agreement", complete && differing == 0, || {
                format!(
                    "{differing} of {FLOWS} flows go elsewhere; failures {:?} {:?}",
                    one.failures, two.failures
                )
            });
        }
        other => checks.holds("agreement", false, || format!("{other:?}")),
    }
}
