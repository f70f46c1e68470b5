//! Damages frames in the ways that parsers get wrong.
#![expect(clippy::ptr_arg, reason = "all kinds of damage are functions of one type")]

use super::Dice;
use lb_common::wire::{
    Checksum, Delta, ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LENGTH, IPV6_LENGTH, MAC_LENGTH,
    field,
};

/// Extension headers, and what only looks like one.
const EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 50, 59];
/// TPIDs of the tags that 802.1Q and 802.1ad put between addresses and EtherType.
const TAGS: [[u8; 2]; 2] = [[0x81, 0], [0x88, 0xa8]];

type Damage = fn(&mut Dice, &mut Vec<u8>);

/// The kinds of damage, each of which leaves a frame of at least an Ethernet header.
const DAMAGES: [Damage; 18] = [
    flip_one,
    flip_some,
    cut,
    cut_neatly,
    pad,
    header_length,
    version,
    total_length,
    lengthen_header,
    lengthen_header,
    tag,
    ethertype,
    station,
    checksum,
    fragment,
    transport_length,
    addresses,
    protocol,
];

/// Damages a frame up to three times.
pub fn damage(dice: &mut Dice, frame: &mut Vec<u8>) {
    for _ in 0..=dice.below(3) {
        if frame.len() < ETHERNET_LENGTH {
            return;
        }
        dice.one_of(&DAMAGES)(dice, frame);
    }
}

/// The network header and what follows, if it is IPv4 with its twenty bytes there.
fn ipv4(frame: &mut [u8]) -> Option<&mut [u8]> {
    if frame.get(12..14)? != ETHERTYPE_IPV4 || frame.len() < ETHERNET_LENGTH + IPV4_LENGTH {
        return None;
    }
    frame.get_mut(ETHERNET_LENGTH..)
}

/// The same for IPv6 and its forty bytes.
fn ipv6(frame: &mut [u8]) -> Option<&mut [u8]> {
    if frame.get(12..14)? != ETHERTYPE_IPV6 || frame.len() < ETHERNET_LENGTH + IPV6_LENGTH {
        return None;
    }
    frame.get_mut(ETHERNET_LENGTH..)
}

/// Makes the checksum of an IPv4 header right again.
fn mend(l3: &mut [u8]) {
    let length = usize::from(l3[0] & 0xf) * 4;
    if (IPV4_LENGTH..=l3.len()).contains(&length) {
        l3[field::IPV4_CHECKSUM..][..2].fill(0);
        let checksum = Checksum::of(&l3[..length], Delta::default());
        l3[field::IPV4_CHECKSUM..][..2].copy_from_slice(&checksum.0);
    }
}

/// Adds to the length that the network header tells.
fn grow(frame: &mut [u8], by: i32) {
    let (l3, at) = match ipv4(frame) {
        Some(_) => (&mut frame[ETHERNET_LENGTH..], 2),
        None => match ipv6(frame) {
            Some(l3) => (l3, 4),
            None => return,
        },
    };
    let length = u16::from_be_bytes([l3[at], l3[at + 1]]).wrapping_add(by as u16);
    l3[at..at + 2].copy_from_slice(&length.to_be_bytes());
    if at == 2 {
        mend(l3);
    }
}

fn flip_one(dice: &mut Dice, frame: &mut Vec<u8>) {
    let at = dice.below(frame.len());
    frame[at] ^= dice.byte();
}

fn flip_some(dice: &mut Dice, frame: &mut Vec<u8>) {
    for _ in 0..4 {
        let at = dice.below(frame.len().min(ETHERNET_LENGTH + IPV6_LENGTH + 40));
        frame[at] = dice.byte();
    }
}

fn cut(dice: &mut Dice, frame: &mut Vec<u8>) {
    frame.truncate(ETHERNET_LENGTH + dice.below(frame.len() - ETHERNET_LENGTH + 1));
}

/// Cuts, and tells the new length.
fn cut_neatly(dice: &mut Dice, frame: &mut Vec<u8>) {
    let before = frame.len();
    cut(dice, frame);
    let less = frame.len() as i32 - before as i32;
    grow(frame, less);
}

/// What an Ethernet driver appends to short packets.
fn pad(dice: &mut Dice, frame: &mut Vec<u8>) {
    let padding = dice.below(47);
    frame.extend(dice.bytes(padding));
}

fn header_length(dice: &mut Dice, frame: &mut Vec<u8>) {
    if let Some(l3) = ipv4(frame) {
        l3[0] = l3[0] & 0xf0 | dice.byte() & 0xf;
        if dice.once_in(2) {
            mend(l3);
        }
    } else if let Some(l3) = ipv6(frame) {
        l3[field::IPV6_NEXT_HEADER] = dice.one_of(&EXTENSIONS);
    }
}

fn version(dice: &mut Dice, frame: &mut Vec<u8>) {
    if let Some(first) = frame.get_mut(ETHERNET_LENGTH) {
        *first = *first & 0xf | dice.byte() & 0xf0;
    }
}

fn total_length(dice: &mut Dice, frame: &mut Vec<u8>) {
    let by = [dice.below(17) as i32 - 8, i32::from(dice.byte()), dice.number() as i32];
    grow(frame, dice.one_of(&by));
}

/// Puts IPv4 options of any kind, or extension headers in any order, behind the network header.
fn lengthen_header(dice: &mut Dice, frame: &mut Vec<u8>) {
    if let Some(l3) = ipv4(frame) {
        let old = usize::from(l3[0] & 0xf);
        let words = dice.below(16_usize.saturating_sub(old).max(1));
        l3[0] = l3[0] & 0xf0 | (old + words) as u8 & 0xf;
        let options = dice.bytes(4 * words);
        let at = ETHERNET_LENGTH + IPV4_LENGTH;
        frame.splice(at..at, options);
        grow(frame, 4 * words as i32);
    } else if ipv6(frame).is_some() {
        for _ in 0..=dice.below(8) {
            insert_extension(dice, frame);
        }
    }
}

