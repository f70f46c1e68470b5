//! Asks the kernel for sockets: those that wait for clients, and connected UDP sockets, which it can end (NETLINK_SOCK_DIAG).

use std::io;
use std::net::{IpAddr, SocketAddr};

use lb_common::addr::Proto;
use lb_control::model::Protocol;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SOCK_DESTROY, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};

/// A UDP socket with a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectedUdp {
    /// `SO_COOKIE`.
    pub cookie: u64,
    /// Whom it speaks to; an IPv4-mapped address stands as IPv4.
    pub peer: SocketAddr,
    family: u8,
    id: SocketId,
}

/// A connection to the kernel's socket tables of one network namespace: the one the thread was in.
#[derive(Debug)]
pub struct SockDiag(Socket);

impl SockDiag {
    /// Opens a connection.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// The connected UDP sockets of both families.
    pub fn connected_udp(&self) -> io::Result<Vec<ConnectedUdp>> {
        let mut found = Vec::new();
        self.list(IPPROTO_UDP, &StateFlags::ESTABLISHED, &mut |family, id| {
            found.extend(connected(family, id))
        })?;
        Ok(found)
    }

    /// Where sockets wait for clients: TCP listeners and unconnected UDP sockets of both families.
    pub fn listening(&self) -> io::Result<Vec<(Protocol, SocketAddr)>> {
        let mut found = Vec::new();
        let kinds = [
            (Protocol::Tcp, IPPROTO_TCP, StateFlags::LISTEN),
            (Protocol::Udp, IPPROTO_UDP, StateFlags::CLOSE),
        ];
        for (protocol, number, state) in kinds {
            self.list(number, &state, &mut |_, id| {
                found.push((protocol, SocketAddr::new(id.source_address, id.source_port)));
            })?;
        }
        Ok(found)
    }

    /// Both ends of every TCP and UDP socket with a peer; an IPv4-mapped address stands as IPv4.
    pub fn each_connected(&self, take: &mut dyn FnMut(Proto, SocketAddr, SocketAddr)) -> io::Result<()> {
        for (proto, number) in [(Proto::TCP, IPPROTO_TCP), (Proto::UDP, IPPROTO_UDP)] {
            self.list(number, &StateFlags::ESTABLISHED, &mut |_, id| {
                let own = SocketAddr::new(id.source_address.to_canonical(), id.source_port);
                take(proto, own, SocketAddr::new(id.destination_address.to_canonical(), id.destination_port));
            })?;
        }
        Ok(())
    }

    fn list(&self, protocol: u8, state: &StateFlags, take: &mut dyn FnMut(u8, SocketId)) -> io::Result<()> {
        for (family, any) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let request = request(protocol, family, any, state.clone());
            match self.ask(request, NLM_F_DUMP, None, take) {
                // A kernel without IPv6.
                Err(error) if family == AF_INET6 && error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Ends a socket: whoever waits on it, reads or writes next gets ECONNABORTED. Whether it was still there.
    pub fn destroy(&self, socket: &ConnectedUdp) -> io::Result<bool> {
        let request = request(IPPROTO_UDP, socket.family, socket.id.clone(), StateFlags::empty());
        match self.ask(request, NLM_F_ACK, Some(SOCK_DESTROY), &mut |_, _| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn ask(
        &self,
        request: InetRequest,
        flags: u16,
        message_type: Option<u16>,
        take: &mut dyn FnMut(u8, SocketId),
    ) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        if let Some(message_type) = message_type {
            message.header.message_type = message_type;
        }
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        loop {
            let (bytes, _) = self.0.recv_from_full()?;
            if take_in(&bytes, take)? {
                return Ok(());
            }
        }
    }
}

fn request(protocol: u8, family: u8, socket_id: SocketId, states: StateFlags) -> InetRequest {
    InetRequest { family, protocol, extensions: ExtensionFlags::empty(), states, socket_id }
}

/// Reads all messages of one datagram. Whether the answer is complete.
fn take_in(bytes: &[u8], take: &mut dyn FnMut(u8, SocketId)) -> io::Result<bool> {
    let invalid =
        |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let mut rest = bytes;
    while !rest.is_empty() {
        let message =
            NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(|error| invalid(&error))?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(answer) => {
                return match answer.code {
                    None => Ok(true),
                    Some(_) => Err(answer.to_io()),
                };
            }
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                take(response.header.family, response.header.socket_id);
            }
            _ => {}
        }
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length.max(1)..).unwrap_or_default();
    }
    Ok(false)
}

fn connected(family: u8, id: SocketId) -> Option<ConnectedUdp> {
    let address: IpAddr = id.destination_address.to_canonical();
    let peer = SocketAddr::new(address, id.destination_port);
    (!address.is_unspecified()).then(|| ConnectedUdp {
        cookie: u64::from_ne_bytes(id.cookie),
        peer,
        family,
        id,
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use socket2::SockRef;

    use super::*;

    #[test]
    fn connected_sockets_are_found_by_cookie_and_peer() {
        let diag = SockDiag::open().expect("netlink");
        let server = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let peer = server.local_addr().expect("bound");
        let client = UdpSocket::bind("127.0.0.1:0").expect("bound");
        client.connect(peer).expect("connected");
        let mapped = UdpSocket::bind("[::]:0").and_then(|socket| {
            socket.connect(format!("[::ffff:127.0.0.1]:{}", peer.port()))?;
            Ok(socket)
        });
        let cookie = |socket: &UdpSocket| SockRef::from(socket).cookie().expect("SO_COOKIE");
        let found = diag.connected_udp().expect("listed");
        let peers =
            |wanted: u64| found.iter().filter(|s| s.cookie == wanted).map(|s| s.peer).collect::<Vec<_>>();
        assert_eq!(peers(cookie(&client)), [peer]);
        assert_eq!(peers(cookie(&server)), [], "not connected");
        // A machine without IPv6 has no such socket.
        if let Ok(mapped) = mapped {
            assert_eq!(peers(cookie(&mapped)), [peer], "IPv4 over an IPv6 socket");
        }
    }
}
