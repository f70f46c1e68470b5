//! Laws of the shared parser: what it says about a packet is what the packet says.

use std::vec::Vec;

use crate::{Numbered, checksums_hold};
use lb_common::abi::Reason;
use lb_common::addr::{Ipv4, Ipv6, Port, Proto};
use lb_common::datapath::parse::{Fragments, Quoted, quote};
use lb_common::datapath::{Family, Parsed, Translation, rewrite};
use lb_common::wire::{ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, SlicePacket};

/// Reads a packet of either family out of any bytes: whole datagrams, fragments, what errors quote.
///
/// # Panics
/// When a law of the parser does not hold.
pub fn parser(packet: &[u8]) {
    law::<Ipv4>(ETHERTYPE_IPV4, packet);
    law::<Ipv6>(ETHERTYPE_IPV6, packet);
}

fn law<A: Numbered + Quoted + Fragments>(ethertype: [u8; 2], packet: &[u8]) {
    let mut frame: Vec<u8> = [&[0; 12], &ethertype[..], packet].concat();
    let parsed = A::parse(&SlicePacket(&mut frame));
    // What a driver pads short frames with is no part of the packet.
    let mut padded = [&frame[..], &[0xa5; 7]].concat();
    let again = A::parse(&SlicePacket(&mut padded));
    if parsed != Err(Reason::Malformed) {
        assert_eq!(again, parsed, "padding counts: {frame:02x?}");
    }
    for length in [ETHERNET_LENGTH, ETHERNET_LENGTH + 10, ETHERNET_LENGTH + A::HEADER_LENGTH, frame.len()] {
        headers::<A>(&frame, length, parsed);
    }
    match parsed {
        Ok(parsed) => datagram(&frame, &parsed),
        Err(Reason::Fragment) => later_fragment::<A>(&mut frame),
        Err(Reason::IcmpError) => error::<A>(&mut frame),
        Err(_) => {}
    }
    // No packet promises that its reader was told what it is; nothing may come of asking wrongly.
    let _ = A::later_fragment(&SlicePacket(&mut frame));
    let _ = quote::<A, _>(&SlicePacket(&mut frame));
}

/// Some bytes tell how many are enough.
fn headers<A: Family>(frame: &[u8], length: usize, parsed: Result<Parsed<A>, Reason>) {
    /// A frame with its first bytes at hand.
    struct Head<'a>(&'a [u8], usize);

    impl Packet for Head<'_> {
        fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            self.0[..self.1.min(self.0.len())].get(offset..)?.first_chunk().copied()
        }

        fn length(&self) -> usize {
            self.0.len()
        }
    }

    let enough = A::headers(&Head(frame, length));
    let again = A::parse(&Head(frame, length.max(enough)));
    // (More extension headers than are looked at are as good as broken ones.)
    assert!(again == parsed || enough > 200 && again == Err(Reason::Malformed), "{enough}: {frame:02x?}");
}

fn datagram<A: Numbered>(frame: &[u8], parsed: &Parsed<A>) {
    let header = match parsed.tuple.proto {
        Proto::TCP => 20,
        Proto::UDP => 8,
        Proto::SCTP => 12,
        other => panic!("{other:?} has no ports: {frame:02x?}"),
    };
    let end = parsed.l3() + usize::from(parsed.l3_length);
    assert!(end <= frame.len(), "longer than the frame: {parsed:?} {frame:02x?}");
    assert!(parsed.l4() + header <= end, "the transport header is beyond the end: {parsed:?} {frame:02x?}");
    assert!(parsed.l4() >= parsed.l3() + A::HEADER_LENGTH && parsed.l4().is_multiple_of(2), "{parsed:?}");
    let ports = &frame[parsed.l4()..parsed.l4() + 4];
    assert_eq!(ports[..2], parsed.tuple.source_port.octets(), "{parsed:?} {frame:02x?}");
    assert_eq!(ports[2..], parsed.tuple.destination_port.octets(), "{parsed:?} {frame:02x?}");
    let mut cut = frame[..end - 1].to_vec();
    assert!(A::parse(&SlicePacket(&mut cut)).is_err(), "cut short: {frame:02x?}");
    there_and_back(frame, parsed);
}

/// Both ends replaced and put back: the same packet, and valid in between.
fn there_and_back<A: Numbered>(frame: &[u8], parsed: &Parsed<A>) {
    let tuple = &parsed.tuple;
    if tuple.destination == A::UNSPECIFIED {
        // Nothing is ever translated to it: it stands for an end that stays.
        return;
    }
    let port = |old: Port| if tuple.proto == Proto::SCTP { old } else { Port::new(old.get() ^ 0x5a5a) };
    let there = Translation::destination(A::pod(1), port(tuple.destination_port))
        .with_source(A::node(), port(tuple.source_port));
    let back = Translation::destination(tuple.destination, tuple.destination_port)
        .with_source(tuple.source, tuple.source_port);
    let mut bytes = frame.to_vec();
    let valid = checksums_hold(frame) == Some(true);
    for translation in [there, back] {
        let now = A::parse(&SlicePacket(&mut bytes)).expect("addresses and ports alone have changed");
        assert_eq!(rewrite::translate(&mut SlicePacket(&mut bytes), &now, &translation), Some(()));
        assert!(!valid || checksums_hold(&bytes) == Some(true), "{translation:?} {frame:02x?}");
    }
    if valid && tuple.proto != Proto::UDP {
        // (UDP's sum of zero has two spellings.)
        assert_eq!(bytes, frame, "{parsed:?}");
    }
}

fn later_fragment<A: Fragments>(frame: &mut [u8]) {
    let packet = SlicePacket(frame);
    let later = A::later_fragment(&packet);
    let Some(fragment) = later else { panic!("a later fragment that cannot be read: {:02x?}", packet.0) };
    let at = |offset| A::read(&packet, ETHERNET_LENGTH + offset);
    assert_eq!((Some(fragment.source), Some(fragment.destination)), (at(A::SOURCE), at(A::DESTINATION)));
}

fn error<A: Quoted>(frame: &mut [u8]) {
    let packet = SlicePacket(frame);
    let Ok(quote) = quote::<A, _>(&packet) else { return };
    let tuple = &quote.tuple;
    assert_eq!(quote.destination, tuple.source, "an error goes to who sent what it quotes");
    let ports: [u8; 4] = packet.read(quote.l4()).expect("the quoted ports are in the frame");
    assert_eq!(ports[..2], tuple.source_port.octets(), "{:02x?}", packet.0);
    assert_eq!(ports[2..], tuple.destination_port.octets(), "{:02x?}", packet.0);
    assert_eq!(A::read(&packet, quote.l3() + A::SOURCE), Some(tuple.source), "{:02x?}", packet.0);
    assert_eq!(A::read(&packet, quote.l3() + A::DESTINATION), Some(tuple.destination));
    assert!(quote.icmp() < quote.l3() && quote.l3() < quote.l4());
}
