//! Follows the host's own packet filter: tells of it, and has netfilter translate where its rules have to be met.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::{ConfigFlags, ServiceFlags};
use lb_common::addr::Proto;
use lb_control::model::{Family, Frontend};
use lb_control::network::Network;
use lb_control::network::host_rules::HostRules;
use lb_control::network::netfilter::{HostRulesMode, Stage, is_ours};
use lb_kernel::maps::Maps;
use lb_kernel::maps::store::service;
use lb_kernel::net::conntrack::{self, Translated};
use lb_kernel::net::nat_table;
use lb_kernel::programs::conntrack as programs;
use lb_kernel::programs::load::Programs;
use tokio::time::Instant;
use tracing::{info, warn};

/// How often is looked whether connections that netfilter translates are left, when it translates no new ones.
const LOOK: Duration = Duration::from_secs(10);

/// The Service of a connection, if there is one with this frontend.
pub fn service_of(maps: &Maps, connection: &Translated) -> io::Result<Option<u32>> {
    let at = |address| Frontend { address, port: connection.frontend.port(), proto: Proto(connection.proto) };
    let address = connection.frontend.ip();
    // As the programs look for it: the frontend itself, then a nodePort at an address of the node.
    let mut found = service(maps, &at(address))?;
    if found.is_none() {
        let node = service(maps, &Frontend::node(address))?;
        if node.is_some_and(|node| node.flags.has(ServiceFlags::NODE_PORTS)) {
            found = service(maps, &at(Family::of(address).unspecified()))?;
        }
    }
    Ok(found.map(|service| service.id))
}

/// Who translates, and what is known of the host's rules.
pub struct Translator {
    mode: HostRulesMode,
    maps: Arc<Maps>,
    rules: HostRules,
    stage: Stage,
    /// The programs that ask netfilter hang where others look for them.
    are_hung: bool,
    trouble: Option<String>,
    /// Why the programs cannot be had: a kernel and an agent's rights stay as they are, so nobody tries again.
    impossible: Option<String>,
    /// When to look for connections that are left.
    look: Option<Instant>,
}

impl Translator {
    /// Nothing is known of rules yet.
    pub fn new(mode: HostRulesMode, maps: Arc<Maps>) -> Self {
        let (rules, stage) = (HostRules::default(), Stage::Own);
        Self { mode, maps, rules, stage, are_hung: false, trouble: None, impossible: None, look: None }
    }

    /// Takes in what rules there are, and tells of them. Returns whether netfilter meets what they have to meet.
    pub fn take_in(&mut self, rules: &HostRules, programs: &Programs) {
        let is_news = HostRules { own_table: false, ..rules.clone() }
            != HostRules { own_table: false, ..self.rules.clone() };
        self.rules = rules.clone();
        self.enter(Stage::wanted(self.mode, rules, None), programs);
        if is_news {
            self.tell();
        }
    }

    /// Goes to a stage, or to the one before it where that cannot be.
    fn enter(&mut self, wanted: Stage, programs: &Programs) {
        let before = self.stage;
        self.stage = wanted;
        if wanted.asks() {
            match self.prepare(wanted, programs) {
                Ok(()) => self.trouble = None,
                Err(trouble) => {
                    self.stage = Stage::Own;
                    if self.trouble.as_ref() != Some(&trouble) {
                        warn!("netfilter cannot translate for the host's rules: {trouble}");
                    }
                    self.trouble = Some(trouble);
                }
            }
        } else {
            self.trouble = None;
        }
        self.look = (self.stage == Stage::Ending).then(|| Instant::now() + LOOK);
        match (before, self.stage) {
            (before, now) if before == now => {}
            (_, Stage::Netfilter) => info!(
                "netfilter translates new connections to Services, so that the host's rules meet them as with kube-proxy (conntrack -L \
                 shows them; docs/differences.md, host-rules)"
            ),
            (_, Stage::Ending) => {
                info!("netfilter translates no new connections to Services; those that it has go on");
            }
            (_, Stage::Own) => info!("netfilter translates no connections to Services any more"),
        }
    }

    fn prepare(&mut self, wanted: Stage, programs: &Programs) -> Result<(), String> {
        if let Some(why) = &self.impossible {
            return Err(why.clone());
        }
        // The table first: it has the kernel load the modules that the programs call.
        if wanted == Stage::Netfilter {
            nat_table::create()
                .map_err(|error| format!("cannot make the table inet shunt of nf_tables: {error}"))?;
        }
        if !self.are_hung {
            if let Err(error) = programs::hang(programs) {
                let why = error.to_string();
                self.impossible = error.is_final().then(|| why.clone());
                return Err(why);
            }
            self.are_hung = true;
        }
        Ok(())
    }

