//! Services and endpoints in types that cannot hold nonsense: no Kubernetes, no kernel.

mod address_index;
mod catalog;
mod endpoint;
mod family;
mod frontend;
mod node;
mod node_port_places;
mod problem;
mod service;
pub mod sorted;

pub use catalog::Catalog;
pub use endpoint::{Conditions, Endpoint, Hints, Protocol, Slice, SliceKey, SlicePort};
pub use family::Family;
pub use frontend::Frontend;
pub use node::Node;
pub use node_port_places::NodePortPlaces;
pub use problem::{Kind, ObjectRef, Origin, Problem, Severity};
pub use service::{Policy, Restricted, Service, ServiceKey, ServicePort, SourceRanges};
