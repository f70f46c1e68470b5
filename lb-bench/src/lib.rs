//! What the measuring programs of lb-userspace and xtask share.

pub mod choice;
pub mod kube_proxy;
