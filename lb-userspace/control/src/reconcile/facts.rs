//! What the rest of the agent wants to know of each Service, kept up with the plans.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::desired::{Claims, Class, DesiredPort, DesiredService, HealthCheck, Owner};
use crate::model::{Family, Policy, Protocol, Service, ServiceKey};

/// Trigger times kept between two flushes; more than that is a storm, whose latency the first tell.
const TRIGGERS: usize = 10_000;

/// Services with a Local policy and no endpoint of this node, while there are some elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NoLocalEndpoints {
    /// With `internalTrafficPolicy: Local`, by family.
    pub internal: [u64; 2],
    /// With `externalTrafficPolicy: Local`, by family.
    pub external: [u64; 2],
}

/// A frontend at one of the node's own addresses, which is not a nodePort: the ports there are shared
/// with the node's programs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Takeover {
    /// The Service.
    pub service: ServiceKey,
    /// The node's address.
    pub address: IpAddr,
    /// The Service's port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// Facts of Services, planned and published.
#[derive(Debug)]
pub(super) struct Facts {
    started: SystemTime,
    checks: BTreeMap<ServiceKey, HealthCheck>,
    taken: BTreeMap<ServiceKey, Vec<Takeover>>,
    no_local: HashMap<ServiceKey, NoLocalEndpoints>,
    total: NoLocalEndpoints,
    /// When the changes were triggered that are not in force yet.
    triggers: Vec<(Family, SystemTime)>,
    health_checks: Arc<BTreeMap<ServiceKey, HealthCheck>>,
    takeovers: Arc<[Takeover]>,
    own_cluster_ips: BTreeMap<ServiceKey, Vec<IpAddr>>,
    all_own_cluster_ips: Arc<BTreeSet<IpAddr>>,
    changed: bool,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            started: SystemTime::now(),
            checks: BTreeMap::new(),
            taken: BTreeMap::new(),
            no_local: HashMap::new(),
            total: NoLocalEndpoints::default(),
            triggers: Vec::new(),
            health_checks: Arc::default(),
            takeovers: Arc::new([]),
            own_cluster_ips: BTreeMap::new(),
            all_own_cluster_ips: Arc::default(),
            changed: false,
        }
    }
}

impl Facts {
    /// A change that was triggered at some time has come in. What was triggered before the agent started is no
    /// measure of the agent.
    pub(super) fn trigger(&mut self, family: Family, triggered: Option<SystemTime>) {
        if let Some(time) = triggered.filter(|time| *time >= self.started && self.triggers.len() < TRIGGERS) {
            self.triggers.push((family, time));
        }
    }

    /// How long the changes took that are now in force.
    pub(super) fn in_force(&mut self, now: SystemTime) -> impl Iterator<Item = (Family, Duration)> {
        let latency = move |(family, time)| (family, now.duration_since(time).unwrap_or_default());
        self.triggers.drain(..).map(latency)
    }

    /// Takes in what is now planned for a Service; nothing when it is gone. `own`: the node's addresses, sorted.
    pub(super) fn set(
        &mut self,
        key: &ServiceKey,
        service: Option<(&Service, &DesiredService)>,
        check: Option<HealthCheck>,
        claims: &Claims,
        own: &[IpAddr],
    ) {
        if self.checks.get(key) != check.as_ref() {
            self.changed = true;
            match check {
                Some(check) => self.checks.insert(key.clone(), check),
                None => self.checks.remove(key),
            };
        }
        let taken = service.map(|(_, desired)| takeovers(desired, claims, own)).unwrap_or_default();
        self.note(key, taken, |facts| &mut facts.taken);
        let is_own = |address: &&IpAddr| own.binary_search(address).is_ok();
        let of_own: Vec<IpAddr> =
            service.iter().flat_map(|(it, _)| it.cluster_ips.iter().filter(is_own).copied()).collect();
        self.note(key, of_own, |facts| &mut facts.own_cluster_ips);
        let counts = service.map(|(service, desired)| no_local(service, desired)).unwrap_or_default();
        let old = if counts == NoLocalEndpoints::default() {
            self.no_local.remove(key)
        } else {
            self.no_local.insert(key.clone(), counts)
        };
        let old = old.unwrap_or_default();
        for family in [0, 1] {
            let total = &mut self.total;
            total.internal[family] = total.internal[family] + counts.internal[family] - old.internal[family];
            total.external[family] = total.external[family] + counts.external[family] - old.external[family];
        }
    }

