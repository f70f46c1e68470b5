//! The two programs that talk to each other: `xtask sockets-server` answers with its name, `xtask sockets-client` asks as
//! told on its standard input, and checks who answers.

use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use std::{fmt, thread};

use serde::{Deserialize, Serialize};

/// Bytes of a request and of an answer.
const SIZE: usize = 32;
/// Bytes of a write of the bulk transfer.
const CHUNK: usize = 1 << 16;
/// Threads that accept: some clients come many at a time.
const ACCEPTING: usize = 8;
/// How long a datagram's answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The sub-bench's own programs.
#[derive(Debug, clap::Subcommand)]
pub enum Program {
    /// Answer with a name
    #[command(hide = true)]
    SocketsServer {
        /// What to answer with
        name: String,
        /// TCP and UDP port
        port: u16,
    },
    /// Ask as told on standard input, and report as JSON
    #[command(hide = true)]
    SocketsClient,
}

impl Program {
    /// Runs it to its end.
    pub fn run(&self) -> io::Result<()> {
        match self {
            Self::SocketsServer { name, port } => serve(name, *port),
            Self::SocketsClient => ask_as_told(),
        }
    }
}

/// What a client is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deed {
    /// A connection each: connect, ask, be answered, close.
    Connect,
    /// As many, so many at a time.
    ConnectAtOnce(usize),
    /// A datagram and its answer each, on one connected socket.
    Datagram,
    /// The same with a socket each.
    DatagramSocket,
    /// Chunks of 64 KiB over one connection.
    Bulk,
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A line of the client's standard input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Which report belongs to it.
    pub number: u64,
    /// What to do.
    pub deed: Deed,
    /// To whom.
    pub to: SocketAddr,
    /// Who should answer.
    pub name: String,
    /// How often.
    pub count: usize,
}

/// A line of the client's standard output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The order's.
    pub number: u64,
    /// How often the right one answered.
    pub right: usize,
    /// Why another did not count; the first reason.
    pub wrong: Option<String>,
    /// Wall time of all.
    pub seconds: f64,
    /// Half took less, in seconds.
    pub p50: f64,
    /// One of a hundred took longer, in seconds.
    pub p99: f64,
}

fn serve(name: &str, port: u16) -> io::Result<()> {
    let answer = padded(name);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    for _ in 0..ACCEPTING {
        let listener = listener.try_clone()?;
        thread::spawn(move || {
            loop {
                // A client that went away is no reason to end.
                let _ = listener.accept().and_then(|(stream, _)| answer_stream(stream, &answer));
            }
        });
    }
    let mut buffer = [0; SIZE];
    loop {
        // An error here is an ICMP error about an earlier answer.
        if let Ok((_, client)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&answer, client);
        }
    }
}

/// Closes first, so that the client's port is free at once and the server's is what waits.
fn answer_stream(mut stream: TcpStream, answer: &[u8; SIZE]) -> io::Result<()> {
    let mut request = [0; SIZE];
    stream.read_exact(&mut request)?;
    let mut left = u64::from_le_bytes(request[..8].try_into().unwrap_or_default());
    if left > 0 {
        let mut buffer = vec![0; CHUNK];
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(CHUNK));
            match stream.read(&mut buffer[..most])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => left -= length as u64,
            }
        }
    }
    stream.write_all(answer)
}

fn ask_as_told() -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let report = Report { number: order.number, ..carry_out(&order) };
        let mut out = io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        out.flush()?;
    }
    Ok(())
}

fn carry_out(order: &Order) -> Report {
    let (to, name) = (order.to, padded(&order.name));
    let began = Instant::now();
    let answers = match order.deed {
        Deed::Connect => repeat(order.count, || connect(to, &name)),
        Deed::ConnectAtOnce(threads) => {
            let share = order.count / threads.max(1);
            thread::scope(|scope| {
                let all: Vec<_> =
                    (0..threads).map(|_| scope.spawn(|| repeat(share, || connect(to, &name)))).collect();
                all.into_iter().flat_map(|one| one.join().unwrap_or_default()).collect()
            })
        }
        Deed::Datagram => match datagram_socket(to) {
            Ok(socket) => repeat(order.count, || datagram(&socket, &name)),
            Err(error) => vec![Err(error)],
        },
        Deed::DatagramSocket => {
            repeat(order.count, || datagram_socket(to).and_then(|socket| datagram(&socket, &name)))
        }
        Deed::Bulk => vec![bulk(to, &name, order.count)],
    };
    summed_up(answers, began.elapsed())
}

