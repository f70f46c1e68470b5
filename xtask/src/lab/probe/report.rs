//! What a probe has seen.
use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

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
