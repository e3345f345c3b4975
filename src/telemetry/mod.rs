//! What the process tells of itself: logs, metrics.

pub mod logs;
pub mod metrics;
pub mod process;
