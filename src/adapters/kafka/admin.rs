//! Topics: create, check, list, and the checks at start-up.
