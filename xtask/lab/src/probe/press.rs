//! DNS queries at a steady rate from many sockets, over UDP and TCP, each asked again once as resolvers do.
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::PressReport;
use super::dns::{query, text};
use super::requests::reason;
use crate::Family;

/// Askers, each with one query at a time.
const ASKERS: u32 = 32;
/// Of so many queries one goes over TCP.
const TCP_SHARE: u32 = 10;

#[derive(Debug, clap::Args)]
pub(super) struct PressArgs {
    /// Whom to ask: a DNS server
    #[arg(long)]
    to: SocketAddr,

    /// How many queries
    #[arg(long)]
    count: u32,

    /// Queries a second
    #[arg(long)]
    rate: u32,

    /// How long to wait for an answer before the second try
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u64,
}

/// Asks all there is to ask.
pub(super) fn press(args: &PressArgs) -> io::Result<PressReport> {
    let (next, report, began) = (AtomicU32::new(0), Mutex::new(PressReport::default()), Instant::now());
    thread::scope(|scope| -> io::Result<()> {
        for _ in 0..ASKERS {
            let work = || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= args.count {
                        return;
                    }
                    let due = Duration::from_secs_f64(f64::from(number) / f64::from(args.rate));
                    thread::sleep(due.saturating_sub(began.elapsed()));
                    let first = once(args, number);
                    let second = first.is_err().then(|| once(args, number));
                    // No thread panics while it holds the lock.
                    let Ok(mut report) = report.lock() else { return };
                    report.second_tries += u64::from(second.is_some());
                    report.lost += u64::from(second.as_ref().is_some_and(Result::is_err));
                    for outcome in [Some(first), second].into_iter().flatten() {
                        match outcome {
                            Ok(pod) => *report.answers.entry(pod).or_default() += 1,
                            Err(error) => *report.failed_tries.entry(reason(&error)).or_default() += 1,
                        }
                    }
                }
            };
            thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, work)?;
        }
        Ok(())
    })?;
    Ok(report.into_inner().unwrap_or_default())
}

/// One try, from a socket of its own.
fn once(args: &PressArgs, number: u32) -> io::Result<String> {
    let (id, timeout) = (number as u16, Duration::from_millis(args.timeout_ms));
    let query = query(id);
    let mut buffer = vec![0; 1024];
    let length = if number.is_multiple_of(TCP_SHARE) {
        let mut stream = TcpStream::connect_timeout(&args.to, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        let mut message = (query.len() as u16).to_be_bytes().to_vec();
        message.extend(&query);
        stream.write_all(&message)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let length = usize::from(u16::from_be_bytes(length)).min(buffer.len());
        stream.read_exact(&mut buffer[..length])?;
        length
    } else {
        let socket = UdpSocket::bind((Family::of(args.to.ip()).unspecified(), 0))?;
        socket.set_read_timeout(Some(timeout))?;
        socket.connect(args.to)?;
        socket.send(&query)?;
        socket.recv(&mut buffer)?
    };
    text(&buffer[..length], id, query.len()).ok_or_else(|| io::Error::other("strange answer"))
}
