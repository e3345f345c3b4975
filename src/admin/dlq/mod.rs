//! The dead-letter queue as something to work with: find, understand, send back, put aside.
//!
//! [`letter`] reads what a dead letter says, [`fingerprint`] folds like errors into one, [`select`] says which letters
//! are meant, [`groups`] counts them, [`view`] shows one, [`book`] remembers which were dealt with, [`redrive`] deals
//! with them as [`order`] says, all of them over what [`sift`] lets through. Who looks for longer has a [`catalog`] of the groups, the [`standing`] of the whole, and
//! [`page`]s of letters. The command line and the console are thin over these.
//!
//! Invariants
//! - A letter is dealt with at most once, however often it is asked for and by how many: its copy and the entry in the
//!   book are one transaction, and whoever works on a DLQ has its transactional id alone.
//! - Nothing here deletes a record. A letter stays on the DLQ until its retention ends, with its fate in the book.
//! - Memory does not grow with the DLQ: letters stream by, the book is kept as runs of offsets, groups are bounded.

pub mod book;
pub mod catalog;
pub mod fingerprint;
pub mod groups;
pub mod letter;
mod offsets;
pub mod order;
pub mod page;
pub mod redrive;
pub mod select;
pub mod sift;
pub mod standing;
pub mod view;
