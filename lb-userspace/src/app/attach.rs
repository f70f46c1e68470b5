//! Follows the network: serves the interfaces there are, and keeps the programs' configuration true.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::abi::{Config as KernelConfig, ConfigFlags, Station};
use lb_control::model::Node;
use lb_control::network::Network;
use lb_control::network::addresses::{self, NodeAddresses};
use lb_control::network::classify::{self, Classified, Selection};
use lb_control::network::host_rules::HostRules;
use lb_control::network::masquerade::{self, Masquerade};
use lb_control::reconcile::Status;
use lb_kernel::links::interfaces::Interfaces;
use lb_kernel::links::{State, Trouble};
use lb_kernel::maps::config::ConfigMap;
use lb_kernel::maps::{Maps, flows};
use lb_kernel::pin::PinDir;
use lb_kernel::sys;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::host_rules::Translator;
use super::keeper::Keeper;
use super::node_packets::{Follower, output_flag};
use crate::args::Config;
use crate::args::agent::SocketLb;
use crate::args::config::{DetectLocal, Ranges};
use crate::cleanup;
use crate::exit::Error;

mod keeping;

/// Ports that masqueraded flows use: below nodePorts (30000) and every system's ephemeral ports (32768 and
/// up), above the ports that servers like to use.
const NAT_PORTS: std::ops::RangeInclusive<u16> = 10_000..=29_999;

/// RSTs and ICMP errors a CPU may send in 67 ms: about ten thousand a second, Linux's own limit for ICMP
/// (`icmp_msgs_per_sec`), so that nobody uses a node to answer forged sources, and no client that meets
/// a row of closed ports waits for a retry.
const REFUSALS_PER_MOMENT: u32 = 670;

/// How long our Node may be without podCIDRs before it is told, as with kube-proxy.
const POD_CIDR_PATIENCE: Duration = Duration::from_secs(300);

/// How long to wait before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What of the programs' configuration follows from the flags and from the maps there are.
#[derive(Clone, Debug)]
pub struct Facts {
    base: KernelConfig,
    selection: Selection,
    socket_lb: SocketLb,
    detect_local: DetectLocal,
}

impl Facts {
    /// From the flags and the sizes of the maps there are.
    pub fn of(config: &Config, maps: &Maps) -> Result<Self, Error> {
        let cookie = sys::netns_cookie()
            .map_err(|source| Error::System { what: "cannot read SO_NETNS_COOKIE".into(), source })?;
        let mut base = KernelConfig {
            host_netns_cookie: cookie,
            refusal_limit: REFUSALS_PER_MOMENT,
            clock: flows::clock().map_err(|source| Error::System {
                what: "cannot ask how long a tick lasts".into(),
                source,
            })?,
            nat_port_first: *NAT_PORTS.start(),
            nat_port_count: NAT_PORTS.end() - NAT_PORTS.start() + 1,
            ..KernelConfig::default()
        };
        base.ipv4.flow_set_mask = mask(maps.flows4.sets());
        base.ipv4.nat_line_mask = mask(maps.nat4.info().max_entries as usize);
        base.ipv6.flow_set_mask = mask(maps.flows6.sets());
        base.ipv6.nat_line_mask = mask(maps.nat6.info().max_entries as usize);
        if config.socket_lb == SocketLb::All {
            base.flags = base.flags.with(ConfigFlags::SOCKETS_EVERYWHERE);
        }
        if config.masquerade_all {
            base.flags = base.flags.with(ConfigFlags::MASQUERADE_ALL);
        }
        if config.masquerade_external {
            base.flags = base.flags.with(ConfigFlags::MASQUERADE_EXTERNAL);
        }
        if config.detect_local == DetectLocal::Interface {
            base.flags = base.flags.with(ConfigFlags::LOCAL_INTERFACE);
        }
        Ok(Self {
            base,
            selection: config.selection.clone(),
            socket_lb: config.socket_lb,
            detect_local: config.detect_local,
        })
    }

    /// What the programs should be told, all but the hash seed, the Services' range and whether networks are the node's own, which
    /// are the store's to say: they stay as `current` has them.
    fn configuration(&self, current: &KernelConfig, node: Masquerade, ranges: Ranges) -> KernelConfig {
        let mut config = self.base;
        config.hash_seed = current.hash_seed;
        if current.flags.has(ConfigFlags::NODE_NETWORKS) {
            config.flags = config.flags.with(ConfigFlags::NODE_NETWORKS);
        }
        config.ipv4.service_network = current.ipv4.service_network;
        config.ipv4.service_mask = current.ipv4.service_mask;
        config.ipv6.service_network = current.ipv6.service_network;
        config.ipv6.service_mask = current.ipv6.service_mask;
        config.ipv4.node_address = node.v4.unwrap_or(Ipv4Addr::UNSPECIFIED).into();
        config.ipv6.node_address = node.v6.unwrap_or(Ipv6Addr::UNSPECIFIED).into();
        if let Some(network) = ranges.v4 {
            config.ipv4.local_network = network.network().into();
            config.ipv4.local_mask = network.netmask().into();
        }
        if let Some(network) = ranges.v6 {
            config.ipv6.local_network = network.network().into();
            config.ipv6.local_mask = network.netmask().into();
        }
        if !ranges.is_empty() {
            config.flags = config.flags.with(ConfigFlags::LOCAL_RANGE);
        }
        config
    }
}

