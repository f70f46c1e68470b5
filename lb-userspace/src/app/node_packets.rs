//! Follows whether what the node's own processes send to ClusterIPs meets our programs where it leaves, and tells of what follows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use lb_common::abi::{Config, ConfigFlags};
use lb_control::network::classify::Classified;
use lb_control::network::node_packets::{Exit, Gateway, NodePackets, are_met, ranges};
use lb_kernel::net::routes::Routes;
use tracing::{info, warn};

type Ranges = [Option<[IpAddr; 2]>; 2];

/// Another way, or a gateway that stops to answer, costs no more than this: new sockets are served by their hooks again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Long enough for a neighbour's answer.
const PATIENCE: Duration = Duration::from_millis(20);

/// What the kernel says of the ways to ClusterIPs.
#[derive(Clone, PartialEq, Eq, Default)]
struct Ways {
    /// Of the first and the last address of the ranges, of IPv4 and of IPv6.
    exits: [Option<[Option<Exit>; 2]>; 2],
    /// Gateways there, and whether they answer.
    gateways: BTreeMap<Gateway, bool>,
}

impl Ways {
    /// Asks the kernel. What cannot be asked is as if there were no route.
    fn ask(ranges: Ranges, before: &Self) -> Self {
        let Ok(routes) = Routes::open() else { return Self::default() };
        let exits =
            ranges.map(|range| range.map(|ends| ends.map(|address| routes.exit(address).ok().flatten())));
        let gateways = exits.iter().flatten().flatten().flatten().filter_map(|exit| exit.gateway);
        let gateways = gateways.collect::<BTreeSet<_>>().into_iter().map(|gateway| {
            let patience = if before.gateways.contains_key(&gateway) { Duration::ZERO } else { PATIENCE };
            (gateway, answers(&routes, gateway, patience))
        });
        Self { gateways: gateways.collect(), exits }
    }
}

/// What is known, and what was told.
#[derive(Default)]
pub struct Follower {
    known: NodePackets,
    /// The ranges that were asked about.
    asked: Ranges,
    ways: Ways,
    /// Chains of the host's for output, and whether they see ClusterIPs.
    told: Option<(Vec<String>, bool)>,
}

impl Follower {
    /// Whether there are ranges that nobody has asked about.
    pub fn is_due(&self, config: &Config) -> bool {
        ranges(config) != self.asked
    }

    /// Asks the kernel. `is_served`: whether programs of ours hang on the interface of this name.
    pub fn look(
        &mut self,
        config: &Config,
        wanted: &BTreeMap<u32, Classified>,
        is_served: impl Fn(&str) -> bool,
    ) -> NodePackets {
        self.asked = ranges(config);
        self.ways = Ways::ask(self.asked, &self.ways);
        let answers = |gateway: Gateway| self.ways.gateways.get(&gateway) == Some(&true);
        let [v4, v6] =
            self.ways.exits.map(|exits| exits.map(|exits| are_met(&exits, wanted, &is_served, answers)));
        self.known = NodePackets { v4, v6 };
        self.known
    }

    /// How long until the ways are to be looked at again; none: there are no ClusterIPs.
    pub fn next_look(&self) -> Option<Duration> {
        (self.asked != Ranges::default()).then_some(LOOK_AGAIN)
    }

    /// Whether the kernel says something else than it did.
    pub fn have_ways_changed(&self) -> bool {
        Ways::ask(self.asked, &self.ways) != self.ways
    }

    /// What was found last.
    pub const fn known(&self) -> NodePackets {
        self.known
    }

    /// Tells what becomes of the host's rules for output, `chains`, where there are hooks at the sockets. Whether they see ClusterIPs.
    pub fn tell(&mut self, chains: &[String], has_hooks: bool) -> bool {
        let met = !has_hooks || self.known.all().unwrap_or(true);
        if !has_hooks || self.known.all().is_none() {
            return met;
        }
        let now = (chains.to_vec(), met);
        if self.told.as_ref() == Some(&now) {
            return met;
        }
        let had = self.told.replace(now).is_some_and(|(chains, _)| !chains.is_empty());
        if chains.is_empty() {
            if had {
                info!(
                    "the host has no rules any more for what its processes send; their sockets are served again"
                );
            }
        } else if met {
            info!(
                chains = chains.join(","),
                "these chains may drop what the node's processes send, so sockets are left alone, and packets to ClusterIPs translated \
                 where they leave: the rules see ClusterIPs, as with kube-proxy"
            );
        } else {
            warn!(
                chains = chains.join(","),
                "these chains may drop what the node's processes send, and see endpoints where kube-proxy left them a Service's address: \
                 packets to ClusterIPs would not leave over a gateway that answers, behind an uplink of ours, so sockets cannot be left alone \
                 (docs/differences.md, host-rules)"
            );
        }
        met
    }
}

/// What the programs are told of rules for output.
pub fn output_flag(chains: &[String]) -> ConfigFlags {
    if chains.is_empty() { ConfigFlags(0) } else { ConfigFlags::OUTPUT_RULES }
}

/// Whether a gateway answers, within `patience`.
fn answers(routes: &Routes, gateway: Gateway, patience: Duration) -> bool {
    let answers = || routes.answers(gateway).unwrap_or(false);
    if answers() {
        return true;
    }
    // (Without the right to ask, traffic of the node's will.)
    let _ = routes.resolve(gateway);
    let end = Instant::now() + patience;
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(1));
        if answers() {
            return true;
        }
    }
    false
}
