//! What a node itself sends to Services where no socket hook serves it: the programs on its packets' way do.
mod lab_support;

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use lab_support::{
    BEYOND, Checks, ECHO, EMPTY, FAMILIES, FAR, NEAR, Numbered, Scene, Target, WEB, cluster_ip, eventually,
    options,
};
use lb_lab::pod::{HTTP_PORT, TCP_PORT, UDP_PORT};
use lb_lab::{Endpoint, Family, Layout, NodeId, PodKind, Service, SocketLb, XdpMode, at};
use socket2::{Domain, Protocol, Socket, Type};

/// A Service whose endpoint is the node itself.
const HERE: Numbered = Numbered(44);
/// Two Services with one endpoint, of two families each.
const TWINS: [Numbered; 2] = [Numbered(45), Numbered(46)];
/// More than a packet holds.
const LONG: usize = 4000;
const BULK: usize = 4 << 20;

/// Servers of the node's own, at its address.
fn serve_here(scene: &mut Scene) {
    scene.lab.serve_at(NodeId::A, "node", PodKind::Web).expect("servers of the node's own");
    let [v4, v6] = Family::ALL.map(|family| scene.lab.node_ip(NodeId::A, family));
    scene.lab.apply(&HERE.service("here"), &[Endpoint::outside(v4).and(v6)]).expect("a manifest");
}

fn paths(scene: &Scene, checks: &mut Checks) {
    let node = scene.lab.node(NodeId::A);
    for family in FAMILIES.iter().copied() {
        let client: IpAddr = scene.lab.plan().client_ip(family);
        eventually("the Service", || {
            node.udp_unconnected(at(HERE.cluster_ip_of(family), ECHO), 1, 40_000)
                .is_ok_and(|report| report.answered() == 1)
        });
        checks.answered("a pod of this node", node, cluster_ip(NEAR, family), &["a1"], None);
        checks.answered("a pod of another node", node, cluster_ip(FAR, family), &["b1"], None);
        checks.answered("beyond the cluster", node, cluster_ip(BEYOND, family), &["outsider"], None);
        let balancer: Target = (FAR.balancer_of(family), WEB, ECHO);
        checks.answered("a balancer's address", node, balancer, &["b1"], None);
        checks.answered("the node itself", node, cluster_ip(HERE, family), &["node"], None);
        checks.refused("nobody serves", node, cluster_ip(EMPTY, family));
        checks.refused("a port of no Service", node, (FAR.cluster_ip_of(family), 1, 1));
        for service in [NEAR, FAR, HERE] {
            let to = at(service.cluster_ip_of(family), ECHO);
            let report = node.bulk(to, BULK);
            checks.holds("long packets", report.is_ok(), || format!("{to}: {report:?}"));
            let report = node.udp_of_size(to, 3, LONG);
            let well = report.as_ref().is_ok_and(|report| report.answered() == 3);
            checks.holds("fragments", well, || format!("{to}: {report:?}"));
        }
        // What is nobody's goes on as it was.
        for pod in ["a1", "b1"] {
            let report = node.http(at(scene.lab.pod(pod).ip(family), HTTP_PORT), 2);
            let well = report.as_ref().is_ok_and(|report| report.answered() == 2);
            checks.holds("an endpoint itself", well, || format!("{pod}: {report:?}"));
        }
        let report = node.http(at(client, HTTP_PORT), 2);
        let well = report.as_ref().is_ok_and(|report| report.answered() == 2);
        checks.holds("nobody's", well, || format!("{report:?}"));
    }
}

fn without_hooks(layout: Layout, mode: XdpMode) {
    let mut scene = Scene::new(layout, &options(mode, SocketLb::Off));
    serve_here(&mut scene);
    let mut checks = Checks::new();
    paths(&scene, &mut checks);
    // Where answers may only come in by the interface that questions leave by.
    for device in ["all", "default", "eth0"] {
        scene
            .lab
            .node(NodeId::A)
            .sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "1")
            .expect("a sysctl");
    }
    paths(&scene, &mut checks);
    checks.finish(&mut scene);
}

#[test]
fn a_node_without_socket_hooks_reaches_services() {
    without_hooks(Layout::PointToPoint, XdpMode::Native);
}

#[test]
fn a_node_without_socket_hooks_reaches_services_with_tc_and_a_bridge() {
    without_hooks(Layout::Bridge, XdpMode::Off);
}

