//! All objects known now, and which Services a change concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use super::{Protocol, Service, ServiceKey, Slice, SliceKey};

/// The Services and EndpointSlices known now.
#[derive(Debug, Default)]
pub struct Catalog {
    services: BTreeMap<ServiceKey, Service>,
    slices: BTreeMap<SliceKey, Slice>,
    slices_of: HashMap<ServiceKey, BTreeSet<SliceKey>>,
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
        if let Some(old) = self.slices.remove(key) {
            if let Some(slices) = self.slices_of.get_mut(&old.service) {
                slices.remove(key);
                if slices.is_empty() {
                    self.slices_of.remove(&old.service);
                }
            }
            concerned.push(old.service);
        }
        if let Some(new) = slice {
            self.slices_of.entry(new.service.clone()).or_default().insert(key.clone());
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
        if addresses.is_empty() {
            return BTreeSet::new();
        }
        let at =
            |slice: &&Slice| slice.endpoints.iter().any(|endpoint| addresses.contains(&endpoint.address));
        self.slices.values().filter(at).map(|slice| &slice.service).collect()
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
