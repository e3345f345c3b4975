//! Deduplication records in this process: for tests, the demo and `store: memory`.
