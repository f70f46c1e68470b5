//! Watches for Services that take a port from a program of the node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use lb_control::model::{Problem, Severity};
use lb_control::reconcile::{Status, Takeover};
use lb_kernel::net::listeners::{self, Listener};
use tokio::sync::watch;
use tracing::debug;

/// Programs come and go without a word: they are looked at this often.
const PERIOD: Duration = Duration::from_secs(30);

/// Keeps `problems` true until the agent ends.
pub async fn follow(mut status: watch::Receiver<Status>, problems: watch::Sender<Vec<Problem>>) {
    let mut seen = None;
    loop {
        let takeovers = status.borrow_and_update().takeovers.clone();
        if !takeovers.is_empty() || !problems.borrow().is_empty() {
            let now = match listeners::read() {
                Ok(listeners) => problems_of(&takeovers, &listeners),
                Err(error) => {
                    debug!(%error, "cannot read what the node listens on");
                    Vec::new()
                }
            };
            problems.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
        }
        seen.replace(takeovers);
        let due = tokio::time::sleep(PERIOD);
        tokio::pin!(due);
        loop {
            tokio::select! {
                changed = status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if seen.as_ref() != Some(&status.borrow_and_update().takeovers) {
                        break;
                    }
                }
                () = &mut due => break,
            }
        }
    }
}

/// Whether clients that the Service takes would have come to this listener.
fn hears(listener: &Listener, takeover: &Takeover) -> bool {
    let same_address = match listener.address {
        IpAddr::V4(own) if own.is_unspecified() => takeover.address.is_ipv4(),
        IpAddr::V6(own) if own.is_unspecified() => true,
        own => own.to_canonical() == takeover.address,
    };
    same_address && listener.port == takeover.port && listener.protocol == takeover.protocol
}

/// What the authors of `takeovers` should know.
fn problems_of(takeovers: &[Takeover], listeners: &BTreeSet<Listener>) -> Vec<Problem> {
    let heard = |takeover: &&Takeover| listeners.iter().any(|listener| hears(listener, takeover));
    takeovers.iter().filter(heard).map(problem).collect()
}

fn problem(takeover: &Takeover) -> Problem {
    let Takeover { service, address, port, protocol } = takeover;
    Problem::of(
        &service.object(),
        Severity::Warning,
        "spec.externalIPs",
        format!(
            "{address} is this node's own address, and a program of the node listens on {port}/{protocol} there: its \
             clients now reach this Service instead. Take the address out, use another port, or start the agent with \
             --external-ips none"
        ),
    )
}

#[cfg(test)]
mod tests {

    use lb_control::model::{Protocol, ServiceKey};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn a_port_taken_from_the_node_is_told() {
        let takeover = |address| Takeover {
            service: ServiceKey::new("shop", "web"),
            address: ip(address),
            port: 22,
            protocol: Protocol::Tcp,
        };
        let reported = |listeners: &[(&str, u16, Protocol)], address| {
            let listeners = listeners
                .iter()
                .map(|(address, port, protocol)| Listener {
                    address: ip(address),
                    port: *port,
                    protocol: *protocol,
                })
                .collect();
            problems_of(&[takeover(address)], &listeners).len()
        };
        assert_eq!(reported(&[("192.0.2.10", 22, Protocol::Tcp)], "192.0.2.10"), 1);
        assert_eq!(reported(&[("0.0.0.0", 22, Protocol::Tcp)], "192.0.2.10"), 1);
        assert_eq!(reported(&[("::", 22, Protocol::Tcp)], "192.0.2.10"), 1);
        assert_eq!(reported(&[("::", 22, Protocol::Tcp)], "2001:db8::10"), 1);
        assert_eq!(reported(&[("0.0.0.0", 22, Protocol::Tcp)], "2001:db8::10"), 0);
        assert_eq!(reported(&[("127.0.0.1", 22, Protocol::Tcp)], "192.0.2.10"), 0);
        assert_eq!(reported(&[("192.0.2.10", 22, Protocol::Udp)], "192.0.2.10"), 0);
        assert_eq!(reported(&[("192.0.2.10", 23, Protocol::Tcp)], "192.0.2.10"), 0);
    }
}
