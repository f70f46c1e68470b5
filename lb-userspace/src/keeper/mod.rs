//! `shunt keeper`: a small process beside the agent that gives new interfaces their programs when the agent does not.
//!
//! It has the programs' descriptors and what the flags say of interfaces from the agent, the network from the kernel, and knows no
//! Service. It looks when the network has changed and the agent has not said in time that it has served what is new, or has ended. It
//! ends when its post is taken from it, or some time after the agent.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use lb_control::network::keeping::{Turn, fingerprint};
use lb_control::network::{Network, classify};
use lb_kernel::channel::{Channel, Door, Received};
use lb_kernel::links::Hooks;
use lb_kernel::links::interfaces::Interfaces;
use lb_kernel::maps::InterfaceMaps;
use lb_kernel::net::watch as network;
use lb_kernel::pin::{PinDir, Post};
use lb_kernel::programs::load::Programs;
use lb_kernel::sys;
use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, sleep_until};

mod orders;

pub use orders::Orders;

use crate::args::KeeperArgs;
use crate::exit::Error;

/// How often a keeper without an agent looks whether its pins are still mounted, of which nothing tells it.
const LOOK: std::time::Duration = std::time::Duration::from_secs(5);

fn system(what: &str) -> impl Fn(io::Error) -> Error {
    let what = what.to_owned();
    move |source| Error::System { what: what.clone(), source }
}

/// Runs as the keeper: of the agent that has started it, or of agents that come by themselves.
pub fn run(args: &KeeperArgs) -> Result<(), Error> {
    if args.socket.is_none() {
        sys::close_inherited();
        leave_the_agents_surroundings().map_err(system("cannot become a keeper"))?;
    }
    // One thread, which does nothing as long as nothing happens.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("cannot start the runtime"))?;
    runtime.block_on(async {
        match &args.socket {
            Some(path) => keep_for_all(&args.pins.bpffs, path).await,
            None => {
                let channel = io::stdin().as_fd().try_clone_to_owned();
                let channel = channel.map_err(system("no channel to the agent"))?;
                keep(&args.pins.bpffs, Channel::from(channel)).await
            }
        }
    })
}

/// Keeps for one agent after the other, until it is told to end: in a container of its own, which outlives the agent's.
async fn keep_for_all(root: &Path, socket: &Path) -> Result<(), Error> {
    let failed = system("cannot listen for signals");
    let mut terminate = signal(SignalKind::terminate()).map_err(&failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(&failed)?;
    let door = Door::open(socket).map_err(system(&format!("--socket {}", socket.display())))?;
    let serve = async {
        loop {
            let channel = door.next().await.map_err(system("no channel to an agent"))?;
            // The next agent may do better.
            if let Err(error) = keep(root, channel).await {
                eprintln!("keeper: {error}");
            }
        }
    };
    tokio::select! {
        result = serve => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// What is sent to the agent's terminal or group is not meant for the keeper, and it holds no folder.
fn leave_the_agents_surroundings() -> io::Result<()> {
    nix::sys::prctl::set_name(c"shunt-keeper")?;
    // (Whoever leads a group already has left.)
    let _ = nix::unistd::setsid();
    nix::unistd::chdir("/")?;
    Ok(())
}

/// What there is to do the work with.
struct Desk {
    pins: PinDir,
    /// None until the agent has sent the programs.
    interfaces: Option<Interfaces>,
    orders: Option<Orders>,
}

impl Desk {
    fn take_in(&mut self, message: &[u8], programs: Vec<OwnedFd>, turn: &mut Turn) -> Result<(), Error> {
        if !programs.is_empty() {
            turn.network_changed(Instant::now());
            let programs = Programs::handed_over(programs).map_err(system("the agent's programs"))?;
            let hooks = Hooks::new(self.pins.clone(), programs);
            self.interfaces = Some(Interfaces::of_keeper(hooks, InterfaceMaps::open(&self.pins)?));
        }
        let orders = Orders::read(message).map_err(system("the agent's orders"))?;
        turn.agent_says(orders.in_line);
        self.orders = Some(orders);
        Ok(())
    }

    fn look(&mut self, network: &Network, turn: &mut Turn) {
        let (Some(orders), Some(interfaces)) = (&self.orders, &mut self.interfaces) else {
            return turn.put_off();
        };
        let wanted = classify::classify(network, &orders.selection());
        if turn.look(fingerprint(&wanted)) {
            interfaces.set_modes(orders.xdp_mode, orders.xdp_forward, orders.host_rules);
            interfaces.set_routing_rules(network.routes_by_more);
            // (The agent tells of it, by what stands in the map.)
            if !interfaces.keep(&wanted) {
                turn.failed(Instant::now());
            }
        }
    }
}

/// Keeps for one agent, and for a while after it.
async fn keep(root: &Path, channel: Channel) -> Result<(), Error> {
    let post = Post::take(root)?;
    let mut desk = Desk { pins: PinDir::new(root), interfaces: None, orders: None };
    let channel = channel.listen().map_err(system("no channel to the agent"))?;
    // (An inotify descriptor is read as a pipe is.)
    let news = post.news().and_then(Receiver::from_owned_fd_unchecked);
    let news = news.map_err(system("cannot watch the pins"))?;
    let mut network = network::spawn().await?;
    let mut turn = Turn::new(Instant::now());
    loop {
        let now = tokio::time::Instant::now();
        let (due, end) = (turn.due(), turn.end());
        tokio::select! {
            changed = network.changed() => match changed {
                Ok(()) => turn.network_changed(Instant::now()),
                Err(_) => return Ok(()),
            },
            received = channel.next(), if end.is_none() => match received {
                Ok(Received::Message(bytes, programs)) => desk.take_in(&bytes, programs, &mut turn)?,
                // (Without orders nobody could go on.)
                Ok(Received::End) if desk.orders.is_none() => return Ok(()),
                Ok(Received::End) => turn.agent_is_gone(Instant::now()),
                Err(source) => return Err(system("no channel to the agent")(source)),
            },
            ready = news.readable() => {
                ready.map_err(system("cannot watch the pins"))?;
                let _ = news.try_read(&mut [0; 4096]);
                if !post.is_held() {
                    return Ok(());
                }
            }
            () = sleep_until(due.map_or(now, Into::into)), if due.is_some() => {
                let network = network.borrow_and_update().clone();
                desk.look(&network, &mut turn);
            }
            () = sleep_until(end.map_or(now, Into::into)), if end.is_some() => return Ok(()),
            () = sleep(LOOK), if end.is_some() => if !post.is_held() {
                return Ok(());
            },
        }
    }
}
