//! What our own Node object says.

use std::net::IpAddr;
use std::sync::Arc;

/// Our Node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its addresses of type InternalIP and ExternalIP, in order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, as written.
    pub pod_cidrs: Vec<String>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Neither being deleted nor about to be removed by the cluster autoscaler: a load balancer may
    /// send it traffic.
    pub eligible: bool,
}
