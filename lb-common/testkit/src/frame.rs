//! Builds frames, and checks them.

use lb_common::addr::{Address, Ipv4, Ipv6, Port, Proto};
use lb_common::wire::{
    Checksum, Delta, ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP_LENGTH, IPV4_LENGTH, IPV6_LENGTH,
    SCTP_LENGTH, TCP_LENGTH, UDP_LENGTH, field,
};

/// This node's Ethernet address: that of the loopback device, on which the kernel test-runs programs.
pub const STATION: [u8; 6] = [0; 6];

/// An extension header of IPv6 that says nothing: hop-by-hop options of eight bytes, padding.
const PADDING: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;

/// A frame to be built, addressed to [`STATION`]: Ethernet, IPv4 or IPv6, TCP, UDP or SCTP, payload.
/// Checksums are right.
#[derive(Clone, Debug)]
pub struct Frame {
    proto: Proto,
    source: (Ipv6, u16),
    destination: (Ipv6, u16),
    flags: u8,
    numbers: Option<(u32, u32)>,
    ttl: u8,
    options: usize,
    tcp_options: usize,
    payload: Vec<u8>,
    udp_checksum: bool,
}

impl Frame {
    /// The sequence number that both sides begin with.
    pub const SEQUENCE: u32 = 0x0102_0304;

    /// A TCP segment: SYN unless told otherwise.
    pub fn tcp<A: Address>(source: (A, u16), destination: (A, u16)) -> Self {
        Self {
            proto: Proto::TCP,
            source: (source.0.to_mapped(), source.1),
            destination: (destination.0.to_mapped(), destination.1),
            flags: 0x02,
            numbers: None,
            ttl: 64,
            options: 0,
            tcp_options: 0,
            payload: Vec::new(),
            udp_checksum: true,
        }
    }

    /// A UDP datagram of eight bytes.
    pub fn udp<A: Address>(source: (A, u16), destination: (A, u16)) -> Self {
        Self { proto: Proto::UDP, payload: vec![0x55; 8], ..Self::tcp(source, destination) }
    }

    /// An SCTP packet with one empty chunk of this type.
    pub fn sctp<A: Address>(source: (A, u16), destination: (A, u16), chunk: u8) -> Self {
        Self { proto: Proto::SCTP, payload: vec![chunk, 0, 0, 4], ..Self::tcp(source, destination) }
    }

    /// The TCP flags byte.
    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// TCP sequence number and acknowledgement.
    pub fn numbers(mut self, sequence: u32, acknowledgement: u32) -> Self {
        self.numbers = Some((sequence, acknowledgement));
        self
    }

    /// Unless told otherwise, both sides begin at [`Frame::SEQUENCE`], have sent a SYN, and have seen the other's.
    fn tcp_numbers(&self) -> (u32, u32) {
        let (is_syn, is_ack) = (self.flags & 0x02 != 0, self.flags & 0x10 != 0);
        let acknowledgement = if is_ack { Self::SEQUENCE + 1 } else { 0 };
        self.numbers.unwrap_or((Self::SEQUENCE + u32::from(!is_syn), acknowledgement))
    }

