//! Has a program note connections of the node's own that were there before a Service took their port: it is shown a packet as they
//! send it, which goes nowhere (`BPF_PROG_TEST_RUN`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use lb_common::addr::Proto;
use lb_control::network::connection::Connection;

use super::load::{Programs, UPLINK_EGRESS};
use crate::sys;

/// The program that sees what leaves the node.
#[derive(Debug)]
pub struct Noter(OwnedFd);

impl Noter {
    /// With a descriptor of its own.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn new(programs: &Programs) -> io::Result<Self> {
        programs.fd(UPLINK_EGRESS)?.try_clone_to_owned().map(Self)
    }

    /// Shows the program a packet of `connection`. What it makes of it is in the flow table.
    ///
    /// # Errors
    /// The kernel does not run it.
    pub fn note(&self, connection: &Connection) -> io::Result<()> {
        sys::show_packet(self.0.as_fd(), &packet(connection))
    }
}

/// An Ethernet frame: an acknowledgement of TCP with no number that could be held against later ones, or a UDP datagram without
/// content.
fn packet(Connection { proto, own, peer }: &Connection) -> Vec<u8> {
    const ACK: u8 = 0x10;
    let ports = [own.port(), peer.port()].map(u16::to_be_bytes).concat();
    let transport = if *proto == Proto::TCP {
        [&ports[..], &[0; 8], &[5 << 4, ACK, 0xff, 0xff], &[0; 4]].concat()
    } else {
        [&ports[..], &8_u16.to_be_bytes(), &[0; 2]].concat()
    };
    let network = header(*proto, transport.len() as u16, own, peer);
    let kind: u16 = if own.is_ipv4() { 0x0800 } else { 0x86dd };
    [&[0; 12][..], &kind.to_be_bytes(), &network, &transport].concat()
}

fn header(proto: Proto, length: u16, own: &SocketAddr, peer: &SocketAddr) -> Vec<u8> {
    const HOPS: u8 = 64;
    match (own.ip(), peer.ip()) {
        (IpAddr::V4(own), IpAddr::V4(peer)) => {
            let whole = (20 + length).to_be_bytes();
            let fixed = [0x45, 0, whole[0], whole[1], 0, 0, 0, 0, HOPS, proto.0, 0, 0];
            [&fixed[..], &own.octets(), &peer.octets()].concat()
        }
        (own, peer) => {
            let of = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let length = length.to_be_bytes();
            let fixed = [0x60, 0, 0, 0, length[0], length[1], proto.0, HOPS];
            [&fixed[..], &of(own), &of(peer)].concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_those_of_the_connection() {
        for (own, peer) in
            [("192.0.2.1:30080", "198.51.100.9:443"), ("[2001:db8::1]:30080", "[2001:db8::9]:443")]
        {
            for (proto, length) in [(Proto::TCP, 20), (Proto::UDP, 8)] {
                let [own, peer] = [own, peer].map(|text| text.parse().expect("an address"));
                let packet = packet(&Connection { proto, own, peer });
                let network = if own.is_ipv4() { 20 } else { 40 };
                assert_eq!(packet.len(), 14 + network + length);
                let ports = &packet[14 + network..][..4];
                assert_eq!(ports, [own.port().to_be_bytes(), peer.port().to_be_bytes()].concat());
            }
        }
    }
}
