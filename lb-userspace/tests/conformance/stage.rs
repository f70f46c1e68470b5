//! A node under test: objects go in as YAML, and the agent's own pipeline fills the datapath's tables.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::abi::{ConfigFlags, SourceRange};
use lb_common::addr::{Address, Ipv6, Port};
use lb_control::model::{Family, Kind, ObjectRef};
use lb_control::network::NodeAddresses;
use lb_control::reconcile::{Config, Outcome, Reconciler};
use lb_control::source::{Event, Object, Sourced};
use lb_control::store::memory::MemStore;
use lb_testkit::{MemoryTables, World};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::names::{address, fill};

/// The name of the node under test; the pods `here…` are its own.
const NODE: &str = "node-a";
/// The name of the node of the pods `there…`.
const OTHER_NODE: &str = "node-b";
/// Ring slots of the store.
const SLOTS: u32 = 30_000;

/// What a node is told before it starts.
pub struct Cluster {
    family: Family,
    config: Config,
    addresses: NodeAddresses,
    flags: ConfigFlags,
    objects: Vec<Object>,
    with_udp: bool,
}

impl Cluster {
    /// A node with an address, and the pods of the cluster known by their range.
    pub fn new(family: Family) -> Self {
        let node = address(family, "node");
        Self {
            family,
            config: Config::new(NODE, Some(7)),
            addresses: NodeAddresses {
                node_ports: [node, address(family, "localhost")].into_iter().collect(),
                own: vec![node],
                ..NodeAddresses::default()
            },
            flags: ConfigFlags::LOCAL_RANGE.with(ConfigFlags::CLIENTS_NOTED),
            objects: Vec::new(),
            with_udp: false,
        }
    }

    /// With other flags than that of the range: see [`ConfigFlags`].
    pub fn flags(mut self, flags: ConfigFlags) -> Self {
        self.flags = flags;
        self
    }

    /// With the addresses of the node that [`lb_control::network::addresses::node_addresses`] has found.
    pub fn addresses(mut self, addresses: NodeAddresses) -> Self {
        self.addresses = addresses;
        self
    }

    /// An object as YAML.
    pub fn object(mut self, yaml: &str) -> Self {
        self.objects.push(object(self.family, yaml));
        self
    }

    /// A Service of TCP port 80 called `http`; `spec` adds to it or replaces.
    pub fn service(mut self, name: &str, spec: &str) -> Self {
        self.objects.push(service(self.family, name, spec));
        self
    }

    /// The Service `web` at every sort of address: `vip1:80`, `ext1:80`, `lb1:80` and nodePort 30080, and of UDP 53 and
    /// 30053; `spec` adds.
    pub fn everywhere(mut self, spec: &str) -> Self {
        self.with_udp = true;
        self.service(
            "web",
            &format!(
                "{{type: LoadBalancer, clusterIP: $vip1, externalIPs: [$ext1], ingress: [{{ip: $lb1}}], \
                 ports: [{{name: http, port: 80, nodePort: 30080}}, \
                 {{name: dns, port: 53, protocol: UDP, nodePort: 30053}}], {spec}}}"
            ),
        )
    }

    /// An EndpointSlice of `service` with TCP port 8080 called `http`: see [`slice`].
    pub fn endpoints(mut self, service: &str, endpoints: &[&str]) -> Self {
        self.objects.push(slice(self.family, &format!("{service}-1"), service, endpoints));
        self
    }

    /// This node is in a zone.
    pub fn zone(self, zone: &str) -> Self {
        let labels = format!("{{topology.kubernetes.io/zone: {zone}}}");
        self.object(&format!("{{kind: Node, metadata: {{name: {NODE}, labels: {labels}}}}}"))
    }

    /// Lists everything and applies it.
    pub fn start(self) -> Node {
        let mut node = self.begin();
        node.sync();
        node
    }

    /// The same, but the lists are not complete yet.
    pub fn begin(self) -> Node {
        let store = MemStore::new(SLOTS);
        let mut reconciler = Reconciler::new(self.config, Box::new(store.clone()));
        reconciler.set_node_addresses(self.addresses);
        for object in self.objects {
            reconciler.handle(Event::Applied(Sourced::from(object)));
        }
        let mut world = World::new();
        world.config.flags = self.flags;
        let mut node = Node {
            family: self.family,
            with_udp: self.with_udp,
            tables: MemoryTables::new(&world),
            asked: Cell::new(0),
            store,
            reconciler,
            now: Instant::now(),
            world,
        };
        node.flush();
        node
    }
}

/// A node whose agent runs.
pub struct Node {
    /// The family of all its Services' addresses.
    pub family: Family,
    /// What packets meet.
    pub tables: MemoryTables,
    /// Questions so far: each gets a client port of its own.
    pub asked: Cell<u16>,
    with_udp: bool,
    store: MemStore,
    reconciler: Reconciler,
    now: Instant,
    world: World,
}

impl Node {
    /// All lists are complete.
    pub fn sync(&mut self) {
        self.reconciler.handle(Event::Synced);
        self.flush();
    }

    /// Adds or changes an object, as YAML.
    pub fn apply(&mut self, yaml: &str) {
        self.put(object(self.family, yaml));
    }

    /// Adds or changes a Service: see [`Cluster::service`].
    pub fn service(&mut self, name: &str, spec: &str) {
        self.put(service(self.family, name, spec));
    }

    /// Changes the endpoints of a Service: see [`slice`].
    pub fn endpoints(&mut self, service: &str, endpoints: &[&str]) {
        self.put(slice(self.family, &format!("{service}-1"), service, endpoints));
    }

