//! One description of a node, for every executor.

use std::vec::Vec;

use crate::abi::{Backend4, BackendId, Config, ConfigFlags, Frontend4, Ring, Service, ServiceFlags};
use crate::addr::{Ipv4, Port, Proto};
use crate::maglev::{self, EndpointHash};

/// The outside client number `n`.
pub const fn client(n: u8) -> Ipv4 {
    Ipv4::from_octets([203, 0, 113, n])
}

/// This node.
pub const fn node() -> Ipv4 {
    Ipv4::from_octets([192, 0, 2, 1])
}

/// The ClusterIP number `n`.
pub const fn vip(n: u8) -> Ipv4 {
    Ipv4::from_octets([10, 96, 0, n])
}

/// The pod number `n` of this node.
pub const fn pod(n: u8) -> Ipv4 {
    Ipv4::from_octets([10, 244, 1, n])
}

/// The pod number `n` of another node.
pub const fn remote_pod(n: u8) -> Ipv4 {
    Ipv4::from_octets([10, 244, 2, n])
}

/// An endpoint of a Service: address, port, and whether it is on this node.
pub type Entry = (Ipv4, u16, bool);

/// A node: what an agent would have told the kernel.
#[derive(Clone, Debug)]
pub struct World {
    /// The config entry.
    pub config: Config,
    /// Frontends.
    pub services: Vec<(Frontend4, Service)>,
    /// Backends.
    pub backends: Vec<(BackendId, Backend4)>,
    /// Rings by offset.
    pub rings: Vec<(u32, Vec<BackendId>)>,
    next_service: u32,
}

impl World {
    /// A node without Services: 1024 flow sets, cluster range 10.244.0.0/16.
    pub fn new() -> Self {
        Self {
            config: Config {
                hash_seed: 0x5eed_0f5e_ed00_0001,
                host_netns_cookie: 1,
                node_address4: node(),
                cluster_network4: Ipv4::from_octets([10, 244, 0, 0]),
                cluster_mask4: Ipv4::from_octets([255, 255, 0, 0]),
                flags: ConfigFlags::CLUSTER_RANGE4,
                flow_set_mask: 1023,
                nat_slot_mask: 16_383,
                nat_port_first: 61_000,
                nat_port_count: 4_536,
                reserved: 0,
            },
            services: Vec::new(),
            backends: Vec::new(),
            rings: Vec::new(),
            next_service: 1,
        }
    }

    /// Adds a Service with one ring for everyone; returns its id.
    pub fn add(
        &mut self,
        frontend: (Ipv4, u16),
        proto: Proto,
        flags: ServiceFlags,
        endpoints: &[Entry],
    ) -> u32 {
        let id = self.next_service;
        self.next_service += 1;
        let ring = self.add_ring(id, endpoints);
        let key = Frontend4::new(frontend.0, Port::new(frontend.1), proto);
        let service = Service { id, flags, outside: ring, inside: ring, ..Service::default() };
        self.services.push((key, service));
        id
    }

    /// Adds backends and the ring over them.
    pub fn add_ring(&mut self, service: u32, endpoints: &[Entry]) -> Ring {
        let first = self.backends.len() as u32 + 1;
        for (index, (address, port, local)) in endpoints.iter().enumerate() {
            let flags = Backend4::ACTIVE | if *local { Backend4::LOCAL } else { 0 };
            let backend = Backend4 {
                address: *address,
                port: Port::new(*port),
                flags,
                generation: 1,
                service,
                flows: 0,
            };
            self.backends.push((first + index as u32, backend));
        }
        let hashes: Vec<_> = endpoints
            .iter()
            .map(|(address, port, _)| EndpointHash::new(*address, Port::new(*port), self.config.hash_seed))
            .collect();
        let length = maglev::ring_length(endpoints.len());
        let offset = self.ring_slots() as u32;
        let mut slots = std::vec![0; length as usize];
        maglev::build(&hashes, &mut slots, &mut std::vec![0; endpoints.len()]);
        slots.iter_mut().for_each(|slot| *slot += first);
        self.rings.push((offset, slots));
        Ring { offset, length }
    }

    /// Ring slots in use.
    pub fn ring_slots(&self) -> usize {
        self.rings.iter().map(|(_, slots)| slots.len()).sum()
    }

    /// A world with one of everything: what most fixtures and the random tests run against.
    ///
    /// | frontend | endpoints |
    /// |---|---|
    /// | 10.96.0.1:80 TCP | three pods here |
    /// | 10.96.0.2:53 TCP, UDP | one pod here, one elsewhere |
    /// | 10.96.0.3:80 TCP, UDP | none |
    /// | 10.96.0.4:80 TCP, policy Local, endpoints elsewhere only | none here |
    /// | node:30080 TCP, UDP (external) | one pod here, one elsewhere |
    /// | node:30081 TCP (external) | elsewhere only |
    /// | node:30082 TCP (external, policy Local) | one pod here |
    /// | 10.96.0.5:80 and 10.96.0.6:80 TCP | the same pod here |
    pub fn example() -> Self {
        let mut world = Self::new();
        let none = ServiceFlags::default();
        let external = ServiceFlags::EXTERNAL;
        let here: [Entry; 3] = [(pod(1), 8080, true), (pod(2), 8080, true), (pod(3), 8080, true)];
        let both: [Entry; 2] = [(pod(4), 5353, true), (remote_pod(4), 5353, false)];
        world.add((vip(1), 80), Proto::TCP, none, &here);
        world.add((vip(2), 53), Proto::TCP, none, &both);
        world.add((vip(2), 53), Proto::UDP, none, &both);
        world.add((vip(3), 80), Proto::TCP, none, &[]);
        world.add((vip(3), 80), Proto::UDP, none, &[]);
        let drop = ServiceFlags::DROP_INSIDE.with(ServiceFlags::DROP_OUTSIDE);
        world.add((vip(4), 80), Proto::TCP, drop, &[]);
        let mixed: [Entry; 2] = [(pod(5), 8080, true), (remote_pod(5), 8080, false)];
        world.add((node(), 30_080), Proto::TCP, external, &mixed);
        world.add((node(), 30_080), Proto::UDP, external, &mixed);
        world.add((node(), 30_081), Proto::TCP, external, &[(remote_pod(6), 8080, false)]);
        let local = external.with(ServiceFlags::LOCAL_POLICY).with(ServiceFlags::DROP_OUTSIDE);
        world.add((node(), 30_082), Proto::TCP, local, &[(pod(7), 8080, true)]);
        world.add((vip(5), 80), Proto::TCP, none, &[(pod(8), 8080, true)]);
        world.add((vip(6), 80), Proto::TCP, none, &[(pod(8), 8080, true)]);
        world
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}
