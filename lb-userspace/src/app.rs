//! Wires the agent together.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::args::agent::SocketLb;
use crate::args::agent::Surroundings;
use crate::args::{AgentArgs, Config};
use crate::dataplane::bpf_store::BpfStore;
use crate::dataplane::checks;
use crate::dataplane::interfaces::Interfaces;
use crate::dataplane::links::Hooks;
use crate::dataplane::load;
use crate::dataplane::maps::{Access, Maps};
use crate::dataplane::pin::{Lock, PinDir, PinError};
use crate::exit::Error;
use crate::health::{self, Health};
use crate::net::watch as network;
use crate::reconcile::{self, Reconciler, Status};
use crate::source::{self, kubernetes_events};
use crate::telemetry::metrics::{self, Metrics};
use crate::telemetry::{logs, problems};

mod attach;

pub use attach::State;

use attach::Attachment;

/// Threads of the runtime: the work comes in bursts and is small.
const THREADS: usize = 2;

/// `shunt agent`: checks everything, then runs until it is told to stop.
///
/// What it attached stays attached when it ends: traffic flows on, and the next agent takes over.
pub fn agent(args: AgentArgs) -> Result<(), Error> {
    let config = args.with_file()?.validate(&Surroundings::read())?;
    logs::init(config.log_format, &config.log_level);
    checks::kernel()?;
    checks::capabilities()?;
    checks::bpffs(&config.bpffs)?;
    std::fs::create_dir_all(&config.bpffs)
        .map_err(|source| PinError::Io { path: config.bpffs.clone(), source })?;
    let _lock = Lock::take(&config.bpffs)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "cannot start the runtime".into(), source })?;
    runtime.block_on(run(config))
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
    attach::check_uplinks(&network.borrow(), &config.selection)?;

    let pins = PinDir::new(&config.bpffs);
    let settings = load::Settings { pins: pins.clone(), flow_sets: config.flow_sets.map(u32::from) };
    let mut programs = load::load(&settings)?;
    logs::forward_programs(programs.object());
    // Opened once: each mapping of the arrays counts towards the agent's memory.
    let maps = Arc::new(Maps::open(&pins, Access::Write)?);

    let facts = attach::Facts::of(&config, &maps)?;
    let interfaces = Interfaces::new(Hooks::new(pins.clone(), programs), maps.clone(), config.xdp_mode);
    let mut attachment = Attachment::new(interfaces, maps.clone(), facts, cgroup, pins);
    attachment.apply(&network.borrow().clone());
    let addresses = attachment.addresses();
    let attached = attachment.state();
    tokio::spawn(attachment.follow(network));

    let mut settings = reconcile::Config::new(&config.node_name, config.hash_seed);
    settings.external_ips = config.external_ips.clone();
    let reconciler = Reconciler::new(settings, Box::new(BpfStore::new(maps.clone())));
    let (status_tx, status) = watch::channel(Status::default());
    let (stop, stopping) = watch::channel(false);
    let wait = stopped_of(stopping.clone());
    let reconciler = tokio::spawn(reconcile::run(reconciler, source.events, addresses, status_tx, wait));

    tokio::spawn(problems::follow(status.clone()));
    if let Some(client) = source.client {
        let of = |status: &Status| status.problems.to_vec();
        tokio::spawn(kubernetes_events::report(client, config.node_name.clone(), status.clone(), of));
    }
    let health = Health::new(status.clone(), attached.clone());
    let metrics = Metrics::new(maps, status.clone(), attached.clone());
    if let Some(address) = config.healthz {
        tokio::spawn(health::serve(address, "healthz-bind-address", health::routes(health.clone())));
    }
    if let Some(address) = config.metrics {
        tokio::spawn(health::serve(address, "metrics-bind-address", metrics::routes(health, metrics)));
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
async fn announce(mut status: watch::Receiver<Status>, mut attached: watch::Receiver<attach::State>) {
    let synced = status.wait_for(|status| status.last_success.is_some()).await.is_ok();
    if synced && attached.wait_for(attach::State::is_ready).await.is_ok() {
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
