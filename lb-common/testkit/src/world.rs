//! One description of a node, for every executor.

use super::memory::Frontend;
use lb_common::abi::{
    ADDRESS_WORDS, Backend, BackendId, Clock, Config, Config4, Config6, ConfigFlags, NODE_PORT_WORDS, Ring,
    Service, ServiceFlags, ServiceId, SourceRange, address_bit, endpoint_bit, port_bit,
};
use lb_common::addr::{Address, Ipv4, Ipv6, Port, Proto};
use lb_common::datapath::Family;
use lb_common::maglev::{self, EndpointHash};

/// The places of a small cluster, numbered alike in both families.
pub trait Numbered: Family {
    /// The outside client number `n`.
    fn client(n: u8) -> Self;
    /// This node.
    fn node() -> Self;
    /// The ClusterIP number `n`.
    fn vip(n: u8) -> Self;
    /// The pod number `n` of this node.
    fn pod(n: u8) -> Self;
    /// The pod number `n` of another node.
    fn remote_pod(n: u8) -> Self;
}

impl Numbered for Ipv4 {
    fn client(n: u8) -> Self {
        Self::from_octets([203, 0, 113, n])
    }

    fn node() -> Self {
        Self::from_octets([192, 0, 2, 1])
    }

    fn vip(n: u8) -> Self {
        Self::from_octets([10, 96, 0, n])
    }

    fn pod(n: u8) -> Self {
        Self::from_octets([10, 244, 1, n])
    }

    fn remote_pod(n: u8) -> Self {
        Self::from_octets([10, 244, 2, n])
    }
}

/// `2001:db8:<net>::<n>`.
const fn documented(net: u8, n: u8) -> Ipv6 {
    Ipv6::from_octets([0x20, 1, 0x0d, 0xb8, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, n])
}

impl Numbered for Ipv6 {
    fn client(n: u8) -> Self {
        documented(3, n)
    }

    fn node() -> Self {
        documented(2, 1)
    }

    fn vip(n: u8) -> Self {
        documented(96, n)
    }

    fn pod(n: u8) -> Self {
        documented(0xf1, n)
    }

    fn remote_pod(n: u8) -> Self {
        documented(0xf2, n)
    }
}

/// The outside IPv4 client number `n`.
pub fn client(n: u8) -> Ipv4 {
    Numbered::client(n)
}

/// This node, in IPv4.
pub fn node() -> Ipv4 {
    Numbered::node()
}

/// The IPv4 ClusterIP number `n`.
pub fn vip(n: u8) -> Ipv4 {
    Numbered::vip(n)
}

/// The IPv4 pod number `n` of this node.
pub fn pod(n: u8) -> Ipv4 {
    Numbered::pod(n)
}

/// The IPv4 pod number `n` of another node.
pub fn remote_pod(n: u8) -> Ipv4 {
    Numbered::remote_pod(n)
}

/// An endpoint of a Service: address, port, and whether it is on this node.
pub type Entry<A = Ipv4> = (A, u16, bool);

/// Bits in words, as the filters of the programs have them.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn none(words: u32) -> Self {
        Self(vec![0; words as usize])
    }

    fn words(&self) -> impl Iterator<Item = (u32, u64)> {
        (0..).zip(self.0.iter().copied()).filter(|(_, bits)| *bits != 0)
    }

    fn set(&mut self, (word, bit): (u32, u64)) {
        self.0[word as usize] |= bit;
    }

    fn has(&self, (word, bit): (u32, u64)) -> bool {
        self.0[word as usize] & bit != 0
    }
}

