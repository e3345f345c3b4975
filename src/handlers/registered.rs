//! In front of the handler of a pipeline whose messages are declared in a schema registry: no event reaches it that its
//! writer's schema does not decode.
//!
//! A schema that is not to be had now is a transient failure of the events that need it, so they wait in the ladder and
//! everything else goes on; were it all of them, the breaker pauses the pipeline, as it does when a sink is down. What
//! the schema does not decode is poison.

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::ladder::event::{Failure, Outcome};
use crate::messages::{ReadError, Reader};
use crate::stage::ports::{Event, Handler};

/// Gives `inner` the events that `reader` can read, each with the name of its message.
pub struct RegisteredHandler {
    inner: Arc<dyn Handler>,
    reader: Reader,
}

impl RegisteredHandler {
    /// In front of `inner`.
    pub fn new(inner: Arc<dyn Handler>, reader: Reader) -> Self {
        Self { inner, reader }
    }

    async fn read(&self, event: &mut Event) -> Result<(), ReadError> {
        // A tombstone has no schema.
        let Some(value) = &event.record.value else { return Ok(()) };
        let (decoder, _) = self.reader.read(value).await?;
        if *event.message != *decoder.message() {
            event.message = decoder.message().into();
        }
        Ok(())
    }
}

impl Handler for RegisteredHandler {
    fn handle(&self, mut event: Event) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            match self.read(&mut event).await {
                Ok(()) => self.inner.handle(event).await,
                Err(error) => Outcome::Failed(failure(&error)),
            }
        })
    }
}

/// What it means for the event.
pub(super) fn failure(error: &ReadError) -> Failure {
    if error.is_transient() { Failure::transient(error.to_string()) } else { Failure::poison(error.to_string()) }
}
