//! A program of the node at a Service's ClusterIP, as NodeLocal DNSCache has it: what comes there on this node is the program's.
mod lab_support;

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lab_support::{Checks, ECHO, FAMILIES, FAR, NEAR, Scene, WEB, cluster_ip, eventually, options};
use lb_lab::{Family, Layout, Netns, NodeId, SocketLb, XdpMode, at};

/// A cache that answers as the pods' servers do, until it is dropped.
struct Cache {
    ends: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<io::Result<()>>>,
}

impl Cache {
    fn start(node: &Netns, address: IpAddr) -> Self {
        let sockets = || {
            let datagrams = UdpSocket::bind((address, ECHO))?;
            datagrams.set_read_timeout(Some(Duration::from_millis(20)))?;
            let listener = TcpListener::bind((address, WEB))?;
            listener.set_nonblocking(true)?;
            io::Result::Ok((datagrams, listener))
        };
        let (datagrams, listener) = node.within(sockets).expect("in the node").expect("bound");
        let ends = Arc::new(AtomicBool::new(false));
        let (end_udp, end_tcp) = (ends.clone(), ends.clone());
        let threads = vec![
            thread::spawn(move || answer_datagrams(&datagrams, &end_udp)),
            thread::spawn(move || answer_requests(&listener, &end_tcp)),
        ];
        Self { ends, threads }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, ends: &AtomicBool) -> io::Result<()> {
    let mut buffer = [0; 2048];
    while !ends.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let answer = [format!("cache client={client} ").as_bytes(), &buffer[..length]].concat();
        socket.send_to(&answer, client)?;
    }
    Ok(())
}

fn answer_requests(listener: &TcpListener, ends: &AtomicBool) -> io::Result<()> {
    while !ends.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, client)) => answer_request(stream, &format!("cache client={client}\n"))?,
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    Ok(())
}

fn answer_request(mut stream: TcpStream, body: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    for line in BufReader::new(&stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let length = body.len();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn a_cache_at_a_clusterip(mode: XdpMode, sockets: SocketLb) {
    let mut scene = Scene::new(Layout::PointToPoint, &options(mode, sockets));
    let mut checks = Checks::new();
    for family in FAMILIES.iter().copied() {
        let lab = &scene.lab;
        let (node, address) = (lab.node(NodeId::A), FAR.cluster_ip_of(family));
        let asks = |who: &str, pod: &str| {
            let report = lab.pod(who).netns().udp(at(address, ECHO), 1);
            report.is_ok_and(|it| it.answers.contains_key(pod))
        };
        eventually("the Service", || asks("a1", "b1"));
        let bits = if family == Family::V4 { 32 } else { 128 };
        node.ip(&format!("addr add {address}/{bits} dev lo")).expect("an address");
        // Whoever holds an address and does not listen there has nothing of it (kube-proxy's IPVS mode leaves such).
        thread::sleep(Duration::from_millis(1500));
        checks.answered("nobody listens", lab.pod("a1").netns(), cluster_ip(FAR, family), &["b1"], None);
        let cache = Cache::start(node, address);
        eventually("the cache", || asks("a1", "cache"));
        let client = lab.pod("a1").ip(family);
        checks.answered("a pod", lab.pod("a1").netns(), cluster_ip(FAR, family), &["cache"], Some(client));
        checks.answered("the node", node, cluster_ip(FAR, family), &["cache"], None);
        checks.answered("a pod elsewhere", lab.pod("b1").netns(), cluster_ip(FAR, family), &["b1"], None);
        checks.answered("another Service", lab.pod("a1").netns(), cluster_ip(NEAR, family), &["a1"], None);
        drop(cache);
        eventually("the Service again", || asks("a1", "b1"));
        checks.answered("the cache has gone", lab.pod("a1").netns(), cluster_ip(FAR, family), &["b1"], None);
        node.ip(&format!("addr del {address}/{bits} dev lo")).expect("an address");
    }
    checks.finish(&mut scene);
}

#[test]
fn a_cache_at_a_clusterip_is_asked() {
    a_cache_at_a_clusterip(XdpMode::Native, SocketLb::Host);
}

#[test]
fn a_cache_at_a_clusterip_is_asked_by_the_sockets_of_pods() {
    a_cache_at_a_clusterip(XdpMode::Off, SocketLb::All);
}
