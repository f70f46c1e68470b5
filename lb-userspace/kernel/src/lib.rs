//! Kernel access: all of aya and every unsafe block of userspace is in here.
//!
//! Four trades, each of which knows those above it in this list and no other:
//!
//! | folder | what it does |
//! |---|---|
//! | [`net`] | asks over netlink what the node's network is like; knows of no program |
//! | [`maps`] | opens, reads and writes the maps: the store of Services, flows, counters, configuration |
//! | [`programs`] | checks the machine, loads the object, has the verifier speak |
//! | [`links`] | attaches programs to interfaces and cgroups |
//!
//! [`sys`] and [`pin`] are what the last three have in common: the system call, and names of what is pinned;
//! [`channel`] is how programs get from one process to another. Of
//! lb-control this crate knows the store it implements, the facts of the network, and what both are made of.

pub mod channel;
pub mod links;
pub mod maps;
pub mod net;
pub mod pin;
pub mod programs;
pub mod sys;
