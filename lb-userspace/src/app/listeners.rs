//! Follows which ClusterIPs programs of the node hold and listen on themselves, as a local DNS cache does.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_control::model::Frontend;
use lb_control::reconcile::Status;
use lb_kernel::net::listeners::{self, Listener};
use tokio::sync::watch;
use tracing::debug;

/// Programs come and go without a word. They are looked for only while a ClusterIP is an address of the node.
const PERIOD: Duration = Duration::from_secs(1);

/// Keeps `held` true until the agent ends.
pub async fn follow(mut status: watch::Receiver<Status>, held: watch::Sender<Arc<BTreeSet<Frontend>>>) {
    loop {
        let own = status.borrow_and_update().own_cluster_ips.clone();
        if own.is_empty() && held.borrow().is_empty() {
            if status.changed().await.is_err() {
                return;
            }
            continue;
        }
        let found = if own.is_empty() { Ok(BTreeSet::new()) } else { listeners::read() };
        match found {
            Ok(listeners) => {
                let now = held_of(&own, &listeners);
                held.send_if_modified(|before| {
                    let changed = **before != now;
                    *before = Arc::new(now);
                    changed
                });
            }
            Err(error) => debug!(%error, "cannot read what the node listens on"),
        }
        tokio::time::sleep(PERIOD).await;
        if status.has_changed().is_err() {
            return;
        }
    }
}

/// Those of `listeners` that listen at one of the addresses, and there alone.
fn held_of(addresses: &BTreeSet<IpAddr>, listeners: &BTreeSet<Listener>) -> BTreeSet<Frontend> {
    let own = |listener: &Listener| {
        let address = listener.address.to_canonical();
        addresses.contains(&address).then(|| Frontend::new(address, listener.port, listener.protocol))
    };
    listeners.iter().filter_map(own).collect()
}

#[cfg(test)]
mod tests {
    use lb_control::model::Protocol;

    use super::*;

    #[test]
    fn who_listens_everywhere_holds_nothing() {
        let listener = |address: &str, port| Listener {
            address: address.parse().expect("an address"),
            port,
            protocol: Protocol::Udp,
        };
        let address: IpAddr = "10.96.0.10".parse().expect("an address");
        let listeners = ["0.0.0.0", "::", "10.96.0.11"].map(|at| listener(at, 53)).into();
        assert!(held_of(&[address].into(), &listeners).is_empty());
        let listeners = [listener("10.96.0.10", 53), listener("::ffff:10.96.0.10", 54)].into();
        let held = held_of(&[address].into(), &listeners);
        assert_eq!(held, [53, 54].map(|port| Frontend::new(address, port, Protocol::Udp)).into());
    }
}
