//! What the agent says of itself: log and metrics.

pub mod logs;
pub mod metrics;
pub mod problems;
pub mod recorder;
