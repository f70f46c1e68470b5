//! A start of the agent loses no flow, and neither does one that is broken off, wherever.
mod lab_support;

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab_support::{ALL, Checks, ECHO, NEAR, Scene, options};
use lb_lab::{Layout, Netns, NodeId, SocketLb, XdpMode, at};

/// Between two new flows of one kind.
const PACE: Duration = Duration::from_millis(1);
/// A connection that takes longer has lost its SYN, which TCP repeats after a second.
const CONNECT: Duration = Duration::from_millis(800);
/// An answer that takes longer has been lost.
const PATIENCE: Duration = Duration::from_secs(3);

/// What became of the flows of one kind.
#[derive(Debug, Default)]
struct Tally {
    opened: usize,
    /// When each lost one began.
    lost: Vec<Duration>,
}

/// Begins flows to an address until it is told to stop.
type Kind = fn(SocketAddr, &AtomicBool) -> Tally;

/// Clients outside that begin new flows all the time.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<(&'static str, JoinHandle<Tally>)>,
}

impl Load {
    fn begin(from: &Netns, to: SocketAddr) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let kinds: [(_, Kind); 2] = [("UDP", datagrams), ("TCP", connections)];
        let clients = kinds.map(|(kind, work)| {
            let (from, stop) = (from.clone(), stop.clone());
            let client = move || from.within(|| work(to, &stop)).expect("the client's namespace");
            (kind, std::thread::spawn(client))
        });
        Load { stop, clients: clients.into() }
    }

    /// `pods`: who answers. What has reached one of them and found no room in its socket, on a busy machine, was not lost on
    /// the way.
    fn end(self, what: &str, pods: &[&Netns], checks: &mut Checks) {
        self.stop.store(true, Ordering::Relaxed);
        for (kind, client) in self.clients {
            let tally = client.join().expect("a client");
            let arrived: usize = pods.iter().map(|pod| without_room(pod, kind)).sum();
            eprintln!("{what}: {kind}: {} of {} lost, {arrived} at the pod", tally.lost.len(), tally.opened);
            let well = tally.opened > 500 && tally.lost.len() <= arrived;
            checks.holds(what, well, || format!("{kind}: {tally:?}, of these {arrived} at the pod"));
        }
    }
}

/// What came to the sockets of a place and found no room.
fn without_room(netns: &Netns, kind: &str) -> usize {
    let (file, line, column) = match kind {
        "UDP" => ("snmp", "Udp:", "RcvbufErrors"),
        _ => ("netstat", "TcpExt:", "ListenDrops"),
    };
    let table = netns.within(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")));
    let table = table.expect("a namespace").expect("the kernel's counters");
    let mut rows = table.lines().filter_map(|row| row.strip_prefix(line));
    let (names, values) = (rows.next().expect("names"), rows.next().expect("values"));
    let mut columns = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
    let value = columns.find(|(name, _)| *name == column).expect("the counter").1;
    value.parse().expect("a number")
}

/// Each from a socket of its own.
fn datagrams(to: SocketAddr, stop: &AtomicBool) -> Tally {
    let start = Instant::now();
    let mut tally = Tally::default();
    let mut waiting = VecDeque::new();
    let mut buffer = [0; 256];
    let mut look = |waiting: &mut VecDeque<(UdpSocket, Instant)>, lost: &mut Vec<Duration>| {
        waiting.retain(|(socket, sent)| {
            let open = socket.recv(&mut buffer).is_err();
            let late = open && sent.elapsed() > PATIENCE;
            lost.extend(late.then(|| *sent - start));
            open && !late
        });
    };
    while !stop.load(Ordering::Relaxed) {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
        socket.connect(to).expect("connected");
        socket.set_nonblocking(true).expect("nonblocking");
        socket.send(b"hello").expect("sent");
        waiting.push_back((socket, Instant::now()));
        tally.opened += 1;
        std::thread::sleep(PACE);
        look(&mut waiting, &mut tally.lost);
    }
    while !waiting.is_empty() {
        std::thread::sleep(PACE);
        look(&mut waiting, &mut tally.lost);
    }
    tally
}

fn connections(to: SocketAddr, stop: &AtomicBool) -> Tally {
    let start = Instant::now();
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        tally.opened += 1;
        if TcpStream::connect_timeout(&to, CONNECT).is_err() {
            tally.lost.push(began - start);
        }
        std::thread::sleep(PACE);
    }
    tally
}

