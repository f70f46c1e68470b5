//! The store over the kernel's maps.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use lb_common::abi::{Backend4, BackendId, maps};

use super::maps::Maps;
use super::store::{Actual, Op, Store, StoreError};
use super::table::{Plain, Table};

/// From this many backends on, the whole array is read at once instead of one by one.
const READ_WHOLE: usize = 1024;

/// Writes the maps of one agent.
#[derive(Debug)]
pub struct BpfStore {
    maps: Arc<Maps>,
}

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
        maps::SERVICES4 => Some(
            "the map is full: it holds 131072 frontends, one for each address and port; fewer nodePort addresses or Services make room",
        ),
        maps::SERVICE_NAMES => Some("the map is full: it holds 65536 ports of Services"),
        maps::BACKENDS4 | maps::BACKEND_NAMES => {
            Some("the map is full: it holds 262144 endpoints of Service ports")
        }
        _ => Some("the map is full"),
    }
}

impl BpfStore {
    /// A store over maps opened for writing.
    pub const fn new(maps: Arc<Maps>) -> Self {
        Self { maps }
    }

    /// Fills in what the programs have counted, so that a rewrite does not forget it. The counts start
    /// anew when the id gets another endpoint.
    fn keep_counts(&self, entries: &[(BackendId, Backend4)]) -> io::Result<Vec<(BackendId, Backend4)>> {
        let known: BTreeMap<BackendId, Backend4> = if entries.len() < READ_WHOLE {
            let current =
                entries.iter().map(|(id, _)| Ok((*id, self.maps.backends.get(id)?.unwrap_or_default())));
            current.collect::<io::Result<_>>()?
        } else {
            self.maps.backends.entries()?.into_iter().collect()
        };
        Ok(entries
            .iter()
            .map(|(id, backend)| {
                let counted = known.get(id).filter(|old| old.generation == backend.generation);
                (*id, Backend4 { flows: counted.map_or(backend.flows, |old| old.flows), ..*backend })
            })
            .collect())
    }

    fn apply_one(&mut self, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::PutServiceNames(entries) => put(&self.maps.service_names, maps::SERVICE_NAMES, entries),
            Op::PutBackendNames(entries) => put(&self.maps.backend_names, maps::BACKEND_NAMES, entries),
            Op::PutBackends(entries) => {
                let entries = self.keep_counts(entries).map_err(failed(maps::BACKENDS4))?;
                put(&self.maps.backends, maps::BACKENDS4, &entries)
            }
            Op::WriteRing(ring, slots) => {
                if ring.length as usize != slots.len() {
                    let message = format!("{} slots for a ring of {}", slots.len(), ring.length);
                    return Err(failed(maps::RINGS)(io::Error::new(io::ErrorKind::InvalidInput, message)));
                }
                self.maps.rings.write(ring.offset, slots).map_err(failed(maps::RINGS))
            }
            Op::PutServices(entries) => put(&self.maps.services, maps::SERVICES4, entries),
            Op::DeleteServices(keys) => remove(&self.maps.services, maps::SERVICES4, keys),
            Op::DeleteServiceNames(keys) => remove(&self.maps.service_names, maps::SERVICE_NAMES, keys),
            Op::DeleteBackendNames(keys) => remove(&self.maps.backend_names, maps::BACKEND_NAMES, keys),
        }
    }
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
        let services = self.maps.services.entries().map_err(failed(maps::SERVICES4))?;
        let mut rings = BTreeMap::new();
        for ring in services.iter().flat_map(|(_, service)| [service.outside, service.inside]) {
            if ring.length > 0 && !rings.contains_key(&(ring.offset, ring.length)) {
                let slots = self.maps.rings.read(ring.offset, ring.length).map_err(failed(maps::RINGS))?;
                rings.insert((ring.offset, ring.length), slots.into());
            }
        }
        let backends = self.maps.backends.entries().map_err(failed(maps::BACKENDS4))?;
        let service_names = self.maps.service_names.entries().map_err(failed(maps::SERVICE_NAMES))?;
        let backend_names = self.maps.backend_names.entries().map_err(failed(maps::BACKEND_NAMES))?;
        Ok(Actual {
            services,
            backends: backends.into_iter().filter(|(_, backend)| backend.generation > 0).collect(),
            service_names: service_names.into_iter().collect(),
            backend_names: backend_names.into_iter().collect(),
            rings,
        })
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), StoreError> {
        ops.iter().try_for_each(|op| self.apply_one(op))
    }

    fn ring_slots(&self) -> u32 {
        u32::try_from(self.maps.rings.slots()).unwrap_or(u32::MAX)
    }
}
