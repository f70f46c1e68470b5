//! Ends connected UDP sockets whose endpoint is gone, and has netfilter forget such connections ([`connections`]).
//!
//! A socket that the hooks connected to an endpoint would speak to that address for as long as it lives. Ended, it
//! tells its program ECONNABORTED, and the next `connect` finds an endpoint that is there. Sockets without a peer
//! and sockets that were connected to a pod directly are left alone: they are not in the map of the hooks.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::{Backend, SocketFrontend, SocketPeer};
use lb_common::addr::{Port, Proto};
use lb_control::reconcile::{Retired, Status};
use lb_kernel::maps::Maps;
use lb_kernel::net::sock_diag::{ConnectedUdp, SockDiag};
use lb_telemetry::recorder::Recorder;
use nix::sched::{CloneFlags, setns};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use super::connections;
use crate::args::agent::SocketLb;

/// A `connect` under way while the maps changed is done after this time: what is gone is looked for once more.
const SETTLE: Duration = Duration::from_millis(500);

/// Looks after the sockets on a thread of its own, which visits other network namespaces. Tell it which endpoints
/// went; at every socket it looks once the maps hold what the source first listed.
pub fn spawn(
    maps: Arc<Maps>,
    socket_lb: SocketLb,
    status: watch::Receiver<Status>,
    recorder: Recorder,
) -> io::Result<mpsc::UnboundedSender<Vec<Retired>>> {
    let (sender, retired) = mpsc::unbounded_channel();
    let sweeper = Sweeper { maps, socket_lb, recorder, reported: BTreeSet::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new()
        .name("sockets".to_owned())
        .spawn(move || runtime.block_on(sweeper.run(status, retired)))?;
    Ok(sender)
}

struct Sweeper {
    maps: Arc<Maps>,
    socket_lb: SocketLb,
    recorder: Recorder,
    /// Troubles that have been said already.
    reported: BTreeSet<String>,
}

impl Sweeper {
    async fn run(
        mut self,
        mut status: watch::Receiver<Status>,
        mut retired: mpsc::UnboundedReceiver<Vec<Retired>>,
    ) {
        // What went while no agent ran is known now.
        if status.wait_for(|status| status.last_success.is_some()).await.is_err() {
            return;
        }
        self.sweep();
        tokio::time::sleep(SETTLE).await;
        self.sweep();
        let mut again: Vec<Retired> = Vec::new();
        loop {
            let first = if again.is_empty() {
                retired.recv().await
            } else {
                match tokio::time::timeout(SETTLE, retired.recv()).await {
                    Ok(first) => first,
                    Err(_) => {
                        self.sweep_for(&std::mem::take(&mut again));
                        continue;
                    }
                }
            };
            let Some(mut gone) = first else { return };
            while let Ok(more) = retired.try_recv() {
                gone.extend(more);
            }
            self.sweep_for(&gone);
            again.append(&mut gone);
        }
    }

    /// Looks at the sockets when the hooks know of one that got one of these endpoints, which is rare.
    fn sweep_for(&mut self, gone: &[Retired]) {
        let ids: HashSet<_> = gone.iter().map(|backend| (backend.id, backend.generation)).collect();
        let concerned = self.maps.socket_peers.entries().map(|peers| {
            peers.iter().any(|(_, frontend)| ids.contains(&(frontend.backend, frontend.generation)))
        });
        let peers = peers(gone);
        // What cannot be read is for the sweep to say.
        if concerned.unwrap_or(true) {
            self.sweep_sockets(Some(&peers));
        }
        self.sweep_connections(Some(&peers));
    }

    /// Looks at everything.
    fn sweep(&mut self) {
        self.sweep_sockets(None);
        self.sweep_connections(None);
    }

    /// Ends UDP connections that netfilter translates to endpoints that are gone.
    fn sweep_connections(&mut self, gone: Option<&BTreeSet<SocketAddr>>) {
        match connections::end_stale(&self.maps, gone) {
            Ok(0) => {}
            Ok(count) => info!(count, "ended UDP connections in netfilter whose endpoint is gone"),
            Err(error) => self.tell(format!(
                "cannot end UDP connections in netfilter whose endpoint is gone: {error}; they go on until they are silent"
            )),
        }
    }

    /// Ends what is stale among the sockets with one of `peers`; none: among all.
    fn sweep_sockets(&mut self, peers: Option<&BTreeSet<SocketAddr>>) {
        let ended = match self.socket_lb {
            SocketLb::Off => Ok(0),
            SocketLb::Host => self.sweep_here(peers),
            SocketLb::All => self.sweep_everywhere(peers),
        };
        match ended {
            Ok(0) => {}
            Ok(count) => {
                self.recorder.destroyed_sockets(count);
                info!(count, "ended connected UDP sockets whose endpoint is gone");
            }
            Err(error) => self.tell(format!(
                "cannot end connected UDP sockets whose endpoint is gone: {error}; their programs go on until they \
                 connect again"
            )),
        }
    }

    fn tell(&mut self, trouble: String) {
        if self.reported.insert(trouble.clone()) {
            warn!("{trouble}");
        }
    }

    /// In the network namespace the thread is in.
    fn sweep_here(&self, peers: Option<&BTreeSet<SocketAddr>>) -> io::Result<u64> {
        let diag = SockDiag::open()?;
        let mut ended = 0;
        for socket in diag.connected_udp()? {
            if peers.is_none_or(|peers| peers.contains(&socket.peer)) && self.is_stale(&socket)? {
                debug!(peer = %socket.peer, "ending a connected UDP socket");
                ended += u64::from(diag.destroy(&socket)?);
                self.maps.socket_peers.remove(&key(&socket))?;
            }
        }
        Ok(ended)
    }

    fn is_stale(&self, socket: &ConnectedUdp) -> io::Result<bool> {
        let Some(frontend) = self.maps.socket_peers.get(&key(socket))? else { return Ok(false) };
        Ok(is_stale(&frontend, self.maps.backends.get(&frontend.backend)?.as_ref()))
    }

    /// In every network namespace that a process is in.
    fn sweep_everywhere(&mut self, peers: Option<&BTreeSet<SocketAddr>>) -> io::Result<u64> {
        let home = File::open("/proc/thread-self/ns/net")?;
        let mut ended = self.sweep_here(peers)?;
        let mut refused = None;
        for (_, namespace) in namespaces(&home, &mut refused)? {
            match setns(&namespace, CloneFlags::CLONE_NEWNET) {
                Ok(()) => match self.sweep_here(peers) {
                    Ok(count) => ended += count,
                    Err(error) => refused = Some(error),
                },
                Err(error) => refused = Some(error.into()),
            }
        }
        // Where this fails the thread would do the node's work elsewhere.
        setns(&home, CloneFlags::CLONE_NEWNET)?;
        if let Some(error) = refused {
            self.tell(format!(
                "--socket-lb all: cannot look at the sockets of every pod: {error}; connected UDP sockets whose endpoint \
                 is gone go on there. Allow SYS_ADMIN, SYS_PTRACE and the host's process ids, or use --socket-lb host"
            ));
        }
        Ok(ended)
    }
}

/// Every other network namespace with a process in it, by inode. What cannot be opened is said in `refused`.
fn namespaces(home: &File, refused: &mut Option<io::Error>) -> io::Result<BTreeMap<u64, File>> {
    let home = home.metadata()?.ino();
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        if !entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let path = entry.path().join("ns/net");
        let opened = std::fs::metadata(&path).and_then(|metadata| {
            let inode = metadata.ino();
            if inode != home && !found.contains_key(&inode) {
                found.insert(inode, File::open(&path)?);
            }
            Ok(())
        });
        match opened {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => *refused = Some(error),
            // The process has ended.
            _ => {}
        }
    }
    Ok(found)
}

