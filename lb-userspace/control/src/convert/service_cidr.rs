//! ServiceCIDRs: the ranges ClusterIPs are taken from.

use ipnet::IpNet;

use super::network;
use super::report::Report;
use crate::model::{Kind, ObjectRef, Origin, Problem};
use crate::objects::ServiceCidr;

/// Reads a ServiceCIDR: one range for each family at most.
pub fn service_cidr(
    object: &ServiceCidr,
    reference: &ObjectRef,
    origin: Option<&Origin>,
) -> (Vec<IpNet>, Vec<Problem>) {
    debug_assert_eq!(reference.kind, Kind::ServiceCidr);
    let mut report = Report::new(reference.clone(), origin);
    let texts = object.spec.cidrs.iter().enumerate();
    let ranges = texts.filter_map(|(i, text)| {
        let range = network(text);
        if range.is_none() {
            let message = format!("{text:?} is not a network; write it like 10.96.0.0/16 or fd00:1::/108");
            report.warn(format!("spec.cidrs[{i}]"), message);
        }
        range
    });
    let ranges = ranges.collect();
    (ranges, report.finish())
}