    /// Notes a list of a Service's, which most have empty.
    fn note<T: PartialEq>(
        &mut self,
        key: &ServiceKey,
        list: Vec<T>,
        lists: impl Fn(&mut Self) -> &mut BTreeMap<ServiceKey, Vec<T>>,
    ) {
        if lists(self).get(key).map_or(&[][..], Vec::as_slice) == list {
            return;
        }
        self.changed = true;
        if list.is_empty() {
            lists(self).remove(key);
        } else {
            lists(self).insert(key.clone(), list);
        }
    }

    /// What is planned is in force.
    pub(super) fn publish(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.health_checks = Arc::new(self.checks.clone());
            self.takeovers = self.taken.values().flatten().cloned().collect();
            self.all_own_cluster_ips = Arc::new(self.own_cluster_ips.values().flatten().copied().collect());
        }
    }

    pub(super) const fn health_checks(&self) -> &Arc<BTreeMap<ServiceKey, HealthCheck>> {
        &self.health_checks
    }

    pub(super) const fn takeovers(&self) -> &Arc<[Takeover]> {
        &self.takeovers
    }

    pub(super) const fn own_cluster_ips(&self) -> &Arc<BTreeSet<IpAddr>> {
        &self.all_own_cluster_ips
    }

    pub(super) const fn no_local_endpoints(&self) -> NoLocalEndpoints {
        self.total
    }
}

/// External addresses a Service gets that are the node's own.
fn takeovers(desired: &DesiredService, claims: &Claims, own: &[IpAddr]) -> Vec<Takeover> {
    let of_port = |port: &DesiredPort| {
        let owner = Owner { service: desired.key.clone(), port: port.name.clone(), protocol: port.protocol };
        let external = port.frontends.iter().filter(|wanted| {
            matches!(wanted.class, Class::ExternalIp | Class::LoadBalancer)
                && own.binary_search(&wanted.frontend.address).is_ok()
                && claims.holder(wanted.frontend) == Some(&owner)
        });
        let takeover = |address, port_number| Takeover {
            service: desired.key.clone(),
            address,
            port: port_number,
            protocol: port.protocol,
        };
        external.map(|wanted| takeover(wanted.frontend.address, wanted.frontend.port)).collect::<Vec<_>>()
    };
    desired.ports.iter().flat_map(of_port).collect()
}

/// Ports whose policy is Local and that have no endpoint here, but some elsewhere.
fn no_local(service: &Service, desired: &DesiredService) -> NoLocalEndpoints {
    let mut counts = NoLocalEndpoints::default();
    for port in &desired.ports {
        for family in Family::ALL {
            let lists = &port.lists[family as usize];
            if !lists.any || !lists.local.is_empty() {
                continue;
            }
            let mut of_family =
                port.frontends.iter().filter(|wanted| Family::of(wanted.frontend.address) == family);
            let external = of_family.any(|wanted| wanted.class != Class::ClusterIp);
            counts.internal[family as usize] += u64::from(service.internal_policy == Policy::Local);
            counts.external[family as usize] +=
                u64::from(service.external_policy == Policy::Local && external);
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Network programming latency: from the trigger to its being in force; what was triggered before the agent
    /// began does not count.
    #[test]
    fn latency_runs_from_the_trigger_once() {
        let mut facts = Facts::default();
        let second = Duration::from_secs(1);
        let begun = facts.started;
        for (family, triggered) in [
            (Family::V4, None),
            (Family::V4, Some(begun - second)),
            (Family::V6, Some(begun + second)),
            (Family::V4, Some(begun + 5 * second)),
        ] {
            facts.trigger(family, triggered);
        }
        let reported: Vec<_> = facts.in_force(begun + 3 * second).collect();
        // Clocks of two machines may differ.
        assert_eq!(reported, [(Family::V6, 2 * second), (Family::V4, Duration::ZERO)]);
        assert_eq!(facts.in_force(begun + 9 * second).count(), 0);
    }
}
