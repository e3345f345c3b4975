//! What nobody should send, all in one run with sound events.