type Answer = io::Result<Duration>;

fn repeat(count: usize, mut ask: impl FnMut() -> io::Result<()>) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        let answer = ask().map(|()| began.elapsed());
        let failed = answer.is_err();
        answers.push(answer);
        if failed {
            break;
        }
    }
    answers
}

fn connect(to: SocketAddr, name: &[u8; SIZE]) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.write_all(&[0; SIZE])?;
    let mut answer = [0; SIZE];
    stream.read_exact(&mut answer)?;
    // Until the server has closed.
    if stream.read(&mut [0; 1])? != 0 {
        return Err(io::Error::other("more than an answer came"));
    }
    is_from(name, &answer)
}

fn datagram_socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn datagram(socket: &UdpSocket, name: &[u8; SIZE]) -> io::Result<()> {
    socket.send(&[0; SIZE])?;
    let mut answer = [0; SIZE];
    socket.recv(&mut answer)?;
    is_from(name, &answer)
}

fn bulk(to: SocketAddr, name: &[u8; SIZE], chunks: usize) -> Answer {
    let began = Instant::now();
    let mut stream = TcpStream::connect(to)?;
    let mut request = [0; SIZE];
    request[..8].copy_from_slice(&((chunks * CHUNK) as u64).to_le_bytes());
    stream.write_all(&request)?;
    let chunk = vec![1; CHUNK];
    for _ in 0..chunks {
        stream.write_all(&chunk)?;
    }
    let mut answer = [0; SIZE];
    stream.read_exact(&mut answer)?;
    is_from(name, &answer)?;
    Ok(began.elapsed())
}

fn is_from(name: &[u8; SIZE], answer: &[u8; SIZE]) -> io::Result<()> {
    if answer == name {
        return Ok(());
    }
    Err(io::Error::other(format!("answered by {}", String::from_utf8_lossy(answer).trim_end())))
}

fn padded(name: &str) -> [u8; SIZE] {
    let mut bytes = [b' '; SIZE];
    for (at, byte) in name.bytes().take(SIZE).enumerate() {
        bytes[at] = byte;
    }
    bytes
}

fn summed_up(answers: Vec<Answer>, took: Duration) -> Report {
    let mut wrong = None;
    let mut times = Vec::with_capacity(answers.len());
    for answer in answers {
        match answer {
            Ok(time) => times.push(time.as_secs_f64()),
            Err(error) => wrong = wrong.or(Some(error.to_string())),
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1)));
    Report {
        number: 0,
        right: times.len(),
        wrong,
        seconds: took.as_secs_f64(),
        p50: at(50).copied().unwrap_or_default(),
        p99: at(99).copied().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_the_right_answers_and_keeps_the_first_reason() {
        let mut answers: Vec<Answer> = (1..=100).map(|time| Ok(Duration::from_secs(time))).collect();
        answers.push(Err(io::Error::other("first")));
        answers.push(Err(io::Error::other("second")));
        let report = summed_up(answers, Duration::from_secs(9));
        assert_eq!((report.right, report.p50, report.p99, report.seconds), (100, 51.0, 100.0, 9.0));
        assert_eq!(report.wrong.as_deref(), Some("first"));
        assert_eq!(summed_up(Vec::new(), Duration::ZERO), Report::default());
    }

    #[test]
    fn an_answer_of_another_is_no_answer() {
        assert!(is_from(&padded("near"), &padded("near")).is_ok());
        let error = is_from(&padded("near"), &padded("far")).unwrap_err();
        assert_eq!(error.to_string(), "answered by far");
    }
}
