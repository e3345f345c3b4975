//! What a failed statement or connection means: for the row, for its batch, for people.
//!
//! Invariant: whatever is not known to be a row's own fault is transient, so that no event is given up for the server's.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::ladder::event::Failure;

/// Why a batch was not written.
#[derive(Debug)]
pub(super) enum Fault {
    /// The server refused it, or the connection broke.
    Client(tokio_postgres::Error),
    /// The server had closed a connection that lay idle.
    Closed,
    /// A session could not be set up in time.
    SlowConnect(Duration),
    /// The pool had no connection in time; why it could make none, where it tried.
    NoConnection { waited: Duration, size: u32, last: Option<String> },
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Blame {
    /// A row of the batch, which will never be taken.
    Row,
    /// A row of the batch, which may be taken later: a reference to something that is still to come.
    RowForNow,
    /// The server, the network, the settings.
    Server,
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        Fault::Client(error)
    }
}

impl Fault {
    fn code(&self) -> Option<&SqlState> {
        match self {
            Fault::Client(error) => error.code(),
            _ => None,
        }
    }

    pub(super) fn blame(&self) -> Blame {
        self.code().map_or(Blame::Server, |code| blame(code.code()))
    }

    /// The connection broke or the server has ended it; whether the rows were written is not known.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Fault::Client(error) if error.code().is_none_or(|code| is_goodbye(code.code())))
    }

    /// Tells people where nothing gets better before they act: rights, names, passwords.
    pub(super) fn tell(&self) {
        if self.code().is_some_and(|code| ["28", "42", "3D", "3F", "0A", "25"].contains(&class(code.code()))) {
            tracing::error!(error = %self, "cannot write to PostgreSQL until somebody acts; events are tried again");
        }
    }

    /// Whether trying again soon may help at start: nobody there, not up yet, or too busy.
    pub(super) fn is_unreachable(&self) -> bool {
        self.code().is_none_or(|code| ["57", "53", "08"].contains(&class(code.code())))
    }

    pub(super) fn failure(&self) -> Failure {
        match self.blame() {
            Blame::Row => Failure::permanent(self.to_string()),
            Blame::RowForNow | Blame::Server => Failure::transient(self.to_string()),
        }
    }
}

impl std::fmt::Display for Fault {
    /// Without the server's detail, which quotes the row.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Client(error) => match error.as_db_error() {
                Some(db) => write!(f, "postgres: {} ({})", db.message(), db.code().code()),
                None => {
                    write!(f, "postgres: {error}")?;
                    let mut cause = std::error::Error::source(error);
                    while let Some(inner) = cause {
                        write!(f, ": {inner}")?;
                        cause = inner.source();
                    }
                    Ok(())
                }
            },
            Fault::Closed => f.write_str("postgres: the server closed the connection"),
            Fault::SlowConnect(time) => write!(f, "postgres: no session within {time:?}"),
            Fault::NoConnection { waited, last: Some(last), .. } => {
                write!(f, "no connection within {waited:?}: {last}")
            }
            Fault::NoConnection { waited, size, last: None } => {
                write!(
                    f,
                    "postgres: no connection free within {waited:?}: all {size} of the pool are in use (pool_max_size)"
                )
            }
        }
    }
}

impl std::error::Error for Fault {}

/// The first two characters of an SQLSTATE.
fn class(code: &str) -> &str {
    code.get(..2).unwrap_or_default()
}

/// The server ends the connection: it shuts down, crashed beside us, was told to. Or it takes no writes any more (25006): who
/// does is found by connecting anew, while this connection would be kept for as long as `pool_max_lifetime`.
fn is_goodbye(code: &str) -> bool {
    class(code) == "08" || ["57P01", "57P02", "57P03", "57P05", "25006"].contains(&code)
}

fn blame(code: &str) -> Blame {
    match (class(code), code) {
        (_, "23503") => Blame::RowForNow,
        // A value, a constraint, a view's check, a limit of size, a trigger's own refusal.
        ("22" | "23" | "44" | "54", _) | (_, "P0001") => Blame::Row,
        _ => Blame::Server,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_blamed_for_what_it_holds_and_the_server_for_all_else() {
        for (code, expected) in [
            ("22003", Blame::Row),       // out of range
            ("22P02", Blame::Row),       // not a uuid
            ("23502", Blame::Row),       // not null
            ("23505", Blame::Row),       // another unique index than the id's
            ("23514", Blame::Row),       // check constraint
            ("44000", Blame::Row),       // a view's check option
            ("54000", Blame::Row),       // too large for an index
            ("P0001", Blame::Row),       // raised by a trigger
            ("23503", Blame::RowForNow), // foreign key: what it refers to may still come
            ("40001", Blame::Server),    // serialization
            ("40P01", Blame::Server),    // deadlock
            ("53300", Blame::Server),    // too many connections
            ("55P03", Blame::Server),    // lock not available
            ("57014", Blame::Server),    // statement_timeout
            ("57P01", Blame::Server),    // shut down
            ("28P01", Blame::Server),    // password
            ("42P01", Blame::Server),    // no such table
            ("42501", Blame::Server),    // no right
            ("25006", Blame::Server),    // read-only: a standby
            ("XX000", Blame::Server),
            ("", Blame::Server),
        ] {
            assert_eq!(blame(code), expected, "{code}");
        }
    }

    #[test]
    fn a_server_that_says_goodbye_has_lost_the_connection() {
        for (code, expected) in
            [("57P01", true), ("57P05", true), ("25006", true), ("08006", true), ("57014", false), ("40P01", false)]
        {
            assert_eq!(is_goodbye(code), expected, "{code}");
        }
    }
}
