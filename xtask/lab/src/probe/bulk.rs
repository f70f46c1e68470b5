//! Many bytes over one connection to a TCP echo, both ways at once.
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::BulkReport;
use super::requests::{banner, connect, reason};

/// Bytes written at once.
const PIECE: usize = 64 << 10;

#[derive(Debug, clap::Args)]
pub(super) struct BulkArgs {
    /// Whom to ask: a TCP echo
    #[arg(long)]
    to: SocketAddr,

    /// How many bytes each way
    #[arg(long)]
    bytes: usize,

    /// How long nothing may happen
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
}

/// Bytes that do not repeat themselves within a packet.
fn content(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| ((at * 31) ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

/// Sends and receives; a failure is part of the report.
pub(super) fn bulk(args: &BulkArgs) -> BulkReport {
    let start = Instant::now();
    let mut report = BulkReport::default();
    if let Err(error) = transfer(args, &mut report) {
        report.failure = Some(reason(&error));
    }
    report.millis = start.elapsed().as_millis() as u64;
    report
}

fn transfer(args: &BulkArgs, report: &mut BulkReport) -> io::Result<()> {
    let mut stream = connect(args.to, Duration::from_millis(args.timeout_ms))?;
    report.pod = banner(&mut stream)?.pod;
    let mut writing = stream.try_clone()?;
    let total = args.bytes;
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> io::Result<()> {
            let mut sent = 0;
            while sent < total {
                let length = PIECE.min(total - sent);
                writing.write_all(&content(sent, length))?;
                sent += length;
            }
            Ok(())
        });
        let mut buffer = vec![0; PIECE];
        while report.echoed < total {
            let length = stream.read(&mut buffer)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if buffer[..length] != content(report.echoed, length) {
                return Err(io::Error::other("wrong echo"));
            }
            report.echoed += length;
        }
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
