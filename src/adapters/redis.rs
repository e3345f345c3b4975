//! Deduplication records in Redis.
