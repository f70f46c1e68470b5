//! Random histories: the store must end where a fresh agent would begin.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Apply(Object),
    Delete(Kind, String),
    /// A list that keeps the objects whose bit is set.
    Relist(Kind, u8),
    Addresses(u8),
    Flush {
        millis: u64,
    },
    Fail(usize),
    Restart,
}

fn any_service() -> impl Strategy<Value = Object> {
    let spec = (0u8..3, 0u8..3, any::<bool>(), any::<bool>(), 0u8..3, any::<bool>());
    (0u8..4, 0u8..5, spec, proptest::option::of(0i64..3)).prop_map(
        |(name, address, (node_port, external, etp, itp, port, second), time)| {
            let mut ports = vec![json!({"name": "http", "port": 80 + port})];
            if node_port > 0 {
                ports[0]["nodePort"] = json!(30_000 + u32::from(node_port));
            }
            if second {
                ports.push(json!({"name": "dns", "port": 53, "protocol": "UDP"}));
            }
            let policy = |local| if local { "Local" } else { "Cluster" };
            let external: Vec<_> = match external {
                0 => vec![],
                1 => vec!["198.51.100.1"],
                // Some Service's ClusterIP, and an address of the node.
                _ => vec!["10.96.0.1", "192.0.2.1"],
            };
            let object = service(
                &format!("s{name}"),
                &format!("10.96.0.{address}"),
                json!({"ports": ports, "externalIPs": external,
                       "externalTrafficPolicy": policy(etp), "internalTrafficPolicy": policy(itp)}),
            );
            time.map_or(object.clone(), |second| created(object, second))
        },
    )
}

fn any_endpoint() -> impl Strategy<Value = serde_json::Value> {
    (1u8..6, any::<bool>(), 0u8..5).prop_map(|(address, local, state)| {
        let (address, node) = (format!("10.1.0.{address}"), if local { "node-a" } else { "node-b" });
        match state {
            0 => stopping(&address, node, true),
            1 => stopping(&address, node, false),
            _ => endpoint(&address, node),
        }
    })
}

fn any_slice() -> impl Strategy<Value = Object> {
    (0u8..4, 0u8..4, proptest::collection::vec(any_endpoint(), 0..4))
        .prop_map(|(name, service, endpoints)| slice(&format!("e{name}"), &format!("s{service}"), &endpoints))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any_service().prop_map(Step::Apply),
        6 => any_slice().prop_map(Step::Apply),
        1 => (0u8..4).prop_map(|name| Step::Delete(Kind::Service, format!("s{name}"))),
        1 => (0u8..4).prop_map(|name| Step::Delete(Kind::EndpointSlice, format!("e{name}"))),
        1 => (any::<bool>(), any::<u8>()).prop_map(|(services, keep)| {
            Step::Relist(if services { Kind::Service } else { Kind::EndpointSlice }, keep)
        }),
        1 => (0u8..3).prop_map(Step::Addresses),
        6 => (0u64..3000).prop_map(|millis| Step::Flush { millis }),
        2 => (0usize..12).prop_map(Step::Fail),
        1 => Just(Step::Restart),
    ]
}

struct History {
    store: MemStore,
    limits: Limits,
    reconciler: Reconciler,
    objects: BTreeMap<ObjectRef, Object>,
    addresses: Vec<Ipv4Addr>,
    now: Instant,
}

impl History {
    fn new(store: MemStore, limits: Limits) -> Self {
        let reconciler = agent(&store, limits, &[]);
        let mut history = Self {
            store,
            limits,
            reconciler,
            objects: BTreeMap::new(),
            addresses: Vec::new(),
            now: Instant::now(),
        };
        history.reconciler.handle(Event::Synced);
        history
    }

