//! What the process tells of itself: logs and traces.

pub mod logs;
pub mod trace_context;
pub mod traces;
