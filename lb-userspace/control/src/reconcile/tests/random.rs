//! Random histories: the store must end where a fresh agent would begin.

use proptest::prelude::*;

use super::*;

mod objects;

use objects::{any_name, any_object};

#[derive(Clone, Debug)]
enum Step {
    Apply(Object),
    Delete(ObjectRef),
    /// A list that keeps the objects whose bit is set.
    Relist(Kind, u8),
    Addresses(u8),
    Flush {
        millis: u64,
    },
    Fail(usize),
    Restart,
}

const KINDS: [Kind; 4] = [Kind::ServiceCidr, Kind::EndpointSlice, Kind::Node, Kind::Service];

/// A step as the API server makes them.
fn any_change() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => any_object().prop_map(Step::Apply),
        2 => any_name().prop_map(Step::Delete),
        1 => (proptest::sample::select(&KINDS[..]), any::<u8>()).prop_map(|(kind, keep)| Step::Relist(kind, keep)),
        1 => (0u8..3).prop_map(Step::Addresses),
    ]
}

/// A step of any sort.
fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        14 => any_change(),
        6 => (0u64..3000).prop_map(|millis| Step::Flush { millis }),
        2 => (0usize..12).prop_map(Step::Fail),
        1 => Just(Step::Restart),
    ]
}

/// The addresses of the node: none, IPv4, both.
fn node_addresses(count: u8) -> NodeAddresses {
    addresses(&["192.0.2.1", "2001:db8::1"][..usize::from(count)])
}

struct History {
    store: MemStore,
    limits: Limits,
    reconciler: Reconciler,
    objects: BTreeMap<ObjectRef, Object>,
    addresses: u8,
    now: Instant,
}

impl History {
    fn new(store: MemStore, limits: Limits) -> Self {
        let reconciler = agent(&store, limits, 0);
        let mut history =
            Self { store, limits, reconciler, objects: BTreeMap::new(), addresses: 0, now: Instant::now() };
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
            Step::Delete(reference) => {
                self.objects.remove(&reference);
                self.reconciler.handle(Event::Deleted(reference));
            }
            Step::Relist(kind, keep) => {
                let mut i = 0;
                self.objects.retain(|reference, _| {
                    i += u32::from(reference.kind == kind);
                    reference.kind != kind || keep & 1 << (i % 8) != 0
                });
                let objects = self.listed(kind);
                if keep & 1 == 0 {
                    self.reconciler.handle(reset(kind, objects));
                    return;
                }
                // In pieces, as the API's; one that breaks off first, and work between them.
                self.reconciler.handle(Event::ListBegun(kind));
                let half = objects.len() / 2;
                for object in &objects[..half] {
                    self.reconciler.handle(Event::Listed(object.clone().into()));
                }
                self.reconciler.handle(Event::ListBegun(kind));
                for object in objects {
                    self.reconciler.handle(Event::Listed(object.into()));
                    let _ = self.reconciler.flush(self.now);
                }
                self.reconciler.handle(Event::ListEnded(kind));
            }
            Step::Addresses(count) => {
                self.addresses = count;
                self.reconciler.set_node_addresses(node_addresses(count));
            }
            Step::Flush { millis } => {
                self.now += Duration::from_millis(millis);
                let _ = self.reconciler.flush(self.now);
            }
            Step::Fail(entries) => self.store.fail_after(entries),
            Step::Restart => {
                self.reconciler = agent(&self.store, self.limits, self.addresses);
                for kind in KINDS {
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

fn agent(store: &MemStore, limits: Limits, addresses: u8) -> Reconciler {
    let mut config = Config::new("node-a", Some(7));
    config.limits = limits;
    let mut reconciler = Reconciler::new(config, Box::new(store.clone()));
    reconciler.set_node_addresses(node_addresses(addresses));
    reconciler
}

/// What an agent that starts with these objects makes of them, told of them in reverse.
fn fresh(history: &History, slots: u32) -> History {
    let mut fresh = History::new(MemStore::new(slots), Limits::default());
    for object in history.objects.values().rev() {
        fresh.take(Step::Apply(object.clone()));
    }
    fresh.take(Step::Addresses(history.addresses));
    fresh.settle();
    fresh
}

fn names(store: &MemStore) -> BTreeSet<String> {
    store.contents().service_names.into_values().map(|name| format!("{name:?}")).collect()
}

/// All that may be compared between two agents.
fn same(one: &History, other: &History) -> Result<(), TestCaseError> {
    prop_assert_eq!(view(&one.store), view(&other.store));
    prop_assert_eq!(backends(&one.store.contents()), backends(&other.store.contents()));
    prop_assert_eq!(one.reconciler.problems(), other.reconciler.problems());
    prop_assert_eq!(names(&one.store), names(&other.store));
    prop_assert_eq!(one.reconciler.health_checks(), other.reconciler.health_checks());
    prop_assert_eq!(one.reconciler.takeovers(), other.reconciler.takeovers());
    let (stats, other_stats) = (one.reconciler.stats(), other.reconciler.stats());
    prop_assert_eq!(stats.no_local_endpoints, other_stats.no_local_endpoints);
    prop_assert_eq!(stats.service_entries, other_stats.service_entries);
    prop_assert_eq!(stats.source_ranges, other_stats.source_ranges);
    Ok(())
}

// PROPTEST_CASES sets how many; 256 when it is not set.
proptest! {
    /// Objects added, changed and deleted in any order, of both families: no panic, and the order does not show.
    /// Short, so that a million of them can be tried.
    #[test]
    fn the_order_of_events_does_not_show(steps in proptest::collection::vec(any_change(), 0..8), flushes in any::<u8>()) {
        const FEW: u32 = 30_000;
        let mut history = History::new(MemStore::new(FEW), Limits::default());
        for (i, step) in steps.into_iter().enumerate() {
            history.take(step);
            if flushes >> i & 1 == 1 {
                history.take(Step::Flush { millis: 3000 });
            }
        }
        history.settle();
        prop_assert_eq!(history.store.violations(), Vec::<String>::new());
        same(&history, &fresh(&history, FEW))?;
    }

    #[test]
    fn every_history_ends_where_a_fresh_agent_begins(steps in proptest::collection::vec(any_step(), 0..40)) {
        let mut history = History::new(MemStore::new(SLOTS), Limits::default());
        for step in steps {
            history.take(step);
            prop_assert_eq!(history.store.violations(), Vec::<String>::new());
        }
        history.settle();
        check(&history.store);
        let fresh = fresh(&history, SLOTS);
        same(&history, &fresh)?;

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
        source_ranges in 0usize..6,
        frontends in 1usize..12,
    ) {
        let store = MemStore::new(slots);
        store.limit_frontends(frontends);
        let mut history = History::new(store, Limits { service_ids, backends, source_ranges });
        for step in steps {
            history.take(step);
            prop_assert_eq!(history.store.violations(), Vec::<String>::new());
        }
        history.settle();
        check_violations(&history.store);
    }
}