    fn listed(&self, kind: Kind) -> Vec<Object> {
        self.objects.values().filter(|object| object.kind() == kind).cloned().collect()
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Apply(object) => {
                self.objects.insert(object.reference(), object.clone());
                self.reconciler.handle(applied(object));
            }
            Step::Delete(kind, name) => {
                self.objects.remove(&ObjectRef::new(kind, "default", name.as_str()));
                self.reconciler.handle(deleted(kind, &name));
            }
            Step::Relist(kind, keep) => {
                let mut i = 0;
                self.objects.retain(|reference, _| {
                    i += u32::from(reference.kind == kind);
                    reference.kind != kind || keep & 1 << (i % 8) != 0
                });
                let objects = self.listed(kind);
                self.reconciler.handle(reset(kind, objects));
            }
            Step::Addresses(count) => {
                self.addresses = (0..count).map(|i| Ipv4Addr::new(192, 0, 2, i)).collect();
                self.reconciler.set_node_addresses(self.addresses.clone());
            }
            Step::Flush { millis } => {
                self.now += Duration::from_millis(millis);
                let _ = self.reconciler.flush(self.now);
            }
            Step::Fail(entries) => self.store.fail_after(entries),
            Step::Restart => {
                self.reconciler = agent(&self.store, self.limits, &self.addresses);
                for kind in [Kind::EndpointSlice, Kind::Service] {
                    let objects = self.listed(kind);
                    self.reconciler.handle(reset(kind, objects));
                }
                self.reconciler.handle(Event::Synced);
            }
        }
    }

    /// Flushes until all is in force.
    fn settle(&mut self) {
        self.store.fail_after(usize::MAX);
        for _ in 0..20 {
            self.now += Duration::from_secs(10);
            let done = matches!(self.reconciler.flush(self.now), Outcome::Applied(_));
            if done && !self.reconciler.is_dirty() && self.reconciler.next_attempt().is_none() {
                return;
            }
        }
    }
}

fn agent(store: &MemStore, limits: Limits, addresses: &[Ipv4Addr]) -> Reconciler {
    let mut config = Config::new("node-a", 7);
    config.limits = limits;
    let mut reconciler = Reconciler::new(config, Box::new(store.clone()));
    reconciler.set_node_addresses(addresses.to_vec());
    reconciler
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_where_a_fresh_agent_begins(steps in proptest::collection::vec(any_step(), 0..40)) {
        let mut history = History::new(MemStore::new(SLOTS), Limits::default());
        for step in steps {
            history.take(step);
            prop_assert_eq!(history.store.violations(), Vec::<String>::new());
        }
        history.settle();
        check(&history.store);

        let mut fresh = History::new(MemStore::new(SLOTS), Limits::default());
        fresh.take(Step::Addresses(history.addresses.len() as u8));
        for object in history.objects.values().rev() {
            fresh.take(Step::Apply(object.clone()));
        }
        fresh.settle();
        prop_assert_eq!(view(&history.store), view(&fresh.store));
        prop_assert_eq!(backends(&history.store.contents()), backends(&fresh.store.contents()));
        prop_assert_eq!(history.reconciler.problems(), fresh.reconciler.problems());
        let names = |store: &MemStore| store.contents().service_names.into_values().map(|name| format!("{name:?}")).collect::<BTreeSet<_>>();
        prop_assert_eq!(names(&history.store), names(&fresh.store));

        // And the next agent finds nothing to do.
        history.store.take_ops();
        history.take(Step::Restart);
        history.take(Step::Flush { millis: 0 });
        prop_assert_eq!(history.store.take_ops(), Vec::<Op>::new());
        prop_assert_eq!(history.reconciler.stats().ring_slots, fresh.reconciler.stats().ring_slots);
    }

    /// With too little of everything: no rule is broken on the way.
    #[test]
    fn scarcity_breaks_no_rule(
        steps in proptest::collection::vec(any_step(), 0..40),
        slots in 0u32..1500,
        service_ids in 1u32..4,
        backends in 1u32..8,
        frontends in 1usize..12,
    ) {
        let store = MemStore::new(slots);
        store.limit_frontends(frontends);
        let mut history = History::new(store, Limits { service_ids, backends });
        for step in steps {
            history.take(step);
            prop_assert_eq!(history.store.violations(), Vec::<String>::new());
        }
        history.settle();
        check_violations(&history.store);
    }
}
