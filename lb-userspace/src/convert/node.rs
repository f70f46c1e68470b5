//! Nodes.

use k8s_openapi::api::core::v1 as k8s;

use super::address;
use crate::model::Node;

/// The cluster autoscaler puts it on a Node it is about to remove.
const REMOVAL_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Reads a Node. What it lacks stays empty: nothing depends on it being complete.
pub fn node(object: &k8s::Node) -> Node {
    let spec = object.spec.as_ref();
    let tainted = spec
        .and_then(|spec| spec.taints.as_ref())
        .into_iter()
        .flatten()
        .any(|taint| taint.key == REMOVAL_TAINT);
    let addresses = object.status.as_ref().and_then(|status| status.addresses.as_ref());
    Node {
        name: object.metadata.name.as_deref().unwrap_or("").into(),
        addresses: addresses
            .into_iter()
            .flatten()
            .filter(|address| matches!(address.type_.as_str(), "InternalIP" | "ExternalIP"))
            .filter_map(|entry| address(&entry.address).ok())
            .collect(),
        pod_cidrs: spec
            .and_then(|spec| spec.pod_cidrs.clone().or_else(|| spec.pod_cidr.clone().map(|cidr| vec![cidr])))
            .unwrap_or_default(),
        zone: object
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("topology.kubernetes.io/zone"))
            .map(|zone| zone.as_str().into()),
        eligible: !tainted && object.metadata.deletion_timestamp.is_none(),
    }
}
