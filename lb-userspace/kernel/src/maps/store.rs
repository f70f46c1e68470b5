//! The store over the kernel's maps.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::abi::{
    self, Config, ConfigFlags, Frontend4, Frontend6, Ring, Service, ServiceFlags, ServiceId, maps,
};
use lb_common::addr::{Address, Ipv4, Ipv6, Port};
use lb_control::model::Frontend;
use lb_control::seed::Wanted;
use lb_control::store::{Actual, Cover, Op, SourceRange, Store, StoreError};
use tracing::warn;

use super::config::ConfigMap;
use super::table::{Plain, Table};
use super::{Maps, flows};

/// Names of backends put into records at a time.
const NAMES: usize = 4096;

/// Writes the maps of one agent.
#[derive(Debug)]
pub struct BpfStore {
    maps: Arc<Maps>,
    config: Arc<ConfigMap>,
}

/// In place of what is in the map and cannot be used: no agent wants this, so it is replaced, or taken out.
const DAMAGED: Service = Service {
    id: 0,
    flags: ServiceFlags(u32::MAX),
    outside: Ring { offset: 0, length: 0 },
    inside: Ring { offset: 0, length: 0 },
    affinity_seconds: 0,
    reserved: 0,
};

fn failed(map: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |source| {
        let hint = match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => full(map),
            Some(libc::ENOMEM) => {
                Some("the kernel is out of memory for maps; raise the memory limit of the agent's cgroup")
            }
            Some(libc::EPERM | libc::EACCES) => Some("the agent needs CAP_BPF to write maps"),
            _ => None,
        };
        StoreError { map, source, hint }
    }
}

fn full(map: &str) -> Option<&'static str> {
    match map {
        maps::SERVICES4 | maps::SERVICES6 => Some(
            "the map is full: it holds 131072 frontends of its family, one for each address and port; fewer Services \
             make room",
        ),
        maps::SOURCE_RANGES => Some("the map is full: it holds 65536 ranges of permitted sources"),
        maps::SERVICE_NAMES => Some("the map is full: it holds 65536 ports of Services"),
        maps::BACKENDS | maps::BACKEND_FLOWS | maps::BACKEND_NAMES => {
            Some("the map is full: it holds 262144 endpoints of Service ports")
        }
        _ => Some("the map is full"),
    }
}

impl BpfStore {
    /// A store over maps opened for writing. Of `config` it keeps where ClusterIPs are looked for.
    pub const fn new(maps: Arc<Maps>, config: Arc<ConfigMap>) -> Self {
        Self { maps, config }
    }

    /// Sets the bits that have packets to a frontend looked at.
    fn note(&self, frontend: &Frontend) {
        if frontend.is_node_port() {
            self.maps.node_ports.note_port(frontend.port);
        } else {
            self.maps.addresses.note(frontend.address);
        }
    }

    fn has_flows(&self) -> Result<bool, StoreError> {
        let now = flows::now();
        Ok(self.maps.flows4.any_live(now).map_err(failed(maps::FLOWS4))?
            || self.maps.flows6.any_live(now).map_err(failed(maps::FLOWS6))?)
    }

    fn apply_one(&mut self, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::PutServiceNames(entries) => put(&self.maps.service_names, maps::SERVICE_NAMES, entries),
            Op::PutBackendNames(entries) => entries.chunks(NAMES).try_for_each(|entries| {
                let records: Vec<_> = entries.iter().map(|(id, name)| (*id, name.record())).collect();
                put(&self.maps.backend_names, maps::BACKEND_NAMES, &records)
            }),
            Op::ResetServiceTraffic(ids) => {
                self.maps.traffic.clear(ids).map_err(failed(maps::SERVICE_TRAFFIC))
            }
            Op::ResetBackendFlows(ids) => {
                let zeros: Vec<_> = ids.iter().map(|id| (*id, 0)).collect();
                put(&self.maps.backend_flows, maps::BACKEND_FLOWS, &zeros)
            }
            Op::PutBackends(entries) => {
                entries.iter().for_each(|(_, backend)| self.maps.endpoints.note_endpoint(backend));
                put(&self.maps.backends, maps::BACKENDS, entries)
            }
            Op::WriteRing(ring, slots) => {
                if ring.length as usize != slots.len() {
                    let message = format!("{} slots for a ring of {}", slots.len(), ring.length);
                    return Err(failed(maps::RINGS)(io::Error::new(io::ErrorKind::InvalidInput, message)));
                }
                self.maps.rings.write(ring.offset, slots).map_err(failed(maps::RINGS))
            }
            Op::PutServices(entries) => {
                let (mut v4, mut v6) = (Vec::new(), Vec::new());
                for (frontend, service) in entries {
                    self.note(frontend);
                    match split(frontend) {
                        Key::V4(key) => v4.push((key, *service)),
                        Key::V6(key) => v6.push((key, *service)),
                    }
                }
                put(&self.maps.services4, maps::SERVICES4, &v4)?;
                put(&self.maps.services6, maps::SERVICES6, &v6)
            }
            Op::DeleteServices(frontends) => {
                let (mut v4, mut v6) = (Vec::new(), Vec::new());
                for frontend in frontends {
                    match split(frontend) {
                        Key::V4(key) => v4.push(key),
                        Key::V6(key) => v6.push(key),
                    }
                }
                remove(&self.maps.services4, maps::SERVICES4, &v4)?;
                remove(&self.maps.services6, maps::SERVICES6, &v6)
            }
            Op::PutSourceRanges(ranges) => {
                let entries: Vec<_> = ranges.iter().map(|range| (range_key(range), 1)).collect();
                put(&self.maps.source_ranges, maps::SOURCE_RANGES, &entries)
            }
            Op::DeleteSourceRanges(ranges) => {
                let keys: Vec<_> = ranges.iter().map(range_key).collect();
                remove(&self.maps.source_ranges, maps::SOURCE_RANGES, &keys)
            }
            Op::CoverServices(cover) => {
                let write = |config: &mut Config| set_cover(config, cover);
                self.config.change(write).map(drop).map_err(failed(maps::CONFIG))
            }
            Op::NotePorts(ports) => {
                ports.iter().for_each(|port| self.maps.node_ports.note_port(*port));
                Ok(())
            }
            Op::AskNodeNetworks(asks) => {
                let flag = ConfigFlags::NODE_NETWORKS;
                let write = |config: &mut Config| {
                    let others = config.flags.without(flag);
                    config.flags = if *asks { others.with(flag) } else { others };
                };
                self.config.change(write).map(drop).map_err(failed(maps::CONFIG))
            }
            Op::DeleteServiceNames(keys) => remove(&self.maps.service_names, maps::SERVICE_NAMES, keys),
            Op::DeleteBackendNames(keys) => remove(&self.maps.backend_names, maps::BACKEND_NAMES, keys),
        }
    }
}