/// The ranges a configuration names, to go on with until the Node has been read.
fn ranges_of(config: &KernelConfig) -> Ranges {
    if !config.flags.has(ConfigFlags::LOCAL_RANGE) {
        return Ranges::default();
    }
    let v4 = Ipv4Net::with_netmask(config.ipv4.local_network.into(), config.ipv4.local_mask.into());
    let v6 = Ipv6Net::with_netmask(config.ipv6.local_network.into(), config.ipv6.local_mask.into());
    Ranges { v4: v4.ok().filter(|net| net.prefix_len() > 0), v6: v6.ok().filter(|net| net.prefix_len() > 0) }
}

/// The largest power of two that fits, less one.
fn mask(entries: usize) -> u32 {
    u32::try_from(entries).ok().and_then(u32::checked_ilog2).map_or(0, |log| (1_u32 << log) - 1)
}

/// Everything that depends on the interfaces there are.
pub struct Attachment {
    interfaces: Interfaces,
    config: Arc<ConfigMap>,
    facts: Facts,
    /// Ranges of the pods, as far as known.
    ranges: Ranges,
    cgroup: Option<PathBuf>,
    sockets: Option<Trouble>,
    sockets_done: bool,
    pins: PinDir,
    addresses: watch::Sender<NodeAddresses>,
    state: watch::Sender<State>,
    without_uplink: bool,
    node: Option<Arc<Node>>,
    /// When to say that our Node has no podCIDRs.
    pod_cidrs_due: Option<Instant>,
    not_written: bool,
    /// Who translates.
    translator: Translator,
    node_packets: Follower,
    /// The addresses and ranges that were told last.
    told: Option<(Masquerade, Ranges)>,
    keeper: Keeper,
}

impl Attachment {
    /// Nothing is attached yet: `apply` does.
    pub fn new(
        interfaces: Interfaces,
        config: Arc<ConfigMap>,
        facts: Facts,
        cgroup: Option<PathBuf>,
        pins: PinDir,
        translator: Translator,
        keeper: Keeper,
    ) -> Self {
        let ranges = match facts.detect_local {
            DetectLocal::Ranges(ranges) => ranges,
            DetectLocal::NodeRanges => ranges_of(&config.current()),
            DetectLocal::Nobody | DetectLocal::Interface => Ranges::default(),
        };
        let waits = facts.detect_local == DetectLocal::NodeRanges;
        Self {
            interfaces,
            config,
            facts,
            ranges,
            cgroup,
            sockets: None,
            sockets_done: false,
            pins,
            addresses: watch::Sender::default(),
            state: watch::Sender::default(),
            without_uplink: false,
            node: None,
            pod_cidrs_due: waits.then(|| Instant::now() + POD_CIDR_PATIENCE),
            not_written: false,
            translator,
            node_packets: Follower::default(),
            told: None,
            keeper,
        }
    }

    /// The node's addresses.
    pub fn addresses(&self) -> watch::Receiver<NodeAddresses> {
        self.addresses.subscribe()
    }

