//! The node's network, over netlink: links, addresses and routes, who listens, connected sockets, qdiscs.

pub mod connections;
pub mod conntrack;
pub mod listeners;
pub mod nat_table;
mod netfilter;
pub mod nf_tables;
pub mod qdisc;
pub mod routes;
pub mod sock_diag;
pub mod watch;
