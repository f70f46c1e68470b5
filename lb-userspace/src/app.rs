//! Wires the agent together.

use std::sync::Arc;

use lb_control::model::Problem;
use lb_control::reconcile::{self, Reconciler, Status};
use lb_control::source::{self, kubernetes_events};
use lb_health::{Health, http, service};
use lb_kernel::links::interfaces::Interfaces;
use lb_kernel::links::{Hooks, State};
use lb_kernel::maps::config::ConfigMap;
use lb_kernel::maps::store::BpfStore;
use lb_kernel::maps::{Access, InterfaceMaps, Maps};
use lb_kernel::net::{nf_tables, watch as network};
use lb_kernel::pin::{Lock, PinDir, PinError};
use lb_kernel::programs::note::Noter;
use lb_kernel::programs::{checks, load, log};
use lb_kernel::sys;
use lb_telemetry::metrics::Metrics;
use lb_telemetry::recorder::Recorder;
use lb_telemetry::{logs, problems};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::args::agent::SocketLb;
use crate::args::config::{DetectLocal, Surroundings};
use crate::args::{AgentArgs, Config};
use crate::exit::Error;

mod attach;
mod clients;
mod connections;
mod existing;
mod host_rules;
mod keeper;
mod listeners;
mod node_packets;
mod pages;
mod sockets;
mod takeovers;
mod uplinks;

use attach::Attachment;
use host_rules::Translator;
use keeper::Keeper;

/// Threads of the runtime: the work comes in bursts and is small.
const THREADS: usize = 2;

/// `shunt agent`: checks everything, then runs until it is told to stop.
///
/// What it attached stays attached when it ends: traffic flows on, and the next agent takes over.
pub fn agent(args: AgentArgs) -> Result<(), Error> {
    let (args, notes) = args.with_files()?;
    let config = args.validate(&Surroundings::read())?;
    logs::init(config.log_format.into(), &config.log_level);
    for note in notes {
        if note.doubtful { warn!("{}", note.text) } else { info!("{}", note.text) }
    }
    if config.detect_local == DetectLocal::Nobody && !config.masquerade_all {
        info!(
            "the pods' range is not known, so clients from elsewhere that reach a ClusterIP through this node are not \
             masqueraded; name it with --cluster-cidr, or see --detect-local-mode"
        );
    }
    checks::kernel()?;
    checks::capabilities()?;
    checks::bpffs(&config.bpffs)?;
    std::fs::create_dir_all(&config.bpffs)
        .map_err(|source| PinError::Io { path: config.bpffs.clone(), source })?;
    let _lock = Lock::take(&config.bpffs)?;
    sys::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "cannot start the runtime".into(), source })?;
    let bpffs = config.bpffs.clone();
    let outcome = runtime.block_on(run(config));
    // The keeper ends with what has started it.
    drop(runtime);
    if outcome.is_err() {
        // A start that failed before anything was pinned leaves nothing behind; a directory with pins in it stays.
        let _ = std::fs::remove_dir(bpffs);
    }
    outcome
}

