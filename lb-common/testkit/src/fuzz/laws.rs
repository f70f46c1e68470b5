//! What must hold for every packet, whatever it is: told from the bytes that go in and come out, not from
//! the code that made them.

use core::ops::Range;
use std::vec;
use std::vec::Vec;

use crate::{Action, Frontend, World, checksums_hold};
use lb_common::abi::{Hook, Reason};
use lb_common::addr::{Address as _, Ipv4, Ipv6, Proto};
use lb_common::datapath::parse::{Fragments, Quoted, quote};
use lb_common::datapath::{Family, Parsed};
use lb_common::wire::{
    Checksum, Delta, ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LENGTH, SlicePacket, field,
};

/// The laws of a node: [`Laws::check`] panics where one is broken.
#[derive(Clone, Debug)]
pub struct Laws {
    frontends: Vec<(Frontend, u32)>,
    endpoints: Vec<(u32, Ipv6, u16)>,
    /// Bytes of every address that is ours.
    ours: Vec<Vec<u8>>,
    /// First bytes of [`Self::ours`].
    beginnings: [bool; 256],
}

/// One packet's way through one program.
#[derive(Clone, Copy, Debug)]
pub struct Passage<'a> {
    /// The program.
    pub hook: Hook,
    /// What came in.
    pub before: &'a [u8],
    /// What came out, unless it was dropped.
    pub after: &'a [u8],
    /// What became of it.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

impl Laws {
    /// The laws of a node that nothing changes.
    pub fn new(world: &World) -> Self {
        let bytes = |address: Ipv6| match address.unmapped() {
            Some(address) => address.octets().to_vec(),
            None => address.octets().to_vec(),
        };
        let nodes = [world.config.ipv4.node_address.to_mapped(), world.config.ipv6.node_address];
        let aims = world.aims();
        let frontends = aims.iter().map(|((address, ..), _)| *address);
        let backends = world.backends.iter().map(|(_, backend)| backend.address);
        let mut ours: Vec<_> = frontends.chain(backends).chain(nodes).map(bytes).collect();
        ours.sort();
        ours.dedup();
        let mut beginnings = [false; 256];
        ours.iter().for_each(|address| beginnings[usize::from(address[0])] = true);
        Self {
            frontends: aims,
            endpoints: world.backends.iter().map(|(_, b)| (b.service, b.address, b.port.get())).collect(),
            ours,
            beginnings,
        }
    }

