//! `xtask probe`: asks the lab's servers from inside a place and reports as JSON.
use std::io;
use std::net::SocketAddr;

mod bulk;
mod datagrams;
mod dns;
mod flood;
mod hold;
mod live;
mod press;
mod report;
mod requests;
mod turn;

pub use report::{
    BulkReport, ConversationReport, FloodReport, HoldReport, PourReport, PressReport, Report, RunTime,
    SinkReport, StreamReport, TurnReport,
};

/// Arguments of `xtask probe`.
#[derive(Debug, clap::Args)]
pub struct ProbeArgs {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, clap::Subcommand)]
enum Mode {
    /// HTTP requests, a connection each
    Http(Requests),
    /// Datagrams, a socket each
    Udp(Requests),
    /// Connections to the TCP echo, one after the other
    Tcp(Requests),
    /// DNS queries for the server's name
    Dns(Requests),
    /// Connections to the TCP echo kept busy until standard input ends
    Hold(hold::HoldArgs),
    /// Bytes over one connection to the TCP echo, both ways at once
    Bulk(bulk::BulkArgs),
    /// Datagrams on one socket, in order
    Stream(datagrams::StreamArgs),
    /// Datagrams one way until standard input ends
    Pour(datagrams::PourArgs),
    /// Receive datagrams until standard input ends
    Sink(datagrams::SinkArgs),
    /// Ask from one socket until standard input ends
    Converse(datagrams::ConversationArgs),
    /// Ask several from one socket, in turn, and then read their answers
    Turn(turn::TurnArgs),
    /// DNS queries at a steady rate, with a second try
    Press(press::PressArgs),
    /// First packets of TCP connections, from sources that do not exist
    Flood(flood::FloodArgs),
}

#[derive(Debug, clap::Args)]
struct Requests {
    /// Whom to ask
    #[arg(long)]
    to: SocketAddr,

    /// How many times
    #[arg(long, default_value_t = 1)]
    count: u32,

    /// How long to wait for each answer
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,

    /// Ask from this port, the next time from the one above, and report who answered which (UDP)
    #[arg(long)]
    source_port: Option<u16>,

    /// Bytes of each datagram; one longer than the MTU goes in fragments (UDP)
    #[arg(long, default_value_t = 8)]
    size: usize,

    /// Use sendto and recvfrom instead of a connected socket (UDP)
    #[arg(long)]
    unconnected: bool,
}

/// Asks, and prints the report.
pub fn run(args: &ProbeArgs) -> io::Result<()> {
    match &args.mode {
        Mode::Http(args) => print(&requests::ask(args, requests::http)),
        Mode::Udp(args) => print(&requests::ask(args, requests::udp)),
        Mode::Tcp(args) => print(&requests::ask(args, requests::tcp)),
        Mode::Dns(args) => print(&requests::ask(args, dns::ask)),
        Mode::Hold(args) => print(&hold::hold(args)?),
        Mode::Bulk(args) => print(&bulk::bulk(args)),
        Mode::Stream(args) => print(&datagrams::stream(args)?),
        Mode::Pour(args) => datagrams::pour(args),
        Mode::Sink(args) => datagrams::sink(args),
        Mode::Converse(args) => datagrams::converse(args),
        Mode::Turn(args) => print(&turn::ask(args)?),
        Mode::Press(args) => print(&press::press(args)?),
        Mode::Flood(args) => print(&flood::flood(args)?),
    }
}

fn print(report: &impl serde::Serialize) -> io::Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}
