//! Requests one after the other, each on a socket of its own.
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::{Report, Requests};
use crate::{Family, patiently};

/// An answer: the pod, and the client's address as the pod saw it, if it said so.
pub(super) struct Answer {
    pub pod: String,
    pub client: Option<IpAddr>,
}

/// What one request is made of.
pub(super) struct Request {
    pub to: SocketAddr,
    pub timeout: Duration,
    pub source_port: u16,
    pub unconnected: bool,
    pub size: usize,
    pub number: u32,
}

/// Time-outs without an answer between them after which nobody is taken to be there.
const GIVE_UP: u32 = 3;

/// Asks as often as told and counts. Ends early when nobody answers.
pub(super) fn ask(args: &Requests, once: impl Fn(&Request) -> io::Result<Answer>) -> Report {
    let mut report = Report::default();
    let mut times = Vec::new();
    let mut silent = 0;
    for number in 0..args.count {
        if silent == GIVE_UP {
            break;
        }
        let source_port = args.source_port.map_or(0, |first| first.wrapping_add(number as u16));
        let timeout = patiently(Duration::from_millis(args.timeout_ms));
        let (to, unconnected, size) = (args.to, args.unconnected, args.size);
        let request = Request { to, timeout, source_port, unconnected, size, number };
        let start = Instant::now();
        match once(&request) {
            Ok(answer) => {
                silent = 0;
                if let Some(client) = answer.client {
                    *report.clients.entry(client).or_default() += 1;
                }
                if source_port != 0 {
                    report.by_port.insert(source_port, answer.pod.clone());
                }
                *report.answers.entry(answer.pod).or_default() += 1;
            }
            Err(error) => {
                silent += u32::from(is_timeout(&error));
                *report.failures.entry(reason(&error)).or_default() += 1;
            }
        }
        times.push(start.elapsed().as_micros() as u64);
    }
    times.sort_unstable();
    report.median_micros = times.get(times.len() / 2).copied().unwrap_or_default();
    report.slowest_micros = times.last().copied().unwrap_or_default();
    report
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// A short word for the usual failures.
pub(super) fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".into(),
        _ if is_timeout(error) => "timeout".into(),
        ErrorKind::ConnectionReset => "reset".into(),
        ErrorKind::ConnectionAborted => "aborted".into(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable".into(),
        _ => error.to_string(),
    }
}

fn other(text: String) -> io::Error {
    io::Error::other(text)
}

/// Connects, and insists that the socket says it is connected to the address asked for.
pub(super) fn connect(to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?;
    if peer == to { Ok(stream) } else { Err(other(format!("getpeername says {peer}"))) }
}

/// The pod and the client out of `POD client=ADDRESS:PORT …`.
pub(super) fn parse(text: &str) -> io::Result<Answer> {
    let mut words = text.split_ascii_whitespace();
    let pod = words.next().unwrap_or_default().to_owned();
    let client = words.next().and_then(|word| word.strip_prefix("client="));
    let client = client.and_then(|address| address.parse::<SocketAddr>().ok());
    match client {
        Some(client) => Ok(Answer { pod, client: Some(client.ip()) }),
        None => Err(other(format!("strange answer: {text:?}"))),
    }
}

pub(super) fn http(request: &Request) -> io::Result<Answer> {
    let mut stream = connect(request.to, request.timeout)?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", request.to)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Err(other(format!("strange answer: {text:?}")));
    };
    if !head.starts_with("HTTP/1.1 200") {
        return Err(other(format!("strange answer: {head:?}")));
    }
    parse(body)
}

pub(super) fn tcp(request: &Request) -> io::Result<Answer> {
    let mut stream = connect(request.to, request.timeout)?;
    let answer = banner(&mut stream)?;
    let tag = format!("{:08}\n", request.number);
    stream.write_all(tag.as_bytes())?;
    let mut echo = [0; 9];
    stream.read_exact(&mut echo)?;
    if echo == tag.as_bytes() { Ok(answer) } else { Err(other("wrong echo".into())) }
}

/// Reads the echo server's first line.
pub(super) fn banner(stream: &mut TcpStream) -> io::Result<Answer> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    parse(&String::from_utf8_lossy(&line))
}

pub(super) fn udp(request: &Request) -> io::Result<Answer> {
    let socket = UdpSocket::bind((Family::of(request.to.ip()).unspecified(), request.source_port))?;
    socket.set_read_timeout(Some(request.timeout))?;
    let tag = format!("{:0size$}", request.number, size = request.size);
    let mut buffer = vec![0; request.size + 1024];
    let length = if request.unconnected {
        socket.send_to(tag.as_bytes(), request.to)?;
        let (length, from) = socket.recv_from(&mut buffer)?;
        if from != request.to {
            return Err(other(format!("recvfrom says {from}")));
        }
        length
    } else {
        socket.connect(request.to)?;
        let peer = socket.peer_addr()?;
        if peer != request.to {
            return Err(other(format!("getpeername says {peer}")));
        }
        socket.send(tag.as_bytes())?;
        socket.recv(&mut buffer)?
    };
    let text = String::from_utf8_lossy(&buffer[..length]);
    if text.ends_with(&tag) { parse(&text) } else { Err(other(format!("wrong echo: {text:?}"))) }
}
