//! A Service as the balancer sees it.

use std::fmt;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use ipnet::IpNet;

use super::{Kind, ObjectRef, Protocol};
use crate::model::Family;

/// Namespace and name of a Service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ServiceKey {
    /// Names a Service.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The Service as an object.
    pub fn object(&self) -> ObjectRef {
        ObjectRef { kind: Kind::Service, namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `externalTrafficPolicy` or `internalTrafficPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Policy {
    /// Endpoints anywhere.
    #[default]
    Cluster,
    /// Endpoints of this node alone.
    Local,
}

/// A Service with at least one address of its own and at least one port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `metadata.creationTimestamp` in seconds since 1970; decides who keeps a contested address.
    pub created: Option<i64>,
    /// The ClusterIPs, one for each family at most. A family without one is not served at all.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, before the policy of `--external-ips`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is VIP.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may come to the frontends that [`Service::restricted`] names, by family.
    pub source_ranges: [SourceRanges; 2],
    /// Where the source ranges hold.
    pub restricted: Restricted,
    /// The ports, each (name, protocol) once.
    pub ports: Vec<ServicePort>,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: Policy,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: Policy,
    /// Seconds of `sessionAffinity: ClientIP`.
    pub affinity_seconds: Option<NonZeroU32>,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<NonZeroU16>,
    /// External flows are masqueraded towards pods of this node too.
    pub masquerade_external: bool,
}

impl Service {
    /// The ClusterIP of a family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|address| Family::of(*address) == family)
    }
}

/// At which frontends of a Service source ranges hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Restricted {
    /// At load balancers' addresses, as with kube-proxy.
    #[default]
    LoadBalancer,
    /// At external IPs and nodePorts, too.
    External,
    /// At ClusterIPs, too.
    Everywhere,
}

/// Who may come to the frontends of one family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum SourceRanges {
    /// Everybody.
    #[default]
    Any,
    /// Sources inside one of these, sorted; with none of them nobody.
    Only(Vec<IpNet>),
}

/// One port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Name; empty when it has none.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the Service's addresses.
    pub port: NonZeroU16,
    /// Port on every node's addresses.
    pub node_port: Option<NonZeroU16>,
}
