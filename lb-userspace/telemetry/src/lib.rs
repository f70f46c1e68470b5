//! What the agent says of itself: log and metrics. It reads what the loops of [`lb_control`] and the maps of
//! [`lb_kernel`] tell, and knows neither the agent that wires them together nor who answers over HTTP.
#![forbid(unsafe_code)]

pub mod logs;
pub mod metrics;
pub mod problems;
pub mod recorder;
