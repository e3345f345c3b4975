//! One folder or file per outside system. Each implements ports of [`crate::stage::ports`] and owns its error type;
//! adapters never import each other.

pub mod jaeger;
pub mod kafka;
pub mod memory;
pub mod otel;
pub mod redis;
pub mod registry;