fn restarts(xdp: XdpMode) {
    let mut scene = Scene::new(Layout::PointToPoint, &options(xdp, SocketLb::Host));
    let mut checks = Checks::new();
    let to = at(scene.lab.node_address(NodeId::A), NEAR.node_port(ECHO));
    let load = Load::begin(scene.lab.client(), to);
    for number in 0..4 {
        let agent = scene.lab.agent(NodeId::A);
        if number % 2 == 0 {
            agent.kill();
        } else {
            agent.stop().expect("the agent to end");
        }
        agent.start().expect("the agent again");
    }
    load.end("new flows while the agent is restarted", &[scene.pod("a1")], &mut checks);
    checks.finish(&mut scene);
}

#[test]
fn a_start_loses_no_flow_with_native_xdp() {
    restarts(XdpMode::Native);
}

#[test]
fn a_start_loses_no_flow_with_generic_xdp() {
    restarts(XdpMode::Generic);
}

#[test]
fn a_start_loses_no_flow_without_xdp() {
    restarts(XdpMode::Off);
}

/// When a start is broken off.
enum Moment {
    /// After this part of the time that a start takes.
    Part(u32, u32),
    /// Once so many programs are in place.
    Adopted(usize),
}

/// Breaks off a start and looks whether the node serves on, with no agent alive.
fn broken_off(scene: &mut Scene, moment: &Moment, whole: Duration, checks: &mut Checks) {
    let agent = scene.lab.agent(NodeId::A);
    agent.launch().expect("a start");
    let began = Instant::now();
    let what = match *moment {
        Moment::Part(part, parts) => {
            std::thread::sleep(whole * part / parts);
            format!("a start broken off after {} ms", began.elapsed().as_millis())
        }
        Moment::Adopted(count) => {
            while agent.log().matches("adopted").count() < count && began.elapsed() < 2 * whole {}
            format!("a start broken off after {count} programs")
        }
    };
    agent.kill();
    let to = |service: lab_support::Numbered| at(scene.lab.node_address(NodeId::A), service.node_port(ECHO));
    for (kind, report) in [
        ("UDP", scene.lab.client().udp(to(NEAR), 10)),
        ("TCP", scene.lab.client().tcp(to(NEAR), 5)),
        ("UDP to every node", scene.lab.client().udp(to(ALL), 10)),
    ] {
        let well = report.as_ref().is_ok_and(|report| report.failures.is_empty() && report.answered() > 0);
        checks.holds(&what, well, || format!("{kind}: {report:?}"));
    }
}

#[test]
fn a_start_that_is_broken_off_leaves_a_node_that_serves() {
    let mut options = options(XdpMode::Native, SocketLb::Host);
    options.more.extend(["--log-level", "debug"].map(str::to_owned));
    let mut scene = Scene::new(Layout::PointToPoint, &options);
    let mut checks = Checks::new();
    scene.lab.agent(NodeId::A).kill();
    let began = Instant::now();
    scene.lab.agent(NodeId::A).start().expect("the agent again");
    let whole = began.elapsed();
    scene.lab.agent(NodeId::A).kill();
    const PARTS: u32 = 5;
    let parts = (0..PARTS).map(|part| Moment::Part(part, PARTS));
    // Two programs of the uplink, then XDP, and those of the pods.
    for moment in parts.chain((1..5).map(Moment::Adopted)) {
        broken_off(&mut scene, &moment, whole, &mut checks);
    }
    // From native to generic XDP, off, and back.
    for xdp in [XdpMode::Generic, XdpMode::Native, XdpMode::Off, XdpMode::Native] {
        scene.lab.agent(NodeId::A).options_mut().xdp = xdp;
        for adopted in [1, 3] {
            broken_off(&mut scene, &Moment::Adopted(adopted), whole, &mut checks);
        }
    }
    scene.lab.agent(NodeId::A).start().expect("the agent again");
    checks.finish(&mut scene);
}
