//! Packets as no honest sender makes them.

use std::net::IpAddr;
use std::ops::Range;

/// TCP flags.
pub const SYN: u8 = 2;
/// End of a connection.
pub const FIN: u8 = 1;
/// Reset.
pub const RST: u8 = 4;
/// Acknowledgement.
pub const ACK: u8 = 16;

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A segment with these flags.
    Tcp(u8),
    /// A datagram.
    Udp,
}

impl Transport {
    /// Its protocol number.
    pub fn number(self) -> u8 {
        match self {
            Transport::Tcp(_) => 6,
            Transport::Udp => 17,
        }
    }
}

/// A field that lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// None does.
    None,
    /// The network header's length, by so many bytes.
    Length(i16),
    /// The network header's checksum.
    HeaderChecksum,
    /// The transport's checksum.
    Checksum,
    /// The length of the UDP header, by so many bytes.
    UdpLength(i16),
}

/// Whom the frame is addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Station {
    /// The node.
    Node,
    /// Everybody.
    Broadcast,
    /// A group that everybody is in: all hosts.
    Group,
}

/// A piece of a datagram: these bytes of what the network header carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which bytes; the first a multiple of eight.
    pub bytes: Range<usize>,
    /// Whether others follow.
    pub more: bool,
}

/// A packet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Source port and destination port.
    pub ports: (u16, u16),
    /// TTL or hop limit.
    pub ttl: u8,
    /// What it carries.
    pub transport: Transport,
    /// Options of IPv4, padded to a multiple of four bytes.
    pub options: Vec<u8>,
    /// Extension headers of IPv6: the number of each, and what is behind its first byte.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// A piece of a datagram, in place of the whole.
    pub piece: Option<Piece>,
    /// What is not as it says.
    pub lie: Lie,
    /// Whom the frame is for.
    pub station: Station,
}

impl Packet {
    /// One that is right in every way.
    pub fn honest(source: IpAddr, destination: IpAddr, ports: (u16, u16), transport: Transport) -> Self {
        Packet {
            source,
            destination,
            ports,
            ttl: 64,
            transport,
            options: Vec::new(),
            extensions: Vec::new(),
            piece: None,
            lie: Lie::None,
            station: Station::Node,
        }
    }

