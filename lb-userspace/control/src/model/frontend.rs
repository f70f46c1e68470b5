//! An address and a port that clients aim at, of either family.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_common::addr::Proto;

use super::{Family, Protocol};

/// What a client aims at. In the kernel each family has a map of its own; here they are one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Frontend {
    /// ClusterIP or external address; unspecified for a nodePort, which is served at every address of the node.
    pub address: IpAddr,
    /// Service port or nodePort; 0 in the entries that stand for an address itself.
    pub port: u16,
    /// TCP, UDP or SCTP; 0, [`Proto::NODE`] or [`Proto::EXTERNAL`] in the entries that stand for an address itself.
    pub proto: Proto,
}

impl Frontend {
    /// One port of an address.
    pub const fn new(address: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self { address, port, proto: protocol.proto() }
    }

    /// A nodePort, wherever nodePorts of the family are served.
    pub const fn node_port(family: Family, port: u16, protocol: Protocol) -> Self {
        Self::new(family.unspecified(), port, protocol)
    }

    /// Says that an address is the node's own.
    pub const fn node(address: IpAddr) -> Self {
        Self { address, port: 0, proto: Proto::NODE }
    }

    /// Whether it says that its address is the node's own.
    pub fn is_node(&self) -> bool {
        self.port == 0 && self.proto == Proto::NODE
    }

    /// Says that Services have ports of an external address.
    pub const fn external(address: IpAddr) -> Self {
        Self { address, port: 0, proto: Proto::EXTERNAL }
    }

    /// Whether it says that Services have ports of its external address.
    pub fn is_external_address(&self) -> bool {
        self.port == 0 && self.proto == Proto::EXTERNAL
    }

    /// Whether it is a nodePort.
    pub const fn is_node_port(&self) -> bool {
        self.address.is_unspecified()
    }

    /// Whether it stands for an address itself, and not for a port of a Service.
    pub fn is_of_an_address(&self) -> bool {
        self.is_whole() || self.is_node() || self.is_external_address()
    }

    /// Stands for all ports of an address.
    pub const fn whole(address: IpAddr) -> Self {
        Self { address, port: 0, proto: Proto(0) }
    }

    /// Whether it stands for all ports of its address.
    pub const fn is_whole(&self) -> bool {
        self.port == 0 && self.proto.0 == 0
    }
}

/// `10.96.0.10:80/TCP`, `[2001:db8::1]:80/TCP`, `0.0.0.0:30080/TCP` for a nodePort, or the address alone.
impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_of_an_address() {
            return self.address.fmt(f);
        }
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.proto)
    }
}
