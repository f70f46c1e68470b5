//! The order of changes, and what is found in maps nobody vouches for.

use std::collections::BTreeMap;

use super::*;
use crate::desired::{Class, DesiredEndpoint, DesiredFrontend, DesiredPort, List, Lists};
use crate::model::Hints;
use crate::model::NodePortPlaces;
use lb_common::abi::ServiceFlags;

fn settings() -> Settings {
    Settings { seed: 1, grace: Duration::from_secs(1), limits: Limits::default(), ring_slots: 100_000 }
}

fn desired(name: &str, endpoints: &[u8]) -> (ServiceKey, Option<DesiredService>) {
    let key = ServiceKey::new("default", name);
    let address = IpAddr::from([10, 96, 0, name.len() as u8]);
    let frontend = DesiredFrontend {
        frontend: Frontend::new(address, 80, Protocol::Tcp),
        class: Class::ClusterIp,
        outside: List::Cluster,
        inside: List::Cluster,
        flags: Default::default(),
        port_would_change: false,
    };
    let endpoint = |last: &u8| DesiredEndpoint {
        address: IpAddr::from([10, 1, 0, *last]),
        port: std::num::NonZeroU16::MIN,
        local: false,
        node: "".into(),
        target: "".into(),
        ready: true,
        draining: false,
        hints: Hints::default(),
    };
    let all: Vec<u32> = (0..endpoints.len() as u32).collect();
    let lists = Lists { any: !all.is_empty(), cluster: all, local: Vec::new() };
    let port = DesiredPort {
        name: "".into(),
        protocol: Protocol::Tcp,
        affinity_seconds: 0,
        endpoints: endpoints.iter().map(endpoint).collect(),
        lists: [lists, Lists::default()],
        frontends: vec![frontend],
        source_ranges: BTreeSet::new(),
    };
    (key.clone(), Some(DesiredService { key, created: None, cluster_ips: vec![address], ports: vec![port] }))
}

struct Fixture {
    planner: Planner,
    claims: Claims,
    cidrs: BTreeSet<IpNet>,
    node_ports: NodePortPlaces,
    now: Instant,
}

impl Fixture {
    fn new() -> Self {
        Self {
            planner: Planner::new(settings(), Actual::default()),
            claims: Claims::default(),
            cidrs: BTreeSet::new(),
            node_ports: NodePortPlaces::default(),
            now: Instant::now(),
        }
    }

    fn plan(&mut self, services: &[(ServiceKey, Option<DesiredService>)]) -> Plan {
        for (key, desired) in services {
            self.claims.update(key, desired.as_ref());
        }
        let node = OfNode {
            service_cidrs: &self.cidrs,
            node_ports: &self.node_ports,
            own: &[],
            broadcasts: &BTreeSet::new(),
        };
        self.planner.plan(services, &self.claims, node, self.now)
    }
}

