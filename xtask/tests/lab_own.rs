//! Connections of the node's own beside those of Services: the kernel and Shunt share one space of ports.
mod lab_support;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use lab_support::{Checks, ECHO, FAMILIES, FAR, NEAR, Numbered, Scene, WEB, eventually, options};
use lb_lab::pod::{HTTP_PORT, UDP_PORT};
use lb_lab::{Family, Layout, Netns, NodeId, SocketLb, XdpMode, at};
use socket2::{Domain, Socket, Type};

/// Sockets of the node, each from a port of its own.
const SOCKETS: u32 = 1250;
/// Clients of a Service at the same time.
const CLIENTS: u32 = 300;
/// Services that come after connections from their nodePorts.
const LATE: Numbered = Numbered(47);
const LATER: Numbered = Numbered(48);
const PATIENCE: Duration = Duration::from_secs(2);
/// Where the ports to masquerade with begin.
const FIRST_PORT: u16 = 10_000;

#[test]
fn the_nodes_own_connections_keep_their_answers_with_xdp() {
    the_nodes_own_connections_keep_their_answers(XdpMode::Native);
}

#[test]
fn the_nodes_own_connections_keep_their_answers_with_tc() {
    the_nodes_own_connections_keep_their_answers(XdpMode::Off);
}

fn the_nodes_own_connections_keep_their_answers(mode: XdpMode) {
    let mut scene = Scene::new(Layout::PointToPoint, &options(mode, SocketLb::Host));
    let mut checks = Checks::new();
    for family in FAMILIES.iter().copied() {
        from_node_ports(&scene, family, &mut checks);
        from_masquerading_ports(&scene, family, &mut checks);
    }
    checks.finish(&mut scene);
}

fn get_from(netns: &Netns, port: u16, to: SocketAddr) -> bool {
    let (port, url) = (port.to_string(), format!("http://{to}/"));
    let words = ["curl", "--silent", "--noproxy", "*", "--max-time", "3", "--local-port", &port, &url];
    netns.exec(&words).is_ok_and(|output| output.status.success())
}

/// From a port that is also a nodePort, to a server far away: the answers come to that very port.
fn from_node_ports(scene: &Scene, family: Family, checks: &mut Checks) {
    let lab = &scene.lab;
    let (node, far_away) = (lab.node(NodeId::A), lab.plan().client_ip(family));
    for service in [NEAR, FAR] {
        // (A port that IPv4 has just left cannot be had for IPv6.)
        let port = service.node_port(if family == Family::V4 { WEB } else { ECHO });
        let answered = get_from(node, port, at(far_away, HTTP_PORT));
        checks.holds("TCP from a nodePort", answered, || format!("{family:?}: no answer to port {port}"));
        let port = service.node_port(ECHO);
        let report = node.udp_from_ports(at(far_away, UDP_PORT), 1, port);
        let answered = report.as_ref().is_ok_and(|report| report.failures.is_empty());
        checks.holds("UDP from a nodePort", answered, || format!("{family:?}: port {port}: {report:?}"));
        // Whoever else comes is a client.
        let to = lab_support::node_port(service, lab.node_ip(NodeId::A, family));
        let pod = if service == NEAR { "a1" } else { "b1" };
        checks.answered("its clients", lab.client(), to, &[pod], None);
    }
}

/// From ports that flows are masqueraded with, to the endpoint that clients of a Service are sent to.
fn from_masquerading_ports(scene: &Scene, family: Family, checks: &mut Checks) {
    let lab = &scene.lab;
    let pod = at(lab.pod("b1").ip(family), UDP_PORT);
    let node_port = at(lab.node_ip(NodeId::A, family), FAR.node_port(ECHO));
    let (node, client) = (lab.node(NodeId::A), lab.client());
    let before = client.udp_from_ports(node_port, CLIENTS, 20_000);
    let (own, during) = std::thread::scope(|threads| {
        let own = threads.spawn(|| node.udp_from_ports(pod, SOCKETS, FIRST_PORT));
        let during = client.udp_from_ports(node_port, CLIENTS, 30_000);
        (own.join().expect("no panic"), during)
    });
    for (what, report, count) in [
        ("clients before", before, CLIENTS),
        ("the node's sockets", own, SOCKETS),
        ("clients", during, CLIENTS),
    ] {
        let well = report.as_ref().is_ok_and(|report| {
            report.failures.is_empty() && report.answers.get("b1") == Some(&u64::from(count))
        });
        checks.holds(what, well, || format!("{family:?}: {report:?}"));
    }
}

