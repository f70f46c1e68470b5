//! What the network says about packets, and packets that do not fit: ICMP errors, path MTU discovery through a narrow
//! hop, and datagrams that travel in fragments.
mod lab_support;

use lab_support::paths::{Asker, Frontend};
use lab_support::{Checks, ECHO, FAMILIES, FAR, NEAR, Numbered, SELF, Scene, WEB, options};
use lb_lab::beyond::NARROW;
use lb_lab::{Endpoint, Family, Layout, Netns, NodeId, PodKind, Service, SocketLb, XdpMode, at};

/// A Service whose endpoint is behind the narrow hop.
const DISTANT: Numbered = Numbered(10);
/// What a connection carries each way.
const BULK: usize = 1 << 20;
/// How long that may take.
const SOON: u64 = 5000;

fn scene(xdp: XdpMode) -> Scene {
    let mut scene = Scene::new(Layout::PointToPoint, &options(xdp, SocketLb::Host));
    scene.lab.add_distant_client("distant", PodKind::Web).expect("a distant client");
    let [v4, v6] = Family::ALL.map(|family| scene.lab.plan().distant_ip(family));
    let endpoint = Endpoint::outside(v4).and(v6);
    scene.lab.apply(&DISTANT.service("distant"), &[endpoint]).expect("a manifest");
    let pod = scene.pod("visitor");
    for family in FAMILIES {
        let to = at(DISTANT.cluster_ip_of(*family), WEB);
        lab_support::eventually("the distant Service to be served", || {
            pod.http(to, 1).is_ok_and(|report| report.answered() == 1)
        });
    }
    scene
}

/// The MTU that a place has learned for the way to an address, if any.
fn learned(netns: &Netns, to: std::net::IpAddr) -> Option<u32> {
    let route = netns.run(&["ip", "route", "get", &to.to_string()]).expect("a route");
    let mut words = route.split_ascii_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1)?.parse().ok()
}

fn forget(namespaces: &[&Netns]) {
    for netns in namespaces {
        for family in ["-4", "-6"] {
            netns.run(&["ip", family, "route", "flush", "cache"]).expect("a flush");
        }
    }
}

/// Ports of pods where nobody listens: the pod's own error must reach whoever asked the Service.
fn closed_ports(scene: &Scene, checks: &mut Checks) {
    let (near, far) = (Numbered(11), Numbered(12));
    for (number, name, pod) in [(near, "closed-near", "a1"), (far, "closed-far", "b1")] {
        let service = Service::new(name, number.cluster_ip())
            .cluster_ip(number.cluster_ip_of(Family::V6))
            .tcp_node_port(WEB, 81, number.node_port(WEB))
            .udp_node_port(ECHO, 81, number.node_port(ECHO));
        scene.lab.apply(&service, &[scene.endpoint(pod)]).expect("a manifest");
        // Linux tells a peer no more than one a second, which is not the point here.
        scene.pod(pod).sysctl("net.ipv4.icmp_ratelimit", "0").expect("a sysctl");
        scene.pod(pod).sysctl("net.ipv6.icmp.ratelimit", "0").expect("a sysctl");
    }
    for family in FAMILIES.iter().copied() {
        let last = Frontend::ClusterIp(far).target(scene, family);
        lab_support::eventually("the Services to be served", || {
            let report = scene.pod("visitor").http(at(last.0, last.1), 1);
            report.is_ok_and(|report| report.failures.contains_key("refused"))
        });
        for (what, asker, frontend) in [
            ("R2, NS1", Asker::Outside, Frontend::NodePort(near, NodeId::A)),
            ("R2, NS2", Asker::Outside, Frontend::NodePort(far, NodeId::A)),
            ("R2, NS2", Asker::Outside, Frontend::NodePort(near, NodeId::B)),
            ("R2, NS4", Asker::Outside, Frontend::ClusterIp(near)),
            ("R2, EW1", Asker::Pod("visitor"), Frontend::ClusterIp(near)),
            ("R2, EW2", Asker::Pod("visitor"), Frontend::ClusterIp(far)),
            ("R2, EW3", Asker::Pod("a1"), Frontend::ClusterIp(near)),
            ("R2, H1", Asker::Node(NodeId::A), Frontend::ClusterIp(far)),
        ] {
            checks.refused(what, asker.netns(scene), frontend.target(scene, family));
        }
    }
}

