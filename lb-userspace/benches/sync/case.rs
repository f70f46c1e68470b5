//! One case: a cluster comes up, then single endpoints are replaced.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_common::abi::Frontend4;
use lb_common::addr::{Port, Proto};
use lb_control::model::{Kind, Problem, Severity};
use lb_control::network::NodeAddresses;
use lb_control::reconcile::{self, Reconciler, Status};
use lb_control::source::Event;
use lb_kernel::maps::store::BpfStore;
use tokio::sync::{mpsc, watch};

use crate::memory;
use crate::objects;
use crate::pinned::PinnedMaps;
use crate::report::{Figure, at};

/// Longest wait for the maps to hold something.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster and how often it changes.
#[derive(Clone, Debug)]
pub struct Case {
    services: usize,
    endpoints: usize,
    changes: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.services, self.endpoints, self.changes)
    }
}

impl Case {
    /// The inverse of `Display`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let numbers: Vec<usize> = text.split(',').filter_map(|number| number.parse().ok()).collect();
        let [services, endpoints, changes] = numbers[..] else { return Err("three numbers".into()) };
        Ok(Self { services, endpoints, changes })
    }

    /// What is measured unless something else is asked for.
    pub fn usual(all: bool, changes: usize) -> Vec<Self> {
        let mut cases = Self::all(&[1, 100, 1_000, 10_000], &[10], changes);
        if all {
            cases.extend(Self::all(&[10_000], &[25], changes));
        }
        cases.push(Self { services: 1, endpoints: 10_000, changes: changes.min(300) });
        cases
    }

    /// Every number of Services with every number of endpoints.
    pub fn all(services: &[usize], endpoints: &[usize], changes: usize) -> Vec<Self> {
        let of = |services: usize| {
            endpoints.iter().map(move |endpoints| Self { services, endpoints: *endpoints, changes })
        };
        services.iter().flat_map(|services| of(*services)).collect()
    }

    /// For people.
    pub fn name(&self) -> String {
        let services = if self.services == 1 { "Service" } else { "Services" };
        format!("library: {} {services} x {} endpoints", grouped(self.services), grouped(self.endpoints))
    }

    /// Its start alone.
    pub fn without_changes(&self) -> Self {
        Self { changes: 0, ..self.clone() }
    }

    fn is_large(&self) -> bool {
        self.services == 10_000 && self.endpoints == 10
    }

    fn is_long(&self) -> bool {
        self.endpoints >= 10_000
    }
}

/// With a space before the thousands.
fn grouped(number: usize) -> String {
    if number < 1000 { number.to_string() } else { format!("{} {:03}", number / 1000, number % 1000) }
}

