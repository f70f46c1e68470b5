//! Datagrams never stay on an endpoint that is gone: senders that hear nothing, and sockets that were connected.
mod lab_support;

use std::time::{Duration, Instant};

use lab_support::{CHANGE, Checks, ECHO, FAMILIES, FAR, Numbered, PACE, Scene, bare, options};
use lb_lab::pod::UDP_PORT;
use lb_lab::{
    AgentOptions, ConversationReport, Endpoint, Family, Layout, Live, Netns, NodeId, PodKind, PourReport,
    Service, SinkReport, SocketLb, XdpMode, at, poll_every,
};

/// After so long nothing may reach an endpoint that is gone.
const GRACE: Duration = Duration::from_secs(1);
/// How long it is watched after that.
const WATCHED: Duration = Duration::from_secs(2);
/// Datagrams a second of each sender.
const RATE: u32 = 1000;

/// A Service and the pods that take turns as its endpoint.
struct Poured {
    service: Service,
    old: &'static str,
    new: &'static str,
}

/// The senders of the test and the pods that receive.
struct Pouring {
    senders: Vec<(String, Live<PourReport>)>,
    sinks: Vec<(&'static str, Live<SinkReport>)>,
}

impl Pouring {
    fn received(&mut self, pod: &str) -> SinkReport {
        let (_, sink) = self.sinks.iter_mut().find(|(name, _)| *name == pod).expect("a sink");
        sink.look().expect("a report")
    }

    fn awaits(&mut self, what: &str, pod: &str, sources: usize) {
        let arrived = poll_every(PACE, what, CHANGE, || {
            let report = self.received(pod);
            // A tenth of a second of every sender.
            let count = report.received.values().filter(|count| **count > u64::from(RATE) / 10).count();
            (count >= sources).then_some(())
        });
        assert!(arrived.is_ok(), "{pod} should hear from {sources} senders {what}: {:?}", self.received(pod));
    }

    /// Nothing arrives at these pods from `GRACE` after `changed` on, though everybody sends.
    fn hears_nothing(&mut self, checks: &mut Checks, what: &str, pods: &[&str], changed: Instant) {
        std::thread::sleep(GRACE.saturating_sub(changed.elapsed()));
        let before: Vec<SinkReport> = pods.iter().map(|pod| self.received(pod)).collect();
        let sent = self.sent();
        std::thread::sleep(WATCHED);
        for (pod, before) in pods.iter().zip(before) {
            let after = self.received(pod);
            checks.holds(what, before == after, || {
                format!("{pod} heard from {:?} and, {WATCHED:?} later, {:?}", before.received, after.received)
            });
        }
        for ((name, now), before) in self.sent().into_iter().zip(sent) {
            let well = now > before.1 + u64::from(RATE);
            checks.holds(what, well, || format!("{name} hardly sends: {} and {now} datagrams", before.1));
        }
    }

    /// What each sender that should go on has tried to send.
    fn sent(&mut self) -> Vec<(String, u64)> {
        let mut sent = Vec::new();
        for (name, sender) in &mut self.senders {
            let report = sender.look().expect("a report");
            sent.push((name.clone(), report.sent + report.errors.values().sum::<u64>()));
        }
        sent
    }
}

#[test]
fn one_way_senders_leave_an_endpoint_that_is_gone() {
    let mut lab = bare(Layout::PointToPoint);
    let poured = [(40, "near", "old-a", "new-a", NodeId::A), (41, "far", "old-b", "new-b", NodeId::B)];
    let poured = poured.map(|(number, name, old, new, node)| {
        for pod in [old, new] {
            lab.add_pod(node, pod, PodKind::Idle).expect("a pod");
        }
        let number = Numbered(number);
        let service = Service::new(name, number.cluster_ip())
            .cluster_ip(number.cluster_ip_of(Family::V6))
            .udp_node_port(ECHO, UDP_PORT, number.node_port(ECHO));
        lab.apply(&service, &[lab.pod(old).into()]).expect("a manifest");
        Poured { service, old, new }
    });
    lab.add_pod(NodeId::A, "visitor", PodKind::Idle).expect("a pod");
    lab.start_agents(&AgentOptions::default()).expect("the agents");
    let mut scene = Scene { lab };
    let mut checks = Checks::new();

    let pods = poured.iter().flat_map(|it| [it.old, it.new]);
    let sinks = pods.map(|pod| (pod, scene.pod(pod).sink(UDP_PORT).expect("a sink"))).collect();
    let mut pouring = Pouring { senders: Vec::new(), sinks };
    let near = Numbered(40);
    for family in FAMILIES.iter().copied() {
        let node = scene.lab.node_ip(NodeId::A, family);
        for (what, from, to) in [
            ("outside", scene.lab.client(), at(node, near.node_port(ECHO))),
            ("a pod", scene.pod("visitor"), at(near.cluster_ip_of(family), ECHO)),
            ("the node", scene.lab.node(NodeId::A), at(near.cluster_ip_of(family), ECHO)),
            ("outside, to the other node", scene.lab.client(), at(node, Numbered(41).node_port(ECHO))),
        ] {
            pouring.senders.push((format!("{what} {family}"), from.pour(to, RATE).expect("a sender")));
        }
    }
    let count = FAMILIES.len();
    pouring.awaits("at first", "old-a", 3 * count);
    pouring.awaits("at first", "old-b", count);

    let apply = |scene: &Scene, pods: &dyn Fn(&Poured) -> Vec<&'static str>| {
        for it in &poured {
            let endpoints: Vec<Endpoint> = pods(it).iter().map(|pod| scene.endpoint(pod)).collect();
            scene.lab.apply(&it.service, &endpoints).expect("a manifest");
        }
        Instant::now()
    };
    let changed = apply(&scene, &|_| vec![]);
    pouring.hears_nothing(&mut checks, "1 to 0", &["old-a", "old-b"], changed);
    let changed = apply(&scene, &|it| vec![it.new]);
    pouring.hears_nothing(&mut checks, "0 to 1", &["old-a", "old-b"], changed);
    // The node's own socket was connected to the old pod, and has been destroyed.
    pouring.awaits("after the change", "new-a", 2 * count);
    pouring.awaits("after the change", "new-b", count);
    for it in &poured {
        scene.lab.withdraw(it.service.name()).expect("the Service to go");
    }
    let all = ["old-a", "old-b", "new-a", "new-b"];
    pouring.hears_nothing(&mut checks, "Service deleted", &all, Instant::now());
    checks.finish(&mut scene);
}