    /// Checks all of them.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check(&self, passage: &Passage) {
        let Passage { before, after, action, reason, .. } = *passage;
        if !self.concerns_us(before) {
            assert_eq!(action, Action::Pass, "no address of ours is in it: {passage:02x?}");
            assert_eq!(after, before, "no address of ours is in it: {passage:02x?}");
        }
        if action == Action::Drop {
            return;
        }
        if is_untouched(reason) {
            assert_eq!((action, after), (Action::Pass, before), "a packet that is not ours: {passage:02x?}");
            return;
        }
        if checksums_hold(before) == Some(true) {
            assert_eq!(checksums_hold(after), Some(true), "checksums were right before: {passage:02x?}");
        }
        if header_holds(before) == Some(true) {
            assert_eq!(header_holds(after), Some(true), "the header was right before: {passage:02x?}");
        }
        if before.get(12..14) == Some(&ETHERTYPE_IPV6) {
            self.check_bytes::<Ipv6>(passage);
        } else {
            self.check_bytes::<Ipv4>(passage);
        }
    }

    /// Whether an address of ours is anywhere in the frame.
    fn concerns_us(&self, frame: &[u8]) -> bool {
        (0..frame.len()).step_by(2).any(|at| {
            let rest = &frame[at..];
            self.beginnings[usize::from(rest[0])] && self.ours.iter().any(|address| rest.starts_with(address))
        })
    }

    fn check_bytes<A: Quoted + Fragments>(&self, passage: &Passage) {
        let Passage { before, after, reason, action, .. } = *passage;
        let mut copy = before.to_vec();
        let packet = SlicePacket(&mut copy);
        let addresses = ETHERNET_LENGTH + A::SOURCE..ETHERNET_LENGTH + A::SOURCE + 2 * size_of::<A>();
        let mut free = vec![addresses];
        if A::ICMP == Proto::ICMP {
            free.push(word_at(ETHERNET_LENGTH + field::IPV4_CHECKSUM));
        }
        match A::parse(&packet) {
            Ok(parsed) => {
                if action == Action::Send {
                    check_answer(passage, &parsed);
                    return;
                }
                self.check_ends(passage, &parsed);
                if parsed.tuple.proto != Proto::SCTP {
                    free.push(parsed.l4()..parsed.l4() + 4);
                    free.push(transport_checksum(parsed.tuple.proto, parsed.l4()));
                }
            }
            Err(Reason::Fragment) => assert_eq!(reason, Reason::Fragment, "{passage:02x?}"),
            Err(Reason::IcmpError) => {
                let quote = quote::<A, _>(&packet);
                let Ok(quote) = quote else { panic!("quotes nothing of ours: {passage:02x?}") };
                free.push(word_at(quote.icmp() + field::ICMP_CHECKSUM));
                free.push(quote.l3() + A::SOURCE..quote.l3() + A::SOURCE + 2 * size_of::<A>());
                if A::ICMP == Proto::ICMP {
                    free.push(word_at(quote.l3() + field::IPV4_CHECKSUM));
                }
                free.push(quote.l4()..quote.l4() + 4);
                free.push(transport_checksum(quote.tuple.proto, quote.l4()));
            }
            Err(other) => panic!("{other:?} is not ours: {passage:02x?}"),
        }
        assert_eq!(after.len(), before.len(), "{passage:02x?}");
        for (at, (old, new)) in before.iter().zip(after).enumerate() {
            let may_change = free.iter().any(|range| range.contains(&at));
            assert!(old == new || may_change, "byte {at} has no business to change: {passage:02x?}");
        }
    }

    /// A packet to a Service goes to one of its own endpoints; one from an endpoint shows its frontend.
    fn check_ends<A: Family>(&self, passage: &Passage, parsed: &Parsed<A>) {
        let mut copy = passage.after.to_vec();
        let Ok(after) = A::parse(&SlicePacket(&mut copy)) else { panic!("reads no more: {passage:02x?}") };
        let (old, new) = (&parsed.tuple, &after.tuple);
        let led = |frontend: (A, u16), endpoint: (A, u16)| {
            self.frontends.iter().any(|((address, port, proto), id)| {
                (*address, port.get(), *proto) == (frontend.0.to_mapped(), frontend.1, old.proto)
                    && self.endpoints.contains(&(*id, endpoint.0.to_mapped(), endpoint.1))
            })
        };
        let right = match passage.reason {
            Reason::NewFlow | Reason::Forward => led(
                (old.destination, old.destination_port.get()),
                (new.destination, new.destination_port.get()),
            ),
            Reason::Reply => led((new.source, new.source_port.get()), (old.source, old.source_port.get())),
            _ => true,
        };
        assert!(right, "not an endpoint of that Service: {passage:02x?}");
    }
}

/// What is sent back goes to who asked, from whom it asked, and is right in itself.
fn check_answer<A: Family>(passage: &Passage, parsed: &Parsed<A>) {
    let mut copy = passage.after.to_vec();
    let packet = SlicePacket(&mut copy);
    let source = A::read(&packet, ETHERNET_LENGTH + A::SOURCE);
    let destination = A::read(&packet, ETHERNET_LENGTH + A::DESTINATION);
    assert_eq!(destination, Some(parsed.tuple.source), "{passage:02x?}");
    assert_eq!(source, Some(parsed.tuple.destination), "{passage:02x?}");
    assert_eq!(passage.after[..6], passage.before[6..12], "{passage:02x?}");
    assert_eq!(passage.after[6..12], passage.before[..6], "{passage:02x?}");
    if parsed.tuple.proto != Proto::TCP {
        assert_eq!(checksums_hold(passage.after), Some(true), "an answer of our own: {passage:02x?}");
        assert!(matches!(A::parse(&packet), Err(Reason::IcmpError)), "{passage:02x?}");
    }
}

/// Reasons of packets that go on as they came.
pub const fn is_untouched(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NotIp
            | Reason::Malformed
            | Reason::FragmentUnknown
            | Reason::LeftToStack
            | Reason::OtherProtocol
            | Reason::NoService
            | Reason::Martian
            | Reason::NotForUs
            | Reason::Translated
    )
}

/// Whether the checksum of an IPv4 header is right.
fn header_holds(frame: &[u8]) -> Option<bool> {
    if frame.get(12..14)? != ETHERTYPE_IPV4 {
        return None;
    }
    let l3 = frame.get(ETHERNET_LENGTH..)?;
    let length = usize::from(l3.first()? & 0xf) * 4;
    let header = l3.get(..length.max(IPV4_LENGTH))?;
    Some(Checksum::of(header, Delta::default()).0 == [0, 0])
}

const fn word_at(offset: usize) -> Range<usize> {
    offset..offset + 2
}

fn transport_checksum(proto: Proto, l4: usize) -> Range<usize> {
    match proto {
        Proto::TCP => word_at(l4 + field::TCP_CHECKSUM),
        Proto::UDP => word_at(l4 + field::UDP_CHECKSUM),
        _ => 0..0,
    }
}
