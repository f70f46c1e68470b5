//! Frames as no honest sender makes them, put on the wire.
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use lb_lab::{Netns, UPLINK};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

/// An empty UDP datagram.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

/// The way from the client's interface to that of a node.
pub struct Wire<'a> {
    sender: &'a Netns,
    out: LinkAddr,
    receiver: [u8; 6],
}

impl<'a> Wire<'a> {
    pub fn new(sender: &'a Netns, receiver: &Netns) -> Self {
        let out = uplink(sender);
        let receiver = uplink(receiver).addr().expect("an Ethernet address");
        Wire { sender, out, receiver }
    }

    /// Sends a datagram in a frame for the node.
    pub fn send(&self, datagram: &Datagram) {
        let mut frame = self.receiver.to_vec();
        frame.extend(self.out.addr().expect("an Ethernet address"));
        frame.extend(datagram.packet());
        let sent = self.sender.within(|| {
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None)?;
            sendto(socket.as_raw_fd(), &frame, &self.out, MsgFlags::empty())
        });
        assert_eq!(sent.expect("a namespace").expect("a frame"), frame.len());
    }
}

fn uplink(netns: &Netns) -> LinkAddr {
    let found = netns.within(|| {
        let mut interfaces = getifaddrs().expect("interfaces").filter(|it| it.interface_name == UPLINK);
        interfaces.find_map(|it| it.address?.as_link_addr().copied())
    });
    found.expect("a namespace").expect("an uplink")
}

impl Datagram {
    /// The type of the frame, and the packet.
    fn packet(&self) -> Vec<u8> {
        let mut udp = Vec::new();
        for word in [self.from.port(), self.to.port(), 8, 0] {
            udp.extend(word.to_be_bytes());
        }
        let (source, destination) = (octets(self.from.ip()), octets(self.to.ip()));
        let pseudo = [&source[..], &destination, &[0, 17, 0, 8]].concat();
        let checksum = match checksum(&[&pseudo, &udp]) {
            0 => 0xffff,
            other => other,
        };
        udp[6..].copy_from_slice(&checksum.to_be_bytes());
        if self.to.is_ipv4() {
            let mut header = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
            header.extend(source.iter().chain(&destination));
            let sum = self::checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            [&[8, 0], &header[..], &udp].concat()
        } else {
            let header = [0x60, 0, 0, 0, 0, 8, 17, 64];
            [&[0x86, 0xdd], &header[..], &source, &destination, &udp].concat()
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The Internet checksum of some parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words =
        parts.iter().flat_map(|part| part.chunks(2)).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Sources and destinations that may not come off a wire, aimed at a nodePort.
pub fn strangers(client: IpAddr, node: IpAddr, port: u16) -> Vec<Datagram> {
    let (sources, loopback): (&[&str], IpAddr) = if client.is_ipv4() {
        (&["127.0.0.1", "127.8.8.8", "0.0.0.0", "224.0.0.1", "255.255.255.255"], [127, 0, 0, 1].into())
    } else {
        (&["::1", "::", "ff02::1", "ff0e::101"], Ipv6Addr::LOCALHOST.into())
    };
    let mut datagrams: Vec<(IpAddr, IpAddr)> =
        sources.iter().map(|source| (source.parse().expect("an address"), node)).collect();
    datagrams.extend([(client, loopback), (loopback, loopback)]);
    let datagram = |(from, to)| Datagram { from: SocketAddr::new(from, 4001), to: SocketAddr::new(to, port) };
    datagrams.into_iter().map(datagram).collect()
}