fn kinds(ops: &[Op]) -> Vec<String> {
    ops.iter().map(|op| format!("{op:?}").split('(').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_steps_come_in_a_safe_order() {
    let mut fixture = Fixture::new();
    let plan = fixture.plan(&[desired("a", &[1, 2])]);
    let prepare = [
        "ResetServiceTraffic",
        "PutServiceNames",
        "PutBackendNames",
        "ResetBackendFlows",
        "PutBackends",
        "CoverServices",
    ];
    assert_eq!(kinds(&plan.prepare), prepare);
    // The frontend, and its ClusterIP as a whole.
    assert_eq!((plan.rings.len(), plan.switch.len(), plan.insert.len()), (1, 0, 2));
    fixture.planner.applied(plan, &[], fixture.now);

    let plan = fixture.plan(&[desired("a", &[2, 3]), desired("bb", &[])]);
    assert_eq!(kinds(&plan.prepare), prepare);
    assert_eq!(kinds(&plan.switch), ["PutServices", "PutBackends", "DeleteBackendNames"]);
    assert_eq!((plan.rings.len(), plan.insert.len()), (1, 2));
    fixture.planner.applied(plan, &[], fixture.now);

    let plan = fixture.plan(&[(ServiceKey::new("default", "a"), None)]);
    assert_eq!(kinds(&plan.prepare), [""; 0]);
    assert_eq!(
        kinds(&plan.switch),
        ["DeleteServices", "PutBackends", "DeleteServiceNames", "DeleteBackendNames", "CoverServices"]
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
    assert_eq!(slots.len(), 163);
    let first = slots.iter().filter(|id| **id == 0).count();
    assert!((81..=82).contains(&first), "{first}");
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
    let frontend = |last| Frontend::new(IpAddr::from([10, 96, 9, last]), 1, Protocol::Udp);
    let backend = Backend { flags: Backend::ACTIVE, generation: 3, service: 77, ..Backend::default() };
    // The mark of a ClusterIP, and sources of an id that nobody has.
    let whole = Service { flags: ServiceFlags::WHOLE_ADDRESS, ..Service::default() };
    let actual = Actual {
        services: vec![
            (frontend(1), service(1, 99_900)),
            (frontend(2), service(2, 0)),
            (frontend(3), service(3, 100)),
            (Frontend::whole(IpAddr::from([10, 96, 9, 4])), whole),
        ],
        backends: BTreeMap::from([(0, backend), (5, backend)]),
        source_ranges: BTreeSet::from([
            (9, "10.0.0.0/8".parse().unwrap()),
            (0, "10.0.0.0/8".parse().unwrap()),
        ]),
        cover: [Some("10.0.0.0/8".parse().unwrap()), None],
        ..Actual::default()
    };
    let mut planner = Planner::new(settings(), actual);
    let now = Instant::now();
    let (key, wanted) = desired("a", &[1]);
    let mut claims = Claims::default();
    claims.update(&key, wanted.as_ref());
    let node = OfNode {
        service_cidrs: &BTreeSet::new(),
        node_ports: &NodePortPlaces::default(),
        own: &[],
        broadcasts: &BTreeSet::new(),
    };
    let plan = planner.plan(&[(key, wanted)], &claims, node, now);
    assert_eq!(
        kinds(&plan.switch),
        ["DeleteServices", "PutBackends", "DeleteSourceRanges", "DeleteBackendNames", "CoverServices"]
    );
    let Op::PutBackends(retired) = &plan.switch[1] else { panic!("{:?}", plan.switch) };
    assert_eq!(retired.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 5]);
    assert!(plan.rings[0].ring.offset >= 251, "not over what may be in use");
    planner.applied(plan, &[], now);
    assert_eq!((planner.frontends(), planner.backends(), planner.source_ranges()), (1, 1, 0));
    assert_eq!(planner.service_entries(), [2, 0]);
}

#[test]
fn the_range_of_cluster_ips_grows_first_and_shrinks_last() {
    let mut fixture = Fixture::new();
    let covers = |ops: &[Op]| {
        let cover = ops.iter().find_map(|op| if let Op::CoverServices(cover) = op { cover[0] } else { None });
        cover.map(|range| range.to_string())
    };
    let plan = fixture.plan(&[desired("a", &[])]);
    assert_eq!(covers(&plan.prepare).as_deref(), Some("10.96.0.1/32"));
    fixture.planner.applied(plan, &[], fixture.now);
    // One goes, one comes: both are found until the change is done.
    let plan = fixture.plan(&[desired("four", &[]), (ServiceKey::new("default", "a"), None)]);
    assert_eq!(covers(&plan.prepare).as_deref(), Some("10.96.0.0/29"));
    assert_eq!(covers(&plan.switch).as_deref(), Some("10.96.0.4/32"));
    assert!(matches!(plan.switch.last(), Some(Op::CoverServices(_))));
    fixture.planner.applied(plan, &[], fixture.now);
    // What is known of ServiceCIDRs belongs to it.
    fixture.cidrs = ["10.96.0.0/16".parse().unwrap()].into();
    let plan = fixture.plan(&[]);
    assert_eq!(kinds(&plan.prepare), ["PutSourceRanges", "CoverServices"]);
    assert_eq!(covers(&plan.prepare).as_deref(), Some("10.96.0.0/16"));
    fixture.planner.applied(plan, &[], fixture.now);
    fixture.cidrs.clear();
    let plan = fixture.plan(&[]);
    assert_eq!((kinds(&plan.prepare).len(), covers(&plan.switch).as_deref()), (0, Some("10.96.0.4/32")));
}

#[test]
fn udp_endpoints_that_go_are_told_of_and_no_others() {
    let udp = |endpoints: &[u8]| {
        let (key, mut wanted) = desired("a", endpoints);
        let port = &mut wanted.as_mut().unwrap().ports[0];
        port.protocol = Protocol::Udp;
        port.frontends[0].frontend.proto = Protocol::Udp.proto();
        (key, wanted)
    };
    let gone = |first, then| {
        let mut fixture = Fixture::new();
        let plan = fixture.plan(&[first]);
        fixture.planner.applied(plan, &[], fixture.now);
        let retired = fixture.plan(&[then]).retired;
        retired
            .into_iter()
            .map(|retired| (retired.id, retired.generation, retired.address.to_string()))
            .collect::<Vec<_>>()
    };
    assert_eq!(gone(udp(&[1, 2]), udp(&[2, 3])), [(0, 1, "10.1.0.1".to_owned())]);
    assert_eq!(gone(udp(&[1]), (ServiceKey::new("default", "a"), None)).len(), 1);
    assert_eq!(gone(desired("a", &[1]), desired("a", &[])), []);
}

#[test]
fn affinity_and_list_flags_follow_the_lists() {
    let mut fixture = Fixture::new();
    let (key, mut wanted) = desired("a", &[1, 2]);
    let port = &mut wanted.as_mut().unwrap().ports[0];
    port.affinity_seconds = 60;
    port.endpoints[0].local = true;
    port.lists[0].local = vec![0];
    port.frontends[0].inside = List::Local;
    let change = [(key, wanted)];
    let plan = fixture.plan(&change);
    let Some(Op::PutBackends(backends)) = plan.prepare.iter().find(|op| matches!(op, Op::PutBackends(_)))
    else {
        panic!("{:?}", plan.prepare)
    };
    let flags: Vec<_> = backends.iter().map(|(_, backend)| backend.flags).collect();
    let remote = Backend::ACTIVE | Backend::IN_CLUSTER;
    assert_eq!(flags, [remote | Backend::LOCAL | Backend::IN_LOCAL, remote]);
    let value = plan.insert[0].1;
    assert_eq!((value.affinity_seconds, value.flags), (60, ServiceFlags::INSIDE_IS_LOCAL));
    assert_ne!(value.outside, value.inside);
    fixture.planner.applied(plan, &[], fixture.now);
    // An endpoint that leaves the list but serves on loses the flag, not its id.
    let mut change = change;
    let port = &mut change[0].1.as_mut().unwrap().ports[0];
    port.lists[0].cluster = vec![0];
    let plan = fixture.plan(&change);
    let [Op::PutBackends(backends)] = &plan.prepare[..] else { panic!("{:?}", plan.prepare) };
    assert_eq!(backends.len(), 1);
    assert_eq!((backends[0].0, backends[0].1.flags, backends[0].1.generation), (1, Backend::ACTIVE, 1));
    assert_eq!(kinds(&plan.switch), ["PutServices"], "it stays in force for the flows it has");
}

#[test]
fn an_external_address_is_marked_as_long_as_some_service_has_it() {
    let shared = IpAddr::from([203, 0, 113, 9]);
    let service = |name: &str, port| {
        let (key, mut wanted) = desired(name, &[1]);
        let frontends =
            wanted.iter_mut().flat_map(|wanted| &mut wanted.ports).map(|port| &mut port.frontends);
        for frontends in frontends {
            let frontend = Frontend::new(shared, port, Protocol::Tcp);
            let flags = ServiceFlags::EXTERNAL;
            frontends.push(DesiredFrontend { frontend, class: Class::ExternalIp, flags, ..frontends[0] });
        }
        (key, wanted)
    };
    let (a, bb) = (service("a", 80), service("bb", 81));
    let mark = Frontend::external(shared);
    let mut fixture = Fixture::new();
    let plan = fixture.plan(&[a.clone(), bb.clone()]);
    assert_eq!(plan.insert.iter().filter(|(frontend, ..)| *frontend == mark).count(), 1);
    fixture.planner.applied(plan, &[], fixture.now);
    // Two ClusterIPs and two external ones; what stands for an address is none.
    assert_eq!((fixture.planner.frontends(), fixture.planner.service_entries()), (4, [7, 0]));

    // Whoever says so goes, and the other is told to.
    let changed = fixture.claims.update(&a.0, None);
    assert!(changed.services.contains(&bb.0));
    let plan = fixture.plan(&[(a.0, None), bb.clone()]);
    fixture.planner.applied(plan, &[], fixture.now);
    assert!(fixture.planner.published.contains_key(&mark));

    let plan = fixture.plan(&[(bb.0, None)]);
    fixture.planner.applied(plan, &[], fixture.now);
    assert_eq!((fixture.planner.frontends(), fixture.planner.service_entries()), (0, [0, 0]));
}
