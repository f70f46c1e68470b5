//! What our own Node object says.

use std::net::Ipv4Addr;
use std::sync::Arc;

/// Our Node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its IPv4 addresses of type InternalIP and ExternalIP, in order.
    pub addresses: Vec<Ipv4Addr>,
    /// `spec.podCIDRs`, as written.
    pub pod_cidrs: Vec<String>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Neither being deleted nor about to be removed by the cluster autoscaler: a load balancer may
    /// send it traffic.
    pub eligible: bool,
}
