//! A SYN flood, the sending part of `cargo xtask bench flood`: frames that the kernel makes and hands to an interface's
//! other end as a network card would, without a socket buffer. Prints a JSON object.
//!
//! Root only; to be started in the network namespace of the interface.

#[expect(dead_code, reason = "most of it is for other programs")]
#[path = "../../../lb-ebpf/src/floors/layout.rs"]
mod layout;
mod pace;
mod source;
mod spent;
mod syn;

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use serde_json::json;

use pace::Pace;
use source::Source;
use spent::Spent;

/// How long to wait when fewer are due.
const PAUSE: Duration = Duration::from_micros(50);

#[derive(Debug, Parser)]
struct Arguments {
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
    /// The interface that frames leave by
    #[arg(long)]
    interface: String,
    /// The Ethernet address at its other end
    #[arg(long, value_parser = mac)]
    mac: [u8; 6],
    /// Whom to flood
    #[arg(long)]
    to: SocketAddrV4,
    /// SYNs a second
    #[arg(long)]
    rate: u32,
    /// How many in all
    #[arg(long)]
    count: u64,
    /// The pins of the agent whose programs' time is measured
    #[arg(long)]
    bpffs: PathBuf,
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Result<Vec<_>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| "not six bytes".to_owned())
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut source = Source::new(&arguments.interface, arguments.mac, arguments.to)?;
    let spent = Spent::begin(&arguments.bpffs)?;
    let pace = Pace { rate: arguments.rate, count: arguments.count };
    let (mut sent, mut batch, mut longest_pause) = (0, 0, Duration::ZERO);
    let began = Instant::now();
    let (mut last_began, mut last_ended) = (began, began);
    while sent < arguments.count {
        let Some(due) = pace.batch(began.elapsed(), sent, batch, last_began.elapsed()) else {
            thread::sleep(PAUSE);
            continue;
        };
        longest_pause = longest_pause.max(last_ended.elapsed());
        last_began = Instant::now();
        source.send(due)?;
        last_ended = Instant::now();
        (sent, batch) = (sent + u64::from(due), due);
    }
    let took = began.elapsed();
    let programs = spent.programs()?;
    if source.made()? != sent {
        return Err(miette!("{sent} frames were asked for, and {} made", source.made()?));
    }
    let report = json!({
        "sent": sent,
        "millis": took.as_millis() as u64,
        "longestPauseMicros": longest_pause.as_micros() as u64,
        "programs": programs,
    });
    println!("{}", serde_json::to_string(&report).into_diagnostic().wrap_err("the report")?);
    Ok(())
}