fn peers(retired: &[Retired]) -> BTreeSet<SocketAddr> {
    retired.iter().map(|backend| SocketAddr::new(backend.address, backend.port)).collect()
}

fn key(socket: &ConnectedUdp) -> SocketPeer {
    SocketPeer::new(socket.cookie, socket.peer.ip().into(), Port::new(socket.peer.port()), Proto::UDP)
}

/// Whether the endpoint a socket got serves no more, or its id is another endpoint's now.
fn is_stale(frontend: &SocketFrontend, backend: Option<&Backend>) -> bool {
    backend.is_none_or(|backend| !backend.is_active() || backend.generation != frontend.generation)
}

#[cfg(test)]
mod tests {

    use lb_common::addr::Ipv6;

    use super::*;

    #[test]
    fn a_socket_is_stale_when_its_endpoint_is_another_or_none() {
        let frontend = SocketFrontend::new(Ipv6::default(), Port::new(53), 7, 3);
        let backend = |flags, generation| Backend { flags, generation, ..Backend::default() };
        assert!(!is_stale(&frontend, Some(&backend(Backend::ACTIVE, 3))));
        assert!(is_stale(&frontend, Some(&backend(Backend::ACTIVE, 4))), "the id was given out anew");
        assert!(is_stale(&frontend, Some(&backend(Backend::LOCAL, 3))), "it serves no more");
        assert!(is_stale(&frontend, None));
    }

    #[test]
    fn the_namespaces_of_processes_are_found() {
        let home = File::open("/proc/thread-self/ns/net").expect("own namespace");
        let own = home.metadata().expect("readable").ino();
        let mut refused = None;
        let others = namespaces(&home, &mut refused).expect("listed");
        assert!(!others.contains_key(&own));
    }
}
