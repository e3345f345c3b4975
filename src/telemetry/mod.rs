//! What the process tells of itself: logs.

pub mod logs;
