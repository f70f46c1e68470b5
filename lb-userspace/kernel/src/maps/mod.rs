//! The maps: the whole set, opened from its pins, and what is read and written in it. Needs no agent and loads no program.

pub mod clients;
pub mod config;
pub mod counters;
pub mod flows;
mod map;
pub mod mmap;
pub mod size;
pub mod store;
pub mod table;

use std::io;
use std::path::PathBuf;

use lb_common::abi::{
    Backend, BackendId, BackendName, Config, Frontend4, Frontend6, Interface, Service, ServiceId,
    ServiceName, SocketFrontend, SocketPeer, SourceRange, SourceToward, Traffic, maps,
};
use lb_common::addr::{Ipv4, Ipv6};

use crate::pin::PinDir;
use crate::sys;
use mmap::{FilterMemory, FlowMemory, RingMemory};
use table::{PerCpu, Table};

pub use map::{Map, MapInfo};

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
    /// Frontends of IPv4 clients.
    pub services4: Table<Frontend4, Service>,
    /// Frontends of IPv6 clients.
    pub services6: Table<Frontend6, Service>,
    /// Endpoints of Service ports.
    pub backends: Table<BackendId, Backend>,
    /// Flows each endpoint has got.
    pub backend_flows: Table<BackendId, u64>,
    /// The ring arena.
    pub rings: RingMemory,
    /// Which addresses packets may have business with.
    pub addresses: FilterMemory,
    /// Which local clients may have flows.
    pub clients: FilterMemory,
    /// Which addresses and ports may be endpoints.
    pub endpoints: FilterMemory,
    /// Which ports may be nodePorts.
    pub node_ports: FilterMemory,
    /// The flow table of IPv4 clients.
    pub flows4: FlowMemory<Ipv4>,
    /// The flow table of IPv6 clients.
    pub flows6: FlowMemory<Ipv6>,
    /// Sources that may come, and the ranges of ClusterIPs.
    pub source_ranges: Table<SourceRange, u32>,
    /// Sockets that the hooks connected to endpoints.
    pub socket_peers: Table<SocketPeer, SocketFrontend>,
    /// Interfaces with a program of ours.
    pub interfaces: Table<u32, Interface>,
    /// Which address an interface with several speaks from.
    pub sources: Table<SourceToward, Ipv6>,
    /// Whom frames may be for.
    pub stations: Table<u32, u64>,
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
    /// The index of masqueraded IPv4 flows: only its sizes are of interest here.
    pub nat4: Map,
    /// The index of masqueraded IPv6 flows.
    pub nat6: Map,
}

/// The maps that say what interfaces are, for whoever attaches programs there. They are few and small.
#[derive(Debug)]
pub struct InterfaceMaps {
    /// Interfaces with a program of ours.
    pub interfaces: Table<u32, Interface>,
    /// Which address an interface with several speaks from.
    pub sources: Table<SourceToward, Ipv6>,
    /// Whom frames may be for.
    pub stations: Table<u32, u64>,
    /// Which addresses packets may have business with.
    pub addresses: FilterMemory,
    /// The one entry that configures the programs.
    pub config: Table<u32, Config>,
}

impl InterfaceMaps {
    /// Opens those of `dir` for reading and writing.
    pub fn open(dir: &PinDir) -> Result<Self, OpenError> {
        let open = |name| sys::obj_get(&dir.map(name), false);
        let at = |name| move |source| OpenError { path: dir.map(name), source };
        let filter = |fd| FilterMemory::new(&Map::new(fd)?, true);
        Ok(Self {
            interfaces: open(maps::INTERFACES).and_then(Table::new).map_err(at(maps::INTERFACES))?,
            sources: open(maps::SOURCES).and_then(Table::new).map_err(at(maps::SOURCES))?,
            stations: open(maps::STATIONS).and_then(Table::new).map_err(at(maps::STATIONS))?,
            addresses: open(maps::ADDRESSES).and_then(filter).map_err(at(maps::ADDRESSES))?,
            config: open(maps::CONFIG).and_then(Table::new).map_err(at(maps::CONFIG))?,
        })
    }
}

impl Maps {
    /// Opens every map of `dir`.
    pub fn open(dir: &PinDir, access: Access) -> Result<Self, OpenError> {
        let writable = access == Access::Write;
        // A descriptor opened for reading alone cannot be mapped, not even for reading.
        let open = |name: &str| {
            let mapped = [maps::RINGS, maps::FLOWS4, maps::FLOWS6].contains(&name);
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
            services4: map!(maps::SERVICES4, Table::new),
            services6: map!(maps::SERVICES6, Table::new),
            backends: map!(maps::BACKENDS, Table::new),
            backend_flows: map!(maps::BACKEND_FLOWS, Table::new),
            rings: map!(maps::RINGS, |fd| RingMemory::new(Map::new(fd)?, writable)),
            addresses: map!(maps::ADDRESSES, |fd| FilterMemory::new(&Map::new(fd)?, writable)),
            clients: map!(maps::CLIENTS, |fd| FilterMemory::new(&Map::new(fd)?, writable)),
            endpoints: map!(maps::ENDPOINTS, |fd| FilterMemory::new(&Map::new(fd)?, writable)),
            node_ports: map!(maps::NODE_PORTS, |fd| FilterMemory::new(&Map::new(fd)?, writable)),
            flows4: map!(maps::FLOWS4, |fd| FlowMemory::new(Map::new(fd)?)),
            flows6: map!(maps::FLOWS6, |fd| FlowMemory::new(Map::new(fd)?)),
            source_ranges: map!(maps::SOURCE_RANGES, Table::new),
            socket_peers: map!(maps::SOCKET_PEERS, Table::new),
            interfaces: map!(maps::INTERFACES, Table::new),
            sources: map!(maps::SOURCES, Table::new),
            stations: map!(maps::STATIONS, Table::new),
            config: map!(maps::CONFIG, Table::new),
            counters: map!(maps::COUNTERS, PerCpu::new),
            traffic: map!(maps::SERVICE_TRAFFIC, PerCpu::new),
            service_names: map!(maps::SERVICE_NAMES, Table::new),
            backend_names: map!(maps::BACKEND_NAMES, Table::new),
            nat4: map!(maps::NAT4, Map::new),
            nat6: map!(maps::NAT6, Map::new),
        })
    }
}
