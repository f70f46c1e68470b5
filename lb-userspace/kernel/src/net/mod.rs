//! The node's network, over netlink: links, addresses and routes, who listens, connected sockets, qdiscs.

pub mod listeners;
pub mod nf_tables;
pub mod qdisc;
pub mod sock_diag;
pub mod watch;