async fn run(config: Config) -> Result<(), Error> {
    // Installed first: a signal that comes early must not leave half of the work done.
    let stopped = stop_signal()?;
    let cgroup = match config.socket_lb {
        SocketLb::Off => None,
        SocketLb::Host | SocketLb::All => Some(checks::cgroup(config.cgroup.as_deref())?),
    };
    let source = source::spawn(config.source.clone()).await?;
    let network = network::spawn().await?;
    uplinks::check(&network.borrow(), &config.selection)?;

    let pins = PinDir::new(&config.bpffs);
    let settings = load::Settings { pins: pins.clone(), flow_sets: config.flow_sets.map(u32::from) };
    // The verifier takes its time on a busy machine.
    info!("loading the programs");
    let mut loaded = load::load(&settings)?;
    log::forward(&mut loaded);
    let failed = |source| Error::System { what: "no descriptors are left".into(), source };
    let noter = Noter::new(&loaded).map_err(failed)?;
    // Opened once: each mapping of the arrays counts towards the agent's memory.
    let maps = Arc::new(Maps::open(&pins, Access::Write)?);

    let unreadable = |map| move |source| Error::Map { map, source };
    let config_map = ConfigMap::open(maps.clone()).map_err(unreadable("CONFIG"))?;
    let took_over = maps.service_names.count().map_err(unreadable("SERVICE_NAMES"))? > 0;

    let (status_tx, status) = watch::channel(Status::default());
    let facts = attach::Facts::of(&config, &maps)?;
    let interface_maps = InterfaceMaps::open(&pins)?;
    let interfaces = Interfaces::new(
        Hooks::new(pins.clone(), loaded),
        interface_maps,
        config.xdp_mode,
        config.xdp_forward,
    );
    let translator = Translator::new(config.host_rules, maps.clone());
    // Until here the keeper of an earlier agent has served what was new.
    let keeper = Keeper::in_place_of_an_earlier_one(&config.bpffs, config.keeper.clone());
    let mut attachment =
        Attachment::new(interfaces, config_map.clone(), facts, cgroup, pins.clone(), translator, keeper);
    let host_rules = nf_tables::follow();
    attachment.take_in_host_rules(&host_rules.borrow());
    attachment.apply(&network.borrow().clone());
    let addresses = attachment.addresses();
    let attached = attachment.state();
    tokio::spawn(attachment.follow(network, status.clone(), host_rules));
    tokio::spawn(clients::follow(maps.clone(), config_map.clone()));

    let recorder = Recorder::default();
    let mut settings = reconcile::Config::new(&config.node_name, config.hash_seed);
    settings.has_nodes = matches!(config.source, source::Config::Kubernetes { .. });
    settings.external_ips = config.external_ips.clone();
    settings.service_cidrs = config.service_cidrs.clone();
    settings.pod_ranges = config.pod_ranges.clone();
    settings.api_servers = source.api_servers.clone();
    settings.observer = Arc::new(recorder.clone());
    settings.give_back_memory = sys::give_back_memory;
    let sweeper = sockets::spawn(maps.clone(), config.socket_lb, status.clone(), recorder.clone());
    let failed = |source| Error::System { what: "cannot start a thread".into(), source };
    settings.retired = Some(sweeper.map_err(failed)?);
    let (opened, new_frontends) = mpsc::unbounded_channel();
    settings.opened = Some(opened);
    tokio::spawn(existing::follow(noter, new_frontends, addresses.clone()));
    let reconciler = Reconciler::new(settings, Box::new(BpfStore::new(maps.clone(), config_map)));
    let (stop, stopping) = watch::channel(false);
    let wait = stopped_of(stopping.clone());
    let (listeners_tx, listeners) = watch::channel(Arc::default());
    tokio::spawn(listeners::follow(status.clone(), listeners_tx));
    let inputs = reconcile::Inputs { events: source.events, node_addresses: addresses.clone(), listeners };
    let reconciler = tokio::spawn(reconcile::run(reconciler, inputs, status_tx, wait));

    let health = Health::new(status.clone(), attached.clone(), took_over, recorder.clone());
    let (checks_tx, checks) = watch::channel(Vec::new());
    let checks_task =
        service::serve(health.clone(), config.node_name.clone(), status.clone(), addresses, checks_tx);
    tokio::spawn(checks_task);
    let (takeovers_tx, takeovers) = watch::channel(Vec::new());
    tokio::spawn(takeovers::follow(status.clone(), takeovers_tx));
    let wrong = problems::merge(status.clone(), [checks, takeovers]);
    tokio::spawn(problems::follow(wrong.clone()));
    if let Some(client) = source.client {
        let of = |problems: &Arc<[Problem]>| problems.to_vec();
        tokio::spawn(kubernetes_events::report(client, config.node_name.clone(), wrong.clone(), of));
    }
    let metrics =
        Metrics::new(maps, pins, status.clone(), attached.clone(), wrong, recorder, source.connection_errors);
    if let Some(address) = config.healthz {
        tokio::spawn(http::serve(address, "healthz-bind-address", lb_health::routes(health.clone())));
    }
    if let Some(address) = config.metrics {
        tokio::spawn(http::serve(address, "metrics-bind-address", pages::metrics(health, metrics)));
    }
    tokio::spawn(announce(status, attached));

    let signal = stopped.await;
    info!(signal, "stopping; programs, links and maps stay, so traffic flows on");
    stop.send_replace(true);
    if let Err(error) = reconciler.await {
        warn!(%error, "the reconcile loop had ended badly");
    }
    Ok(())
}

/// Says `ready` once, when interfaces are attached and the maps hold what the source first listed.
async fn announce(mut status: watch::Receiver<Status>, mut attached: watch::Receiver<State>) {
    let synced = status.wait_for(|status| status.last_success.is_some()).await.is_ok();
    if synced && attached.wait_for(State::is_ready).await.is_ok() {
        let stats = status.borrow().stats;
        info!(
            services = stats.services,
            backends = stats.backends,
            interfaces = attached.borrow().interfaces,
            "ready"
        );
    }
}

async fn stopped_of(mut stopping: watch::Receiver<bool>) {
    // A sender that is gone means the agent is ending too.
    drop(stopping.wait_for(|stop| *stop).await.map(|stop| *stop));
}

/// Ends with the name of the signal that asks the agent to stop.
fn stop_signal() -> Result<impl Future<Output = &'static str>, Error> {
    let failed = |source| Error::System { what: "cannot listen for signals".into(), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}