/// Measures a case in this process.
pub fn run(case: &Case) -> Vec<Figure> {
    let pinned = match PinnedMaps::new() {
        Ok(pinned) => pinned,
        Err(error) => {
            eprintln!("cannot make maps: {error}");
            std::process::exit(1);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(measure(case, &pinned)),
        Err(error) => {
            eprintln!("cannot start threads: {error}");
            std::process::exit(1);
        }
    }
}

/// A reconcile loop as the agent runs it.
struct Loop {
    events: mpsc::Sender<Event>,
    status: watch::Receiver<Status>,
    _addresses: watch::Sender<NodeAddresses>,
}

impl Loop {
    fn start(pinned: &PinnedMaps) -> Self {
        let store = BpfStore::new(pinned.maps.clone(), pinned.config.clone());
        let reconciler = Reconciler::new(reconcile::Config::new("node-001", Some(1)), Box::new(store));
        let (events, receiver) = mpsc::channel(1024);
        let own: IpAddr = Ipv4Addr::new(192, 0, 2, 10).into();
        let addresses = NodeAddresses {
            node_ports: [own].into_iter().collect(),
            own: vec![own],
            ..NodeAddresses::default()
        };
        let (_addresses, node_addresses) = watch::channel(addresses);
        let (sender, status) = watch::channel(Status::default());
        let (_, listeners) = watch::channel(Arc::default());
        let inputs = reconcile::Inputs { events: receiver, node_addresses, listeners };
        tokio::spawn(reconcile::run(reconciler, inputs, sender, std::future::pending()));
        Self { events, status, _addresses }
    }

    async fn send(&self, event: Event) {
        self.events.send(event).await.expect("the loop runs");
    }

    /// Waits for the next success after the `syncs`th.
    async fn in_force(&mut self, syncs: u64) -> Status {
        let done = self.status.wait_for(|status| status.syncs > syncs && status.queued_since.is_none());
        let status = tokio::time::timeout(PATIENCE, done).await.expect("in time").expect("the loop runs");
        assert_eq!(status.error, None);
        status.clone()
    }

    fn syncs(&self) -> u64 {
        self.status.borrow().syncs
    }
}

async fn measure(case: &Case, pinned: &PinnedMaps) -> Vec<Figure> {
    let mut figures = Figures(Vec::new());
    memory::forget_peak().expect("the peak can be reset");
    figures.add("resident before", memory::status("VmRSS"), "MiB", None);
    let mut agent = Loop::start(pinned);
    let processor = memory::processor_time();
    arrive(case, &agent).await;
    // Comes after the lists: when it is known they are converted.
    let mark = Problem::of_source(Severity::Notice, "the lists have come");
    agent.send(Event::Problems(vec![mark])).await;
    agent.status.wait_for(|status| !status.problems.is_empty()).await.expect("the loop runs");
    agent.send(Event::Problems(Vec::new())).await;
    agent.status.wait_for(|status| status.problems.is_empty()).await.expect("the loop runs");
    let making = memory::processor_time() - processor;
    figures.add("lists, CPU with making the objects", making.as_secs_f64(), "s", None);
    figures.add("resident with the lists", memory::status("VmRSS"), "MiB", None);
    let processor = memory::processor_time();
    let began = Instant::now();
    agent.send(Event::Synced).await;
    let status = agent.in_force(0).await;
    let took = began.elapsed();
    let large = |want: f64| case.is_large().then_some(want);
    figures.add("cold start, lists to maps", took.as_secs_f64(), "s", large(1.0));
    let total = memory::processor_time() - processor;
    figures.add("cold start, CPU", total.as_secs_f64(), "s", None);
    figures.add("resident, peak", memory::status("VmHWM"), "MiB", large(150.0));
    assert_eq!(status.problems.len(), 0, "{:?}", status.problems.first());
    assert_eq!(status.stats.services, case.services);
    assert_eq!(status.stats.backends, case.services * case.endpoints);
    if case.changes > 0 {
        change(case, pinned, &mut agent, &mut figures).await;
    }
    figures.add("resident after", memory::status("VmRSS"), "MiB", large(150.0));
    figures.add("resident after, own memory alone", memory::status("RssAnon"), "MiB", None);
    let maps = memory::maps(&pinned.pins).expect("maps can be measured");
    figures.add("maps", maps.iter().map(|(_, size)| size).sum(), "MiB", large(200.0));
    for (name, size) in maps.iter().take(6) {
        figures.add(&format!("map {name}"), *size, "MiB", None);
    }
    figures.0
}

/// What has been measured so far.
struct Figures(Vec<Figure>);

impl Figures {
    fn add(&mut self, what: &str, value: f64, unit: &str, want: Option<f64>) {
        self.add_range(what, value, None, unit, want);
    }

    fn add_range(
        &mut self,
        what: &str,
        value: f64,
        range: Option<(f64, f64)>,
        unit: &str,
        want: Option<f64>,
    ) {
        let (low, high) = range.unzip();
        let problem = value.is_nan().then(|| format!("{what} cannot be read"));
        self.0.push(Figure { what: what.into(), value, low, high, unit: unit.into(), want, problem });
    }
}

/// Lists come as the Kubernetes source tells them.
async fn arrive(case: &Case, agent: &Loop) {
    agent.send(Event::ListBegun(Kind::Service)).await;
    for service in 0..case.services {
        agent.send(Event::Listed(objects::service(service))).await;
    }
    agent.send(Event::ListEnded(Kind::Service)).await;
    agent.send(Event::ListBegun(Kind::EndpointSlice)).await;
    for service in 0..case.services {
        for i in 0..objects::slices(case.endpoints) {
            agent.send(Event::Listed(objects::slice(service, i, case.endpoints, 0))).await;
        }
    }
    agent.send(Event::ListEnded(Kind::EndpointSlice)).await;
}

/// Replaces one endpoint after the other, each in another Service.
async fn change(case: &Case, pinned: &PinnedMaps, agent: &mut Loop, figures: &mut Figures) {
    let mut latencies = Vec::new();
    let mut processor = Duration::ZERO;
    for i in 0..case.changes {
        let service = i * 7_919 % case.services;
        let turn = i / case.services + 1;
        let event = Event::Applied(objects::slice(service, 0, case.endpoints, turn));
        let syncs = agent.syncs();
        let (began, before) = (Instant::now(), memory::processor_time());
        agent.send(event).await;
        agent.in_force(syncs).await;
        latencies.push(began.elapsed().as_secs_f64() * 1000.0);
        processor += memory::processor_time() - before;
        verify(pinned, service, objects::endpoint_address(service, 0, turn));
    }
    latencies.sort_by(f64::total_cmp);
    let of = |share| at(&latencies, share);
    let want = if case.is_long() { Some(100.0) } else { case.is_large().then_some(10.0) };
    figures.add_range("endpoint replaced, event to maps", of(0.5), Some((of(0.25), of(0.75))), "ms", None);
    figures.add("endpoint replaced, event to maps, p99", of(0.99), "ms", want);
    figures.add("endpoint replaced, event to maps, longest", of(1.0), "ms", None);
    let each = processor.as_secs_f64() * 1000.0 / case.changes as f64;
    figures.add("endpoint replaced, CPU", each, "ms", case.is_large().then_some(5.0));
}

/// The ring of a Service leads to an endpoint.
fn verify(pinned: &PinnedMaps, service: usize, endpoint: [u8; 4]) {
    let [a, b, c, d] = objects::cluster_ip(service);
    let frontend = Frontend4::new(Ipv4Addr::new(a, b, c, d).into(), Port::new(80), Proto::TCP);
    let value = pinned.maps.services4.get(&frontend).expect("readable").expect("served");
    let ids = pinned.maps.rings.read(value.outside.offset, value.outside.length).expect("readable");
    let mut ids: Vec<_> = ids.into_iter().collect();
    ids.sort_unstable();
    ids.dedup();
    let wanted = IpAddr::from(endpoint);
    let leads = ids.iter().any(|id| {
        let backend = pinned.maps.backends.get(id).expect("readable");
        backend.is_some_and(|backend| backend.is_active() && IpAddr::from(backend.address) == wanted)
    });
    assert!(leads, "the ring of Service {service} does not lead to {wanted}");
}
