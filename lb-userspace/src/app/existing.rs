//! Connections of the node's own that leave from a port that becomes a Service's: what comes back to them stays theirs.
//!
//! The programs note each with the next packet that it sends. One that only listens may not send any in time; so they are looked up
//! once, and the programs shown a packet of each.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::addr::Proto;
use lb_control::model::Frontend;
use lb_control::network::NodeAddresses;
use lb_kernel::net::connections::{self, Connection};
use lb_kernel::programs::note::Noter;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

/// Follows `opened`, new frontends at addresses of this node, until the agent ends.
pub async fn follow(
    noter: Noter,
    mut opened: mpsc::UnboundedReceiver<Vec<Frontend>>,
    addresses: watch::Receiver<NodeAddresses>,
) {
    let noter = Arc::new(noter);
    while let Some(mut frontends) = opened.recv().await {
        while let Ok(more) = opened.try_recv() {
            frontends.extend(more);
        }
        let ports: BTreeSet<(u16, Proto)> = frontends.iter().map(|it| (it.port, it.proto)).collect();
        let (noter, own) = (noter.clone(), addresses.borrow().own.clone());
        // (Conntrack's table may be long.)
        let work = tokio::task::spawn_blocking(move || note(&noter, &ports, &own));
        if let Err(error) = work.await {
            warn!(%error, "looking for connections that have new nodePorts ended badly");
        }
    }
}

fn note(noter: &Noter, ports: &BTreeSet<(u16, Proto)>, own: &[IpAddr]) {
    let mut found = BTreeSet::new();
    let listed = connections::each(&mut |connection| {
        if is_concerned(&connection, ports, own) {
            found.insert(connection);
        }
    });
    if let Err(error) = listed {
        debug!(%error, "cannot read which connections the node has");
    }
    let noted = found.iter().map(|connection| noter.note(connection)).collect::<Result<Vec<()>, _>>();
    match noted {
        Ok(noted) if noted.is_empty() => {}
        Ok(noted) => info!(
            connections = noted.len(),
            "connections of the node's own keep ports that are now Services'"
        ),
        Err(error) => {
            warn!(%error, "cannot note connections of the node's own that have ports of new Services")
        }
    }
}

/// Whether a connection leaves from one of these ports at one of the node's addresses (sorted).
fn is_concerned(connection: &Connection, ports: &BTreeSet<(u16, Proto)>, own: &[IpAddr]) -> bool {
    let Connection { proto, own: end, peer } = connection;
    ports.contains(&(end.port(), *proto))
        && own.binary_search(&end.ip()).is_ok()
        && own.binary_search(&peer.ip()).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_count_that_leave_the_node_from_such_a_port() {
        let own: Vec<IpAddr> =
            ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().expect("an address")).into();
        let ports = [(30080, Proto::TCP)].into();
        let counts = |proto, own_end: &str, peer: &str| {
            let [end, peer] = [own_end, peer].map(|text| text.parse().expect("an address"));
            is_concerned(&Connection { proto, own: end, peer }, &ports, &own)
        };
        assert!(counts(Proto::TCP, "192.0.2.1:30080", "198.51.100.1:443"));
        assert!(!counts(Proto::UDP, "192.0.2.1:30080", "198.51.100.1:443"), "another protocol");
        assert!(!counts(Proto::TCP, "192.0.2.1:30081", "198.51.100.1:443"), "another port");
        assert!(!counts(Proto::TCP, "10.244.1.2:30080", "198.51.100.1:443"), "not the node's address");
        assert!(!counts(Proto::TCP, "192.0.2.1:30080", "192.0.2.2:443"), "it does not leave");
    }
}