/// Sends a datagram that is put together here, headers and all, and receives the answer on a socket of its port.
fn ask_raw(own: IpAddr, to: SocketAddr) -> io::Result<SocketAddr> {
    const RAW: i32 = 255;
    let listener = UdpSocket::bind((own, 0))?;
    listener.set_read_timeout(Some(Duration::from_secs(2)))?;
    let port = listener.local_addr()?.port();
    let payload = *b"raw!";
    let length = 8 + payload.len() as u16;
    let mut udp = [port, to.port(), length, 0].map(u16::to_be_bytes).concat();
    udp.extend(payload);
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let addresses = [bytes(own), bytes(to.ip())].concat();
    let sum = [&addresses[..], &[0, 17], &length.to_be_bytes(), &udp].concat();
    let sum: u32 = sum.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let header = if to.is_ipv4() {
        // The kernel fills in length and checksum.
        [&[0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0][..], &addresses].concat()
    } else {
        [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[17, 64], &addresses].concat()
    };
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW)))?;
    socket.send_to(&[header, udp].concat(), &SocketAddr::new(to.ip(), 0).into())?;
    listener.recv_from(&mut [0; 2048]).map(|(_, from)| from)
}

/// Datagrams of a raw socket, which has no hook.
#[test]
fn raw_sockets_of_a_node_reach_services() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    let node = scene.lab.node(NodeId::A);
    for family in FAMILIES.iter().copied() {
        let own = scene.lab.node_ip(NodeId::A, family);
        for service in [NEAR, FAR] {
            let to = at(service.cluster_ip_of(family), ECHO);
            eventually("the Service", || {
                node.udp_unconnected(to, 1, 40_000).is_ok_and(|it| it.answered() == 1)
            });
            let answer = node.within(|| ask_raw(own, to)).expect("in the node");
            let well = answer.as_ref().is_ok_and(|from| *from == to);
            checks.holds("a raw socket", well, || format!("{to}: {answer:?}"));
        }
    }
    checks.finish(&mut scene);
}

/// One socket, two Services, one endpoint: each answer comes from whom was asked.
#[test]
fn a_socket_is_answered_by_whom_it_asked() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    for (service, name) in TWINS.iter().zip(["one", "two"]) {
        let service = Service::new(name, service.cluster_ip())
            .cluster_ip(service.cluster_ip_of(Family::V6))
            .udp(ECHO, UDP_PORT)
            .tcp(ECHO, TCP_PORT);
        scene.lab.apply(&service, &[scene.endpoint("b1")]).expect("a manifest");
    }
    let node = scene.lab.node(NodeId::A);
    for family in FAMILIES.iter().copied() {
        let [one, two] = TWINS.map(|service| at(service.cluster_ip_of(family), ECHO));
        let pod = at(scene.lab.pod("b1").ip(family), UDP_PORT);
        for to in [one, two] {
            eventually("the Service", || {
                node.udp_unconnected(to, 1, 41_000).is_ok_and(|it| it.answered() == 1)
            });
        }
        for asked in [vec![one, two, one], vec![one, pod], vec![two, two, pod, one]] {
            let report = node.ask_in_turn(&asked);
            let mut expected = asked.clone();
            expected.sort();
            // (Of the endpoint itself and a Service, asked at the same time, only the later question is known.)
            let is_known = !asked.contains(&pod);
            let well = report.as_ref().is_ok_and(|it| {
                (!is_known || it.together == expected) && it.one_by_one == asked && it.peers == asked
            });
            checks.holds("one socket", well, || format!("{asked:?}: {report:?}"));
        }
    }
    checks.finish(&mut scene);
}

/// Packets for a gateway that does not answer never leave: then sockets are served by their hooks, connected ones too.
#[test]
fn a_silent_gateway_takes_no_service_away() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    let node = scene.lab.node(NodeId::A);
    let asks = |family: Family| {
        let to = at(NEAR.cluster_ip_of(family), ECHO);
        node.udp(to, 1).is_ok_and(|report| report.answered() == 1)
    };
    let nobody = |family| match family {
        Family::V4 => "192.168.240.77",
        Family::V6 => "fd00:f0::77",
    };
    for family in FAMILIES.iter().copied() {
        let gateway = scene.lab.plan().client_ip(family);
        eventually("the Service", || asks(family));
        node.ip(&format!("route replace default via {}", nobody(family))).expect("a route");
        eventually("the Service, over a gateway that is not there", || asks(family));
        node.ip(&format!("route replace default via {gateway}")).expect("a route");
        eventually("the Service, over its gateway again", || asks(family));
    }
    // One that stops to answer.
    scene.lab.client().ip("link set eth0 arp off").expect("a link");
    node.ip("neigh flush dev eth0").expect("neighbours");
    eventually("the Service, over a gateway that fell silent", || asks(Family::V4));
    scene.lab.client().ip("link set eth0 arp on").expect("a link");
    let report = node.udp(at(NEAR.cluster_ip_of(Family::V4), ECHO), 3);
    checks.holds("the gateway is back", report.as_ref().is_ok_and(|it| it.answered() == 3), || {
        format!("{report:?}")
    });
    checks.finish(&mut scene);
}
