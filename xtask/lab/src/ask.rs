//! Requests from a place, through the probe program, so that socket hooks see them too.
use std::io::{BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use super::error::{Doing, LabError, Result};
use super::netns::{Netns, Process};
use super::pod::DNS_NAME;
use super::probe::{
    BulkReport, ConversationReport, FloodReport, HoldReport, PourReport, PressReport, Report, SinkReport,
    StreamReport, TurnReport,
};

/// How long a receiver may take to listen.
const READY: Duration = Duration::from_secs(5);

/// Connections kept busy from a place; see [`Netns::hold`].
#[derive(Debug)]
pub struct Held(Process);

impl Held {
    /// Ends it and returns what happened.
    pub fn finish(self) -> Result<HoldReport> {
        parse(&self.0.finish()?)
    }
}

/// DNS queries on their way; see [`Netns::press`].
#[derive(Debug)]
pub struct Pressing(Process);

impl Pressing {
    /// Waits for the last query and returns what happened.
    pub fn finish(self) -> Result<PressReport> {
        parse(&self.0.finish()?)
    }
}

/// A probe that goes on until it is dropped.
#[derive(Debug)]
pub struct Live<T> {
    process: Process,
    report: PhantomData<T>,
}

impl<T: serde::de::DeserializeOwned> Live<T> {
    /// How things stand now.
    pub fn look(&mut self) -> Result<T> {
        if let Some(input) = self.process.child().stdin.as_mut() {
            input.write_all(b"\n").and_then(|()| input.flush()).doing(|| "ask the probe".into())?;
        }
        parse(&line(&mut self.process)?)
    }
}

/// A line of a program's output; nothing of what follows is taken from the pipe.
fn line(process: &mut Process) -> Result<String> {
    let mut line = Vec::new();
    if let Some(out) = process.child().stdout.as_mut() {
        BufReader::with_capacity(1, out)
            .read_until(b'\n', &mut line)
            .doing(|| "read from the probe".into())?;
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

impl Netns {
    /// Sends `count` HTTP requests, a connection each.
    pub fn http(&self, to: SocketAddr, count: u32) -> Result<Report> {
        self.probe("http", to, count, &[])
    }

    /// Sends `count` datagrams to a UDP echo, a connected socket each.
    pub fn udp(&self, to: SocketAddr, count: u32) -> Result<Report> {
        self.probe("udp", to, count, &[])
    }

    /// Sends `count` datagrams to a UDP echo with sendto and recvfrom, a socket each; from as many source ports, upwards
    /// from `first`.
    pub fn udp_unconnected(&self, to: SocketAddr, count: u32, first: u16) -> Result<Report> {
        self.probe("udp", to, count, &["--unconnected", "--source-port", &first.to_string()])
    }

    /// Sends `count` datagrams from as many source ports, upwards from `first`.
    pub fn udp_from_ports(&self, to: SocketAddr, count: u32, first: u16) -> Result<Report> {
        self.probe("udp", to, count, &["--source-port", &first.to_string()])
    }

    /// Sends `count` datagrams of so many bytes.
    pub fn udp_of_size(&self, to: SocketAddr, count: u32, size: usize) -> Result<Report> {
        self.probe("udp", to, count, &["--size", &size.to_string()])
    }

    /// Opens `count` connections to a TCP echo, one after the other.
    pub fn tcp(&self, to: SocketAddr, count: u32) -> Result<Report> {
        self.probe("tcp", to, count, &[])
    }

    fn probe(&self, mode: &str, to: SocketAddr, count: u32, more: &[&str]) -> Result<Report> {
        let (to, count) = (to.to_string(), count.to_string());
        let mut words = vec!["probe", mode, "--to", &to, "--count", &count];
        words.extend(more);
        parse(&self.run(&self.own_program(&words))?)
    }

    /// Opens `connections` connections to a TCP echo and keeps them busy, opening new ones besides, until
    /// [`Held::finish`]. Returns when all are open.
    pub fn hold(&self, to: SocketAddr, connections: u32) -> Result<Held> {
        let (to, connections) = (to.to_string(), connections.to_string());
        let words = self.own_program(&["probe", "hold", "--to", &to, "--connections", &connections]);
        let mut process = self.spawn_piped(&words)?;
        if line(&mut process)? == "ready\n" {
            return Ok(Held(process));
        }
        let output = match process.finish() {
            Ok(text) => text,
            Err(error) => error.to_string(),
        };
        Err(LabError::Command { command: words.join(" "), output })
    }

    /// Asks a DNS server `count` times for the pod it is, a socket each.
    pub fn dns(&self, to: SocketAddr, count: u32) -> Result<Report> {
        self.probe("dns", to, count, &[])
    }

    /// Asks a DNS server for the pod it is, with `dig`.
    pub fn dig(&self, server: SocketAddr) -> Result<String> {
        let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
        let text =
            self.run(&["dig", "+short", "+tries=1", "+timeout=2", &at, "-p", &port, "TXT", DNS_NAME])?;
        Ok(text.trim().trim_matches('"').to_owned())
    }

    /// Sends so many bytes to a TCP echo and takes them back, both at once.
    pub fn bulk(&self, to: SocketAddr, bytes: usize) -> Result<BulkReport> {
        let words = ["probe", "bulk", "--to", &to.to_string(), "--bytes", &bytes.to_string()];
        parse(&self.run(&self.own_program(&words))?)
    }

    /// Sends `count` datagrams of so many bytes to a UDP echo on one socket, and looks at their order and content.
    pub fn stream(&self, to: SocketAddr, count: u32, size: usize) -> Result<StreamReport> {
        let (to, count, size) = (to.to_string(), count.to_string(), size.to_string());
        let words = ["probe", "stream", "--to", &to, "--count", &count, "--size", &size];
        parse(&self.run(&self.own_program(&words))?)
    }

    /// Sends so many datagrams a second, one way, from one connected socket.
    pub fn pour(&self, to: SocketAddr, rate: u32) -> Result<Live<PourReport>> {
        self.live(&["probe", "pour", "--to", &to.to_string(), "--rate", &rate.to_string()])
    }

    /// Receives datagrams on a port and never answers. Returns when it listens.
    pub fn sink(&self, port: u16) -> Result<Live<SinkReport>> {
        let mut sink = self.live(&["probe", "sink", "--port", &port.to_string()])?;
        sink.process.await_port("udp", port, READY)?;
        Ok(sink)
    }

    /// Asks a UDP echo again and again from one socket; a connected one is replaced after an error.
    pub fn converse(&self, to: SocketAddr, connected: bool) -> Result<Live<ConversationReport>> {
        let to = to.to_string();
        let words = ["probe", "converse", "--to", &to, "--connected"];
        self.live(if connected { &words } else { &words[..4] })
    }

    /// Asks UDP echoes in turn from one socket; see [`TurnReport`].
    pub fn ask_in_turn(&self, to: &[SocketAddr]) -> Result<TurnReport> {
        let to: Vec<String> = to.iter().map(SocketAddr::to_string).collect();
        let words: Vec<&str> =
            ["probe", "turn"].into_iter().chain(to.iter().flat_map(|to| ["--to", to])).collect();
        parse(&self.run(&self.own_program(&words))?)
    }

    /// Asks a DNS server at a steady rate, over UDP and TCP; see [`Pressing::finish`].
    pub fn press(&self, to: SocketAddr, count: u32, rate: u32) -> Result<Pressing> {
        let (to, count, rate) = (to.to_string(), count.to_string(), rate.to_string());
        let words = self.own_program(&["probe", "press", "--to", &to, "--count", &count, "--rate", &rate]);
        Ok(Pressing(self.spawn_piped(&words)?))
    }

    /// Floods an address with `count` SYNs, so many a second, from sources in 198.18.0.0/15.
    pub fn flood(&self, to: SocketAddrV4, rate: u32, count: u64) -> Result<FloodReport> {
        let (to, rate, count) = (to.to_string(), rate.to_string(), count.to_string());
        let words = ["probe", "flood", "--to", &to, "--rate", &rate, "--count", &count];
        parse(&self.run(&self.own_program(&words))?)
    }

    /// Runs a program that floods, and prints the same report.
    pub fn flood_by(&self, words: &[String]) -> Result<FloodReport> {
        parse(&self.run(words)?)
    }

    fn live<T>(&self, words: &[&str]) -> Result<Live<T>> {
        let process = self.spawn_piped(&self.own_program(words))?;
        Ok(Live { process, report: PhantomData })
    }

    /// Fetches a URL with `curl` and returns the body.
    pub fn http_get(&self, url: &str) -> Result<String> {
        self.run(&["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "5", url])
    }
}

/// An address and a port.
pub fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|source| LabError::Io {
        action: format!("read the probe's report {text:?}"),
        source: source.into(),
    })
}