    /// What is attached and what is wrong.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Follows the network and our Node until they end with the agent.
    pub async fn follow(
        mut self,
        mut network: watch::Receiver<Arc<Network>>,
        mut status: watch::Receiver<Status>,
        mut host_rules: watch::Receiver<Arc<HostRules>>,
    ) {
        loop {
            let retry = self.interfaces.wants_retry()
                || self.sockets.is_some()
                || self.not_written
                || self.translator.wants_retry();
            let look = self.translator.look_due().unwrap_or_else(Instant::now);
            let due = self.pod_cidrs_due.unwrap_or_else(Instant::now);
            let ways = self.node_packets.next_look();
            let keeper_due = self.keeper.due().unwrap_or_else(Instant::now);
            tokio::select! {
                changed = network.changed() => if changed.is_err() { return },
                changed = status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let node = status.borrow_and_update().node.clone();
                    let due = self.node_packets.is_due(&self.config.current());
                    if !self.take_in_node(node) && !due {
                        continue;
                    }
                }
                // (Its thread may have ended; then nothing changes any more.)
                Ok(()) = host_rules.changed() => {
                    let rules = host_rules.borrow_and_update().clone();
                    self.take_in_host_rules(&rules);
                }
                () = tokio::time::sleep_until(due), if self.pod_cidrs_due.is_some() => {
                    self.pod_cidrs_due = None;
                    warn!(
                        "--detect-local-mode node-cidr: this Node has no podCIDRs after {} s, so no client of a \
                         ClusterIP is masqueraded. Let kube-controller-manager give it some \
                         (--allocate-node-cidrs), or name the pods' range with --pod-cidr or --cluster-cidr",
                        POD_CIDR_PATIENCE.as_secs()
                    );
                    continue;
                }
                () = tokio::time::sleep(ways.unwrap_or_default()), if ways.is_some() => {
                    if !self.node_packets.have_ways_changed() {
                        continue;
                    }
                }
                () = self.keeper.ended() => {
                    self.keeper.note_end();
                    continue;
                }
                () = tokio::time::sleep_until(keeper_due), if self.keeper.due().is_some() => {}
                () = tokio::time::sleep(RETRY), if retry => self.translator.retry(self.interfaces.hooks().programs()),
                () = tokio::time::sleep_until(look), if self.translator.look_due().is_some() => {
                    let now = network.borrow().clone();
                    let programs = self.interfaces.hooks().programs();
                    tokio::task::block_in_place(|| self.translator.look(&now, programs));
                }
            }
            let now = network.borrow_and_update().clone();
            // Attaching waits for the kernel; the other tasks of this thread must not.
            tokio::task::block_in_place(|| self.apply(&now));
        }
    }

    /// Takes in what the host's own packet filter does with packets of Services.
    pub fn take_in_host_rules(&mut self, rules: &HostRules) {
        self.interfaces.set_host_rules(!rules.let_xdp_send());
        self.translator.take_in(rules, self.interfaces.hooks().programs());
    }

    /// Takes in what our Node says. Whether that could make a difference.
    fn take_in_node(&mut self, node: Option<Arc<Node>>) -> bool {
        if node == self.node {
            return false;
        }
        self.node = node;
        let Some(node) = &self.node else { return true };
        self.facts.selection.node_object_ips.clone_from(&node.addresses);
        if self.facts.detect_local == DetectLocal::NodeRanges {
            let networks: Vec<IpNet> = node.pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect();
            let ranges = Ranges::of(&networks);
            // A Node that loses its podCIDRs is being made anew; its pods keep their addresses meanwhile.
            if !ranges.is_empty() {
                self.ranges = ranges;
                self.pod_cidrs_due = None;
            }
        }
        true
    }

    /// Brings everything in line with `network`.
    pub fn apply(&mut self, network: &Network) {
        let wanted = classify::classify(network, &self.facts.selection);
        self.interfaces.set_routing_rules(network.routes_by_more);
        self.note_uplinks(wanted.values().any(|c| c.role == lb_common::abi::Role::Uplink));
        let node = masquerade::of_node(network, &self.facts.selection);
        // What would leave by an interface that is about to lose its programs is no longer left to them.
        let before = self.node_packets.known();
        let current = self.config.current();
        let node_packets = before.and(self.node_packets.look(&current, &wanted, |_| true));
        // Configuration first: a program must find it when its first packet comes.
        let station = classify::only_station(&wanted).map_or(0, Station::only);
        let written = self.config.change(|config| {
            *config = KernelConfig { station, ..self.facts.configuration(config, node, self.ranges) };
            let output = output_flag(self.translator.output());
            config.flags = config.flags.with(self.translator.flags()).with(output).with(node_packets.flags());
        });
        self.not_written = written.is_err();
        match &written {
            Ok(true) if self.told.replace((node, self.ranges)) != Some((node, self.ranges)) => info!(
                node_ipv4 = %node.v4.map_or_else(|| "none".to_owned(), |address| address.to_string()),
                node_ipv6 = %node.v6.map_or_else(|| "none".to_owned(), |address| address.to_string()),
                pods = %in_words(self.ranges),
                "configured"
            ),
            Ok(_) => {}
            Err(error) => warn!(%error, "cannot write the configuration map"),
        }
        if written.is_ok() {
            self.translator.settle();
        }
        self.interfaces.apply(&wanted);
        self.take_over_from_keeper();
        self.tell_keeper(&wanted);
        let output_is_met = self.leave_sockets(&wanted);
        let left_out = classify::left_out(network);
        if !left_out.is_empty() && left_out != self.state.borrow().left_out {
            info!(
                interfaces = left_out.join(","),
                "not served: their frames have no Ethernet header. What comes in there for a Service reaches the node untranslated"
            );
        }
        self.apply_sockets();
        let addresses = addresses::node_addresses(network, &self.facts.selection);
        self.addresses.send_if_modified(|current| {
            let changed = *current != addresses;
            if changed {
                *current = addresses;
            }
            changed
        });
        let started = self.state.borrow().started;
        if !started {
            self.remove_other_versions();
        }
        let mut troubles = self.interfaces.troubles();
        troubles.extend(self.sockets.clone());
        let state = State {
            kept: self.state.borrow().kept,
            interfaces: self.interfaces.count(),
            left_out,
            host_rules: self.translator.not_met(output_is_met),
            started: true,
            troubles,
        };
        self.state.send_if_modified(|current| {
            let changed = *current != state;
            if changed {
                *current = state;
            }
            changed
        });
    }

    /// Leaves the node's own sockets to the programs on their packets' way, where there are some. Returns whether the host's rules for
    /// output see ClusterIPs.
    fn leave_sockets(&mut self, wanted: &BTreeMap<u32, Classified>) -> bool {
        let troubles = self.interfaces.troubles();
        let is_served = |name: &str| !troubles.iter().any(|trouble| trouble.interface == name);
        let found = self.node_packets.look(&self.config.current(), wanted, is_served);
        let written = self.config.change(|config| config.flags = config.flags.with(found.flags()));
        if let Err(error) = written {
            self.not_written = true;
            warn!(%error, "cannot write the configuration map");
        }
        self.node_packets.tell(self.translator.output(), self.cgroup.is_some())
    }

    fn note_uplinks(&mut self, any: bool) {
        if any == self.without_uplink {
            self.without_uplink = !any;
            if !any {
                warn!(
                    "no uplink: no interface but pods' holds an address of the node, or is on the way of a route. Name one with --uplink"
                );
            }
        }
    }

    fn apply_sockets(&mut self) {
        if self.sockets_done {
            return;
        }
        let hooks = self.interfaces.hooks();
        let result = match &self.cgroup {
            Some(cgroup) => hooks.attach_sockets(cgroup),
            None => hooks.detach_sockets(),
        };
        self.sockets_done = result.is_ok();
        let trouble = result.err().map(|error| Trouble {
            interface: String::new(),
            message: format!("{error}; processes of the node are not served (--socket-lb off to do without)"),
            fatal: self.facts.socket_lb != SocketLb::Off,
        });
        if let Some(trouble) = trouble.iter().find(|trouble| self.sockets.as_ref() != Some(trouble)) {
            warn!("{}", trouble.message);
        }
        self.sockets = trouble;
    }

    /// What an agent with another layout left, once ours is in its place.
    fn remove_other_versions(&self) {
        let others = PinDir::versions(self.pins.root()).unwrap_or_default();
        let kept: BTreeSet<u32> = [self.pins.version()].into();
        for dir in others.into_iter().filter(|dir| !kept.contains(&dir.version())) {
            match cleanup::remove_version(&dir) {
                Ok(_) => info!(version = dir.version(), "removed what another release had left"),
                Err(error) => warn!(%error, "cannot remove what another release had left"),
            }
        }
    }
}

