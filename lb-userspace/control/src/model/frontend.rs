//! An address and a port that clients aim at, of either family.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_common::addr::Proto;

use super::Protocol;

/// What a client aims at. In the kernel each family has a map of its own; here they are one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Frontend {
    /// ClusterIP, node address, external address, or loopback for the socket hooks alone.
    pub address: IpAddr,
    /// Service port or nodePort; 0 in the entry that stands for the address itself.
    pub port: u16,
    /// TCP, UDP or SCTP; 0 in the entry that stands for the address itself.
    pub proto: Proto,
}

impl Frontend {
    /// One port of an address.
    pub const fn new(address: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self { address, port, proto: protocol.proto() }
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

/// `10.96.0.10:80/TCP`, `[2001:db8::1]:80/TCP`, or the address alone.
impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_whole() {
            return self.address.fmt(f);
        }
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.proto)
    }
}
