//! `xtask twin-ask`: asks many addresses at once from inside a place, and reports as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

const STACK: usize = 128 << 10;

/// How to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum How {
    /// A connection to one of the lab's TCP servers.
    #[serde(rename = "TCP")]
    Tcp,
    /// A datagram to the lab's UDP echo.
    #[serde(rename = "UDP")]
    Udp,
    /// A health check over HTTP: the answer counts as a pod whose name is what was said.
    #[serde(rename = "health")]
    Health,
}

impl How {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            How::Tcp => "TCP",
            How::Udp => "UDP",
            How::Health => "health check",
        }
    }
}

/// Whom to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// In which way.
    pub how: How,
    /// At which address.
    pub to: SocketAddr,
    /// Where the same client port asks right before; what comes of that does not count.
    pub before: Option<SocketAddr>,
}

/// What a place is to ask.
#[derive(Debug, Serialize, Deserialize)]
pub struct Questions {
    /// Source address, where not the usual one.
    pub from: Option<IpAddr>,
    /// How many at a time.
    pub at_once: usize,
    /// How often each.
    pub tries: usize,
    /// After how many failures, and no answer before, it is not asked again.
    pub hopeless: usize,
    /// How long each answer may take, in milliseconds.
    pub patience: u64,
    /// Whom.
    pub to: Vec<Question>,
}

/// All that came of asking one address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// By pod, the addresses that it saw.
    pub pods: BTreeMap<String, BTreeSet<IpAddr>>,
    /// How tries failed: `refused`, `dropped`, or other words.
    pub failures: BTreeSet<String>,
}

/// Reads [`Questions`] from standard input and prints a list of [`Answers`].
pub fn run() -> io::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let questions: Questions = serde_json::from_str(&text)?;
    println!("{}", serde_json::to_string(&ask_all(&questions))?);
    Ok(())
}

fn ask_all(questions: &Questions) -> Vec<Answers> {
    let next = AtomicUsize::new(0);
    let all = Mutex::new(vec![Answers::default(); questions.to.len()]);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(question) = questions.to.get(at) else { return };
            let answers = ask(question, questions);
            if let Ok(mut all) = all.lock() {
                all[at] = answers;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..questions.at_once {
            // With fewer threads it only takes longer.
            let _ = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        }
    });
    all.into_inner().unwrap_or_default()
}

fn ask(question: &Question, questions: &Questions) -> Answers {
    let mut answers = Answers::default();
    let patience = Duration::from_millis(questions.patience);
    for number in 0..questions.tries {
        if number == questions.hopeless && answers.pods.is_empty() {
            break;
        }
        let Question { how, to, before } = *question;
        let from = SocketAddr::new(questions.from.unwrap_or(unspecified(to)), 0);
        let mut client = Client { from, patience, speaks_again: before.is_some() };
        if let Some(before) = before {
            let _ = client.ask(how, before);
        }
        let answer = client.ask(how, to);
        match answer {
            Ok((pod, seen)) => answers.pods.entry(pod).or_default().extend(seen),
            // The port of a moment ago is taken: that says nothing about the way.
            Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => {}
            Err(error) => {
                answers.failures.insert(failure(&error));
            }
        }
    }
    answers
}

/// A short word for the usual failures.
fn failure(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".into(),
        // Not permitted: dropped on the way out, which Linux tells the sender.
        ErrorKind::TimedOut | ErrorKind::WouldBlock | ErrorKind::PermissionDenied => "dropped".into(),
        ErrorKind::ConnectionReset => "reset".into(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable".into(),
        _ => error.to_string(),
    }
}

