//! What the socket hooks remember, so that a process sees the address it asked for.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ipv4, Port, Proto};

/// Key of the socket peer map: one socket and one backend it speaks to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketPeer4 {
    /// `bpf_get_socket_cookie` of the socket.
    pub cookie: u64,
    /// Backend address.
    pub address: Ipv4,
    /// Backend port.
    pub port: Port,
    /// TCP or UDP.
    pub proto: Proto,
    pad: u8,
}

impl SocketPeer4 {
    /// The key with its padding zeroed.
    #[inline(always)]
    pub const fn new(cookie: u64, address: Ipv4, port: Port, proto: Proto) -> Self {
        Self { cookie, address, port, proto, pad: 0 }
    }
}

const _: () = assert!(size_of::<SocketPeer4>() == 16);
