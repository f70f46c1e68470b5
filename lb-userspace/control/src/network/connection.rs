//! Connections that this node has with others. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lb_common::addr::Proto;

/// A connection, as its packets look where they leave.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Connection {
    /// TCP or UDP.
    pub proto: Proto,
    /// This node's end.
    pub own: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
}

impl Connection {
    /// Whether it leaves from one of these ports at one of the node's addresses (sorted).
    pub fn leaves_from(&self, ports: &BTreeSet<(u16, Proto)>, own: &[IpAddr]) -> bool {
        ports.contains(&(self.own.port(), self.proto))
            && own.binary_search(&self.own.ip()).is_ok()
            && own.binary_search(&self.peer.ip()).is_err()
    }
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
            Connection { proto, own: end, peer }.leaves_from(&ports, &own)
        };
        assert!(counts(Proto::TCP, "192.0.2.1:30080", "198.51.100.1:443"));
        assert!(!counts(Proto::UDP, "192.0.2.1:30080", "198.51.100.1:443"), "another protocol");
        assert!(!counts(Proto::TCP, "192.0.2.1:30081", "198.51.100.1:443"), "another port");
        assert!(!counts(Proto::TCP, "10.244.1.2:30080", "198.51.100.1:443"), "not the node's address");
        assert!(!counts(Proto::TCP, "192.0.2.1:30080", "192.0.2.2:443"), "it does not leave");
    }
}