    /// TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Words of IP options (no-operations), at most 10; in IPv6 as many extension headers, of which
    /// programs walk through 6.
    pub fn ip_options(mut self, count: usize) -> Self {
        self.options = count;
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

    /// Sends UDP without a checksum (RFC 768). Only IPv4 may.
    pub fn without_checksum(mut self) -> Self {
        self.udp_checksum = false;
        self
    }

    /// The bytes.
    pub fn build(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut frame = vec![0; 12];
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
        if self.source.0.unmapped().is_some() {
            frame.extend_from_slice(&ETHERTYPE_IPV4);
            frame.extend_from_slice(&self.header4(transport.len()));
        } else {
            frame.extend_from_slice(&ETHERTYPE_IPV6);
            frame.extend_from_slice(&self.header6(transport.len()));
        }
        frame.extend_from_slice(&transport);
        frame
    }

    fn header4(&self, length: usize) -> Vec<u8> {
        let octets = |address: Ipv6| Ipv4::from_mapped(address).octets();
        let mut header = vec![1; IPV4_LENGTH + 4 * self.options];
        let total = (header.len() + length) as u16;
        header[..IPV4_LENGTH].fill(0);
        header[0] = 0x40 | (header.len() / 4) as u8;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[4..6].copy_from_slice(&0x1234_u16.to_be_bytes());
        header[6] = 0x40;
        header[8] = self.ttl;
        header[9] = self.proto.0;
        header[12..16].copy_from_slice(&octets(self.source.0));
        header[16..20].copy_from_slice(&octets(self.destination.0));
        let checksum = Checksum::of(&header, Delta::default());
        header[field::IPV4_CHECKSUM..][..2].copy_from_slice(&checksum.0);
        header
    }

    fn header6(&self, length: usize) -> Vec<u8> {
        let mut header = vec![0; IPV6_LENGTH];
        header[0] = 0x60;
        header[4..6].copy_from_slice(&((8 * self.options + length) as u16).to_be_bytes());
        header[field::IPV6_NEXT_HEADER] = self.proto.0;
        header[field::IPV6_HOP_LIMIT] = self.ttl;
        header[8..24].copy_from_slice(&self.source.0.octets());
        header[24..40].copy_from_slice(&self.destination.0.octets());
        for index in 0..self.options {
            let at = header.len();
            header.extend_from_slice(&PADDING);
            // Hop-by-hop options come first, and once.
            let (place, kind) = if index == 0 { (6, 0) } else { (at - 8, DESTINATION_OPTIONS) };
            header[at] = header[place];
            header[place] = kind;
        }
        header
    }

    fn transport(&self) -> Vec<u8> {
        let header = match self.proto {
            Proto::TCP => TCP_LENGTH + 4 * self.tcp_options,
            Proto::SCTP => SCTP_LENGTH,
            _ => UDP_LENGTH,
        };
        let mut l4 = vec![0; header];
        l4.extend_from_slice(&self.payload);
        l4[..2].copy_from_slice(&Port::new(self.source.1).octets());
        l4[2..4].copy_from_slice(&Port::new(self.destination.1).octets());
        let at = match self.proto {
            Proto::TCP => {
                let (sequence, acknowledgement) = self.tcp_numbers();
                l4[4..8].copy_from_slice(&sequence.to_be_bytes());
                l4[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
                l4[12] = ((header / 4) as u8) << 4;
                l4[13] = self.flags;
                l4[14..16].copy_from_slice(&0x7210_u16.to_be_bytes());
                l4[TCP_LENGTH..header].fill(1);
                field::TCP_CHECKSUM
            }
            // (A checksum of its own that no rewriting touches.)
            Proto::SCTP => return l4,
            _ => {
                let length = l4.len() as u16;
                l4[4..6].copy_from_slice(&length.to_be_bytes());
                field::UDP_CHECKSUM
            }
        };
        if self.proto == Proto::TCP || self.udp_checksum {
            let pseudo = pseudo_header(self.source.0, self.destination.0, self.proto, l4.len());
            let checksum = Checksum::of(&l4, pseudo).0;
            let checksum = if checksum == [0, 0] && self.proto == Proto::UDP { [0xff; 2] } else { checksum };
            l4[at..][..2].copy_from_slice(&checksum);
        }
        l4
    }
}

/// Sums the addresses of either family: the zeros and ones of a mapped address are taken out again.
fn pseudo_header(source: Ipv6, destination: Ipv6, proto: Proto, length: usize) -> Delta {
    let mut sum = Delta::default().with_word([0, proto.0]).with_word((length as u16).to_be_bytes());
    for address in [source, destination] {
        let octets = address.octets();
        let first = if address.unmapped().is_some() { 12 } else { 0 };
        for word in octets[first..].chunks_exact(2) {
            sum = sum.with_word([word[0], word[1]]);
        }
    }
    sum
}

/// Whether network and transport checksum of an unfragmented frame are right. `None`: not a frame this
/// can judge.
pub fn checksums_hold(frame: &[u8]) -> Option<bool> {
    let l3 = frame.get(ETHERNET_LENGTH..)?;
    let (source, destination, proto, l4) = match *frame.get(12..14)?.first_chunk()? {
        ETHERTYPE_IPV4 => {
            let header = usize::from(l3.first()? & 0xf) * 4;
            let total = usize::from(u16::from_be_bytes([*l3.get(2)?, *l3.get(3)?]));
            let (head, l4) = (l3.get(..header)?, l3.get(header..total)?);
            if header < IPV4_LENGTH || Checksum::of(head, Delta::default()).0 != [0, 0] {
                return Some(false);
            }
            if head.get(6)? & 0x3f != 0 || *head.get(7)? != 0 {
                return None;
            }
            let address = |at: usize| Some(Ipv4::from_octets(*head.get(at..)?.first_chunk()?).to_mapped());
            (address(12)?, address(16)?, Proto(*head.get(9)?), l4)
        }
        ETHERTYPE_IPV6 => {
            let length = usize::from(u16::from_be_bytes([*l3.get(4)?, *l3.get(5)?]));
            let address = |at: usize| Some(Ipv6::from_octets(*l3.get(at..)?.first_chunk()?));
            let mut rest = l3.get(IPV6_LENGTH..IPV6_LENGTH + length)?;
            let mut proto = *l3.get(6)?;
            while matches!(proto, 0 | DESTINATION_OPTIONS) {
                let size = (usize::from(*rest.get(1)?) + 1) * 8;
                (proto, rest) = (*rest.first()?, rest.get(size..)?);
            }
            (address(8)?, address(24)?, Proto(proto), rest)
        }
        _ => return None,
    };
    match proto {
        Proto::ICMP => return Some(Checksum::of(l4, Delta::default()).0 == [0, 0]),
        Proto::UDP if l4.get(6..8)? == [0, 0] => return Some(source.unmapped().is_some()),
        Proto::TCP | Proto::UDP | Proto::ICMPV6 => {}
        _ => return None,
    }
    Some(Checksum::of(l4, pseudo_header(source, destination, proto, l4.len())).0 == [0, 0])
}

/// The ICMP error that `reporter` sends to the sender of `frame`: destination unreachable, code 4 (too
/// big) in IPv4; packet too big in IPv6.
pub fn icmp_error<A: Address>(reporter: A, frame: &[u8]) -> Vec<u8> {
    let quoted = &frame[ETHERNET_LENGTH..];
    let quoted = &quoted[..quoted.len().min(128)];
    let (source, ipv6) = (reporter.to_mapped(), frame[12..14] == ETHERTYPE_IPV6);
    let destination = if ipv6 {
        Ipv6::from_octets(*quoted[8..].first_chunk().expect("a whole header"))
    } else {
        Ipv4::from_octets(*quoted[12..].first_chunk().expect("a whole header")).to_mapped()
    };
    let mut icmp = vec![0; ICMP_LENGTH];
    icmp[..2].copy_from_slice(if ipv6 { &[2, 0] } else { &[3, 4] });
    icmp[6..8].copy_from_slice(&1280_u16.to_be_bytes());
    icmp.extend_from_slice(quoted);
    let proto = if ipv6 { Proto::ICMPV6 } else { Proto::ICMP };
    let pseudo = if ipv6 { pseudo_header(source, destination, proto, icmp.len()) } else { Delta::default() };
    let checksum = Checksum::of(&icmp, pseudo).0;
    icmp[field::ICMP_CHECKSUM..][..2].copy_from_slice(&checksum);
    let outer = Frame { proto, ..Frame::udp((source, 0), (destination, 0)) };
    let (header, kind) = if ipv6 {
        (outer.header6(icmp.len()), ETHERTYPE_IPV6)
    } else {
        (outer.header4(icmp.len()), ETHERTYPE_IPV4)
    };
    [&[0; 6][..], &[2, 0, 0, 0, 0, 2], &kind, &header, &icmp].concat()
}

/// Cuts a frame without options into fragments of `size` bytes each, a multiple of eight.
pub fn fragments(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    let ipv6 = frame[12..14] == ETHERTYPE_IPV6;
    let (head, payload) = frame.split_at(ETHERNET_LENGTH + if ipv6 { IPV6_LENGTH } else { IPV4_LENGTH });
    let chunks: Vec<_> = payload.chunks(size).collect();
    let last = chunks.len() - 1;
    let cut = |(index, chunk): (usize, &&[u8])| {
        let (mut head, more) = (head.to_vec(), u8::from(index < last));
        let offset = ((index * size / 8) as u16) << 3;
        let l3 = &mut head[ETHERNET_LENGTH..];
        if ipv6 {
            l3[4..6].copy_from_slice(&((8 + chunk.len()) as u16).to_be_bytes());
            let [high, low] = (offset | u16::from(more)).to_be_bytes();
            let extension = [l3[6], 0, high, low, 0xca, 0xfe, 0xba, 0xbe];
            l3[6] = FRAGMENT;
            head.extend_from_slice(&extension);
        } else {
            l3[2..4].copy_from_slice(&((IPV4_LENGTH + chunk.len()) as u16).to_be_bytes());
            l3[6..8].copy_from_slice(&(offset >> 3 | u16::from(more) << 13).to_be_bytes());
            l3[field::IPV4_CHECKSUM..][..2].fill(0);
            let checksum = Checksum::of(l3, Delta::default());
            l3[field::IPV4_CHECKSUM..][..2].copy_from_slice(&checksum.0);
        }
        head.extend_from_slice(chunk);
        head
    };
    chunks.iter().enumerate().map(cut).collect()
}
