//! Packets that cannot be true, beside the real kube-proxy: sources that are another's, destinations that are nobody's, TTLs at their
//! end, options, flags, lengths and pieces that nobody sends in earnest.
//!
//! ```text
//!   kinds ─► packets ─► frames on the wire ─► both labs ─► frames seen ─► outcomes ─► judge ─► report
//! ```

mod capture;
pub mod judge;
pub mod kinds;
pub mod outcome;
pub mod packet;
pub mod report;
mod run;

pub use report::OddReport;
pub use run::compare;