    /// Deletes an object of the namespace `default`.
    pub fn delete(&mut self, kind: Kind, name: &str) {
        self.reconciler.handle(Event::Deleted(ObjectRef::new(kind, "default", name)));
        self.flush();
    }

    /// The port of UDP that goes with one of TCP, where there is one.
    pub fn of_udp(&self, to: &str) -> Option<String> {
        let (at, port) = to.split_once(':').filter(|_| self.with_udp)?;
        let number = match port {
            "80" => "53",
            "30080" => "30053",
            _ => return None,
        };
        Some(format!("{at}:{number}/UDP"))
    }

    /// What the health check of a Service counts.
    pub fn local_ready(&self, service: &str) -> Option<u32> {
        let checks = self.reconciler.health_checks();
        checks.iter().find(|(key, _)| &*key.name == service).map(|(_, check)| check.local_ready)
    }

    /// How many entries the service map has.
    pub fn entries(&self) -> usize {
        self.store.contents().services.len()
    }

    fn put(&mut self, object: Object) {
        self.reconciler.handle(Event::Applied(Sourced::from(object)));
        self.flush();
    }

    /// Applies what has changed and pours the maps into the tables.
    fn flush(&mut self) {
        // Whatever rests has rested.
        self.now += Duration::from_secs(60);
        if let Outcome::Failed { error, .. } = self.reconciler.flush(self.now) {
            panic!("{error}");
        }
        assert_eq!(self.store.violations(), Vec::<String>::new());
        let actual = self.store.contents();
        let world = &mut self.world;
        world.services = actual
            .services
            .iter()
            .map(|(at, service)| ((Ipv6::from(at.address), Port::new(at.port), at.proto), *service))
            .collect();
        world.backends = actual.backends.into_iter().collect();
        world.rings = actual.rings.iter().map(|((offset, _), slots)| (*offset, slots.to_vec())).collect();
        let bits = |address: IpAddr, bits: u8| u32::from(bits) + if address.is_ipv4() { 96 } else { 0 };
        world.source_ranges = actual
            .source_ranges
            .iter()
            .map(|(id, range)| {
                SourceRange::new(*id, Ipv6::from(range.addr()), bits(range.addr(), range.prefix_len()))
            })
            .collect();
        let cover = |family: Family| {
            // Nothing at all: an address nobody has.
            let range = actual.cover[family as usize].unwrap_or(family.unspecified().into());
            (Ipv6::from(range.network()), Ipv6::from(range.netmask()))
        };
        let (v4, v6) = (&mut world.config.ipv4, &mut world.config.ipv6);
        let (network, mask) = cover(Family::V4);
        (v4.service_network, v4.service_mask) = (Address::from_mapped(network), Address::from_mapped(mask));
        (v6.service_network, v6.service_mask) = cover(Family::V6);
        self.tables.pour(world);
    }
}

/// An object from YAML, in which `$vip1` and so on stand for addresses.
fn object(family: Family, yaml: &str) -> Object {
    let text = fill(family, yaml);
    let object: Value = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    read(object)
}

fn read(object: Value) -> Object {
    match object["kind"].as_str().unwrap_or_default() {
        "Service" => Object::Service(typed(&object)),
        "EndpointSlice" => Object::EndpointSlice(typed(&object)),
        "Node" => Object::Node(typed(&object)),
        "ServiceCIDR" => Object::ServiceCidr(typed(&object)),
        other => panic!("no kind {other:?}: {object}"),
    }
}

fn typed<T: DeserializeOwned>(object: &Value) -> T {
    T::deserialize(object).unwrap_or_else(|error| panic!("{error}: {object}"))
}

fn service(family: Family, name: &str, spec: &str) -> Object {
    let text = fill(family, spec);
    let mut spec: BTreeMap<String, Value> =
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let ingress = spec.remove("ingress").unwrap_or_default();
    spec.entry("ports".to_owned()).or_insert_with(|| json!([{"name": "http", "port": 80}]));
    read(json!({
        "kind": "Service", "metadata": {"name": name}, "spec": spec, "status": {"loadBalancer": {"ingress": ingress}},
    }))
}

/// A slice of endpoints such as `here1`, `there1 draining` (serving and terminating), `here2 unready`, `here3 gone`
/// (terminating, not serving), `there2 for-zone=a for-node=node-b`.
fn slice(family: Family, name: &str, service: &str, endpoints: &[&str]) -> Object {
    let endpoints: Vec<Value> = endpoints.iter().map(|text| endpoint(family, text)).collect();
    read(json!({
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": family.label(),
        "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 8053, "protocol": "UDP"}],
        "endpoints": endpoints,
    }))
}

fn endpoint(family: Family, text: &str) -> Value {
    let mut words = text.split(' ');
    let name = words.next().unwrap_or_default();
    let node = if name.starts_with("here") { NODE } else { OTHER_NODE };
    let mut endpoint = json!({"addresses": [address(family, name)], "nodeName": node});
    let conditions =
        |ready, serving, terminating| json!({"ready": ready, "serving": serving, "terminating": terminating});
    for word in words {
        match word.split_once('=') {
            Some(("for-zone", zone)) => endpoint["hints"]["forZones"] = json!([{"name": zone}]),
            Some(("for-node", node)) => endpoint["hints"]["forNodes"] = json!([{"name": node}]),
            _ if word == "draining" => endpoint["conditions"] = conditions(false, true, true),
            _ if word == "unready" => endpoint["conditions"] = conditions(false, false, false),
            _ if word == "gone" => endpoint["conditions"] = conditions(false, false, true),
            _ => panic!("no condition {word:?}"),
        }
    }
    endpoint
}