/// Ranges in words.
fn in_words(ranges: Ranges) -> String {
    let v4 = ranges.v4.map(|network| network.to_string());
    let words: Vec<String> = v4.into_iter().chain(ranges.v6.map(|network| network.to_string())).collect();
    if words.is_empty() { "unknown".to_owned() } else { words.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read_again() {
        let base = KernelConfig::default();
        let facts = Facts {
            base,
            selection: Selection::default(),
            socket_lb: SocketLb::Off,
            detect_local: DetectLocal::NodeRanges,
        };
        let v4 = Some("10.1.0.0/16".parse().expect("network"));
        let v6 = Some("fd00:1::/64".parse().expect("network"));
        let mut current = base;
        current.ipv4.service_mask = Ipv4Addr::new(255, 240, 0, 0).into();
        current.hash_seed = 7;
        for ranges in [Ranges { v4, v6 }, Ranges { v4, v6: None }, Ranges { v4: None, v6 }, Ranges::default()]
        {
            let config = facts.configuration(&current, Masquerade::default(), ranges);
            assert_eq!(ranges_of(&config), ranges);
            assert_eq!(config.ipv4.service_mask, current.ipv4.service_mask, "not ours to say");
            assert_eq!(config.hash_seed, 7, "not ours to say");
        }
    }

    #[test]
    fn masks_match_maps_of_any_size() {
        assert_eq!(mask(32_768), 32_767);
        assert_eq!(mask(40_000), 32_767);
        assert_eq!(mask(1), 0);
        assert_eq!(mask(0), 0);
    }
}