/// The key of a frontend in the map of its family.
enum Key {
    V4(Frontend4),
    V6(Frontend6),
}

fn split(frontend: &Frontend) -> Key {
    let (port, proto) = (Port::new(frontend.port), frontend.proto);
    match frontend.address {
        std::net::IpAddr::V4(address) => Key::V4(Frontend4::new(address.into(), port, proto)),
        std::net::IpAddr::V6(address) => Key::V6(Frontend6::new(address.into(), port, proto)),
    }
}

/// A range of IPv4 stands in the map as one of IPv4-mapped addresses.
fn range_key(range: &SourceRange) -> abi::SourceRange {
    let (service, range) = range;
    let bits = u32::from(range.prefix_len()) + if range.addr().is_ipv4() { 96 } else { 0 };
    abi::SourceRange::new(*service, range.network().into(), bits)
}

/// The inverse; none for a key that no agent writes.
fn range_of(key: &abi::SourceRange) -> Option<SourceRange> {
    let service = u32::from_be_bytes(key.service);
    let bits = u8::try_from(key.prefix_length.checked_sub(32)?).ok()?;
    let range = match key.address.unmapped() {
        Some(address) if bits >= 96 => IpNet::V4(Ipv4Net::new(address.into(), bits - 96).ok()?),
        _ => IpNet::V6(Ipv6Net::new(key.address.into(), bits).ok()?),
    };
    Some((service, range))
}

/// What the service map of its family holds under a frontend.
pub fn service(maps: &Maps, frontend: &Frontend) -> io::Result<Option<Service>> {
    match split(frontend) {
        Key::V4(key) => maps.services4.get(&key),
        Key::V6(key) => maps.services6.get(&key),
    }
}

/// The ranges that stand under an id.
pub fn networks(maps: &Maps, id: ServiceId) -> io::Result<BTreeSet<IpNet>> {
    let ranges = maps.source_ranges.entries()?;
    let of_id = ranges.iter().filter_map(|(key, _)| range_of(key)).filter(|(service, _)| *service == id);
    Ok(of_id.map(|(_, network)| network).collect())
}

fn set_cover(config: &mut Config, cover: &Cover) {
    // No ClusterIP is in a range of the one address that is none.
    let nowhere = (Ipv4::UNSPECIFIED, Ipv4::from_octets([0xff; 4]));
    let v4 = match cover[0] {
        Some(IpNet::V4(range)) => (range.network().into(), range.netmask().into()),
        _ => nowhere,
    };
    (config.ipv4.service_network, config.ipv4.service_mask) = v4;
    let v6 = match cover[1] {
        Some(IpNet::V6(range)) => (range.network().into(), range.netmask().into()),
        _ => (Ipv6::UNSPECIFIED, Ipv6::from_octets([0xff; 16])),
    };
    (config.ipv6.service_network, config.ipv6.service_mask) = v6;
}

fn cover_of(config: &Config) -> Cover {
    let of = |network: std::net::IpAddr, mask: std::net::IpAddr| {
        IpNet::with_netmask(network, mask)
            .ok()
            .filter(|range| !range.network().is_unspecified() || range.prefix_len() < range.max_prefix_len())
    };
    let (v4, v6) = (config.ipv4, config.ipv6);
    [
        of(v4.service_network.into(), v4.service_mask.into()),
        of(
            std::net::Ipv6Addr::from(v6.service_network).into(),
            std::net::Ipv6Addr::from(v6.service_mask).into(),
        ),
    ]
}

