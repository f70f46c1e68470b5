//! Datagrams on one socket: many in order, one way only, or a conversation that outlives its server.
use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use super::live::Live;
use super::requests::{parse, reason};
use super::{ConversationReport, PourReport, SinkReport, StreamReport};
use crate::Family;

/// How long a socket waits before it looks whether to go on.
const LOOK: Duration = Duration::from_millis(100);
/// A datagram that is not echoed for so long is lost.
const LOST: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct StreamArgs {
    /// Whom to ask: a UDP echo
    #[arg(long)]
    to: SocketAddr,

    /// How many datagrams
    #[arg(long)]
    count: u32,

    /// Bytes of each
    #[arg(long)]
    size: usize,

    /// How many may be on their way at once
    #[arg(long, default_value_t = 8)]
    window: u32,
}

#[derive(Debug, clap::Args)]
pub(super) struct PourArgs {
    /// Where to send
    #[arg(long)]
    to: SocketAddr,

    /// Datagrams a second
    #[arg(long, default_value_t = 1000)]
    rate: u32,
}

#[derive(Debug, clap::Args)]
pub(super) struct SinkArgs {
    /// The port to listen on
    #[arg(long)]
    port: u16,
}

#[derive(Debug, clap::Args)]
pub(super) struct ConversationArgs {
    /// Whom to ask: a UDP echo
    #[arg(long)]
    to: SocketAddr,

    /// Use a connected socket, and a new one after an error
    #[arg(long)]
    connected: bool,
}

fn socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Family::of(to.ip()).unspecified(), 0))?;
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// Datagram `number` of a stream: every byte depends on it.
fn content(number: u32, size: usize) -> Vec<u8> {
    let mut bytes = format!("{number:08} ").into_bytes();
    let mut state = number.wrapping_mul(0x9e37_79b9) | 1;
    while bytes.len() < size {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.push((state >> 24) as u8);
    }
    bytes
}

/// Sends datagrams on one socket, a few at a time, and looks at their echoes.
pub(super) fn stream(args: &StreamArgs) -> io::Result<StreamReport> {
    let socket = socket(args.to)?;
    socket.connect(args.to)?;
    let mut report = StreamReport::default();
    let mut buffer = vec![0; 65536];
    let mut awaited = 0;
    let mut heard = Instant::now();
    while awaited < args.count {
        while report.sent < args.count && report.sent < awaited + args.window {
            socket.send(&content(report.sent, args.size))?;
            report.sent += 1;
        }
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if is_timeout(&error) && heard.elapsed() < LOST => continue,
            Err(error) => {
                *report.failures.entry(reason(&error)).or_default() += 1;
                return Ok(report);
            }
        };
        heard = Instant::now();
        // `POD client=ADDRESS:PORT `, then what was sent.
        let Some(echo) = buffer[..length].splitn(3, |byte| *byte == b' ').nth(2) else {
            report.wrong += 1;
            continue;
        };
        let number = echo.get(..8).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        match number {
            Some(number) if echo == content(number, args.size) => {
                report.in_order += u32::from(number == awaited);
                awaited = number + 1;
            }
            _ => report.wrong += 1,
        }
    }
    Ok(report)
}

/// Sends at a steady rate and never listens; errors are counted and do not stop it.
pub(super) fn pour(args: &PourArgs) -> io::Result<()> {
    let socket = socket(args.to)?;
    socket.connect(args.to)?;
    let live = Live::new(PourReport::default());
    live.run(|live| {
        let began = Instant::now();
        let mut due = 0_u64;
        while live.goes_on() {
            let until = (began.elapsed().as_secs_f64() * f64::from(args.rate)) as u64;
            for number in due..until {
                let result = socket.send(&number.to_be_bytes());
                live.note(|report| match result {
                    Ok(_) => report.sent += 1,
                    Err(error) => *report.errors.entry(reason(&error)).or_default() += 1,
                });
            }
            due = until;
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })
}

/// Counts what arrives, and never answers.
pub(super) fn sink(args: &SinkArgs) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, args.port))?;
    socket.set_read_timeout(Some(LOOK))?;
    let live = Live::new(SinkReport::default());
    live.run(|live| {
        let mut buffer = vec![0; 65536];
        while live.goes_on() {
            if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                live.note(|report| *report.received.entry(from.ip().to_canonical()).or_default() += 1);
            }
        }
        Ok(())
    })
}

/// Asks again and again from one socket, as long as that works.
pub(super) fn converse(args: &ConversationArgs) -> io::Result<()> {
    let live = Live::new(ConversationReport::default());
    live.run(|live| {
        while live.goes_on() {
            let socket = socket(args.to)?;
            live.note(|report| report.sockets += 1);
            let result = if args.connected { socket.connect(args.to) } else { Ok(()) };
            if let Err(error) = result.and_then(|()| converse_on(&socket, args, live)) {
                live.note(|report| *report.errors.entry(reason(&error)).or_default() += 1);
                thread::sleep(LOOK);
            }
        }
        Ok(())
    })
}

fn converse_on(
    socket: &UdpSocket,
    args: &ConversationArgs,
    live: &Live<ConversationReport>,
) -> io::Result<()> {
    let mut buffer = vec![0; 1024];
    while live.goes_on() {
        if args.connected {
            socket.send(b"again")?;
        } else {
            socket.send_to(b"again", args.to)?;
        }
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let answer = parse(&String::from_utf8_lossy(&buffer[..length]))?;
                live.note(|report| {
                    *report.answers.entry(answer.pod.clone()).or_default() += 1;
                    report.last = answer.pod;
                });
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) if is_timeout(&error) => live.note(|report| report.unanswered += 1),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
