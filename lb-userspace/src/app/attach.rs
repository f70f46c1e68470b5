//! Follows the network: serves the interfaces there are, and keeps the programs' configuration true.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::{Config as KernelConfig, ConfigFlags};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::args::agent::SocketLb;
use crate::args::{Config, ConfigError};
use crate::cleanup;
use crate::dataplane::interfaces::{Interfaces, Trouble};
use crate::dataplane::maps::Maps;
use crate::dataplane::pin::PinDir;
use crate::dataplane::sys;
use crate::exit::Error;
use crate::net::Network;
use crate::net::classify::{self, Selection};

/// Ports that masqueraded flows use: below nodePorts (30000) and every system's ephemeral ports (32768 and
/// up), above the ports that servers like to use.
const NAT_PORTS: std::ops::RangeInclusive<u16> = 10_000..=29_999;

/// How long to wait before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What the rest of the agent may know of the attachment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// Number of interfaces served.
    pub interfaces: usize,
    /// Everything has been attached once, but for what is in `troubles`.
    pub started: bool,
    /// What is wrong.
    pub troubles: Vec<Trouble>,
}

impl State {
    /// Whether every interface that should be served is.
    pub fn is_ready(&self) -> bool {
        self.started && !self.troubles.iter().any(|trouble| trouble.fatal)
    }
}

/// The part of the programs' configuration that does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Facts {
    base: KernelConfig,
    selection: Selection,
    socket_lb: SocketLb,
}

impl Facts {
    /// From the flags and the sizes of the maps there are.
    pub fn of(config: &Config, maps: &Maps) -> Result<Self, Error> {
        let cookie = sys::netns_cookie()
            .map_err(|source| Error::System { what: "cannot read SO_NETNS_COOKIE".into(), source })?;
        let mut base = KernelConfig {
            hash_seed: config.hash_seed,
            host_netns_cookie: cookie,
            flow_set_mask: mask(maps.flows.sets()),
            nat_slot_mask: mask(maps.nat.info().max_entries as usize),
            nat_port_first: *NAT_PORTS.start(),
            nat_port_count: NAT_PORTS.end() - NAT_PORTS.start() + 1,
            ..KernelConfig::default()
        };
        if let Some(network) = config.cluster_cidr {
            base.cluster_network4 = network.network().into();
            base.cluster_mask4 = network.netmask().into();
            base.flags = base.flags.with(ConfigFlags::CLUSTER_RANGE4);
        }
        if config.socket_lb == SocketLb::All {
            base.flags = base.flags.with(ConfigFlags::SOCKETS_EVERYWHERE);
        }
        Ok(Self { base, selection: config.selection.clone(), socket_lb: config.socket_lb })
    }
}

/// The largest power of two that fits, less one.
fn mask(entries: usize) -> u32 {
    u32::try_from(entries).ok().and_then(u32::checked_ilog2).map_or(0, |log| (1_u32 << log) - 1)
}

/// Refuses an `--uplink` that is not there.
pub fn check_uplinks(network: &Network, selection: &Selection) -> Result<(), Error> {
    let exists = |name: &&String| network.links.values().any(|link| link.name == **name);
    match selection.uplinks.iter().find(|name| !exists(name)) {
        None => Ok(()),
        Some(name) => {
            let names: Vec<&str> =
                network.links.values().filter(|link| !link.loopback).map(|link| link.name.as_str()).collect();
            let message = format!("no such interface; there are {}", names.join(", "));
            Err(ConfigError::Value { flag: "uplink", value: Some(name.clone()), message }.into())
        }
    }
}

/// Everything that depends on the interfaces there are.
pub struct Attachment {
    interfaces: Interfaces,
    maps: Arc<Maps>,
    written: Option<KernelConfig>,
    facts: Facts,
    cgroup: Option<PathBuf>,
    sockets: Option<Trouble>,
    sockets_done: bool,
    pins: PinDir,
    addresses: watch::Sender<Vec<Ipv4Addr>>,
    state: watch::Sender<State>,
    without_uplink: bool,
}

impl Attachment {
    /// Nothing is attached yet: `apply` does.
    pub fn new(
        interfaces: Interfaces,
        maps: Arc<Maps>,
        facts: Facts,
        cgroup: Option<PathBuf>,
        pins: PinDir,
    ) -> Self {
        Self {
            interfaces,
            maps,
            written: None,
            facts,
            cgroup,
            sockets: None,
            sockets_done: false,
            pins,
            addresses: watch::Sender::default(),
            state: watch::Sender::default(),
            without_uplink: false,
        }
    }

    /// The addresses nodePorts are served on.
    pub fn addresses(&self) -> watch::Receiver<Vec<Ipv4Addr>> {
        self.addresses.subscribe()
    }

    /// What is attached and what is wrong.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Follows the network until it ends with the agent.
    pub async fn follow(mut self, mut network: watch::Receiver<Arc<Network>>) {
        loop {
            let retry = self.interfaces.wants_retry() || self.sockets.is_some();
            tokio::select! {
                changed = network.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if retry => {}
            }
            let now = network.borrow_and_update().clone();
            // Attaching waits for the kernel; the other tasks of this thread must not.
            tokio::task::block_in_place(|| self.apply(&now));
        }
    }

    /// Brings everything in line with `network`.
    pub fn apply(&mut self, network: &Network) {
        let selection = &self.facts.selection;
        let wanted = classify::classify(network, selection);
        self.note_uplinks(wanted.values().any(|c| c.role == lb_common::abi::Role::Uplink));
        let node_address = classify::node_address(network, &self.facts.selection);
        // Configuration first: a program must find it when its first packet comes.
        let config = KernelConfig {
            node_address4: node_address.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
            ..self.facts.base
        };
        if self.written != Some(config) {
            match self.maps.config.put(&0, &config) {
                Ok(()) => {
                    self.written = Some(config);
                    info!(node_address = %config.node_address4, "configured");
                }
                Err(error) => warn!(%error, "cannot write the configuration map"),
            }
        }
        self.interfaces.apply(&wanted);
        self.apply_sockets();
        let addresses = classify::node_addresses(network, &self.facts.selection);
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
        let state = State { interfaces: self.interfaces.count(), started: true, troubles };
        self.state.send_if_modified(|current| {
            let changed = *current != state;
            if changed {
                *current = state;
            }
            changed
        });
    }

    fn note_uplinks(&mut self, any: bool) {
        if any == self.without_uplink {
            self.without_uplink = !any;
            if !any {
                warn!("no uplink: no interface holds the node IP or a default route. Name one with --uplink");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_match_maps_of_any_size() {
        assert_eq!(mask(32_768), 32_767);
        assert_eq!(mask(40_000), 32_767);
        assert_eq!(mask(1), 0);
        assert_eq!(mask(0), 0);
    }
}
