//! What became of a packet, by the frames in which its mark was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

/// Ends of a mark; answers of TCP count on from it.
const MARK: u8 = 0x5d;
/// Bit of the other bytes.
const TOP: u8 = 0x80;
/// Offset of the network header.
const L3: usize = 14;

/// The mark of the packets of this number, which has 14 bits.
pub fn mark(number: u16) -> [u8; 4] {
    // Neither half is a byte of the end, so that no part of two marks is one.
    let half = |bits: u16| TOP | (bits & 0x7f) as u8;
    [half(number >> 7), half(number), MARK, MARK]
}

/// What a frame is that bears a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The packet itself, with this TTL.
    Packet(u8),
    /// What its sender gets.
    Answer(&'static str),
}

/// Reads a frame: the number in it, and what it is. `port_of` tells the source port of what was sent under a number, and `number_of`
/// the number of a port (of IPv6, or IPv4): an ICMP error need not quote more.
pub fn read(
    frame: &[u8],
    port_of: impl Fn(u16) -> Option<u16>,
    number_of: impl Fn(bool, u16) -> Option<u16>,
) -> Option<(u16, Sight)> {
    let network = Network::read(frame)?;
    let l4 = frame.get(network.l4..)?;
    if matches!(network.proto, 1 | 58) && !network.is_later {
        let number = number_of(network.proto == 58, quoted_port(l4.get(8..)?)?)?;
        return Some((number, Sight::Answer(error(network.proto, l4[0], l4[1])?)));
    }
    let number = find_mark(l4)?;
    let port = port_of(number)?;
    // Answers of the pods have it elsewhere, or count on from it.
    let place = if network.proto == 6 { 4 } else { 8 };
    let is_itself = network.is_later || l4.get(place..place + 4) == Some(&mark(number));
    let packet = is_itself.then_some((number, Sight::Packet(network.ttl)));
    let answer = match network.proto {
        _ if network.is_later => return packet,
        _ if is_itself || half(l4, 2) != Some(port) => return packet,
        6 if l4.get(13)? & 4 != 0 => "reset",
        _ => "answered",
    };
    Some((number, Sight::Answer(answer)))
}

/// The number in a mark.
fn find_mark(bytes: &[u8]) -> Option<u16> {
    bytes.windows(4).find_map(|window| match window {
        [high @ TOP..=u8::MAX, low @ TOP..=u8::MAX, MARK, MARK..=0x5f] => {
            Some(u16::from(high & !TOP) << 7 | u16::from(low & !TOP))
        }
        _ => None,
    })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// What a network header says.
struct Network {
    ttl: u8,
    proto: u8,
    l4: usize,
    is_later: bool,
}

impl Network {
    fn read(frame: &[u8]) -> Option<Self> {
        match half(frame, 12)? {
            0x0800 => Self::read4(frame),
            0x86dd => Self::read6(frame, L3),
            _ => None,
        }
    }

    fn read4(frame: &[u8]) -> Option<Self> {
        let l4 = L3 + usize::from(frame.get(L3)? & 15) * 4;
        let is_later = half(frame, L3 + 6)? & 0x1fff != 0;
        Some(Network { ttl: *frame.get(L3 + 8)?, proto: *frame.get(L3 + 9)?, l4, is_later })
    }

    fn read6(frame: &[u8], l3: usize) -> Option<Self> {
        let (mut proto, mut l4, mut is_later) = (*frame.get(l3 + 6)?, l3 + 40, false);
        while matches!(proto, 0 | 43 | 44 | 60) && !is_later {
            let length = if proto == 44 { 8 } else { usize::from(*frame.get(l4 + 1)?) * 8 + 8 };
            is_later = proto == 44 && half(frame, l4 + 2)? & 0xfff8 != 0;
            proto = *frame.get(l4)?;
            l4 += length;
        }
        Some(Network { ttl: *frame.get(l3 + 7)?, proto, l4, is_later })
    }
}

/// The source port of a quoted packet.
fn quoted_port(quote: &[u8]) -> Option<u16> {
    let l4 = if quote.first()? >> 4 == 4 {
        usize::from(quote[0] & 15) * 4
    } else {
        // (A frame's header in front of it would be as long.)
        Network::read6(&[&[0; L3], quote].concat(), L3)?.l4 - L3
    };
    half(quote, l4)
}

/// What an ICMP error says; nothing for advice to routers' neighbours.
fn error(proto: u8, kind: u8, code: u8) -> Option<&'static str> {
    match (proto, kind, code) {
        (1, 3, 3) | (58, 1, 4) => Some("port unreachable"),
        (1, 3, _) | (58, 1, _) => Some("unreachable"),
        (1, 11, _) | (58, 3, _) => Some("time exceeded"),
        (1, 12, _) | (58, 4, _) => Some("parameter problem"),
        _ => None,
    }
}