    /// The frame, with a mark of four bytes in it: the sequence number, or the first bytes of a datagram.
    pub fn frame(&self, mark: [u8; 4], (to, from): ([u8; 6], [u8; 6])) -> Vec<u8> {
        let to = match (self.station, self.destination) {
            (Station::Node, _) => to,
            (Station::Broadcast, _) => [0xff; 6],
            (Station::Group, IpAddr::V4(_)) => [1, 0, 0x5e, 0, 0, 1],
            (Station::Group, IpAddr::V6(_)) => [0x33, 0x33, 0, 0, 0, 1],
        };
        let whole = self.payload(mark);
        let part = self.piece.as_ref().map_or(whole.clone(), |piece| {
            whole[piece.bytes.start.min(whole.len())..piece.bytes.end.min(whole.len())].to_vec()
        });
        let mut frame = [to, from].concat();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = self.header4(source.octets(), destination.octets(), part.len());
                frame.extend([8, 0].iter().chain(&header));
            }
            (source, destination) => {
                let chain = self.chain();
                let first = self.first_header();
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(self.told_length(chain.len() + part.len()).to_be_bytes());
                frame.extend([first, self.ttl]);
                frame.extend(octets(source).iter().chain(&octets(destination)).chain(&chain));
            }
        }
        frame.extend(part);
        frame
    }

    fn header4(&self, source: [u8; 4], destination: [u8; 4], length: usize) -> Vec<u8> {
        let words = 5 + self.options.len() / 4;
        let mut header = vec![0x40 | words as u8, 0];
        header.extend(self.told_length(words * 4 + length).to_be_bytes());
        let piece = self
            .piece
            .as_ref()
            .map_or(0, |piece| (piece.bytes.start / 8) as u16 | if piece.more { 0x2000 } else { 0 });
        header.extend(self.ports.0.to_be_bytes());
        header.extend(piece.to_be_bytes());
        header.extend([self.ttl, self.transport.number(), 0, 0]);
        header.extend(source.iter().chain(&destination).chain(&self.options));
        let mut sum = checksum(&[&header]);
        if self.lie == Lie::HeaderChecksum {
            sum ^= 0x1111;
        }
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    /// Number of the header behind the first one of IPv6.
    fn first_header(&self) -> u8 {
        let fragment = self.piece.as_ref().map(|_| 44);
        self.extensions.first().map(|(number, _)| *number).or(fragment).unwrap_or(self.transport.number())
    }

    /// The extension headers, each with the number of the next.
    fn chain(&self) -> Vec<u8> {
        let mut headers = self.extensions.clone();
        if let Some(piece) = &self.piece {
            let offset = piece.bytes.start as u16 | u16::from(piece.more);
            let identification = u32::from(self.ports.0).to_be_bytes();
            headers.push((44, [&[0][..], &offset.to_be_bytes(), &identification].concat()));
        }
        let next = headers.iter().skip(1).map(|(number, _)| *number).chain([self.transport.number()]);
        headers.iter().zip(next).flat_map(|((_, rest), next)| [&[next][..], rest].concat()).collect()
    }

    fn told_length(&self, length: usize) -> u16 {
        let lie = if let Lie::Length(by) = self.lie { by } else { 0 };
        (length as u16).wrapping_add_signed(lie)
    }

    /// Transport header and what is behind it.
    fn payload(&self, mark: [u8; 4]) -> Vec<u8> {
        let mut payload = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        let at = match self.transport {
            Transport::Tcp(flags) => {
                // What is acknowledged is told from the mark, and a reset that repeats it as well.
                let [high, low, mark, last] = mark;
                let numbers = [high, low, mark, last, high, low, mark, last + 1];
                payload.extend(numbers.iter().chain(&[0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]));
                16
            }
            Transport::Udp => {
                // Every part of 16 bytes has the mark, so that pieces have.
                let data = mark.repeat(12);
                let told = (8 + data.len()) as u16;
                let lie = if let Lie::UdpLength(by) = self.lie { by } else { 0 };
                payload.extend(told.wrapping_add_signed(lie).to_be_bytes().iter().chain(&[0, 0]));
                payload.extend(data);
                6
            }
        };
        let (source, destination) = (octets(self.source), octets(self.destination));
        let length = if self.transport == Transport::Udp {
            u16::from_be_bytes([payload[4], payload[5]])
        } else {
            payload.len() as u16
        };
        let pseudo =
            [&source[..], &destination, &[0, self.transport.number()], &length.to_be_bytes()].concat();
        let mut sum = checksum(&[&pseudo, &payload]);
        if sum == 0 {
            sum = 0xffff;
        }
        if self.lie == Lie::Checksum {
            sum ^= 0x1111;
        }
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        payload
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_honest_packet_adds_up() {
        let (client, node) = (IpAddr::from([192, 168, 240, 1]), IpAddr::from([192, 168, 240, 11]));
        let packet = Packet::honest(client, node, (40000, 30000), Transport::Tcp(SYN));
        let frame = packet.frame([1, 2, 3, 4], ([2; 6], [4; 6]));
        assert_eq!(frame.len(), 14 + 20 + 20);
        assert_eq!(checksum(&[&frame[14..34]]), 0);
        let pseudo = [&octets(client)[..], &octets(node), &[0, 6, 0, 20]].concat();
        assert_eq!(checksum(&[&pseudo, &frame[34..]]), 0);
        assert_eq!(frame[38..42], [1, 2, 3, 4]);
    }

    #[test]
    fn extension_headers_name_each_other() {
        let address = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]);
        let mut packet = Packet::honest(address, address, (40000, 30000), Transport::Udp);
        packet.extensions = vec![(0, vec![0, 1, 4, 0, 0, 0, 0]), (60, vec![0, 1, 4, 0, 0, 0, 0])];
        packet.piece = Some(Piece { bytes: 0..56, more: false });
        let frame = packet.frame([1, 2, 3, 4], ([2; 6], [4; 6]));
        assert_eq!([frame[20], frame[54], frame[62], frame[70]], [0, 60, 44, 17]);
        assert_eq!(frame.len(), 14 + 40 + 24 + 56);
    }
}
