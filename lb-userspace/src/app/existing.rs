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
use lb_kernel::net::connections;
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
        if connection.leaves_from(ports, own) {
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
