//! What the node's own programs listen on.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_control::model::Protocol;

use super::sock_diag::SockDiag;

/// A socket that waits for clients.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Listener {
    /// The address it is bound to; unspecified: all of its family (and, for IPv6, of IPv4 as well).
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What this network namespace listens on.
///
/// # Errors
/// The kernel says it neither over netlink (its module `inet_diag` may be missing) nor in its tables, which have connections as well.
pub fn read() -> io::Result<BTreeSet<Listener>> {
    let listener =
        |(protocol, at): (Protocol, SocketAddr)| Listener { address: at.ip(), port: at.port(), protocol };
    match SockDiag::open().and_then(|sockets| sockets.listening()) {
        Ok(sockets) => Ok(sockets.into_iter().map(listener).collect()),
        Err(_) => read_tables(),
    }
}

fn read_tables() -> io::Result<BTreeSet<Listener>> {
    let tables = [
        ("/proc/self/net/tcp", Protocol::Tcp),
        ("/proc/self/net/tcp6", Protocol::Tcp),
        ("/proc/self/net/udp", Protocol::Udp),
        ("/proc/self/net/udp6", Protocol::Udp),
    ];
    let mut listeners = BTreeSet::new();
    for (path, protocol) in tables {
        match std::fs::read_to_string(path) {
            Ok(text) => listeners.extend(text.lines().skip(1).filter_map(|line| parse(line, protocol))),
            // A kernel without IPv6 has no such table.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(listeners)
}

/// One line of the kernel's socket tables; none for a socket that does not wait for clients.
fn parse(line: &str, protocol: Protocol) -> Option<Listener> {
    /// `TCP_LISTEN`.
    const LISTENING: &str = "0A";
    /// `TCP_CLOSE`, which an unconnected UDP socket is in.
    const UNCONNECTED: &str = "07";
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let waits = match protocol {
        Protocol::Tcp => LISTENING,
        _ => UNCONNECTED,
    };
    let (address, port) = local.split_once(':')?;
    (state == waits).then_some(Listener {
        address: parse_address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        protocol,
    })
}

/// Words of 32 bits, each printed as the number the machine reads it as.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let mut bytes = [0_u8; 16];
    let words = hex.len() / 8;
    for (index, chunk) in bytes.chunks_exact_mut(4).take(words).enumerate() {
        let word = u32::from_str_radix(hex.get(index * 8..index * 8 + 8)?, 16).ok()?;
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    match words {
        1 => Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()),
        4 => Some(Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_kernels_tables_are_read() {
        let tcp = |line: &str| parse(line, Protocol::Tcp);
        let udp = |line: &str| parse(line, Protocol::Udp);
        let listener = |address, port, protocol| Some(Listener { address: ip(address), port, protocol });
        let rest = "00000000:00000000 00:00000000 00000000     0        0 20641 1";
        let line = |local: &str, state| format!("   0: {local} 00000000:0000 {state} {rest}");
        assert_eq!(tcp(&line("0A0200C0:0016", "0A")), listener("192.0.2.10", 22, Protocol::Tcp));
        assert_eq!(tcp(&line("0A0200C0:0016", "01")), None, "a connection");
        assert_eq!(udp(&line("00000000:0035", "07")), listener("0.0.0.0", 53, Protocol::Udp));
        assert_eq!(udp(&line("00000000:0035", "01")), None, "connected to someone");
        let v6 = line("B80D0120000000000000000010000000:1F90", "0A");
        assert_eq!(tcp(&v6), listener("2001:db8::10", 8080, Protocol::Tcp));
        for bad in ["", "  sl  local_address", "0: 0A0200C0 x 0A", "0: ZZ:0016 x 0A"] {
            assert_eq!(tcp(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_process_is_found() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        let found = [read().expect("answered"), read_tables().expect("readable")];
        for (at, protocol) in [(tcp.local_addr(), Protocol::Tcp), (udp.local_addr(), Protocol::Udp)] {
            let at = at.expect("bound");
            let listener = Listener { address: at.ip(), port: at.port(), protocol };
            assert!(found.iter().all(|found| found.contains(&listener)), "{at}");
        }
    }
}
