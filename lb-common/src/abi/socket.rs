//! What the socket hooks remember, so that a process sees the address it asked for.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ipv6, Port, Proto};

/// Key of the map of UDP and SCTP sockets: one socket and one backend it speaks to, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketPeer {
    /// `bpf_get_socket_cookie` of the socket.
    pub cookie: u64,
    /// Backend address; IPv4 as an IPv4-mapped address.
    pub address: Ipv6,
    /// Backend port.
    pub port: Port,
    /// TCP, UDP or SCTP.
    pub proto: Proto,
    pad: [u8; 5],
}

impl SocketPeer {
    /// The key with its padding zeroed.
    #[inline(always)]
    pub const fn new(cookie: u64, address: Ipv6, port: Port, proto: Proto) -> Self {
        Self { cookie, address, port, proto, pad: [0; 5] }
    }
}

/// What a socket asked for when it got that backend, 28 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketFrontend {
    /// The frontend's address; IPv4 as an IPv4-mapped address.
    pub address: Ipv6,
    /// The frontend's port.
    pub port: Port,
    pad: [u8; 2],
    /// Which endpoint the socket got.
    pub backend: super::BackendId,
    /// [`super::Backend::generation`] at that time: whether the socket's peer is still who it was.
    pub generation: u32,
}

impl SocketFrontend {
    /// The value with its padding zeroed.
    #[inline(always)]
    pub const fn new(address: Ipv6, port: Port, backend: super::BackendId, generation: u32) -> Self {
        Self { address, port, pad: [0; 2], backend, generation }
    }
}

/// A TCP socket, the backend it speaks to, and what it asked for, 48 bytes. Of a UDP socket it says that there is a [`SocketPeer`].
///
/// A TCP socket has one peer, so its number names its place. Numbers rise, so whoever is overwritten is an old one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TcpPeer {
    /// `bpf_get_socket_cookie` of the socket; 0: nobody's; [`TcpPeer::BUSY`]: it is being written.
    pub cookie: u64,
    /// Backend address; IPv4 as an IPv4-mapped address.
    pub backend: Ipv6,
    /// The frontend's address; IPv4 as an IPv4-mapped address.
    pub frontend: Ipv6,
    /// Backend port.
    pub backend_port: Port,
    /// The frontend's port.
    pub frontend_port: Port,
    pad: [u8; 4],
}

impl TcpPeer {
    /// No socket's number: the kernel counts upwards from 1, and in interrupts downwards from the last.
    /// <https://elixir.bootlin.com/linux/v6.18/source/include/linux/cookie.h>
    pub const BUSY: u64 = 1 << 63;

    /// The place of a socket in the array.
    ///
    /// Each CPU takes numbers in batches of 4096 (`COOKIE_LOCAL_BATCH`), and begins with the first of its own: where many CPUs make a
    /// few sockets each, those of every sixteenth batch would have the same places. So each batch begins where the former ones leave
    /// most room, at the golden section.
    #[inline(always)]
    pub const fn place(cookie: u64) -> u32 {
        const BATCH_BITS: u32 = 12;
        // From one batch to the next: the number of places divided by the golden ratio. The number of the socket has the batch in it.
        const SECTION: u32 = 40_503 - (1 << BATCH_BITS);
        const { assert!(super::capacity::TCP_PEERS == 1 << 16) };
        let batch = (cookie >> BATCH_BITS) as u32;
        (cookie as u32).wrapping_add(batch.wrapping_mul(SECTION)) % super::capacity::TCP_PEERS
    }
}

const _: () = assert!(size_of::<SocketPeer>() == 32);
const _: () = assert!(size_of::<TcpPeer>() == 48);
const _: () = assert!(size_of::<SocketFrontend>() == 28);