fn put<K: Plain, V: Plain>(
    table: &Table<K, V>,
    map: &'static str,
    entries: &[(K, V)],
) -> Result<(), StoreError> {
    table.put_all(entries).map_err(failed(map))
}

fn remove<K: Plain, V: Plain>(table: &Table<K, V>, map: &'static str, keys: &[K]) -> Result<(), StoreError> {
    table.remove_all(keys).map_err(failed(map))
}

impl Store for BpfStore {
    fn actual(&mut self) -> Result<Actual, StoreError> {
        let mut services: Vec<(Frontend, Service)> = Vec::new();
        for (key, service) in self.maps.services4.entries().map_err(failed(maps::SERVICES4))? {
            let (address, port) = (key.address.into(), key.port.get());
            services.push((Frontend { address, port, proto: key.proto }, service));
        }
        for (key, service) in self.maps.services6.entries().map_err(failed(maps::SERVICES6))? {
            let address = std::net::Ipv6Addr::from(key.address).into();
            services.push((Frontend { address, port: key.port.get(), proto: key.proto }, service));
        }
        services.iter().for_each(|(frontend, _)| self.note(frontend));
        let nodes: BTreeSet<_> = services
            .iter()
            .filter(|(frontend, _)| frontend.is_node())
            .map(|(frontend, _)| frontend.address)
            .collect();
        let at_own = services.iter().filter(|(frontend, _)| nodes.contains(&frontend.address));
        at_own.for_each(|(frontend, _)| self.maps.node_ports.note_port(frontend.port));
        let mut rings = BTreeMap::new();
        for (frontend, service) in &mut services {
            for ring in [service.outside, service.inside] {
                let key = (ring.offset, ring.length);
                if ring.length == 0 || rings.contains_key(&key) {
                    continue;
                }
                if !self.maps.rings.holds(ring) {
                    warn!(%frontend, ?ring, "the map has a ring that is none: written anew");
                    *service = DAMAGED;
                    break;
                }
                let slots = self.maps.rings.read(ring.offset, ring.length).map_err(failed(maps::RINGS))?;
                rings.insert(key, slots.into());
            }
        }
        let backends = self.maps.backends.entries().map_err(failed(maps::BACKENDS))?;
        backends.iter().for_each(|(_, backend)| self.maps.endpoints.note_endpoint(backend));
        let service_names = self.maps.service_names.entries().map_err(failed(maps::SERVICE_NAMES))?;
        let ranges = self.maps.source_ranges.entries().map_err(failed(maps::SOURCE_RANGES))?;
        let backend_names = self.maps.backend_names.entries().map_err(failed(maps::BACKEND_NAMES))?;
        let config = self.config.current();
        Ok(Actual {
            services,
            backends: backends.into_iter().filter(|(_, backend)| backend.generation > 0).collect(),
            service_names: service_names.into_iter().collect(),
            backend_names: backend_names.into_iter().collect(),
            rings,
            source_ranges: ranges.iter().filter_map(|(key, _)| range_of(key)).collect(),
            cover: cover_of(&config),
            asks_node_networks: config.flags.has(ConfigFlags::NODE_NETWORKS),
        })
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), StoreError> {
        ops.iter().try_for_each(|op| self.apply_one(op))
    }

    fn settle_seed(&mut self, wanted: Wanted) -> Result<u64, StoreError> {
        let current = self.config.current().hash_seed;
        let seed = match wanted {
            Wanted::Given(seed) => seed,
            // Flows lie in the table where the seed in force puts their clients: another one would cut them all.
            Wanted::Derived(seed) if seed != current && self.has_flows()? => current,
            Wanted::Derived(seed) => seed,
        };
        self.config.change(|config| config.hash_seed = seed).map_err(failed(maps::CONFIG))?;
        Ok(seed)
    }

    fn ring_slots(&self) -> u32 {
        u32::try_from(self.maps.rings.slots()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_covers_are_read_as_they_were_written() {
        let ranges =
            ["0.0.0.0/0", "192.0.2.0/24", "192.0.2.1/32", "::/1", "2001:db8::/32", "2001:db8::1/128"];
        for text in ranges {
            let range: IpNet = text.parse().expect("a range");
            assert_eq!(range_of(&range_key(&(7, range))), Some((7, range)));
            let cover = if range.addr().is_ipv4() { [Some(range), None] } else { [None, Some(range)] };
            let mut config = Config::default();
            set_cover(&mut config, &cover);
            assert_eq!(cover_of(&config), cover, "{text}");
        }
        let mut config = Config::default();
        set_cover(&mut config, &Cover::default());
        assert_eq!(cover_of(&config), Cover::default());
        assert_eq!(config.ipv4.service_mask, Ipv4::from_octets([0xff; 4]));
    }
}
