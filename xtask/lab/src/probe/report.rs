//! What a probe has seen.
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::Family;

/// The outcome of a number of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Answers by pod.
    pub answers: BTreeMap<String, u64>,
    /// Answers by the client address the pods saw.
    pub clients: BTreeMap<IpAddr, u64>,
    /// Requests without a proper answer, by reason: `refused`, `timeout`, `reset`, or words.
    pub failures: BTreeMap<String, u64>,
    /// The time of the median request, in microseconds.
    pub median_micros: u64,
    /// The time of the slowest request, in microseconds.
    pub slowest_micros: u64,
    /// Who answered each source port, if source ports were given.
    pub by_port: BTreeMap<u16, String>,
}

impl Report {
    /// Number of proper answers.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Number of requests without one.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The share of a pod in all answers, from 0 to 1.
    pub fn share(&self, pod: &str) -> f64 {
        let count = self.answers.get(pod).copied().unwrap_or_default();
        count as f64 / self.answered().max(1) as f64
    }
}

/// The outcome of connections kept busy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldReport {
    /// Connections that were kept.
    pub connections: u64,
    /// Lines sent and echoed.
    pub echoed: u64,
    /// Connections that broke, by reason: reset, no echo for five seconds, a wrong echo.
    pub broken: BTreeMap<String, u64>,
    /// New connections that were opened meanwhile, one after the other.
    pub opened: u64,
    /// New connections that were refused or not answered, by reason.
    pub not_opened: BTreeMap<String, u64>,
    /// The longest time a new connection took, in microseconds.
    pub slowest_open_micros: u64,
}

/// The outcome of many bytes over one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkReport {
    /// Who answered.
    pub pod: String,
    /// Bytes that came back as they were sent.
    pub echoed: usize,
    /// How long it took, from the connection on.
    pub millis: u64,
    /// Why it ended early, if it did.
    pub failure: Option<String>,
}

/// The outcome of datagrams on one socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Datagrams sent.
    pub sent: u32,
    /// Echoes that came whole and in their turn.
    pub in_order: u32,
    /// Echoes whose content was not what was sent.
    pub wrong: u32,
    /// Why it ended early, if it did: `timeout` when an echo was missing.
    pub failures: BTreeMap<String, u64>,
}

/// What a one-way sender has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PourReport {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that the kernel did not take, by reason.
    pub errors: BTreeMap<String, u64>,
}

/// What a receiver has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkReport {
    /// Datagrams received, by their source.
    pub received: BTreeMap<IpAddr, u64>,
}

impl SinkReport {
    /// Datagrams of all sources in a family.
    pub fn of(&self, family: Family) -> u64 {
        self.received.iter().filter(|(from, _)| Family::of(**from) == family).map(|(_, count)| count).sum()
    }
}

/// How a conversation goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConversationReport {
    /// Sockets used, one after the other.
    pub sockets: u64,
    /// Answers by pod.
    pub answers: BTreeMap<String, u64>,
    /// Who answered last.
    pub last: String,
    /// Questions without an answer within a tenth of a second.
    pub unanswered: u64,
    /// Errors of sockets, by reason.
    pub errors: BTreeMap<String, u64>,
}

/// The outcome of DNS queries at a steady rate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PressReport {
    /// Answers by pod.
    pub answers: BTreeMap<String, u64>,
    /// Queries that had to be asked a second time.
    pub second_tries: u64,
    /// Queries without an answer to either try.
    pub lost: u64,
    /// Tries without an answer, by reason.
    pub failed_tries: BTreeMap<String, u64>,
}

/// What a SYN flood was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FloodReport {
    /// SYNs sent.
    pub sent: u64,
    /// How long it took.
    pub millis: u64,
    /// The longest time between two SYNs, if the sender looked.
    #[serde(default)]
    pub longest_pause_micros: Option<u64>,
    /// What the programs of the flooded node's agent took meanwhile, by their names, if the sender looked.
    #[serde(default)]
    pub programs: BTreeMap<String, RunTime>,
}

/// What a BPF program took of the processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTime {
    /// How many times it ran.
    pub runs: u64,
    /// How long in all.
    pub nanos: u64,
}

impl FloodReport {
    /// SYNs a second.
    pub fn rate(&self) -> u64 {
        self.sent * 1000 / self.millis.max(1)
    }
}

/// Whom answers came from that one socket got.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnReport {
    /// After all questions, sorted.
    pub together: Vec<SocketAddr>,
    /// Each after its question, from another socket.
    pub one_by_one: Vec<SocketAddr>,
    /// What a third socket calls its peer, connected to one after the other.
    pub peers: Vec<SocketAddr>,
}