    /// What the programs are told.
    pub const fn flags(&self) -> ConfigFlags {
        self.stage.flags()
    }

    /// Whether something may be put right by another try.
    pub const fn wants_retry(&self) -> bool {
        self.trouble.is_some() && self.impossible.is_none()
    }

    /// Tries again what could not be done.
    pub fn retry(&mut self, programs: &Programs) {
        if self.wants_retry() {
            self.enter(Stage::wanted(self.mode, &self.rules, None), programs);
        }
    }

    /// When to look for connections that are left.
    pub const fn look_due(&self) -> Option<Instant> {
        self.look
    }

    /// Looks for connections that netfilter translates for us.
    pub fn look(&mut self, network: &Network, programs: &Programs) {
        match self.any_left(network) {
            Ok(left) => self.enter(Stage::wanted(self.mode, &self.rules, Some(left)), programs),
            Err(error) => {
                warn!(%error, "cannot look through netfilter's connections");
                self.look = Some(Instant::now() + LOOK);
            }
        }
    }

    fn any_left(&self, network: &Network) -> io::Result<bool> {
        let (mut left, mut failed) = (false, None);
        conntrack::each_translated(&mut |connection| {
            let address = connection.frontend.ip();
            match service_of(&self.maps, &connection) {
                Ok(service) => {
                    let is_node = network.addresses.iter().any(|it| it.address == address);
                    left |= is_ours(service.is_some(), self.maps.addresses.has(address), is_node);
                }
                Err(error) => failed = Some(error),
            }
        })?;
        failed.map_or(Ok(left), Err)
    }

    /// Takes our table away when nobody needs it any more. The programs have been told by then.
    pub fn settle(&mut self) {
        if self.stage != Stage::Own || self.trouble.is_some() || !self.rules.own_table {
            return;
        }
        match nat_table::remove() {
            Ok(_) => self.rules.own_table = false,
            Err(error) => warn!(%error, "cannot take away the table inet shunt of nf_tables"),
        }
    }

    /// Chains that are to see ClusterIPs where the node's own processes send to them.
    pub fn output(&self) -> &[String] {
        if self.mode == HostRulesMode::Ignore { &[] } else { &self.rules.output }
    }

    /// Number of chains and tables that packets of Services do not meet as with kube-proxy. `output_is_met`: whether those of
    /// [`Self::output`] do.
    pub fn not_met(&self, output_is_met: bool) -> usize {
        let met = if output_is_met { self.output().len() } else { 0 };
        let all = if self.stage == Stage::Netfilter { self.rules.output.len() } else { self.rules.count() };
        all - met
    }

    fn tell(&self) {
        let HostRules { before_dnat, forwarded, output, legacy, .. } = &self.rules;
        let is_met = self.stage == Stage::Netfilter;
        if is_met && !self.rules.let_xdp_send() {
            let chains: Vec<&str> =
                before_dnat.iter().chain(forwarded).chain(legacy).map(String::as_str).collect();
            info!(
                chains = chains.join(","),
                "these chains and tables of the host's may drop packets of Services"
            );
        }
        if !before_dnat.is_empty() && !is_met {
            warn!(
                chains = before_dnat.join(","),
                "these chains drop before the kernel's DNAT, and packets of Services are translated before they come there: rules by a \
                 nodePort or a Service's address do not match any more (docs/differences.md, host-rules)"
            );
        }
        // (Otherwise sockets are left alone for them.)
        if self.mode == HostRulesMode::Ignore && !output.is_empty() {
            warn!(
                chains = output.join(","),
                "these chains may drop what the node's processes send, and see endpoints where kube-proxy left them a Service's address \
                 (docs/differences.md, host-rules)"
            );
        }
        if !forwarded.is_empty() && !is_met {
            info!(
                chains = forwarded.join(","),
                "these chains may drop what is forwarded: conntrack does not call flows of Services translated (ct status dnat), and sees the \
                 endpoint's port as the original one (docs/differences.md, host-rules)"
            );
        }
        if !legacy.is_empty() {
            info!(
                tables = legacy.join(","),
                "rules of the older iptables are not read; they are taken for such as drop"
            );
        }
    }
}
