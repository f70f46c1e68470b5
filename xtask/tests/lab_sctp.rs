//! SCTP, as far as a kernel without an SCTP stack can show it: whole packets with their CRC from raw sockets, through
//! Services whose ports stay as they are.
mod lab_support;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lab_support::paths::Asker;
use lab_support::{CHANGE, Checks, FAMILIES, Numbered, Scene, options};
use lb_lab::{Family, Layout, Netns, NodeId, Service, SocketLb, XdpMode, at, poll};
use socket2::{Domain, Protocol, Socket, Type};

const NEAR: Numbered = Numbered(90);
const FAR: Numbered = Numbered(91);

/// A Service's port, which is the pods' and the nodePort too: SCTP's CRC covers the ports, so none may change.
fn port(service: Numbered) -> u16 {
    service.node_port(lab_support::WEB)
}

/// Chunk types of RFC 9260.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    })
}

/// A packet with one chunk: ports, tag, CRC, then type, flags, length and 16 bytes.
fn packet(from: u16, to: u16, chunk: u8, word: u32) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend([0; 8]);
    packet.extend([chunk, 0, 0, 20]);
    packet.extend(word.to_be_bytes());
    packet.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let crc = crc32c(&packet);
    packet[8..12].copy_from_slice(&crc.to_le_bytes());
    packet
}

/// What an SCTP packet says, if its CRC is right.
struct Heard {
    ports: (u16, u16),
    chunk: u8,
    word: u32,
    from: IpAddr,
}

/// A raw socket; std's UDP sockets have the calls to use it.
fn open(netns: &Netns, family: Family) -> UdpSocket {
    let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = netns.within(|| Socket::new(domain, Type::RAW, Some(Protocol::SCTP)));
    let socket: UdpSocket = socket.expect("a namespace").expect("a raw socket").into();
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
    socket
}

/// The next packet with a right CRC. Raw sockets get the IPv4 header too, and no IPv6 header.
fn hear(socket: &UdpSocket, family: Family) -> Option<Heard> {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    let header = if family == Family::V4 { usize::from(buffer[0] & 15) * 4 } else { 0 };
    let sctp = buffer.get(header..length)?;
    let mut zeroed = sctp.to_vec();
    zeroed.get_mut(8..12)?.fill(0);
    if crc32c(&zeroed).to_le_bytes() != sctp[8..12] {
        return None;
    }
    let word = |at: usize| Some(u32::from_be_bytes(sctp.get(at..at + 4)?.try_into().ok()?));
    let ports = word(0)?;
    let ports = ((ports >> 16) as u16, ports as u16);
    Some(Heard { ports, chunk: sctp[12], word: word(16)?, from: from.ip() })
}

/// Answers each INIT with an INIT ACK that carries `own`, until the test is over.
fn serve(pod: &UdpSocket, family: Family, own: u32, over: &AtomicBool, seen: &dyn Fn(IpAddr, u16)) {
    while !over.load(Ordering::Relaxed) {
        let Some(heard) = hear(pod, family) else { continue };
        let (from, to) = heard.ports;
        if heard.chunk == INIT {
            seen(heard.from, from);
            let answer = packet(to, from, INIT_ACK, own);
            let _ = pod.send_to(&answer, SocketAddr::new(heard.from, 0));
        }
    }
}

/// Sends an INIT from a port and waits for the INIT ACK; which pod it is from.
fn associate(netns: &Netns, to: SocketAddr, from: u16) -> Option<u32> {
    let family = Family::of(to.ip());
    let socket = open(netns, family);
    socket.connect(SocketAddr::new(to.ip(), 0)).ok()?;
    socket.send(&packet(from, to.port(), INIT, 7)).ok()?;
    // More than one answer may be for others.
    (0..3).find_map(|_| {
        let heard = hear(&socket, family)?;
        let ours = heard.chunk == INIT_ACK && heard.ports == (to.port(), from) && heard.from == to.ip();
        ours.then_some(heard.word)
    })
}

#[test]
fn sctp_is_translated_by_its_addresses_alone() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    for (number, name, pod) in [(NEAR, "sctp-near", "a1"), (FAR, "sctp-far", "b1")] {
        let service = Service::new(name, number.cluster_ip())
            .cluster_ip(number.cluster_ip_of(Family::V6))
            .sctp(port(number), port(number), Some(port(number)));
        scene.lab.apply(&service, &[scene.endpoint(pod)]).expect("a manifest");
    }
    // Ports that differ cannot be served, and that is said.
    let service = Service::new("sctp-other", Numbered(92).cluster_ip()).sctp(port(NEAR), port(FAR), None);
    scene.lab.apply(&service, &[scene.endpoint("a1")]).expect("a manifest");

    let over = AtomicBool::new(false);
    let (clients, lab) = (std::sync::Mutex::new(Vec::new()), &scene.lab);
    thread::scope(|scope| {
        for family in FAMILIES.iter().copied() {
            for (number, pod) in [(NEAR, "a1"), (FAR, "b1")] {
                let (socket, own) = (open(scene.pod(pod), family), u32::from(number.0));
                let (over, clients) = (&over, &clients);
                let note = move |from, port| clients.lock().expect("no panic").push((from, port));
                scope.spawn(move || serve(&socket, family, own, over, &note));
            }
        }
        let mut from = 20000;
        for family in FAMILIES.iter().copied() {
            let (client, node) = (lab.plan().client_ip(family), lab.node_ip(NodeId::A, family));
            let visitor = lab.pod("visitor").ip(family);
            for (what, asker, address, service, seen) in [
                ("P", Asker::Outside, lab.pod("a1").ip(family), NEAR, client),
                ("NS1", Asker::Outside, node, NEAR, client),
                ("NS2", Asker::Outside, node, FAR, node),
                ("NS4", Asker::Outside, NEAR.cluster_ip_of(family), NEAR, client),
                ("EW1", Asker::Pod("visitor"), NEAR.cluster_ip_of(family), NEAR, visitor),
                ("EW2", Asker::Pod("visitor"), FAR.cluster_ip_of(family), FAR, visitor),
                ("EW4", Asker::Pod("visitor"), node, FAR, visitor),
            ] {
                let to = at(address, port(service));
                let mut tried = Vec::new();
                let answered = poll("an INIT ACK", CHANGE, || {
                    from += 1;
                    tried.push(from);
                    associate(asker.netns(&scene), to, from).filter(|pod| *pod == u32::from(service.0))
                });
                checks.holds(what, answered.is_ok(), || format!("{asker:?} at {to}: no INIT ACK"));
                let clients = clients.lock().expect("no panic");
                let known = tried.last().is_some_and(|port| clients.contains(&(seen, *port)));
                checks.holds(what, known, || {
                    format!("{asker:?} at {to} should be seen as {seen}, from {tried:?}: {clients:?}")
                });
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let log = scene.lab.agent(NodeId::A).log();
    let warned = log.lines().any(|line| line.contains("sctp-other") && line.contains("SCTP"));
    checks.holds("ports that differ", warned, || format!("nothing is said of sctp-other:\n{log}"));
    checks.finish(&mut scene);
}
