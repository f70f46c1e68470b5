//! The order of changes, and what is found in maps nobody vouches for.

use super::*;
use crate::desired::{Class, DesiredEndpoint, DesiredFrontend, DesiredPort, List};

fn settings() -> Settings {
    Settings { seed: 1, grace: Duration::from_secs(1), limits: Limits::default(), ring_slots: 100_000 }
}

fn desired(name: &str, endpoints: &[u8]) -> (ServiceKey, Option<DesiredService>) {
    let key = ServiceKey::new("default", name);
    let frontend =
        Frontend4::new(Ipv4::from_octets([10, 96, 0, name.len() as u8]), Port::new(80), Proto::TCP);
    let frontend = DesiredFrontend {
        frontend,
        class: Class::ClusterIp,
        outside: List::Cluster,
        inside: List::Cluster,
        flags: Default::default(),
    };
    let endpoint = |last: &u8| DesiredEndpoint {
        address: Ipv4Addr::new(10, 1, 0, *last),
        port: std::num::NonZeroU16::MIN,
        local: false,
        node: "".into(),
        target: "".into(),
        ready: true,
        draining: false,
    };
    let port = DesiredPort {
        name: "".into(),
        protocol: Protocol::Tcp,
        affinity_seconds: 0,
        endpoints: endpoints.iter().map(endpoint).collect(),
        cluster: (0..endpoints.len() as u32).collect(),
        local: Vec::new(),
        frontends: vec![frontend],
    };
    (key.clone(), Some(DesiredService { key, created: None, ports: vec![port] }))
}

struct Fixture {
    planner: Planner,
    claims: Claims,
    now: Instant,
}

impl Fixture {
    fn new() -> Self {
        Self {
            planner: Planner::new(settings(), Actual::default()),
            claims: Claims::default(),
            now: Instant::now(),
        }
    }

    fn plan(&mut self, services: &[(ServiceKey, Option<DesiredService>)]) -> Plan {
        for (key, desired) in services {
            self.claims.update(key, desired.as_ref());
        }
        self.planner.plan(services, &self.claims, self.now)
    }
}

fn kinds(ops: &[Op]) -> Vec<String> {
    ops.iter().map(|op| format!("{op:?}").split('(').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_steps_come_in_a_safe_order() {
    let mut fixture = Fixture::new();
    let plan = fixture.plan(&[desired("a", &[1, 2])]);
    assert_eq!(kinds(&plan.prepare), ["PutServiceNames", "PutBackendNames", "PutBackends"]);
    assert_eq!((plan.rings.len(), plan.switch.len(), plan.insert.len()), (1, 0, 1));
    fixture.planner.applied(plan, &[], fixture.now);

    let plan = fixture.plan(&[desired("a", &[2, 3]), desired("bb", &[])]);
    assert_eq!(kinds(&plan.prepare), ["PutServiceNames", "PutBackendNames", "PutBackends"]);
    assert_eq!(kinds(&plan.switch), ["PutServices", "PutBackends", "DeleteBackendNames"]);
    assert_eq!((plan.rings.len(), plan.insert.len()), (1, 1));
    fixture.planner.applied(plan, &[], fixture.now);

    let plan = fixture.plan(&[(ServiceKey::new("default", "a"), None)]);
    assert_eq!(kinds(&plan.prepare), [""; 0]);
    assert_eq!(
        kinds(&plan.switch),
        ["DeleteServices", "PutBackends", "DeleteServiceNames", "DeleteBackendNames"]
    );
    let Op::PutBackends(retired) = &plan.switch[1] else { panic!("{:?}", plan.switch) };
    assert!(retired.iter().all(|(_, backend)| !backend.is_active() && backend.generation == 1));
}

#[test]
fn nothing_changed_is_nothing_to_do() {
    let mut fixture = Fixture::new();
    let plan = fixture.plan(&[desired("a", &[1, 2])]);
    fixture.planner.applied(plan, &[], fixture.now);
    assert!(fixture.plan(&[desired("a", &[1, 2])]).is_empty());
}

#[test]
fn a_ring_holds_every_backend_in_equal_shares() {
    let mut fixture = Fixture::new();
    let plan = fixture.plan(&[desired("a", &[1, 2])]);
    let slots = plan.rings[0].slots();
    assert_eq!(slots.len(), 251);
    let first = slots.iter().filter(|id| **id == 0).count();
    assert!((125..=126).contains(&first), "{first}");
    assert!(slots.iter().all(|id| *id < 2));
}

#[test]
fn rings_and_ids_are_not_used_again_before_they_are_free() {
    let mut fixture = Fixture::new();
    let plan = fixture.plan(&[desired("a", &[1])]);
    let first = plan.rings[0].ring;
    fixture.planner.applied(plan, &[], fixture.now);
    let plan = fixture.plan(&[desired("a", &[2])]);
    // The old ring is in force until this plan has been applied.
    assert_ne!(plan.rings[0].ring, first);
    fixture.planner.applied(plan, &[], fixture.now);
    let plan = fixture.plan(&[desired("a", &[3])]);
    assert_ne!(plan.rings[0].ring, first, "packets in flight may still read it");
    fixture.planner.applied(plan, &[], fixture.now);
    fixture.now += Duration::from_secs(1);
    let plan = fixture.plan(&[desired("a", &[4])]);
    assert_eq!(plan.rings[0].ring, first);
}

#[test]
fn what_nobody_wrote_does_not_unsettle_it() {
    // A ring beyond the arena, rings that overlap, a Service without a name, a backend of nobody.
    let service = |id, offset| Service { id, inside: Ring { offset, length: 251 }, ..Service::default() };
    let frontend = |last| Frontend4::new(Ipv4::from_octets([10, 96, 9, last]), Port::new(1), Proto::UDP);
    let backend = Backend4 { flags: Backend4::ACTIVE, generation: 3, service: 77, ..Backend4::default() };
    let actual = Actual {
        services: vec![
            (frontend(1), service(1, 99_900)),
            (frontend(2), service(2, 0)),
            (frontend(3), service(3, 100)),
        ],
        backends: BTreeMap::from([(0, backend), (5, backend)]),
        ..Actual::default()
    };
    let mut planner = Planner::new(settings(), actual);
    let now = Instant::now();
    let (key, wanted) = desired("a", &[1]);
    let mut claims = Claims::default();
    claims.update(&key, wanted.as_ref());
    let plan = planner.plan(&[(key, wanted)], &claims, now);
    assert_eq!(kinds(&plan.switch), ["DeleteServices", "PutBackends", "DeleteBackendNames"]);
    let Op::PutBackends(retired) = &plan.switch[1] else { panic!("{:?}", plan.switch) };
    assert_eq!(retired.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 5]);
    assert!(plan.rings[0].ring.offset >= 251, "not over what may be in use");
    planner.applied(plan, &[], now);
    assert_eq!((planner.frontends(), planner.backends()), (1, 1));
}
