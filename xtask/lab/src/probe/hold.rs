//! Connections kept busy while something happens to the path under them.
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::HoldReport;
use super::requests::{banner, connect, reason};
use crate::patiently;

/// A connection without an echo for this long counts as broken.
const BROKEN_AFTER: Duration = Duration::from_secs(5);
/// Pause between two new connections.
const BETWEEN_NEW: Duration = Duration::from_millis(5);

#[derive(Debug, clap::Args)]
pub(super) struct HoldArgs {
    /// Whom to ask: a TCP echo
    #[arg(long)]
    to: SocketAddr,

    /// How many connections to keep
    #[arg(long, default_value_t = 200)]
    connections: u32,

    /// Pause between two lines on a connection
    #[arg(long, default_value_t = 50)]
    interval_ms: u64,
}

/// Opens the connections, prints `ready`, and keeps them busy, with new ones besides, until standard input ends.
pub(super) fn hold(args: &HoldArgs) -> io::Result<HoldReport> {
    let interval = patiently(Duration::from_millis(args.interval_ms));
    let mut streams = Vec::new();
    for _ in 0..args.connections {
        let mut stream = connect(args.to, patiently(BROKEN_AFTER))?;
        banner(&mut stream)?;
        streams.push(stream);
    }
    println!("ready");
    io::stdout().flush()?;

    let (stop, echoed) = (AtomicBool::new(false), AtomicU64::new(0));
    let report = Mutex::new(HoldReport { connections: streams.len() as u64, ..HoldReport::default() });
    let note = |change: &dyn Fn(&mut HoldReport)| {
        // No thread panics while it holds the lock.
        if let Ok(mut report) = report.lock() {
            change(&mut report);
        }
    };
    thread::scope(|scope| -> io::Result<()> {
        for (index, stream) in streams.into_iter().enumerate() {
            let (stop, echoed, note) = (&stop, &echoed, &note);
            let work = move || {
                if let Err(error) = keep_busy(stream, index, interval, stop, echoed) {
                    note(&|report| *report.broken.entry(reason(&error)).or_default() += 1);
                }
            };
            thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, work)?;
        }
        let new = || {
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                let result =
                    connect(args.to, patiently(BROKEN_AFTER)).and_then(|mut stream| banner(&mut stream));
                let micros = start.elapsed().as_micros() as u64;
                note(&|report| {
                    report.slowest_open_micros = report.slowest_open_micros.max(micros);
                    match &result {
                        Ok(_) => report.opened += 1,
                        Err(error) => *report.not_opened.entry(reason(error)).or_default() += 1,
                    }
                });
                thread::sleep(patiently(BETWEEN_NEW));
            }
        };
        thread::Builder::new().spawn_scoped(scope, new)?;
        let _ = io::stdin().read_to_end(&mut Vec::new());
        stop.store(true, Ordering::Relaxed);
        Ok(())
    })?;
    let mut report = report.into_inner().unwrap_or_default();
    report.echoed = echoed.into_inner();
    Ok(report)
}

fn keep_busy(
    mut stream: TcpStream,
    index: usize,
    interval: Duration,
    stop: &AtomicBool,
    echoed: &AtomicU64,
) -> io::Result<()> {
    let mut number = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        let tag = format!("{index:04}-{number:08}\n");
        stream.write_all(tag.as_bytes())?;
        let mut echo = vec![0; tag.len()];
        stream.read_exact(&mut echo)?;
        if echo != tag.as_bytes() {
            return Err(io::Error::other("wrong echo"));
        }
        echoed.fetch_add(1, Ordering::Relaxed);
        number = number.wrapping_add(1);
        thread::sleep(interval);
    }
    Ok(())
}
