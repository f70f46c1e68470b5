//! The smallest range of each family that holds given addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::Family;
use crate::store::Cover;

/// Holds all of `addresses` and `ranges`.
pub(super) fn cover(addresses: &BTreeSet<IpAddr>, ranges: &BTreeSet<IpNet>) -> Cover {
    Family::ALL.map(|family| {
        let last = match family {
            Family::V4 => IpAddr::from([0xff; 4]),
            Family::V6 => IpAddr::from([0xff; 16]),
        };
        let mut of_family = addresses.range(family.unspecified()..=last);
        // What holds the lowest and the highest holds all between them.
        let ends = [of_family.next(), of_family.next_back()].into_iter().flatten().copied().map(IpNet::from);
        let ranges = ranges.iter().copied().filter(|range| Family::of(range.addr()) == family);
        ends.chain(ranges).reduce(around)
    })
}

/// Holds both.
pub(super) fn join(one: Cover, other: Cover) -> Cover {
    std::array::from_fn(|family| one[family].into_iter().chain(other[family]).reduce(around))
}

/// The smallest range that holds two of the same family.
fn around(one: IpNet, other: IpNet) -> IpNet {
    let shortest = one.prefix_len().min(other.prefix_len());
    match (one, other) {
        (IpNet::V4(a), IpNet::V4(b)) => {
            let common = (a.addr().to_bits() ^ b.addr().to_bits()).leading_zeros() as u8;
            Ipv4Net::new(a.addr(), shortest.min(common)).map_or(one, |range| range.trunc().into())
        }
        (IpNet::V6(a), IpNet::V6(b)) => {
            let common = (a.addr().to_bits() ^ b.addr().to_bits()).leading_zeros() as u8;
            Ipv6Net::new(a.addr(), shortest.min(common)).map_or(one, |range| range.trunc().into())
        }
        _ => one,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_range_holds_all() {
        let of = |addresses: &[&str], ranges: &[&str]| {
            let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
            let ranges = ranges.iter().map(|text| text.parse().expect("a range")).collect();
            cover(&addresses, &ranges).map(|range| range.map_or_else(String::new, |range| range.to_string()))
        };
        assert_eq!(of(&[], &[]), ["", ""]);
        assert_eq!(of(&["10.96.0.1"], &[]), ["10.96.0.1/32", ""]);
        assert_eq!(of(&["10.96.0.1", "10.96.0.10", "10.96.1.0"], &[]), ["10.96.0.0/23", ""]);
        assert_eq!(of(&["10.0.0.1", "192.168.0.1", "fd00::1"], &[]), ["0.0.0.0/0", "fd00::1/128"]);
        assert_eq!(of(&["10.96.0.1"], &["10.96.0.0/16", "fd00:1::/108"]), ["10.96.0.0/16", "fd00:1::/108"]);
        assert_eq!(of(&["fd00::1", "fd00::ff"], &["fd00::1:0/112"]), ["", "fd00::/111"]);
    }
}
