//! /metrics: every name and label in one place.
//!
//! Most values are read from the kernel's maps when they are asked for; few are kept here.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lb_common::abi::{Traffic, maps as names};
use lb_control::model::{Family, Problem, Severity};
use lb_control::reconcile::Status;
use lb_control::source::ConnectionErrors;
use lb_kernel::links::State;
use lb_kernel::maps::counters::{self, Outcome};
use lb_kernel::maps::size::{self, MapSize};
use lb_kernel::maps::{MapInfo, Maps, flows};
use lb_kernel::pin::PinDir;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::warn;

use crate::recorder::Recorder;

mod kube_proxy;
#[cfg(test)]
mod tests;

use kube_proxy::KubeProxy;

/// The flow table is walked this often at most.
const FLOWS_EVERY: Duration = Duration::from_secs(10);

/// Content type of the OpenMetrics text format.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// By family, protocol and state.
type FlowCounts = BTreeMap<(&'static str, &'static str, &'static str), u64>;

/// What /metrics is made from.
#[derive(Debug)]
pub struct Metrics {
    maps: Arc<Maps>,
    pins: PinDir,
    status: watch::Receiver<Status>,
    attached: watch::Receiver<State>,
    wrong: watch::Receiver<Arc<[Problem]>>,
    recorder: Recorder,
    connection_errors: ConnectionErrors,
    flows: Mutex<Option<(Instant, FlowCounts)>>,
}

impl Metrics {
    /// Reads `maps` and what the loops publish. Call from within a tokio runtime.
    pub fn new(
        maps: Arc<Maps>,
        pins: PinDir,
        status: watch::Receiver<Status>,
        attached: watch::Receiver<State>,
        wrong: watch::Receiver<Arc<[Problem]>>,
        recorder: Recorder,
        connection_errors: ConnectionErrors,
    ) -> Arc<Self> {
        tokio::spawn(observe(status.clone(), recorder.clone()));
        let flows = Mutex::new(None);
        Arc::new(Self { maps, pins, status, attached, wrong, recorder, connection_errors, flows })
    }

    /// Everything as text.
    pub fn encode(&self) -> String {
        let status = self.status.borrow().clone();
        let snapshot = Snapshot {
            outcomes: or_warn("COUNTERS", counters::outcomes(&self.maps)),
            services: or_warn("SERVICE_TRAFFIC", self.services()),
            flows: or_warn("flows", self.flow_counts()),
            maps: or_warn("maps", self.usage()),
            sizes: or_warn("maps", size::maps(&self.pins)),
            problems: problems(&self.wrong.borrow()),
            sync: Sync::of(&status),
            troubles: self.attached.borrow().troubles.len() as u64,
            interfaces: self.attached.borrow().interfaces as u64,
            left_out: self.attached.borrow().left_out.len() as u64,
            host_rules: self.attached.borrow().host_rules as u64,
            kept: self.attached.borrow().kept,
            sockets_destroyed: self.recorder.sockets_destroyed(),
            connection_errors: self.connection_errors.total(),
        };
        let kube_proxy = KubeProxy {
            recorder: self.recorder.clone(),
            last_sync: snapshot.sync.last,
            no_local_endpoints: status.stats.no_local_endpoints,
        };
        encode(snapshot, kube_proxy)
    }

    fn services(&self) -> io::Result<Vec<(Port, Traffic)>> {
        let names = self.maps.service_names.entries()?;
        let mut services = Vec::with_capacity(names.len());
        for (id, name) in names {
            let port = Port {
                namespace: name.namespace.as_str().to_owned(),
                service: name.name.as_str().to_owned(),
                port: port_label(name.port.as_str(), name.proto),
            };
            services.push((port, counters::traffic(&self.maps, id)?));
        }
        services.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(services)
    }

    fn flow_counts(&self) -> io::Result<FlowCounts> {
        // A panic while the lock was held leaves a count that is merely old.
        let mut cached = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match &*cached {
            Some((at, counts)) if now.duration_since(*at) < FLOWS_EVERY => Ok(counts.clone()),
            _ => {
                let at = flows::now();
                let v4 = self.maps.flows4.count_by_state(at)?.into_iter().map(|count| (Family::V4, count));
                let v6 = self.maps.flows6.count_by_state(at)?.into_iter().map(|count| (Family::V6, count));
                let labelled = |(family, ((proto, state), count)): (Family, (_, u64))| {
                    ((family.label(), proto, state), count)
                };
                let counts: FlowCounts = v4.chain(v6).map(labelled).collect();
                *cached = Some((now, counts.clone()));
                Ok(counts)
            }
        }
    }

    fn usage(&self) -> io::Result<Vec<Usage>> {
        let stats = self.status.borrow().stats;
        let maps = &self.maps;
        let usage = |map, entries: usize, capacity: usize| Usage {
            map,
            entries: entries as u64,
            capacity: capacity as u64,
        };
        let room = |info: &MapInfo| info.max_entries as usize;
        let flows = self.flow_counts()?;
        let flows = |family: Family| {
            flows.iter().filter(|((of, ..), _)| *of == family.label()).map(|(_, count)| count).sum::<u64>()
                as usize
        };
        Ok(vec![
            usage(names::SERVICES4, stats.service_entries[0], room(maps.services4.info())),
            usage(names::SERVICES6, stats.service_entries[1], room(maps.services6.info())),
            usage(names::BACKENDS, stats.backends, room(maps.backends.info())),
            usage(names::RINGS, stats.ring_slots as usize, maps.rings.slots()),
            usage(names::SERVICE_NAMES, maps.service_names.count()?, room(maps.service_names.info())),
            usage(names::INTERFACES, maps.interfaces.count()?, room(maps.interfaces.info())),
            usage(names::SOURCE_RANGES, stats.source_ranges, room(maps.source_ranges.info())),
            usage(names::SOCKET_PEERS, maps.socket_peers.count()?, room(maps.socket_peers.info())),
            usage(names::FLOWS4, flows(Family::V4), maps.flows4.capacity()),
            usage(names::FLOWS6, flows(Family::V6), maps.flows6.capacity()),
        ])
    }
}

/// What cannot be read is left out, and said.
fn or_warn<T: Default>(what: &str, result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| {
        warn!(map = what, %error, "cannot be read for /metrics");
        T::default()
    })
}

