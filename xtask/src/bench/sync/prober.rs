//! Connections, one after the other, that find out when a change has come into force.
//!
//! Between namespaces of one machine a handshake runs inside connect(): what answers, answers within microseconds. Who
//! has answered, the server says with the first bytes.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

use super::objects::TARGET_PORT;
use crate::kube::Written;
use lb_lab::Netns;

/// How long a handshake may take before it counts as unanswered.
const HANDSHAKE: Duration = Duration::from_millis(2);
/// The same where a mistake would matter; less than a SYN takes to be repeated.
const SURE: Duration = Duration::from_millis(300);
/// How long a server may take to say who it is; shorter than until a lost packet is sent again.
const NAME: Duration = Duration::from_millis(100);
/// Between two questions.
const PACE: Duration = Duration::from_micros(200);
/// Questions that must be answered as before, before the change.
const BEFORE: u32 = 5;
/// How many must obey in a row, so that the first of them counts.
const IN_A_ROW: u32 = 20;
/// How long a change may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A server, at this address.
    Answered(Ipv4Addr),
    /// It was refused, or nobody answered.
    Nobody,
    /// There was a handshake, and nothing after it.
    Cut,
}

/// What is to be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nobody answers.
    Nobody,
    /// One of these answers.
    AnyOf(Vec<Ipv4Addr>),
    /// Someone else answers.
    NoneOf(Vec<Ipv4Addr>),
}

impl Expected {
    fn is(&self, outcome: Outcome) -> bool {
        match (self, outcome) {
            (Self::Nobody, outcome) => outcome == Outcome::Nobody,
            (Self::AnyOf(these), Outcome::Answered(by)) => these.contains(&by),
            (Self::NoneOf(these), Outcome::Answered(by)) => !these.contains(&by),
            (Self::AnyOf(_) | Self::NoneOf(_), Outcome::Nobody | Outcome::Cut) => false,
        }
    }
}

/// A change, and how it is seen.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Where to ask.
    pub frontend: SocketAddrV4,
    /// How it is before.
    pub before: Expected,
    /// How it is after.
    pub after: Expected,
    /// Whether every answer is as `after` says from then on; otherwise some are.
    pub is_whole: bool,
}

/// When a change came into force.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// When it was written.
    pub written: Written,
    /// The first connection that obeyed, with all that followed.
    pub obeyed: Instant,
    /// Connections that obeyed before one that did not.
    pub strays: u32,
    /// Connections that got a handshake and nothing after it.
    pub cut: u32,
}

impl Watch {
    /// Writes the change while asking. `Err` also when it does not come into force.
    pub fn observe(&self, client: &Netns, write: impl FnOnce() -> Result<Written>) -> Result<Seen> {
        let stop = AtomicBool::new(false);
        let (ready, is_ready) = mpsc::channel();
        thread::scope(|scope| {
            let asking = scope.spawn(|| client.within(|| self.ask_until_obeyed(&ready, &stop)));
            let written = match is_ready.recv_timeout(PATIENCE) {
                Ok(()) => write(),
                Err(_) => Err(miette!("{}: not as {:?} before the change", self.frontend, self.before)),
            };
            stop.store(written.is_err(), Ordering::Relaxed);
            let seen = asking.join().map_err(|_| miette!("the prober failed"))?.into_diagnostic()?;
            let (written, (obeyed, strays, cut)) = (written?, seen?);
            Ok(Seen { written, obeyed, strays, cut })
        })
    }

    fn ask_until_obeyed(&self, ready: &mpsc::Sender<()>, stop: &AtomicBool) -> Result<(Instant, u32, u32)> {
        stay_on_last_cpu()?;
        let deadline = Instant::now() + PATIENCE;
        let (mut as_before, mut row, mut strays, mut cut) = (0, None::<(Instant, u32)>, 0, 0);
        while Instant::now() < deadline && !stop.load(Ordering::Relaxed) {
            let (at, outcome) = ask(self.frontend, HANDSHAKE)?;
            if outcome == Outcome::Cut {
                // It was under way when something happened, and says nothing of connections that begin.
                cut += 1;
            } else if as_before < BEFORE {
                as_before = if self.before.is(outcome) { as_before + 1 } else { 0 };
                if as_before == BEFORE {
                    // The other end waits for this, or has given up.
                    let _ = ready.send(());
                }
            } else if self.after.is(outcome) {
                let (first, count) = row.map_or((at, 1), |(first, count)| (first, count + 1));
                row = Some((first, count));
                if count >= if self.is_whole { IN_A_ROW } else { 1 } {
                    return Ok((first, strays, cut));
                }
            } else {
                strays += u32::from(row.take().is_some());
            }
            if self.is_whole {
                thread::sleep(PACE);
            }
        }
        Err(miette!("{}: never as {:?}", self.frontend, self.after))
    }
}

