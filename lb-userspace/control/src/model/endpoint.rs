//! Endpoints as an EndpointSlice lists them.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::SystemTime;

use lb_common::addr::Proto;

use super::{Kind, ObjectRef, ServiceKey};
use crate::model::Family;

/// A protocol we serve.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: the addresses of its packets can change, the ports cannot.
    Sctp,
}

impl Protocol {
    /// The number on the wire.
    pub const fn proto(self) -> Proto {
        match self {
            Self::Tcp => Proto::TCP,
            Self::Udp => Proto::UDP,
            Self::Sctp => Proto::SCTP,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Namespace and name of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SliceKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl SliceKey {
    /// The slice as an object.
    pub fn object(&self) -> ObjectRef {
        ObjectRef { kind: Kind::EndpointSlice, namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

/// An EndpointSlice of some Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    /// Namespace and name.
    pub key: SliceKey,
    /// The Service of the label `kubernetes.io/service-name`.
    pub service: ServiceKey,
    /// Family of its addresses.
    pub family: Family,
    /// What changed the endpoints last, and when: annotation `endpoints.kubernetes.io/last-change-trigger-time`.
    pub triggered: Option<SystemTime>,
    /// Ports that every endpoint of the slice has.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a slice; joins a Service port of the same name and protocol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// Name; empty when it has none.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port the pods listen on.
    pub port: NonZeroU16,
}

/// One address of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// `addresses[0]`: a unicast address that may be on a network.
    pub address: IpAddr,
    /// How it is.
    pub conditions: Conditions,
    /// On this node.
    pub local: bool,
    /// `nodeName`; empty when not said.
    pub node: Arc<str>,
    /// `targetRef.name`; empty when not said.
    pub target: Arc<str>,
    /// Whom it is meant for.
    pub hints: Hints,
}

/// `hints` of an endpoint: whose clients it is meant for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hints {
    /// `forNodes`: whether this node is among them. None: there are none.
    pub this_node: Option<bool>,
    /// `forZones`. Empty: there are none.
    pub zones: Box<[Arc<str>]>,
}

/// An endpoint's conditions, with what Kubernetes takes a missing one for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conditions {
    /// Takes new connections. Missing: yes.
    pub ready: bool,
    /// Answers. Missing: yes.
    pub serving: bool,
    /// Is being stopped. Missing: no.
    pub terminating: bool,
}