/// A port without a name goes by its protocol.
fn port_label(name: &str, proto: u8) -> String {
    if name.is_empty() { flows::proto_label(lb_common::addr::Proto(proto)) } else { name.to_owned() }
}

/// Takes down what the loop around the reconciler does.
async fn observe(mut status: watch::Receiver<Status>, recorder: Recorder) {
    let mut seen = 0;
    let mut queued = None;
    while status.changed().await.is_ok() {
        let now = status.borrow_and_update().clone();
        let count = now.syncs + now.failures;
        if count != seen {
            seen = count;
            recorder.synced(now.last_duration, now.stats.changed_services >= now.stats.services);
        }
        if now.queued_since.is_none() && now.last_success.is_some() {
            recorder.all_applied();
        }
        if now.queued_since.is_some() && now.queued_since != queued {
            recorder.queued(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        }
        queued = now.queued_since;
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Port {
    namespace: String,
    service: String,
    port: String,
}

#[derive(Clone, Copy, Debug)]
struct Usage {
    map: &'static str,
    entries: u64,
    capacity: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sync {
    succeeded: u64,
    failed: u64,
    /// Seconds since 1970; 0 before the first.
    last: f64,
    synced: bool,
}

impl Sync {
    fn of(status: &Status) -> Self {
        let at = status.last_success.and_then(|at| SystemTime::now().checked_sub(at.elapsed()));
        let last =
            at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0.0, |since| since.as_secs_f64());
        Self { succeeded: status.syncs, failed: status.failures, last, synced: status.synced }
    }
}

fn problems(problems: &[Problem]) -> Vec<(Severity, u64)> {
    [Severity::Notice, Severity::Warning, Severity::Error]
        .into_iter()
        .map(|severity| (severity, problems.iter().filter(|p| p.severity == severity).count() as u64))
        .collect()
}

/// All values of one moment.
#[derive(Clone, Debug, Default)]
struct Snapshot {
    outcomes: Vec<Outcome>,
    services: Vec<(Port, Traffic)>,
    flows: FlowCounts,
    maps: Vec<Usage>,
    /// Bytes by map.
    sizes: Vec<MapSize>,
    problems: Vec<(Severity, u64)>,
    sync: Sync,
    troubles: u64,
    interfaces: u64,
    left_out: u64,
    host_rules: u64,
    kept: u64,
    sockets_destroyed: u64,
    connection_errors: u64,
}

fn encode(snapshot: Snapshot, kube_proxy: KubeProxy) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(kube_proxy));
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = text::encode(&mut text, &registry);
    text
}

/// Labels whose names are known and whose values are borrowed.
struct Labels<'a>(&'a [(&'static str, &'a str)]);

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

/// Writes families of one encoder.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn counters<'l, L: AsRef<[(&'static str, &'l str)]>>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            let none: Option<&Exemplar<Vec<(String, String)>, f64>> = None;
            match labels.as_ref() {
                [] => family.encode_counter(&value, none)?,
                labels => family.encode_family(&Labels(labels))?.encode_counter(&value, none)?,
            }
        }
        Ok(())
    }

    fn gauges<'l, L: AsRef<[(&'static str, &'l str)]>>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            match labels.as_ref() {
                [] => family.encode_gauge(&value)?,
                labels => family.encode_family(&Labels(labels))?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }
}

