//! All objects known now, and which Services a change concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use super::address_index::AddressIndex;
use super::{Protocol, Service, ServiceKey, Slice, SliceKey, SourceRanges};

/// The Services and EndpointSlices known now.
#[derive(Debug, Default)]
pub struct Catalog {
    services: BTreeMap<ServiceKey, Service>,
    slices: BTreeMap<SliceKey, Slice>,
    /// In the order of their names.
    slices_of: HashMap<ServiceKey, Vec<SliceKey>>,
    address_index: AddressIndex,
}

impl Catalog {
    /// Puts a Service, or takes it out. Returns whether anything changed.
    pub fn set_service(&mut self, key: &ServiceKey, service: Option<Service>) -> bool {
        match service {
            Some(service) if self.services.get(key) == Some(&service) => false,
            Some(service) => {
                self.services.insert(key.clone(), service);
                true
            }
            None => self.services.remove(key).is_some(),
        }
    }

    /// Puts a slice, or takes it out. Returns the Services it concerns.
    pub fn set_slice(&mut self, key: &SliceKey, slice: Option<Slice>) -> Vec<ServiceKey> {
        if slice.as_ref() == self.slices.get(key) {
            return Vec::new();
        }
        let mut concerned = Vec::new();
        let old = self.slices.remove(key);
        self.address_index.replace(key, old.as_ref(), slice.as_ref());
        let stays = |old: &Slice| slice.as_ref().is_some_and(|new| new.service == old.service);
        if let Some(old) = &old {
            if !stays(old)
                && let Some(slices) = self.slices_of.get_mut(&old.service)
            {
                slices.retain(|known| known != key);
                if slices.is_empty() {
                    self.slices_of.remove(&old.service);
                }
            }
            concerned.push(old.service.clone());
        }
        if let Some(new) = slice {
            let slices = self.slices_of.entry(new.service.clone()).or_default();
            if let Err(at) = slices.binary_search(key) {
                slices.reserve_exact(1);
                slices.insert(at, key.clone());
            }
            if !concerned.contains(&new.service) {
                concerned.push(new.service.clone());
            }
            self.slices.insert(key.clone(), new);
        }
        concerned
    }

    /// A Service.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// The Services that have endpoints at one of `addresses`.
    pub fn services_with_endpoints_at(&self, addresses: &HashSet<IpAddr>) -> BTreeSet<&ServiceKey> {
        let slices = addresses.iter().flat_map(|address| self.address_index.slices_at(*address));
        slices.filter_map(|slice| self.slices.get(slice)).map(|slice| &slice.service).collect()
    }

    /// The Services to which it matters whose `addresses` are: those that have endpoints there, have one of them as their own
    /// address, or let in sources from a range that holds one.
    pub fn services_at(&self, addresses: &HashSet<IpAddr>) -> BTreeSet<&ServiceKey> {
        let mut services = self.services_with_endpoints_at(addresses);
        // (Addresses of nodes seldom change, and this looks at short lists of each Service.)
        let lets_in = |ranges: &SourceRanges| match ranges {
            SourceRanges::Any => false,
            SourceRanges::Only(ranges) => {
                ranges.iter().any(|range| addresses.iter().any(|address| range.contains(address)))
            }
        };
        let has = |service: &&Service| {
            let mut external = service.external_ips.iter().chain(&service.load_balancer_ips);
            external.any(|address| addresses.contains(address))
                || service.cluster_ips.iter().any(|address| addresses.contains(address))
                || service.source_ranges.iter().any(lets_in)
        };
        services.extend(self.services.values().filter(has).map(|service| &service.key));
        services
    }

    /// Where the API server listens: the endpoints of its Service.
    pub fn api_servers(&self) -> impl Iterator<Item = SocketAddr> {
        let slices = self.slices(&ServiceKey::new("default", "kubernetes"));
        slices.flat_map(|slice| {
            let ports = slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
            ports.flat_map(|port| {
                let at = |address| SocketAddr::new(address, port.port.get());
                slice.endpoints.iter().map(move |endpoint| at(endpoint.address))
            })
        })
    }

    /// A slice.
    pub fn slice(&self, key: &SliceKey) -> Option<&Slice> {
        self.slices.get(key)
    }

    /// Every Service.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The keys of every slice.
    pub fn slice_keys(&self) -> impl Iterator<Item = &SliceKey> {
        self.slices.keys()
    }

    /// The slices of a Service, by name.
    pub fn slices<'a>(&'a self, key: &ServiceKey) -> impl Iterator<Item = &'a Slice> + Clone + use<'a> {
        self.slices_of.get(key).into_iter().flatten().filter_map(|slice| self.slices.get(slice))
    }
}
