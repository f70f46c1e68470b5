//! Shunt's node agent and command line, as a library: what wires the crates below this folder together.
//!
//! [`lb_control`] is a Service's way up to the maps, [`lb_kernel`] the maps, programs, links and netlink,
//! [`lb_telemetry`] what the agent says of itself, [`lb_health`] what it answers.
#![forbid(unsafe_code)]

pub mod app;
pub mod args;
pub mod cleanup;
pub mod exit;
pub mod get;
pub mod keeper;