fn insert_extension(dice: &mut Dice, frame: &mut Vec<u8>) {
    let kind = dice.one_of(&EXTENSIONS[..5]);
    let units = if dice.once_in(4) { dice.below(6) } else { 0 };
    let mut header = dice.bytes(8 * (units + 1));
    let next = ETHERNET_LENGTH + field::IPV6_NEXT_HEADER;
    header[0] = frame[next];
    header[1] = match kind {
        // In words of four bytes, less two.
        51 => 2 * units as u8,
        _ => units as u8,
    };
    match kind {
        // No segment left, most of the time: arrived.
        43 if !dice.once_in(4) => header[3] = 0,
        // Whole, or a first fragment, or any.
        44 if !dice.once_in(3) => header[2..4].copy_from_slice(&[0, dice.byte() & 1]),
        _ => {}
    }
    if dice.once_in(16) {
        header[1] = dice.byte();
    }
    frame[next] = kind;
    let at = ETHERNET_LENGTH + IPV6_LENGTH;
    let length = header.len() as i32;
    frame.splice(at..at, header);
    grow(frame, length);
}

/// A VLAN, or only a priority: VLAN 0.
fn tag(dice: &mut Dice, frame: &mut Vec<u8>) {
    let [high, low] = dice.one_of(&[[0, 0], [0xe0, 0], [0, 7], [0xaf, 0xff]]);
    let [first, second] = dice.one_of(&TAGS);
    let at = 2 * MAC_LENGTH;
    frame.splice(at..at, [first, second, high, low]);
}

fn ethertype(dice: &mut Dice, frame: &mut Vec<u8>) {
    let any = [dice.byte(), dice.byte()];
    let kind = dice.one_of(&[ETHERTYPE_IPV4, ETHERTYPE_IPV6, [8, 6], [0x88, 0x47], any]);
    frame[12..14].copy_from_slice(&kind);
}

/// For another station, for all, or for a group.
fn station(dice: &mut Dice, frame: &mut Vec<u8>) {
    let station =
        dice.one_of(&[[2, 0, 0, 0, 0, 9], [0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]]);
    frame[..MAC_LENGTH].copy_from_slice(&station);
}

fn checksum(dice: &mut Dice, frame: &mut Vec<u8>) {
    let sum = dice.one_of(&[[0, 0], [0xff, 0xff], [0xde, 0xad]]);
    let (v4, v6) = (ETHERNET_LENGTH + IPV4_LENGTH, ETHERNET_LENGTH + IPV6_LENGTH);
    // Of IPv4, TCP and UDP without options, UDP and TCP without extension headers.
    let places = [ETHERNET_LENGTH + field::IPV4_CHECKSUM, v4 + 16, v4 + 6, v6 + 6, v6 + 16];
    if let Some(field) = frame.get_mut(dice.one_of(&places)..).and_then(|rest| rest.get_mut(..2)) {
        field.copy_from_slice(&sum);
    }
}

fn fragment(dice: &mut Dice, frame: &mut Vec<u8>) {
    if let Some(l3) = ipv4(frame) {
        l3[6..8].copy_from_slice(&dice.one_of(&[[0x20, 0], [0, 0], [0x20, 1], [0, 9], [0x80, 0], [0x60, 0]]));
        mend(l3);
    } else if ipv6(frame).is_some() {
        insert_extension(dice, frame);
    }
}

/// Data offset of TCP, or length of UDP.
fn transport_length(dice: &mut Dice, frame: &mut Vec<u8>) {
    let l4 = if ipv4(frame).is_some() { IPV4_LENGTH } else { IPV6_LENGTH } + ETHERNET_LENGTH;
    if let Some(byte) = frame.get_mut(l4 + dice.one_of(&[4, 5, 12])) {
        *byte = dice.byte();
    }
}

/// Addresses that change places, or that never come over a device.
fn addresses(dice: &mut Dice, frame: &mut Vec<u8>) {
    if let Some(l3) = ipv4(frame) {
        let odd = [[127, 0, 0, 1], [0; 4], [224, 0, 0, 1], [0xff; 4], [169, 254, 1, 1]];
        let at = dice.one_of(&[field::IPV4_SOURCE, field::IPV4_DESTINATION]);
        if dice.once_in(2) {
            l3[12..20].rotate_left(4);
        } else {
            l3[at..at + 4].copy_from_slice(&dice.one_of(&odd));
        }
        mend(l3);
    } else if let Some(l3) = ipv6(frame) {
        let mut odd = [[0; 16]; 3];
        odd[0][15] = 1;
        odd[1][..2].copy_from_slice(&[0xff, 2]);
        let at = dice.one_of(&[field::IPV6_SOURCE, field::IPV6_DESTINATION]);
        if dice.once_in(2) {
            l3[8..40].rotate_left(16);
        } else {
            l3[at..at + 16].copy_from_slice(&dice.one_of(&odd));
        }
    }
}

fn protocol(dice: &mut Dice, frame: &mut Vec<u8>) {
    let kind = [6, 17, 132, 1, 58, 2, 4, 41, dice.byte()];
    if let Some(l3) = ipv4(frame) {
        l3[field::IPV4_TTL + 1] = dice.one_of(&kind);
        mend(l3);
    } else if let Some(l3) = ipv6(frame) {
        l3[field::IPV6_NEXT_HEADER] = dice.one_of(&kind);
    }
}
