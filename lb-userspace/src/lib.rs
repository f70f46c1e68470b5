//! Shunt's node agent and command line, as a library.
//!
//! A Service's way through it, one direction: `source → convert → model → desired → plan → dataplane`.

pub mod allocate;
pub mod app;
pub mod args;
pub mod cleanup;
pub mod convert;
pub mod dataplane;
pub mod desired;
pub mod exit;
pub mod get;
pub mod health;
pub mod model;
pub mod net;
pub mod objects;
pub mod plan;
pub mod reconcile;
pub mod source;
pub mod telemetry;