/// A connection that was there before its port became a nodePort, and only listens.
struct Listening {
    what: String,
    far: TcpStream,
    near: TcpStream,
}

impl Listening {
    fn begin(from: &Netns, own: SocketAddr, far: &Netns, address: IpAddr, what: &str) -> Self {
        let listener = far.within(|| TcpListener::bind((address, 0))).expect("there").expect("a port");
        let to = listener.local_addr().expect("bound");
        let connect = || {
            let socket = Socket::new(Domain::for_address(own), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&own.into())?;
            socket.connect_timeout(&to.into(), PATIENCE)?;
            io::Result::Ok(socket)
        };
        let near: TcpStream = from.within(connect).expect("there").expect("a connection").into();
        near.set_read_timeout(Some(PATIENCE)).expect("a time");
        let (far, _) = listener.accept().expect("a connection");
        Self { what: format!("{what} at {own}"), far, near }
    }

    /// Whether what the far end says arrives, and the other way about.
    fn hears(&mut self) -> io::Result<()> {
        self.far.set_read_timeout(Some(PATIENCE))?;
        let mut heard = [0];
        self.far.write_all(b"x")?;
        self.near.read_exact(&mut heard)?;
        self.near.write_all(b"y")?;
        self.far.read_exact(&mut heard)
    }
}

#[test]
fn a_new_nodeport_takes_no_connection_away_with_xdp() {
    a_new_nodeport_takes_no_connection_away(XdpMode::Native);
}

#[test]
fn a_new_nodeport_takes_no_connection_away_with_tc() {
    a_new_nodeport_takes_no_connection_away(XdpMode::Off);
}

fn a_new_nodeport_takes_no_connection_away(mode: XdpMode) {
    let mut scene = Scene::new(Layout::PointToPoint, &options(mode, SocketLb::Host));
    let mut checks = Checks::new();
    let lab = &scene.lab;
    let (node, client, pod) = (lab.node(NodeId::A), lab.client(), lab.pod("a1"));
    let (for_node, for_pod) = (LATE.node_port(WEB), LATER.node_port(WEB));
    let mut connections = Vec::new();
    let mut datagrams = Vec::new();
    for family in FAMILIES.iter().copied() {
        let (own, far) = (lab.node_ip(NodeId::A, family), lab.plan().client_ip(family));
        connections.push(Listening::begin(node, at(own, for_node), client, far, "a socket of the node"));
        // As a CNI masquerades pods.
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        let address = pod.ip(family);
        let rule = format!("{ip} saddr {address} tcp sport 7777 snat {ip} to {}", at(own, for_pod));
        let chain = "chain out { type nat hook postrouting priority srcnat;";
        let table = format!("table inet masquerade-{ip} {{ {chain} {rule}; }}; }}");
        node.run(&["nft", &table]).expect("a rule");
        connections.push(Listening::begin(pod.netns(), at(address, 7777), client, far, "a pod"));
        // A socket that has asked, and waits.
        let own = at(own, LATE.node_port(ECHO));
        let near = node.within(|| UdpSocket::bind(own)).expect("there").expect("a port");
        let there = client.within(|| UdpSocket::bind((far, 0))).expect("there").expect("a port");
        near.set_read_timeout(Some(PATIENCE)).expect("a time");
        near.connect(there.local_addr().expect("bound")).expect("a route");
        datagrams.push((near, there, own));
    }
    for (service, name) in [(LATE, "late"), (LATER, "later")] {
        lab.apply(&service.service(name), &[scene.endpoint("b1")]).expect("a manifest");
    }
    let count = connections.len() + datagrams.len();
    eventually("the connections", || {
        let log = lab.agent_log(NodeId::A);
        let counts = log.split("connections=").skip(1).filter_map(|rest| rest.split_whitespace().next());
        counts.filter_map(|count| count.parse::<usize>().ok()).sum::<usize>() >= count
    });
    for connection in &mut connections {
        let heard = connection.hears();
        checks.holds("a connection from before", heard.is_ok(), || format!("{}: {heard:?}", connection.what));
    }
    for (near, there, own) in &datagrams {
        let heard = there.send_to(b"x", own).and_then(|_| near.recv(&mut [0; 16]));
        checks.holds("a socket from before", matches!(heard, Ok(1)), || format!("{own}: {heard:?}"));
    }
    // Whoever else comes is a client.
    for family in FAMILIES.iter().copied() {
        for service in [LATE, LATER] {
            let to = lab_support::node_port(service, lab.node_ip(NodeId::A, family));
            checks.answered("its clients", lab.client(), to, &["b1"], None);
        }
    }
    checks.finish(&mut scene);
}
