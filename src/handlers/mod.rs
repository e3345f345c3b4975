//! The built-in [`Handler`]s and the bridge from a closure to one.
//!
//! [`http`] calls a URL, `postgres` inserts rows, [`log`] prints, [`simulate`] fails by a seeded rule; [`handler_fn`] wraps
//! an application's own async function, [`batched`] is for handlers that take many events at once. [`executions`] is the append-only file in which a handler can record what it really did.
//!
//! A handler only says what came of one execution ([`Outcome`]); where the event goes next is decided in
//! `ladder::route`. Deadlines, panics and leases are the engine's business.

pub mod batched;
pub mod dead_letters;
pub mod executions;
pub mod http;
pub mod log;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod registered;
pub mod retry_after;
pub mod simulate;
pub mod webhook;

#[cfg(test)]
mod testing;

use std::error::Error as StdError;
use std::fmt::{self, Write};
use std::future::Future;

use futures::future::BoxFuture;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::ladder::event::{Failure, Outcome};
use crate::stage::ports::{Event, Handler};

/// Makes a handler of an async function or closure.
///
/// What it returns is anything that [is an outcome](IntoOutcome): `()` and `Ok(())` are done, `Err` is a failure.
/// `?` works on any error in a function that returns `Result<(), Failure>`; see [`Failure`'s
/// conversion](Failure#impl-From<E>-for-Failure).
///
/// ```
/// use retry_ladder::handlers::handler_fn;
/// use retry_ladder::ladder::event::Failure;
/// use retry_ladder::stage::ports::Event;
///
/// async fn bill(event: Event) -> Result<(), Failure> {
///     let amount: u64 = std::str::from_utf8(&event.payload)?.parse()?;
///     if amount == 0 {
///         return Err(Failure::permanent("nothing to bill"));
///     }
///     Ok(())
/// }
///
/// let handler = handler_fn(bill);
/// let shorter = handler_fn(|_event| async {});
/// # let _ = (handler, shorter);
/// ```
pub fn handler_fn<F, Fut>(function: F) -> FnHandler<F>
where
    F: Fn(Event) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoOutcome,
{
    FnHandler { function }
}

/// A [`Handler`] made of a function; see [`handler_fn`].
#[derive(Clone, Copy)]
pub struct FnHandler<F> {
    function: F,
}

impl<F> fmt::Debug for FnHandler<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FnHandler").finish_non_exhaustive()
    }
}

impl<F, Fut> Handler for FnHandler<F>
where
    F: Fn(Event) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoOutcome,
{
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        // The call is inside the future, so that a panic of the function itself is caught where the future is polled.
        Box::pin(async move { (self.function)(event).await.into_outcome() })
    }
}

/// What a handler function may return.
pub trait IntoOutcome {
    /// The outcome it stands for.
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Outcome {
        self
    }
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Outcome::Done
    }
}

impl IntoOutcome for Failure {
    fn into_outcome(self) -> Outcome {
        Outcome::Failed(self)
    }
}

impl<T: IntoOutcome, E: Into<Failure>> IntoOutcome for Result<T, E> {
    fn into_outcome(self) -> Outcome {
        match self {
            Ok(outcome) => outcome.into_outcome(),
            Err(error) => Outcome::Failed(error.into()),
        }
    }
}

/// An error of which nothing more is known is transient: trying again is the safe guess, and an event that never
/// succeeds still ends in the DLQ. A payload that cannot be decoded ([`prost::DecodeError`]) is poison.
///
/// The message is the error and all its causes, joined by `: `.
impl<E: StdError + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            // A `String` takes everything.
            write!(message, ": {error}").ok();
            cause = error.source();
        }
        let error: &dyn StdError = &error;
        if error.is::<prost::DecodeError>() { Failure::poison(message) } else { Failure::transient(message) }
    }
}

/// Everything that the CloudEvents HTTP binding (1.0, section 3.1.3.2) wants percent-encoded in a header: space, double
/// quote, percent, and all but printable ASCII. As the percent sign is among them, no two values are encoded alike.
const PRINTABLE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Encodes text of any origin into printable ASCII without spaces; see [`PRINTABLE`].
fn printable(text: &str) -> percent_encoding::PercentEncode<'_> {
    percent_encode(text.as_bytes(), PRINTABLE)
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures::FutureExt;

    use super::*;
    use crate::handlers::testing::EventBuilder;
    use crate::ladder::event::FailureClass;

    fn run(handler: &dyn Handler) -> Outcome {
        handler.handle(EventBuilder::new().build()).now_or_never().expect("ready at once")
    }

    #[test]
    fn functions_return_whatever_is_natural_to_them() {
        async fn fallible(event: Event) -> Result<(), Failure> {
            let number: u32 = std::str::from_utf8(&event.payload)?.parse()?;
            assert!(number > 0);
            Ok(())
        }
        assert_eq!(run(&handler_fn(|_| async {})), Outcome::Done);
        assert_eq!(run(&handler_fn(|_| async { Ok::<_, Failure>(()) })), Outcome::Done);
        assert_eq!(run(&handler_fn(|_| async { Outcome::Fenced })), Outcome::Fenced);
        assert_eq!(run(&handler_fn(|_| async { Ok::<_, Failure>(Outcome::Fenced) })), Outcome::Fenced);
        assert_eq!(run(&handler_fn(|_| async { Failure::permanent("no") })), Outcome::Failed(Failure::permanent("no")));
        assert_eq!(
            run(&handler_fn(fallible)),
            Outcome::Failed(Failure::transient("invalid utf-8 sequence of 1 bytes from index 9")),
            "the payload of the example is no text"
        );
    }

    #[test]
    fn errors_keep_their_causes_and_are_transient() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot bill")]
        struct Outer(#[source] io::Error);

        let failure = Failure::from(Outer(io::Error::other("disk on fire")));
        assert_eq!(failure, Failure::transient("cannot bill: disk on fire"));
    }

    #[test]
    fn a_payload_that_cannot_be_decoded_is_poison() {
        let event = EventBuilder::new().payload(b"\xff\xff").build();
        let error = event.decode::<prost_types::Timestamp>().unwrap_err();
        assert_eq!(Failure::from(error).class, FailureClass::Poison);
    }

    #[test]
    fn printable_text_is_injective_and_ascii() {
        assert_eq!(printable("order-1:é\n\"%\u{7f} /x").to_string(), "order-1:%C3%A9%0A%22%25%7F%20/x");
        assert_ne!(printable("a\n").to_string(), printable("a%0A").to_string());
    }
}
