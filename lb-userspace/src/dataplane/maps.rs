//! The whole set of maps, opened from their pins. Needs no agent and loads no program.

use std::io;
use std::path::PathBuf;

use lb_common::abi::{
    Backend4, BackendId, BackendName, Config, Frontend4, Interface, Service, ServiceId, ServiceName, Traffic,
    maps,
};

use super::mmap::{FlowMemory, RingMemory};
use super::pin::PinDir;
use super::sys::{self, Map};
use super::table::{PerCpu, Table};

/// Why a map cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("map {}: {source}", path.display())]
pub struct OpenError {
    /// Where it should be.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub source: io::Error,
}

impl OpenError {
    /// Nothing is pinned there: no agent has run.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// What the opener may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Look only.
    Read,
    /// Change too.
    Write,
}

/// Every map that userspace reads or writes.
#[derive(Debug)]
pub struct Maps {
    /// Frontends.
    pub services: Table<Frontend4, Service>,
    /// Endpoints of Service ports.
    pub backends: Table<BackendId, Backend4>,
    /// The ring arena.
    pub rings: RingMemory,
    /// The flow table.
    pub flows: FlowMemory,
    /// Interfaces with a program of ours.
    pub interfaces: Table<u32, Interface>,
    /// The one entry that configures the programs.
    pub config: Table<u32, Config>,
    /// Outcomes of packets, see [`lb_common::abi::counter_index`].
    pub counters: PerCpu<u64>,
    /// What went to each Service port.
    pub traffic: PerCpu<Traffic>,
    /// Names of Service ports.
    pub service_names: Table<ServiceId, ServiceName>,
    /// Names of endpoints.
    pub backend_names: Table<BackendId, BackendName>,
    /// The index of masqueraded flows: only its sizes are of interest here.
    pub nat: Map,
}

impl Maps {
    /// Opens every map of `dir`.
    pub fn open(dir: &PinDir, access: Access) -> Result<Self, OpenError> {
        let writable = access == Access::Write;
        // A descriptor opened for reading alone cannot be mapped, not even for reading.
        let open = |name: &str| {
            let mapped = name == maps::RINGS || name == maps::FLOWS4;
            sys::obj_get(&dir.map(name), !writable && !mapped)
        };
        // Adds the path to whatever goes wrong with the map.
        fn at<T>(dir: &PinDir, name: &str, result: io::Result<T>) -> Result<T, OpenError> {
            result.map_err(|source| OpenError { path: dir.map(name), source })
        }
        macro_rules! map {
            ($name:expr, $make:expr) => {
                at(dir, $name, open($name).and_then($make))?
            };
        }
        Ok(Self {
            services: map!(maps::SERVICES4, Table::new),
            backends: map!(maps::BACKENDS4, Table::new),
            rings: map!(maps::RINGS, |fd| RingMemory::new(&Map::new(fd)?, writable)),
            flows: map!(maps::FLOWS4, |fd| FlowMemory::new(&Map::new(fd)?)),
            interfaces: map!(maps::INTERFACES, Table::new),
            config: map!(maps::CONFIG, Table::new),
            counters: map!(maps::COUNTERS, PerCpu::new),
            traffic: map!(maps::SERVICE_TRAFFIC, PerCpu::new),
            service_names: map!(maps::SERVICE_NAMES, Table::new),
            backend_names: map!(maps::BACKEND_NAMES, Table::new),
            nat: map!(maps::NAT4, Map::new),
        })
    }
}
