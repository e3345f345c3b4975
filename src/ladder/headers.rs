//! (being written)
/// tmp
pub fn next_fence(now: super::event::Timestamp, last: u64) -> u64 {
    now.floor_millis().max(last + 1)
}
