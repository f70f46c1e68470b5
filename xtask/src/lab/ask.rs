//! Requests from a place, through the probe program, so that socket hooks see them too.
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};

use super::error::{Doing, LabError, Result};
use super::place::{Place, Process};
use super::pod::DNS_NAME;
use super::probe::{HoldReport, Report};

/// Connections kept busy from a place; see [`Place::hold`].
#[derive(Debug)]
pub struct Held(Process);

impl Held {
    /// Ends it and returns what happened.
    pub fn finish(self) -> Result<HoldReport> {
        parse(&self.0.finish()?)
    }
}

impl Place {
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
        let mut line = Vec::new();
        if let Some(out) = process.child().stdout.as_mut() {
            // One byte of buffer: what follows the line is for Held::finish.
            BufReader::with_capacity(1, out)
                .read_until(b'\n', &mut line)
                .doing(|| "read from the probe".into())?;
        }
        if line == b"ready\n" {
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
