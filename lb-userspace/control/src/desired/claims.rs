//! Who gets an address that several Services want.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::claimants::Claimants;
use super::{Class, DesiredFrontend, DesiredService};
use crate::model::{Frontend, Problem, Protocol, ServiceKey, Severity};

/// A Service port that wants a frontend.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner {
    /// The Service.
    pub service: ServiceKey,
    /// Name of its port.
    pub port: Arc<str>,
    /// Protocol of its port.
    pub protocol: Protocol,
}

/// Order of precedence, best first: a ClusterIP, then the oldest Service, then namespace and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rank {
    external: bool,
    created: i64,
    service: ServiceKey,
    class: Class,
    index: usize,
}

/// What a change of claims means to others.
#[derive(Debug, Default)]
pub struct Changed {
    /// Other Services that gain or lose a frontend.
    pub services: BTreeSet<ServiceKey>,
    /// Addresses that have become, or are no longer, a Service's: endpoints there are to be looked at again.
    pub addresses: HashSet<IpAddr>,
}

/// Every frontend somebody wants, with all who want it.
#[derive(Debug, Default)]
pub struct Claims {
    wanted: HashMap<Frontend, Claimants>,
    by_service: HashMap<ServiceKey, Vec<(Frontend, Rank)>>,
}

impl Claims {
    /// Puts what a Service wants in the place of what it wanted before (nothing when `desired` is none).
    pub fn update(&mut self, key: &ServiceKey, desired: Option<&DesiredService>) -> Changed {
        let claims: Vec<_> = desired.map(claims_of).unwrap_or_default();
        let old = self.by_service.get(key).map(Vec::as_slice).unwrap_or_default();
        // The common case by far: only endpoints have changed.
        if old
            .iter()
            .map(|(frontend, rank)| (frontend, rank))
            .eq(claims.iter().map(|(frontend, rank, _)| (frontend, rank)))
        {
            return Changed::default();
        }
        let old = self.by_service.remove(key).unwrap_or_default();
        let touched =
            old.iter().map(|(frontend, _)| *frontend).chain(claims.iter().map(|(frontend, ..)| *frontend));
        let before: HashMap<Frontend, Option<Rank>> =
            touched.map(|frontend| (frontend, self.best(frontend).map(|(rank, _)| rank.clone()))).collect();
        for (frontend, rank) in &old {
            if self.wanted.get_mut(frontend).is_some_and(|claimants| claimants.remove(rank)) {
                self.wanted.remove(frontend);
            }
        }
        let mut remembered = Vec::with_capacity(claims.len());
        for (frontend, rank, owner) in claims {
            remembered.push((frontend, rank.clone()));
            match self.wanted.entry(frontend) {
                Entry::Occupied(mut claimants) => claimants.get_mut().insert(rank, owner),
                Entry::Vacant(entry) => {
                    entry.insert(Claimants::One(rank, owner));
                }
            }
        }
        remembered.shrink_to_fit();
        if !remembered.is_empty() {
            self.by_service.insert(key.clone(), remembered);
        }
        let mut changed = Changed::default();
        for (frontend, before) in before {
            let now = self.best(frontend).map(|(rank, _)| rank);
            if now == before.as_ref() {
                continue;
            }
            let of_cluster = |rank: Option<&Rank>| rank.map(|rank| frontend.is_whole() && !rank.external);
            if of_cluster(now) != of_cluster(before.as_ref()) {
                changed.addresses.insert(frontend.address);
            }
            let claimants = self.wanted.get(&frontend).into_iter().flat_map(Claimants::owners);
            let others = claimants.map(|owner| &owner.service).filter(|service| *service != key);
            changed.services.extend(others.cloned());
        }
        changed
    }

    /// The Service port that gets `frontend`.
    pub fn holder(&self, frontend: Frontend) -> Option<&Owner> {
        let (rank, owner) = self.best(frontend)?;
        self.hijacked(frontend, rank.class).is_none().then_some(owner)
    }

    /// Whether some Service wants to be reached there.
    pub fn is_wanted(&self, frontend: Frontend) -> bool {
        self.wanted.contains_key(&frontend)
    }

    /// Whether the address is the ClusterIP of some Service.
    pub fn is_cluster_ip(&self, address: IpAddr) -> bool {
        self.best(Frontend::whole(address)).is_some_and(|(rank, _)| !rank.external)
    }

    /// The Service that says of an external address that Services have ports of it.
    pub fn shared_by(&self, address: IpAddr) -> Option<&ServiceKey> {
        let (rank, owner) = self.best(Frontend::whole(address))?;
        rank.external.then_some(&owner.service)
    }

    /// Why `owner` does not get a frontend it wants.
    pub fn problem(&self, owner: &Owner, wanted: &DesiredFrontend) -> Option<Problem> {
        let frontend = wanted.frontend;
        let (rank, winner) = self.best(frontend)?;
        let field = match wanted.class {
            Class::ClusterIp => "spec.clusterIP",
            Class::LoadBalancer => "status.loadBalancer.ingress",
            Class::ExternalIp => "spec.externalIPs",
            Class::NodePort => "spec.ports",
        };
        let message = if let Some(other) = self.hijacked(frontend, wanted.class) {
            format!(
                "{} is the ClusterIP of Service {} and is not served here; take it out",
                frontend.address, other.service
            )
        } else if winner == owner {
            return None;
        } else {
            let what = match wanted.class {
                Class::NodePort => format!("nodePort {}/{}", frontend.port, frontend.proto),
                _ => frontend.to_string(),
            };
            let why = match rank {
                _ if winner.service == owner.service => "comes first",
                Rank { external: false, .. } => "has it as its ClusterIP",
                Rank { created: i64::MAX, .. } => "goes first by name",
                _ => "is older",
            };
            format!("{what} belongs to Service {}, which {why}; choose another", winner.service)
        };
        Some(Problem::of(&owner.service.object(), Severity::Error, field, message))
    }

    fn best(&self, frontend: Frontend) -> Option<(&Rank, &Owner)> {
        self.wanted.get(&frontend)?.best()
    }

    /// The owner of the ClusterIP that somebody took for an external address, on whatever port
    /// (CVE-2020-8554).
    fn hijacked(&self, frontend: Frontend, class: Class) -> Option<&Owner> {
        if !matches!(class, Class::LoadBalancer | Class::ExternalIp) {
            return None;
        }
        let (rank, owner) = self.best(Frontend::whole(frontend.address))?;
        (rank.class == Class::ClusterIp).then_some(owner)
    }
}

fn claims_of(desired: &DesiredService) -> Vec<(Frontend, Rank, Owner)> {
    let mut claims = Vec::new();
    for (index, port) in desired.ports.iter().enumerate() {
        let owner = Owner { service: desired.key.clone(), port: port.name.clone(), protocol: port.protocol };
        for wanted in &port.frontends {
            let rank = Rank {
                external: wanted.class != Class::ClusterIp,
                created: desired.created.unwrap_or(i64::MAX),
                service: desired.key.clone(),
                class: wanted.class,
                index,
            };
            if wanted.class != Class::NodePort {
                claims.push((Frontend::whole(wanted.frontend.address), rank.clone(), owner.clone()));
            }
            claims.push((wanted.frontend, rank, owner.clone()));
        }
    }
    claims
}