/// Declares a filter: what sets its bits is its own, the rest is the same for all.
macro_rules! filter {
    ($(#[$meta:meta])* $name:ident, $words:expr) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct $name(Bits);

        impl $name {
            /// What a world's agent would write.
            pub fn of(world: &World) -> Self {
                let mut filter = Self(Bits::none($words));
                filter.note_all(world);
                filter
            }

            /// The words that have bits, by index.
            pub fn words(&self) -> impl Iterator<Item = (u32, u64)> {
                self.0.words()
            }
        }
    };
}

filter! {
    /// The filter of addresses that [`Tables::may_concern`](lb_common::datapath::Tables::may_concern) asks.
    AddressFilter, ADDRESS_WORDS
}

filter! {
    /// The filter of ports that [`Tables::is_node_port`](lb_common::datapath::Tables::is_node_port) asks.
    NodePortFilter, NODE_PORT_WORDS
}

filter! {
    /// The filter of endpoints that [`PacketTables::may_be_endpoint`](lb_common::datapath::PacketTables::may_be_endpoint) asks.
    EndpointFilter, ADDRESS_WORDS
}

impl AddressFilter {
    /// No address.
    pub fn empty() -> Self {
        Self(Bits::none(ADDRESS_WORDS))
    }

    /// Every address.
    pub fn full() -> Self {
        Self(Bits(vec![u64::MAX; ADDRESS_WORDS as usize]))
    }

    /// Sets the bit of an address, IPv4-mapped if need be.
    pub fn note(&mut self, address: Ipv6) {
        self.0.set(address.unmapped().map_or_else(|| address_bit(address), address_bit));
    }

    /// Sets further bits.
    pub fn note_all(&mut self, world: &World) {
        self.note(world.config.ipv4.node_address.to_mapped());
        self.note(world.config.ipv6.node_address);
        world.services.iter().for_each(|((address, ..), _)| self.note(*address));
    }

    /// Whether the bit of an address is set.
    pub fn has<A: Address>(&self, address: A) -> bool {
        self.0.has(address_bit(address))
    }
}

impl NodePortFilter {
    /// Sets the bit of a frontend, if it is a nodePort's.
    pub fn note(&mut self, (address, port, _): &Frontend) {
        if is_nowhere(*address) {
            self.0.set(port_bit(*port));
        }
    }

    /// Sets further bits: of nodePorts, and of frontends at the node's own addresses.
    pub fn note_all(&mut self, world: &World) {
        let nodes: Vec<Ipv6> = world.node_addresses().collect();
        for (frontend, _) in &world.services {
            self.note(frontend);
            if nodes.contains(&frontend.0) {
                self.0.set(port_bit(frontend.1));
            }
        }
    }

    /// Whether the bit of a port is set.
    pub fn has(&self, port: Port) -> bool {
        self.0.has(port_bit(port))
    }
}

impl EndpointFilter {
    /// Sets the bit of an endpoint.
    pub fn note(&mut self, backend: &Backend) {
        self.0.set(match backend.address.unmapped() {
            Some(address) => endpoint_bit(address, backend.port),
            None => endpoint_bit(backend.address, backend.port),
        });
    }

    /// Sets further bits.
    pub fn note_all(&mut self, world: &World) {
        world.backends.iter().for_each(|(_, backend)| self.note(backend));
    }

    /// Whether the bit of an endpoint is set.
    pub fn has<A: Address>(&self, address: A, port: Port) -> bool {
        self.0.has(endpoint_bit(address, port))
    }
}

/// Whether an address, of either family, is where nodePorts stand.
fn is_nowhere(address: Ipv6) -> bool {
    [Ipv4::UNSPECIFIED.to_mapped(), Ipv6::UNSPECIFIED].contains(&address)
}

/// A node: what an agent would have told the kernel.
#[derive(Clone, Debug)]
pub struct World {
    /// The config entry.
    pub config: Config,
    /// Frontends.
    pub services: Vec<(Frontend, Service)>,
    /// Backends.
    pub backends: Vec<(BackendId, Backend)>,
    /// Ranges of permitted sources.
    pub source_ranges: Vec<SourceRange>,
    /// Rings by offset.
    pub rings: Vec<(u32, Vec<BackendId>)>,
    next_service: u32,
}

impl World {
    /// A node without Services: 1024 flow sets, local ranges 10.244.0.0/16 and 2001:db8:f0::/44.
    pub fn new() -> Self {
        Self {
            config: Config {
                station: 0,
                hash_seed: 0x5eed_0f5e_ed00_0001,
                host_netns_cookie: 1,
                flags: ConfigFlags::LOCAL_RANGE.with(ConfigFlags::CLIENTS_NOTED),
                nat_port_first: 61_000,
                nat_port_count: 4_536,
                refusal_limit: 0,
                clock: Clock::default(),
                ipv4: Config4 {
                    node_address: node(),
                    local_network: Ipv4::from_octets([10, 244, 0, 0]),
                    local_mask: Ipv4::from_octets([255, 255, 0, 0]),
                    service_network: Ipv4::from_octets([10, 96, 0, 0]),
                    service_mask: Ipv4::from_octets([255, 255, 0, 0]),
                    flow_set_mask: 1023,
                    nat_line_mask: 1023,
                },
                ipv6: Config6 {
                    node_address: Numbered::node(),
                    local_network: documented(0xf0, 0),
                    local_mask: Ipv6::from_words([u32::MAX, 0xfff0_0000_u32.to_be(), 0, 0]),
                    service_network: documented(96, 0),
                    service_mask: Ipv6::from_words([u32::MAX, u32::MAX, 0, 0]),
                    flow_set_mask: 1023,
                    nat_line_mask: 1023,
                },
            },
            services: Vec::new(),
            backends: Vec::new(),
            source_ranges: Vec::new(),
            rings: Vec::new(),
            next_service: 1,
        }
    }

    /// Adds a Service with one ring for everyone; returns its id.
    pub fn add<A: Address>(
        &mut self,
        frontend: (A, u16),
        proto: Proto,
        flags: ServiceFlags,
        endpoints: &[Entry<A>],
    ) -> ServiceId {
        self.add_service(frontend, proto, Service { flags, ..Service::default() }, endpoints)
    }

    /// Adds a Service with one ring for everyone and what else `service` says; returns its id.
    pub fn add_service<A: Address>(
        &mut self,
        frontend: (A, u16),
        proto: Proto,
        service: Service,
        endpoints: &[Entry<A>],
    ) -> ServiceId {
        let id = self.next_service;
        self.next_service += 1;
        let ring = self.add_ring(id, endpoints);
        let key = (frontend.0.to_mapped(), Port::new(frontend.1), proto);
        self.services.push((key, Service { id, outside: ring, inside: ring, ..service }));
        id
    }

    /// Marks an address whose every port is ours.
    pub fn add_whole_address(&mut self, address: impl Address) {
        let service = Service { flags: ServiceFlags::WHOLE_ADDRESS, ..Service::default() };
        self.services.push(((address.to_mapped(), Port::default(), Proto(0)), service));
    }

    /// Marks an external address that Services have ports of.
    pub fn add_external_address(&mut self, address: impl Address) {
        let service = Service { flags: ServiceFlags::EXTERNAL_ADDRESS, ..Service::default() };
        self.services.push(((address.to_mapped(), Port::default(), Proto::EXTERNAL), service));
    }

    /// Adds a nodePort with one ring for everyone; returns its id.
    pub fn add_node_port<A: Numbered>(
        &mut self,
        port: u16,
        proto: Proto,
        flags: ServiceFlags,
        endpoints: &[Entry<A>],
    ) -> ServiceId {
        self.add((A::UNSPECIFIED, port), proto, flags.with(ServiceFlags::EXTERNAL), endpoints)
    }

    /// Has nodePorts served at an address.
    pub fn add_node_address(&mut self, address: impl Address) {
        let flags = ServiceFlags::NODE_ADDRESS.with(ServiceFlags::NODE_PORTS);
        let service = Service { flags, ..Service::default() };
        self.services.push(((address.to_mapped(), Port::default(), Proto::NODE), service));
    }

    /// Has nodePorts served in a network.
    pub fn add_node_network(&mut self, address: impl Address, bits: u32) {
        self.config.flags = self.config.flags.with(ConfigFlags::NODE_NETWORKS);
        self.source_ranges.push(SourceRange::new(SourceRange::NODE_NETWORKS, address.to_mapped(), bits));
    }

    /// Adds backends and the ring over them.
    pub fn add_ring<A: Address>(&mut self, service: ServiceId, endpoints: &[Entry<A>]) -> Ring {
        let first = self.backends.len() as u32 + 1;
        for (index, (address, port, local)) in endpoints.iter().enumerate() {
            let flags = Backend::ACTIVE
                | Backend::IN_CLUSTER
                | if *local { Backend::LOCAL | Backend::IN_LOCAL } else { 0 };
            let backend = Backend {
                address: address.to_mapped(),
                port: Port::new(*port),
                flags,
                generation: 1,
                service,
                reserved: 0,
            };
            self.backends.push((first + index as u32, backend));
        }
        let hash = |(address, port, _): &Entry<A>| {
            EndpointHash::new(*address, Port::new(*port), self.config.hash_seed)
        };
        let hashes: Vec<_> = endpoints.iter().map(hash).collect();
        let length = maglev::ring_length(endpoints.len());
        let offset = self.ring_slots() as u32;
        let mut slots = std::vec![0; length as usize];
        maglev::build(&hashes, &mut slots, &mut std::vec![0; endpoints.len()]);
        slots.iter_mut().for_each(|slot| *slot += first);
        self.rings.push((offset, slots));
        Ring { offset, length }
    }

    /// The node's own addresses.
    fn node_addresses(&self) -> impl Iterator<Item = Ipv6> {
        let nodes = self.services.iter().filter(|((_, _, proto), _)| *proto == Proto::NODE);
        nodes.map(|((address, ..), _)| *address)
    }

    /// Where a client may aim, with the entry that it gets to: nodePorts at each address of the node.
    pub fn aims(&self) -> Vec<(Frontend, ServiceId)> {
        let mut aims = Vec::new();
        for ((address, port, proto), service) in &self.services {
            if !is_nowhere(*address) {
                aims.push(((*address, *port, *proto), service.id));
                continue;
            }
            let of_family = |it: &Ipv6| it.unmapped().is_some() == address.unmapped().is_some();
            let nodes = self.node_addresses().filter(of_family);
            aims.extend(nodes.map(|node| ((node, *port, *proto), service.id)));
        }
        aims
    }

    /// Ring slots in use.
    pub fn ring_slots(&self) -> usize {
        self.rings.iter().map(|(_, slots)| slots.len()).sum()
    }

    /// A world with one of everything, in both families: what most fixtures and the random tests run
    /// against.
    ///
    /// | frontend | endpoints |
    /// |---|---|
    /// | vip 1:80 TCP | three pods here |
    /// | vip 2:53 TCP, UDP | one pod here, one elsewhere |
    /// | vip 3:80 TCP, UDP | none |
    /// | vip 4:80 TCP, policy Local, endpoints elsewhere only | none here |
    /// | nodePort 30080 TCP, UDP, at the node's address | one pod here, one elsewhere |
    /// | node:30081 TCP (external) | elsewhere only |
    /// | nodePort 30082 TCP (policy Local) | one pod here |
    /// | vip 5:80 and vip 6:80 TCP | the same pod here |
    /// | vip 7:80 UDP, and every other port of vip 7 refused | one pod here |
    /// | vip 8:80 TCP, affinity of 100 s | three pods here |
    /// | vip 9:80 TCP, for client 1 and the pods of this node only | one pod here |
    /// | vip 10:80 SCTP | one pod here, one elsewhere, on the same port |
    pub fn example() -> Self {
        let mut world = Self::new();
        world.add_examples::<Ipv4>();
        world.add_examples::<Ipv6>();
        world
    }

    fn add_examples<A: Numbered>(&mut self) {
        let none = ServiceFlags::default();
        let external = ServiceFlags::EXTERNAL;
        let here = |n, port| (A::pod(n), port, true);
        let elsewhere = |n, port| (A::remote_pod(n), port, false);
        let three = [here(1, 8080), here(2, 8080), here(3, 8080)];
        let both = [here(4, 5353), elsewhere(4, 5353)];
        self.add((A::vip(1), 80), Proto::TCP, none, &three);
        self.add((A::vip(2), 53), Proto::TCP, none, &both);
        self.add((A::vip(2), 53), Proto::UDP, none, &both);
        self.add((A::vip(3), 80), Proto::TCP, none, &[] as &[Entry<A>]);
        self.add((A::vip(3), 80), Proto::UDP, none, &[] as &[Entry<A>]);
        let drop = ServiceFlags::DROP_INSIDE.with(ServiceFlags::DROP_OUTSIDE);
        self.add((A::vip(4), 80), Proto::TCP, drop, &[] as &[Entry<A>]);
        let mixed = [here(5, 8080), elsewhere(5, 8080)];
        self.add_node_address(A::node());
        self.add_node_port(30_080, Proto::TCP, external, &mixed);
        self.add_node_port(30_080, Proto::UDP, external, &mixed);
        self.add((A::node(), 30_081), Proto::TCP, external, &[elsewhere(6, 8080)]);
        let local = external.with(ServiceFlags::LOCAL_POLICY).with(ServiceFlags::DROP_OUTSIDE);
        self.add_node_port(30_082, Proto::TCP, local, &[here(7, 8080)]);
        self.add((A::vip(5), 80), Proto::TCP, none, &[here(8, 8080)]);
        self.add((A::vip(6), 80), Proto::TCP, none, &[here(8, 8080)]);
        self.add((A::vip(7), 80), Proto::UDP, none, &[here(10, 8080)]);
        self.add_whole_address(A::vip(7));
        let sticky = Service { affinity_seconds: 100, ..Service::default() };
        self.add_service((A::vip(8), 80), Proto::TCP, sticky, &three);
        let checked = external.with(ServiceFlags::CHECK_SOURCES);
        let id = self.add((A::vip(9), 80), Proto::TCP, checked, &[here(11, 8080)]);
        // Pods of this node share all but the last byte.
        for (address, bits) in [(A::client(1), 128), (A::pod(0), 120)] {
            self.source_ranges.push(SourceRange::new(id, address.to_mapped(), bits));
        }
        self.add((A::vip(10), 80), Proto::SCTP, none, &[here(12, 80), elsewhere(12, 80)]);
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}
