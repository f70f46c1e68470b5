//! Follows whether what the node's own processes send to ClusterIPs meets our programs where it leaves, and tells of what follows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::abi::{Config, ConfigFlags};
use lb_control::network::classify::Classified;
use lb_control::network::node_packets::{NodePackets, are_met, ranges};
use lb_kernel::net::routes;
use tracing::{info, warn};

type Ranges = [Option<[IpAddr; 2]>; 2];

/// What is known, and what was told.
#[derive(Default)]
pub struct Follower {
    known: NodePackets,
    /// The ranges that were asked about.
    asked: Ranges,
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
        let met = |range: Option<[IpAddr; 2]>| {
            // (What cannot be asked is as if there were no route.)
            let exits = range?.map(|address| routes::exit(address).ok().flatten());
            Some(are_met(&exits, wanted, &is_served))
        };
        let [v4, v6] = self.asked;
        self.known = NodePackets { v4: met(v4), v6: met(v6) };
        self.known
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
                 packets to ClusterIPs would not leave over a gateway behind an uplink of ours, so sockets cannot be left alone \
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