/// A conversation, and what must become of it.
struct Talk<'a> {
    what: String,
    from: &'a Netns,
    connected: bool,
    /// Its socket is connected to the endpoint itself, by a socket hook.
    destroyed: bool,
    live: Live<ConversationReport>,
}

#[test]
fn sockets_leave_an_endpoint_that_is_gone() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Native, SocketLb::Host));
    let mut checks = Checks::new();
    let talked = Numbered(42);
    let service = talked.service("talk");
    scene.lab.apply(&service, &[scene.endpoint("a1")]).expect("a manifest");
    let (node, visitor) = (scene.lab.node(NodeId::A), scene.pod("visitor"));
    let (mut talks, mut others) = (Vec::new(), Vec::new());
    for family in FAMILIES.iter().copied() {
        let to = at(talked.cluster_ip_of(family), ECHO);
        lab_support::eventually("the Service", || node.udp(to, 1).is_ok_and(|report| report.answered() == 1));
        let node_port = at(scene.lab.node_ip(NodeId::A, family), talked.node_port(ECHO));
        // Connected to a ClusterIP, a socket of the node is left to the programs on its packets' way.
        for (from, to, connected, destroyed) in [
            (node, to, true, false),
            (node, to, false, false),
            (node, node_port, true, true),
            (visitor, to, true, false),
            (visitor, to, false, false),
        ] {
            let kind = if connected { "connected" } else { "unconnected" };
            let what = format!("{kind} socket of {} to {to}", from.name());
            let live = from.converse(to, connected).expect("a conversation");
            talks.push(Talk { what, from, connected, destroyed, live });
        }
        // These have nothing to do with it and must not notice.
        let pod = at(scene.lab.pod("a1").ip(family), UDP_PORT);
        for to in [at(FAR.cluster_ip_of(family), ECHO), pod] {
            others.push((to, node.converse(to, true).expect("a conversation")));
        }
    }
    let mut reaches = |pod: &str| {
        for talk in &mut talks {
            let mut last = None;
            let reached = poll_every(PACE, "an answer", CHANGE, || {
                let report = talk.live.look().expect("a report");
                let found = (report.last == pod).then(|| report.clone());
                last = Some(report);
                found
            });
            checks.holds(&talk.what, reached.is_ok(), || format!("{pod} should answer last: {last:?}"));
        }
    };
    reaches("a1");
    // The pod lives on and would answer.
    scene.lab.apply(&service, &[scene.endpoint("b1")]).expect("a manifest");
    reaches("b1");
    for talk in &mut talks {
        let report = talk.live.look().expect("a report");
        let sockets = if talk.destroyed { 2 } else { 1 };
        let well = report.sockets == sockets && report.errors.is_empty() != talk.destroyed;
        checks.holds(&talk.what, well, || {
            let (connected, from) = (talk.connected, talk.from.name());
            format!("{sockets} sockets should do (connected: {connected}, from {from}): {report:?}")
        });
    }
    for (to, other) in &mut others {
        let report = other.look().expect("a report");
        let well = report.sockets == 1 && report.errors.is_empty() && !report.answers.is_empty();
        checks.holds("sockets of others", well, || format!("to {to}: {report:?}"));
    }
    drop((talks, others));
    checks.finish(&mut scene);
}

/// What is kept of TCP's sockets, which are many, drives out nothing of UDP's, which have to be found.
#[test]
fn tcp_sockets_take_no_room_from_udp_sockets() {
    let mut scene = Scene::new(Layout::PointToPoint, &options(XdpMode::Off, SocketLb::Host));
    for family in FAMILIES.iter().copied() {
        let remembered = |scene: &mut Scene| {
            let metrics = scene.lab.agent(NodeId::A).metrics().expect("metrics");
            let entries = metrics.lines().find_map(|line| {
                line.strip_prefix("shunt_map_entries{map=\"SOCKET_PEERS\"} ")?.parse::<f64>().ok()
            });
            entries.expect("a metric of the map") as u64
        };
        let to = at(FAR.cluster_ip_of(family), ECHO);
        lab_support::eventually("the Service", || {
            scene.lab.node(NodeId::A).tcp(to, 1).is_ok_and(|report| report.answered() == 1)
        });
        let before = remembered(&mut scene);
        // (Each client sees that getpeername says what it asked for.)
        let report = scene.lab.node(NodeId::A).tcp(to, 20).expect("a report");
        assert_eq!(report.answered(), 20, "{report:?}");
        assert_eq!(remembered(&mut scene), before, "after TCP over {family}");
        let report = scene.lab.node(NodeId::A).udp_unconnected(to, 1, 42_000).expect("a report");
        assert_eq!(report.answered(), 1, "{report:?}");
        assert!(remembered(&mut scene) > before, "after UDP over {family}");
    }
}