/// What became of all packets of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// How often it came to each pod.
    pub pods: BTreeMap<String, usize>,
    /// How often it left the node, for anybody.
    pub left: usize,
    /// How often it came to the node.
    pub entered: usize,
    /// How many were sent.
    pub sent: usize,
    /// It left with the TTL that it came with.
    pub kept_ttl: bool,
    /// What its sender got.
    pub answers: BTreeSet<&'static str>,
    /// Whether there is a flow afterwards.
    pub flow: bool,
}

impl Outcome {
    /// Whether it left for nobody's pod.
    pub fn is_forwarded(&self) -> bool {
        self.left > 0 && !self.pods.keys().any(|pod| pod.starts_with('b'))
    }

    /// Whether it came to the node again.
    pub fn circles(&self) -> bool {
        self.entered > self.sent
    }

    /// What its sender got but for an answer of a pod. How nobody is there is told in two ways.
    pub fn errors(&self) -> BTreeSet<&str> {
        let answers = self.answers.iter().filter(|answer| **answer != "answered");
        answers.map(|answer| if *answer == "reset" { "port unreachable" } else { *answer }).collect()
    }

    /// Whether all that its sender got is that nobody is there.
    pub fn is_refused(&self) -> bool {
        self.errors().iter().eq(["port unreachable"].iter())
    }

    /// The pods that it came to.
    pub fn reached(&self) -> BTreeSet<&str> {
        self.pods.keys().map(String::as_str).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = self.pods.keys().map(|pod| format!("to {pod}")).collect();
        if self.pods.values().any(|count| *count > self.sent) {
            words.push("more than once".into());
        }
        if self.circles() {
            words.push(format!("circles, {} times", self.entered - self.sent));
        } else if self.is_forwarded() {
            words.push("forwarded".into());
        } else if self.left > self.sent {
            words.push(format!("leaves {} times", self.left));
        }
        if self.kept_ttl {
            words.push("TTL kept".into());
        }
        words.extend(self.answers.iter().map(|answer| (*answer).to_owned()));
        if words.is_empty() {
            words.push("dropped".into());
        }
        if self.flow && self.pods.is_empty() {
            words.push("a flow".into());
        }
        f.pad(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::packet::{Packet, SYN, Transport};
    use super::*;

    const MACS: ([u8; 6], [u8; 6]) = ([2; 6], [4; 6]);

    fn packet(transport: Transport) -> Packet {
        let (client, node) = (IpAddr::from([192, 168, 240, 1]), IpAddr::from([192, 168, 240, 11]));
        Packet::honest(client, node, (40000, 30000), transport)
    }

    fn seen(frame: &[u8]) -> Option<(u16, Sight)> {
        read(frame, |_| Some(40000), |_, port| (port == 40000).then_some(7))
    }

    #[test]
    fn a_packet_is_known_by_its_mark() {
        for transport in [Transport::Tcp(SYN), Transport::Udp] {
            let frame = packet(transport).frame(mark(7), MACS);
            assert_eq!(seen(&frame), Some((7, Sight::Packet(64))));
            assert_eq!(read(&frame, |_| None, |_, _| None), None);
        }
    }

    #[test]
    fn a_reset_is_an_answer_and_one_of_the_clients_is_nothing() {
        let mut reset = packet(Transport::Tcp(4));
        reset.ports = (30000, 40000);
        assert_eq!(seen(&reset.frame([0x80, 0x87, 0x5d, 0x5e], MACS)), Some((7, Sight::Answer("reset"))));
        reset.ports = (40000, 30000);
        assert_eq!(seen(&reset.frame([0x80, 0x87, 0x5d, 0x5e], MACS)), None);
    }

    #[test]
    fn an_error_is_an_answer_if_it_quotes_the_packet() {
        let quoted = packet(Transport::Udp).frame(mark(7), MACS);
        let mut frame = packet(Transport::Udp).frame(mark(7), MACS)[..34].to_vec();
        frame[23] = 1;
        frame.extend([3, 3, 0, 0, 0, 0, 0, 0]);
        frame.extend(&quoted[14..]);
        assert_eq!(seen(&frame), Some((7, Sight::Answer("port unreachable"))));
        assert_eq!(read(&frame, |_| None, |_, _| None), None);
    }
}
