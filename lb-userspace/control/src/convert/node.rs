//! Nodes.

use super::address;
use crate::model::Node;
use crate::objects::{self, ZONE};

/// The cluster autoscaler puts it on a Node it is about to remove.
const REMOVAL_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Reads a Node. What it lacks stays empty: nothing depends on it being complete.
pub fn node(object: &objects::Node) -> Node {
    let spec = &object.spec;
    let tainted = spec.taints.iter().any(|taint| taint.key == REMOVAL_TAINT);
    let pod_cidrs = if spec.pod_cidrs.is_empty() { spec.pod_cidr.as_slice() } else { &spec.pod_cidrs };
    Node {
        name: object.metadata.name.as_deref().unwrap_or("").into(),
        addresses: object
            .status
            .addresses
            .iter()
            .filter(|address| matches!(address.type_.as_str(), "InternalIP" | "ExternalIP"))
            .filter_map(|entry| address(&entry.address).ok())
            .collect(),
        pod_cidrs: pod_cidrs.to_vec(),
        zone: object.metadata.labels.get(ZONE).map(Into::into),
        eligible: !tainted && object.metadata.deletion_timestamp.is_none(),
    }
}
