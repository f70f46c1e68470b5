//! Where objects come from: the Kubernetes API or a folder of manifests.

pub mod kubernetes;
pub mod manifests;
