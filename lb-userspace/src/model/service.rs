//! A Service as the balancer sees it.

use std::fmt;
use std::net::Ipv4Addr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use super::{Kind, ObjectRef, Protocol};

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

/// A Service with at least one IPv4 address of its own and at least one port we serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `metadata.creationTimestamp` in seconds since 1970; decides who keeps a contested address.
    pub created: Option<i64>,
    /// The IPv4 ClusterIP.
    pub cluster_ip: Ipv4Addr,
    /// `spec.externalIPs`, before the policy of `--external-ips`.
    pub external_ips: Vec<Ipv4Addr>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is VIP.
    pub load_balancer_ips: Vec<Ipv4Addr>,
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
