//! Tests on real services. They fail, with the remedy, where the services are not there: a test that passes by doing
//! nothing proves nothing. Each makes topics and groups of its own, so that they can share a cluster and be repeated.

mod status;
mod support;
mod topics;