/// When every frontend has answered: some of them are asked until they do, one after the other, then all. Returns also
/// how many of the others did not answer at once.
pub fn all_answer(client: &Netns, frontends: &[SocketAddrV4]) -> Result<(Instant, u32)> {
    let asked = client.within(|| {
        stay_on_last_cpu()?;
        let deadline = Instant::now() + PATIENCE;
        let until_answered = |frontend, patience| {
            let mut attempts = 0;
            loop {
                attempts += 1;
                if let Some(at) = connect(frontend, patience)?.1 {
                    return Ok::<_, miette::Report>((at, attempts > 1));
                }
                if Instant::now() > deadline {
                    return Err(miette!("{frontend} does not answer"));
                }
                thread::sleep(PACE);
            }
        };
        let mut last = Instant::now();
        for frontend in sample(frontends) {
            last = until_answered(frontend, HANDSHAKE)?.0;
        }
        let mut late = 0;
        for frontend in frontends {
            let (at, was_late) = until_answered(*frontend, SURE)?;
            if was_late {
                (last, late) = (at, late + 1);
            }
        }
        Ok((last, late))
    });
    asked.into_diagnostic()?
}

/// At most a hundred, the first and the last among them.
fn sample(frontends: &[SocketAddrV4]) -> Vec<SocketAddrV4> {
    const MOST: usize = 100;
    match frontends.len() {
        0..=MOST => frontends.to_vec(),
        count => (0..MOST).map(|index| frontends[index * (count - 1) / (MOST - 1)]).collect(),
    }
}

/// Asks once, and says when the packet that was answered, or not, was on its way.
fn ask(frontend: SocketAddrV4, patience: Duration) -> Result<(Instant, Outcome)> {
    let began = Instant::now();
    let (socket, Some(at)) = connect(frontend, patience)? else { return Ok((began, Outcome::Nobody)) };
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(NAME)).into_diagnostic()?;
    let mut name = [0; 4];
    let outcome = match stream.read_exact(&mut name) {
        Ok(()) => Outcome::Answered(name.into()),
        Err(_) => Outcome::Cut,
    };
    Ok((at, outcome))
}

fn connect(frontend: SocketAddrV4, patience: Duration) -> Result<(Socket, Option<Instant>)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).into_diagnostic()?;
    // The end by RST leaves no TIME_WAIT behind.
    socket.set_linger(Some(Duration::ZERO)).into_diagnostic()?;
    let connected = socket.connect_timeout(&SocketAddr::from(frontend).into(), patience).is_ok();
    Ok((socket, connected.then(Instant::now)))
}

/// Leaves the other CPUs to those that are measured.
fn stay_on_last_cpu() -> Result<()> {
    let cpus = thread::available_parallelism().into_diagnostic()?.get();
    let mut cpu = CpuSet::new();
    cpu.set(cpus - 1).into_diagnostic()?;
    sched_setaffinity(Pid::from_raw(0), &cpu).into_diagnostic().wrap_err("cannot stay on one CPU")
}

/// A server that says at which address it was reached, in the place where all endpoints are.
#[derive(Debug)]
pub struct Server(Arc<AtomicBool>, SocketAddr);

impl Server {
    /// Listens, and answers on a thread of its own.
    pub fn start(netns: &Netns, at: Ipv4Addr) -> Result<Self> {
        let socket = netns.within(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, TARGET_PORT)).into())?;
            socket.listen(4096)?;
            Ok::<_, std::io::Error>(socket)
        });
        let listener: std::net::TcpListener = socket.into_diagnostic()?.into_diagnostic()?.into();
        let ended = Arc::new(AtomicBool::new(false));
        let is_ended = ended.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(std::io::Result::ok) {
                if is_ended.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(SocketAddr::V4(own)) = stream.local_addr() {
                    // The client may have gone.
                    let _ = stream.write_all(&own.ip().octets());
                }
            }
        });
        Ok(Self(ended, SocketAddr::from((IpAddr::V4(at), TARGET_PORT))))
    }

    /// Ends it; `netns` is where it listens.
    pub fn stop(&self, netns: &Netns) {
        self.0.store(true, Ordering::Relaxed);
        // Wakes the thread.
        let _ = netns.within(|| TcpStream::connect_timeout(&self.1, NAME));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_held_against_what_is_expected() {
        let [a, b] = [1, 2].map(|last| Ipv4Addr::new(10, 0, 0, last));
        let outcomes = [Outcome::Answered(a), Outcome::Answered(b), Outcome::Nobody, Outcome::Cut];
        let of = |expected: Expected| outcomes.map(|outcome| expected.is(outcome));
        assert_eq!(of(Expected::Nobody), [false, false, true, false]);
        assert_eq!(of(Expected::AnyOf(vec![a])), [true, false, false, false]);
        assert_eq!(of(Expected::NoneOf(vec![a])), [false, true, false, false]);
    }

    #[test]
    fn a_sample_has_both_ends() {
        let all: Vec<_> = (0..250).map(|last| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, last), 80)).collect();
        let some = sample(&all);
        assert_eq!((some.len(), some[0], some[99]), (100, all[0], all[249]));
        assert_eq!(sample(&all[..7]), all[..7]);
    }
}
