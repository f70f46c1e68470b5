//! Builds frames, and checks them.

use std::vec;
use std::vec::Vec;

use crate::addr::{Ipv4, Port, Proto};
use crate::wire::{Checksum, Delta, ETHERNET_LENGTH, IPV4_LENGTH, TCP_LENGTH, UDP_LENGTH, field};

/// This node's Ethernet address: that of the loopback device, on which the kernel test-runs programs.
pub const STATION: [u8; 6] = [0; 6];

/// A frame to be built, addressed to [`STATION`]: Ethernet, IPv4, TCP or UDP, payload. Checksums are right.
#[derive(Clone, Debug)]
pub struct Frame {
    proto: Proto,
    source: (Ipv4, u16),
    destination: (Ipv4, u16),
    flags: u8,
    ttl: u8,
    ip_options: usize,
    tcp_options: usize,
    payload: Vec<u8>,
    udp_checksum: bool,
}

impl Frame {
    /// A TCP segment: SYN unless told otherwise.
    pub fn tcp(source: (Ipv4, u16), destination: (Ipv4, u16)) -> Self {
        Self {
            proto: Proto::TCP,
            source,
            destination,
            flags: 0x02,
            ttl: 64,
            ip_options: 0,
            tcp_options: 0,
            payload: Vec::new(),
            udp_checksum: true,
        }
    }

    /// A UDP datagram of eight bytes.
    pub fn udp(source: (Ipv4, u16), destination: (Ipv4, u16)) -> Self {
        Self { proto: Proto::UDP, payload: vec![0x55; 8], ..Self::tcp(source, destination) }
    }

    /// The TCP flags byte.
    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// The TTL.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Words of IP options (no-operations), at most 10.
    pub fn ip_options(mut self, words: usize) -> Self {
        self.ip_options = words;
        self
    }

    /// Words of TCP options (no-operations), at most 10.
    pub fn tcp_options(mut self, words: usize) -> Self {
        self.tcp_options = words;
        self
    }

    /// What is carried.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Sends UDP without a checksum (RFC 768).
    pub fn without_checksum(mut self) -> Self {
        self.udp_checksum = false;
        self
    }

    /// The bytes.
    pub fn build(&self) -> Vec<u8> {
        let l4_header = match self.proto {
            Proto::TCP => TCP_LENGTH + 4 * self.tcp_options,
            _ => UDP_LENGTH,
        };
        let l4_length = l4_header + self.payload.len();
        let l3_header = IPV4_LENGTH + 4 * self.ip_options;
        let mut frame = vec![0; ETHERNET_LENGTH + l3_header + l4_length];
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
        frame[12..14].copy_from_slice(&crate::wire::ETHERTYPE_IPV4);

        let (l3, l4) = frame[ETHERNET_LENGTH..].split_at_mut(l3_header);
        l3[0] = 0x40 | (l3_header / 4) as u8;
        l3[2..4].copy_from_slice(&((l3_header + l4_length) as u16).to_be_bytes());
        l3[4..6].copy_from_slice(&0x1234_u16.to_be_bytes());
        l3[6] = 0x40;
        l3[8] = self.ttl;
        l3[9] = self.proto.0;
        l3[12..16].copy_from_slice(&self.source.0.octets());
        l3[16..20].copy_from_slice(&self.destination.0.octets());
        l3[IPV4_LENGTH..].fill(1);
        let checksum = Checksum::of(l3, Delta::default());
        l3[field::IPV4_CHECKSUM..][..2].copy_from_slice(&checksum.0);

        l4[..2].copy_from_slice(&Port::new(self.source.1).octets());
        l4[2..4].copy_from_slice(&Port::new(self.destination.1).octets());
        let at = match self.proto {
            Proto::TCP => {
                l4[4..8].copy_from_slice(&0x0102_0304_u32.to_be_bytes());
                l4[8..12].copy_from_slice(&0x0506_0708_u32.to_be_bytes());
                l4[12] = ((l4_header / 4) as u8) << 4;
                l4[13] = self.flags;
                l4[14..16].copy_from_slice(&0x7210_u16.to_be_bytes());
                l4[TCP_LENGTH..l4_header].fill(1);
                field::TCP_CHECKSUM
            }
            _ => {
                l4[4..6].copy_from_slice(&(l4_length as u16).to_be_bytes());
                field::UDP_CHECKSUM
            }
        };
        l4[l4_header..].copy_from_slice(&self.payload);
        if self.proto == Proto::TCP || self.udp_checksum {
            let pseudo = pseudo_header(self.source.0, self.destination.0, self.proto, l4_length);
            let checksum = Checksum::of(l4, pseudo).0;
            let checksum = if checksum == [0, 0] && self.proto == Proto::UDP { [0xff; 2] } else { checksum };
            l4[at..][..2].copy_from_slice(&checksum);
        }
        frame
    }
}

fn pseudo_header(source: Ipv4, destination: Ipv4, proto: Proto, length: usize) -> Delta {
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (source.octets(), destination.octets());
    Delta::default()
        .with_word([s0, s1])
        .with_word([s2, s3])
        .with_word([d0, d1])
        .with_word([d2, d3])
        .with_word([0, proto.0])
        .with_word((length as u16).to_be_bytes())
}

/// Whether the IPv4 header checksum and the transport checksum of an unfragmented frame are right.
/// `None`: not a frame this can judge.
pub fn checksums_hold(frame: &[u8]) -> Option<bool> {
    let l3 = frame.get(ETHERNET_LENGTH..)?;
    let header = usize::from(l3.first()? & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([*l3.get(2)?, *l3.get(3)?]));
    let (head, l4) = (l3.get(..header)?, l3.get(header..total)?);
    if header < IPV4_LENGTH || Checksum::of(head, Delta::default()).0 != [0, 0] {
        return Some(false);
    }
    let address = |at: usize| Some(Ipv4::from_octets(*head.get(at..)?.first_chunk()?));
    let (source, destination) = (address(12)?, address(16)?);
    let proto = Proto(*head.get(9)?);
    match proto {
        Proto::ICMP => return Some(Checksum::of(l4, Delta::default()).0 == [0, 0]),
        Proto::UDP if l4.get(6..8)? == [0, 0] => return Some(true),
        Proto::TCP | Proto::UDP => {}
        _ => return None,
    }
    Some(Checksum::of(l4, pseudo_header(source, destination, proto, l4.len())).0 == [0, 0])
}