/// Both ends of each connection send what does not fit, and must learn what does.
fn icmp_errors(xdp: XdpMode) {
    let mut scene = scene(xdp);
    let mut checks = Checks::new();
    closed_ports(&scene, &mut checks);
    let lab = &scene.lab;
    let distant = lab.distant();
    let (a1, b1, visitor) = (lab.pod("a1"), lab.pod("b1"), lab.pod("visitor"));
    for family in FAMILIES.iter().copied() {
        let (client, node) = (lab.plan().distant_ip(family), lab.node_ip(NodeId::A, family));
        // Who serves, and whom the server sees as its client.
        for (what, frontend, pod, seen) in [
            ("NS1", Frontend::NodePort(NEAR, NodeId::A), a1, client),
            ("NS2", Frontend::NodePort(FAR, NodeId::A), b1, node),
            ("NS4, endpoint here", Frontend::ClusterIp(NEAR), a1, client),
            ("NS4, endpoint elsewhere", Frontend::ClusterIp(FAR), b1, node),
        ] {
            forget(&[distant, a1.netns(), b1.netns()]);
            let (address, _, port) = frontend.target(&scene, family);
            complete(&mut checks, what, distant, at(address, port), pod.name());
            knows(&mut checks, what, distant, address);
            knows(&mut checks, what, pod.netns(), seen);
        }
        forget(&[distant, visitor.netns()]);
        let (what, address) = ("EW2 to an endpoint behind the hop", DISTANT.cluster_ip_of(family));
        complete(&mut checks, what, visitor.netns(), at(address, ECHO), "distant");
        knows(&mut checks, what, visitor.netns(), address);
        knows(&mut checks, what, distant, visitor.ip(family));
    }
    checks.finish(&mut scene);
}

fn complete(checks: &mut Checks, what: &str, from: &Netns, to: std::net::SocketAddr, pod: &str) {
    let report = from.bulk(to, BULK);
    let well = report.as_ref().is_ok_and(|report| {
        report.failure.is_none() && report.echoed == BULK && report.millis < SOON && report.pod == pod
    });
    checks.holds(what, well, || format!("1 MiB each way to {to}: {report:?}"));
}

fn knows(checks: &mut Checks, what: &str, netns: &Netns, to: std::net::IpAddr) {
    let mtu = learned(netns, to);
    checks.holds(what, mtu == Some(NARROW), || {
        format!("{} should have learned {NARROW} for {to}, not {mtu:?}", netns.name())
    });
}

#[test]
fn icmp_errors_are_translated_with_native_xdp() {
    icmp_errors(XdpMode::Native);
}

#[test]
fn icmp_errors_are_translated_without_xdp() {
    icmp_errors(XdpMode::Off);
}

const FRAGMENTED: &[(&str, Asker, Frontend)] = &[
    ("EW1", Asker::Pod("visitor"), Frontend::ClusterIp(NEAR)),
    ("EW2", Asker::Pod("visitor"), Frontend::ClusterIp(FAR)),
    ("EW3", Asker::Pod("a2"), Frontend::ClusterIp(SELF)),
    ("EW4", Asker::Pod("visitor"), Frontend::NodePort(FAR, NodeId::A)),
    ("NS1", Asker::Outside, Frontend::NodePort(NEAR, NodeId::A)),
    ("NS2", Asker::Outside, Frontend::NodePort(FAR, NodeId::A)),
    ("NS2", Asker::Outside, Frontend::NodePort(NEAR, NodeId::B)),
    ("NS3", Asker::Outside, Frontend::NodePort(lab_support::LOCAL, NodeId::B)),
    ("H1", Asker::Node(NodeId::A), Frontend::ClusterIp(FAR)),
];

fn large_datagrams(layout: Layout, xdp: XdpMode) {
    const COUNT: u32 = 200;
    let mut scene = Scene::new(layout, &options(xdp, SocketLb::Host));
    let mut checks = Checks::new();
    for family in FAMILIES.iter().copied() {
        for (what, asker, frontend) in FRAGMENTED {
            let (address, _, port) = frontend.target(&scene, family);
            let report = asker.netns(&scene).stream(at(address, port), COUNT, 4000);
            let well = report.as_ref().is_ok_and(|report| {
                (report.sent, report.in_order, report.wrong) == (COUNT, COUNT, 0)
                    && report.failures.is_empty()
            });
            checks.holds(what, well, || format!("{asker:?} to {frontend:?} at {address}: {report:?}"));
        }
    }
    checks.finish(&mut scene);
}

#[test]
fn large_datagrams_arrive_in_order_with_native_xdp() {
    large_datagrams(Layout::PointToPoint, XdpMode::Native);
}

#[test]
fn large_datagrams_arrive_in_order_without_xdp() {
    large_datagrams(Layout::Bridge, XdpMode::Off);
}