fn unspecified(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Who answered, and whom it saw.
type Answer = (String, Option<IpAddr>);

/// Who asks: the port is chosen by the first question and kept for the next.
struct Client {
    from: SocketAddr,
    patience: Duration,
    speaks_again: bool,
}

impl Client {
    fn ask(&mut self, how: How, to: SocketAddr) -> io::Result<Answer> {
        match how {
            How::Tcp => self.stream(to, pod_and_client),
            How::Udp => self.datagram(to),
            How::Health => self.stream(to, health),
        }
    }

    fn socket(&mut self, kind: Type) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.from), kind, None)?;
        // UDP must not share a port by chance.
        let is_chosen = self.from.port() != 0;
        socket.set_reuse_address(self.speaks_again && (kind == Type::STREAM || is_chosen))?;
        socket.set_read_timeout(Some(self.patience))?;
        socket.set_write_timeout(Some(self.patience))?;
        // Bound early: else Linux lets connections to different addresses share a port, and to a pod that is reached by
        // two ways they are one.
        socket.bind(&self.from.into())?;
        Ok(socket)
    }

    fn keep_port(&mut self, socket: &Socket) -> io::Result<()> {
        self.from.set_port(socket.local_addr()?.as_socket().map_or(0, |local| local.port()));
        Ok(())
    }

    /// The lab's TCP servers: nginx answers a request, the echo introduces itself before.
    fn stream(&mut self, to: SocketAddr, understand: fn(&str) -> Option<Answer>) -> io::Result<Answer> {
        let socket = self.socket(Type::STREAM)?;
        socket.connect_timeout(&to.into(), self.patience)?;
        self.keep_port(&socket)?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: twin\r\nConnection: close\r\n\r\n")?;
        let mut text = Vec::new();
        let mut buffer = [0; 1024];
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(answer) = understand(&String::from_utf8_lossy(&text)) {
                if self.speaks_again {
                    // All of this connection is over before the next.
                    stream.shutdown(Shutdown::Write)?;
                    while stream.read(&mut buffer)? > 0 {}
                }
                return Ok(answer);
            }
            match stream.read(&mut buffer)? {
                0 => return Err(io::Error::other("closed without an answer")),
                _ if Instant::now() > deadline => return Err(ErrorKind::TimedOut.into()),
                length => text.extend_from_slice(&buffer[..length]),
            }
        }
    }

    fn datagram(&mut self, to: SocketAddr) -> io::Result<Answer> {
        let socket = self.socket(Type::DGRAM)?;
        socket.connect(&to.into())?;
        self.keep_port(&socket)?;
        let socket = std::net::UdpSocket::from(socket);
        match socket.send(b"twin") {
            // Dropped on the way out. If it was rejected the refusal follows.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            sent => drop(sent?),
        }
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        pod_and_client(&text).ok_or_else(|| io::Error::other("strange answer"))
    }
}

/// The pod and the client out of `… POD client=ADDRESS:PORT …`, once the address is complete.
fn pod_and_client(text: &str) -> Option<Answer> {
    let (before, after) = text.split_once(" client=")?;
    let address = &after[..after.find(char::is_whitespace)?];
    let pod = before.rsplit(char::is_whitespace).next()?;
    Some((pod.to_owned(), Some(address.parse::<SocketAddr>().ok()?.ip())))
}

/// Status and number of local endpoints of a health check's answer.
fn health(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_ascii_whitespace().nth(1)?;
    let answer: serde_json::Value = serde_json::from_str(body.trim()).ok()?;
    Some((format!("status {status} with {} local endpoints", answer["localEndpoints"]), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tcp_servers_are_understood() {
        let seen = Some(("a1".to_owned(), Some(IpAddr::from([10, 0, 0, 1]))));
        assert_eq!(pod_and_client("a1 client=10.0.0.1:40000\n"), seen);
        assert_eq!(pod_and_client("HTTP/1.1 200 OK\r\n\r\na1 client=10.0.0.1:40000 host=twin\n"), seen);
        assert_eq!(pod_and_client("a1 client=10.0.0.1:4"), None);
    }

    #[test]
    fn a_health_check_says_status_and_endpoints() {
        let body = "{\n\t\"service\": { \"name\": \"x\" },\n\t\"localEndpoints\": 2\n}";
        let text = format!("HTTP/1.1 200 OK\r\nA: b\r\n\r\n{body}");
        assert_eq!(health(&text).map(|(said, _)| said).as_deref(), Some("status 200 with 2 local endpoints"));
        assert_eq!(health(&text[..text.len() - 1]), None);
    }

    #[test]
    fn nobody_there_is_refused() {
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let to = [How::Tcp, How::Udp].map(|how| Question { how, to: free, before: None }).to_vec();
        let answers =
            ask_all(&Questions { from: None, at_once: 2, tries: 1, hopeless: 1, patience: 2000, to });
        assert!(answers.iter().all(|answers| answers.failures.iter().eq(["refused"])), "{answers:?}");
    }
}