const NO_LABELS: [(&str, &str); 0] = [];

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.encode_traffic(&mut writer)?;
        self.encode_state(&mut writer)?;
        self.encode_sync(&mut writer)
    }
}

impl Snapshot {
    fn encode_traffic(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.counters(
            "shunt_packets",
            "Packets and socket calls by the program that saw them and what became of them",
            self.outcomes.iter().map(|o| ([("hook", o.hook.label()), ("reason", o.reason.label())], o.count)),
        )?;
        type Pick = fn(&Traffic) -> u64;
        let values: [(&str, &str, Pick); 3] = [
            ("shunt_service_flows", "Flows begun to a port of a Service, socket calls included", |t| t.flows),
            ("shunt_service_packets", "Packets of a port of a Service, both directions", |t| t.packets),
            (
                "shunt_service_bytes",
                "Bytes of a port of a Service, both directions, link layer included",
                |t| t.bytes,
            ),
        ];
        for (name, help, pick) in values {
            writer.counters(
                name,
                help,
                self.services.iter().map(|(port, traffic)| {
                    let labels = [
                        ("namespace", port.namespace.as_str()),
                        ("service", port.service.as_str()),
                        ("port", port.port.as_str()),
                    ];
                    (labels, pick(traffic))
                }),
            )?;
        }
        Ok(())
    }

    fn encode_state(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.gauges(
            "shunt_flows",
            "Live flows by state, counted every 10 s at most",
            self.flows.iter().map(|((family, proto, state), count)| {
                ([("ip_family", *family), ("proto", *proto), ("state", *state)], *count as f64)
            }),
        )?;
        let maps = |pick: fn(&Usage) -> u64| {
            self.maps.iter().map(move |usage| ([("map", usage.map)], pick(usage) as f64))
        };
        writer.gauges("shunt_map_entries", "Entries in use of a map", maps(|usage| usage.entries))?;
        writer.gauges("shunt_map_capacity", "Entries a map has room for", maps(|usage| usage.capacity))?;
        writer.gauges(
            "shunt_map_bytes",
            "Memory of a map",
            self.sizes.iter().map(|map| ([("map", map.name.as_str())], map.bytes as f64)),
        )?;
        writer.gauges(
            "shunt_problems",
            "Things wrong with the objects given, by how bad they are",
            self.problems.iter().map(|(severity, count)| ([("severity", severity.label())], *count as f64)),
        )?;
        writer.gauges(
            "shunt_interfaces",
            "Interfaces with programs of ours",
            [(NO_LABELS, self.interfaces as f64)],
        )?;
        writer.gauges(
            "shunt_interfaces_left_out",
            "Interfaces that packets for Services may come in by, but whose frames cannot be read",
            [(NO_LABELS, self.left_out as f64)],
        )?;
        writer.gauges(
            "shunt_host_rules",
            "Chains and tables of the host's own packet filter that packets of Services do not meet as with kube-proxy",
            [(NO_LABELS, self.host_rules as f64)],
        )?;
        writer.counters(
            "shunt_keeper_interfaces",
            "Interfaces that the keeper had served when the agent came to it",
            [(NO_LABELS, self.kept)],
        )?;
        writer.gauges(
            "shunt_interface_troubles",
            "Interfaces and socket hooks that are not served as they should be",
            [(NO_LABELS, self.troubles as f64)],
        )
    }

    fn encode_sync(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.counters(
            "shunt_syncs",
            "Times the maps were brought to what the API says",
            [([("result", "success")], self.sync.succeeded), ([("result", "failure")], self.sync.failed)],
        )?;
        writer.gauges(
            "shunt_synced",
            "1 once Services and EndpointSlices have been listed completely",
            [(NO_LABELS, f64::from(u8::from(self.sync.synced)))],
        )?;
        writer.gauges(
            "shunt_sync_last_timestamp_seconds",
            "When the maps last took all there was",
            [(NO_LABELS, self.sync.last)],
        )?;
        writer.counters(
            "shunt_api_connection_errors",
            "Requests to the API server that got no answer",
            [(NO_LABELS, self.connection_errors)],
        )?;
        writer.counters(
            "shunt_sockets_destroyed",
            "Connected UDP sockets destroyed because their endpoint is gone",
            [(NO_LABELS, self.sockets_destroyed)],
        )?;
        writer.gauges(
            "shunt_build_info",
            "1, labelled with the release",
            [([("version", env!("CARGO_PKG_VERSION"))], 1.0)],
        )
    }
}
