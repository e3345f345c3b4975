//! What the process tells of itself: logs, metrics, traces.

pub mod duration;
pub mod handler_spans;
pub mod logs;
pub mod metrics;
pub mod process;
pub mod trace_context;
pub mod trace_tree;
pub mod traces;
