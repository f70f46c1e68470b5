//! What the measuring programs of lb-userspace and xtask share.

pub mod kube_proxy;
