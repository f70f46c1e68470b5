//! Who may come to a Service, and where that holds.

use ipnet::IpNet;

use super::report::Report;
use super::{annotation, network};
use crate::model::{Family, Restricted, SourceRanges};
use crate::objects as k8s;

/// A family none of the ranges speaks of is open, as with kube-proxy. One that cannot be read might
/// speak of either: serving everybody what is meant for some would be worse than serving nobody.
pub(super) fn ranges(object: &k8s::Service, report: &mut Report<'_>) -> [SourceRanges; 2] {
    let named: Vec<(String, &str)> = match object.metadata.annotations.get(k8s::SOURCE_RANGES) {
        Some(texts) => texts.split(',').map(|text| (annotation(k8s::SOURCE_RANGES), text)).collect(),
        None => {
            let texts = object.spec.iter().flat_map(|spec| &spec.load_balancer_source_ranges).enumerate();
            texts.map(|(i, text)| (format!("spec.loadBalancerSourceRanges[{i}]"), text.as_str())).collect()
        }
    };
    let mut known: [Vec<IpNet>; 2] = Default::default();
    let mut unreadable = false;
    for (field, text) in named {
        match network(text.trim()) {
            Some(range) => known[Family::of(range.addr()) as usize].push(range),
            None => {
                unreadable = true;
                let message = format!(
                    "{text:?} is not a network and lets nobody in; write it like 192.0.2.0/24 or 2001:db8::/32"
                );
                report.warn(field, message);
            }
        }
    }
    known.map(|mut ranges| {
        let anybody = ranges.iter().any(|range| range.prefix_len() == 0);
        if anybody || ranges.is_empty() && !unreadable {
            return SourceRanges::Any;
        }
        ranges.sort_unstable();
        ranges.dedup();
        SourceRanges::Only(ranges)
    })
}

/// Ranges of the annotation's, which Services of other types have too, hold at all external frontends unless it is said where.
pub(super) fn restricted(metadata: &k8s::Metadata, report: &mut Report<'_>) -> Restricted {
    match metadata.annotations.get(k8s::SOURCE_RANGES_AT) {
        None if metadata.annotations.get(k8s::SOURCE_RANGES).is_some() => Restricted::External,
        None | Some("load-balancer") => Restricted::LoadBalancer,
        Some("external") => Restricted::External,
        Some("everywhere") => Restricted::Everywhere,
        Some(other) => {
            let message =
                format!("{other:?} is taken for everywhere; write load-balancer, external or everywhere");
            report.warn(annotation(k8s::SOURCE_RANGES_AT), message);
            Restricted::Everywhere
        }
    }
}
