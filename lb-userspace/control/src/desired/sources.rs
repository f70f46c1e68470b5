//! Who may come to the restricted frontends of a Service port.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use lb_common::abi::ServiceFlags;

use super::DesiredFrontend;
use crate::model::{Family, Service, SourceRanges};

/// The ranges for those of `frontends` that are restricted; `own`: the addresses of this node.
///
/// The node's own processes speak to a load-balancer address from that very address, where the node has it: where a
/// range lets the node in, so does this.
pub(super) fn ranges(service: &Service, frontends: &[DesiredFrontend], own: &[IpAddr]) -> BTreeSet<IpNet> {
    let mut ranges = BTreeSet::new();
    for family in Family::ALL {
        let SourceRanges::Only(allowed) = &service.source_ranges[family as usize] else { continue };
        let restricted = frontends
            .iter()
            .filter(|wanted| wanted.flags.has(ServiceFlags::CHECK_SOURCES))
            .map(|wanted| wanted.frontend.address)
            .filter(|address| Family::of(*address) == family);
        let mut addresses: BTreeSet<IpAddr> = restricted.collect();
        if addresses.is_empty() {
            continue;
        }
        // (A nodePort has no address of its own.)
        addresses.remove(&family.unspecified());
        if allowed.iter().any(|range| own.iter().any(|address| range.contains(address))) {
            ranges.extend(addresses.into_iter().map(IpNet::from));
        }
        ranges.extend(allowed.iter().flat_map(|range| without_mapped(*range)));
    }
    ranges
}

/// The same range in pieces that hold no IPv4-mapped address: in the map both families share one key, where a
/// range such as `::/8` would let every IPv4 source in.
fn without_mapped(range: IpNet) -> Vec<IpNet> {
    let IpNet::V6(mut range) = range else { return vec![range] };
    let mapped = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);
    let mut pieces = Vec::new();
    while range.contains(&mapped) && range.prefix_len() < 96 {
        let Ok(halves) = range.subnets(range.prefix_len() + 1) else { break };
        let (inside, outside): (Vec<Ipv6Net>, Vec<Ipv6Net>) = halves.partition(|half| half.contains(&mapped));
        pieces.extend(outside.into_iter().map(IpNet::V6));
        let Some(inside) = inside.first() else { break };
        range = *inside;
    }
    // No IPv6 packet comes from a mapped address.
    if range.addr().to_ipv4_mapped().is_none() {
        pieces.push(IpNet::V6(range));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_holds_an_ipv4_mapped_address() {
        let pieces = |text: &str| without_mapped(text.parse().expect("a range"));
        let texts = |text: &str| pieces(text).iter().map(IpNet::to_string).collect::<Vec<_>>();
        assert_eq!(texts("192.0.2.0/24"), ["192.0.2.0/24"]);
        assert_eq!(texts("2001:db8::/32"), ["2001:db8::/32"]);
        assert_eq!(texts("::ffff:10.0.0.0/104"), [""; 0]);
        assert_eq!(texts("::fffe:0:0/95"), ["::fffe:0:0/96"]);
        let pieces = pieces("::/8");
        assert_eq!(pieces.len(), 88);
        let has = |text: &str| {
            let address: IpAddr = text.parse().expect("an address");
            pieces.iter().filter(|piece| piece.contains(&address)).count()
        };
        assert_eq!([has("::1"), has("64:ff9b::1"), has("::ffff:10.0.0.1"), has("100::")], [1, 1, 0, 0]);
    }
}
