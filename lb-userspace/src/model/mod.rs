//! Services and endpoints in types that cannot hold nonsense: no Kubernetes, no kernel.

mod endpoint;
mod problem;
mod service;

pub use endpoint::{Conditions, Endpoint, Protocol, Slice, SliceKey, SlicePort};
pub use problem::{Kind, ObjectRef, Origin, Problem, Severity};
pub use service::{Policy, Service, ServiceKey, ServicePort};
