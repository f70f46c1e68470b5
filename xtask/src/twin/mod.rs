//! The differential run: two labs alike in all, one served by the real kube-proxy, the other by Shunt, both fed by one
//! API server. Whoever asks at any Service address must get the same from both, but for a written list of differences.
//!
//! ```text
//!   seed ─► cases ─► objects ─► API server ─► kube-proxy │ Shunt      two labs of the same addresses
//!             └────► probes ──► answers of each ─► verdicts ─► differences ─► report
//! ```
//!
//! `cases`, `probes`, `verdict` and `differences` are pure.

pub mod ask;
pub mod cases;
pub mod differences;
pub mod kube_proxy;
pub(crate) mod objects;
pub mod odd;
pub mod probes;
pub mod report;
mod run;
pub mod shape;
mod stage;
pub mod verdict;

pub use report::Report;
pub use run::{DEFAULT_SEED, TwinArgs, compare, twin};
