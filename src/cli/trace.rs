//! `pipeline trace`: what Jaeger knows of one event, as text.
//!
//! Asking is `adapters::jaeger`'s, the tree `telemetry::trace_tree`'s; here is what was meant, and what to do when
//! nothing is found.

use std::io::{self, Write};
use std::time::Duration;

use crate::adapters::jaeger::{self, Jaeger, MOST, Trace};
use crate::config::{Config, Telemetry};
use crate::stage::clock::{Clock as _, SystemClock};
use crate::stage::ports::TraceContext;
use crate::telemetry::duration;
use crate::telemetry::trace_tree::TraceTree;

/// What of, and where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TraceArgs {
    /// Event id, or trace id (32 hex digits, or a whole `traceparent`)
    #[arg(value_name = "EVENT_ID|TRACE_ID", required = true)]
    pub(crate) id: String,
    /// Where Jaeger is, instead of telemetry.jaeger_url
    #[arg(long, value_name = "URL", value_parser = http_url)]
    pub(crate) jaeger: Option<reqwest::Url>,
    /// How far back to look for an event
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = super::values::duration)]
    pub(crate) since: Duration,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn http_url(text: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(text).ok().filter(|url| url.has_host() && ["http", "https"].contains(&url.scheme()));
    url.ok_or_else(|| "not a url of HTTP, like http://localhost:16686".to_owned())
}

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Jaeger.
    #[error(transparent)]
    Jaeger(#[from] jaeger::Error),
    /// It knows nothing of it.
    #[error("nothing of `{id}` in the last {} at {jaeger}{hint}", duration::show(*since))]
    Nothing {
        /// As asked.
        id: String,
        /// How far back was looked.
        since: Duration,
        /// Where was looked, without a password.
        jaeger: String,
        /// Why that may be.
        hint: String,
    },
    /// Standard output.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

/// Prints the traces of an event, or one trace.
pub(crate) async fn run(args: &TraceArgs, config: &Config, out: &mut impl Write) -> Result<(), Error> {
    let url = args.jaeger.clone().unwrap_or_else(|| config.telemetry.jaeger_url.url().clone());
    let jaeger = Jaeger::new(url)?;
    let (traces, event) = find(&jaeger, args).await?;
    if traces.is_empty() {
        let (id, since, hint) = (args.id.clone(), args.since, hint(&config.telemetry));
        return Err(Error::Nothing { id, since, jaeger: jaeger.to_string(), hint });
    }
    let count = traces.len();
    let trees = traces.into_iter().map(|trace| TraceTree::new(&trace.id, trace.spans, event)).collect::<Vec<_>>();
    if args.json {
        let traces: Vec<_> = trees.iter().map(TraceTree::json).collect();
        writeln!(out, "{}", serde_json::json!({ "event_id": event, "traces": traces }))?;
        return Ok(());
    }
    for tree in &trees {
        if let Some(event) = event {
            let outcome = tree.outcome().unwrap_or_else(|| "no execution in this trace".to_owned());
            writeln!(out, "event {event}: {outcome}")?;
        }
        writeln!(out, "{tree}")?;
    }
    if count >= MOST {
        writeln!(out, "{MOST} traces or more; --since 1h looks less far back")?;
    }
    Ok(())
}

/// A name that could be both is tried as a trace first: an event id may consist of 32 hex digits, too.
async fn find<'a>(jaeger: &Jaeger, args: &'a TraceArgs) -> Result<(Vec<Trace>, Option<&'a str>), Error> {
    if let Some(id) = trace_id(&args.id)
        && let Some(trace) = jaeger.trace(&id).await?
    {
        return Ok((vec![trace], None));
    }
    Ok((jaeger.traces_of_event(&args.id, args.since, SystemClock.now().wall).await?, Some(&args.id)))
}

fn trace_id(text: &str) -> Option<String> {
    if let Some(context) = TraceContext::parse(text.as_bytes()) {
        return Some(format!("{:032x}", context.trace_id()));
    }
    let is_id = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_id.then(|| text.to_ascii_lowercase())
}

/// What may be the reason that nothing was found.
fn hint(telemetry: &Telemetry) -> String {
    if telemetry.otlp_endpoint.is_none() {
        return ": telemetry.otlp_endpoint is not set here, so nothing is traced".to_owned();
    }
    let ratio = telemetry.sample_ratio.0;
    let sampled = match (ratio < 1.0, telemetry.sample_on_failure) {
        (false, _) => "every event is traced unless it came with a trace that is not sampled",
        (true, true) => "an event that never failed is traced by telemetry.sample_ratio only",
        (true, false) => {
            "with telemetry.sample_ratio and without telemetry.sample_on_failure most events leave no trace"
        }
    };
    format!(" (sample_ratio is {ratio}): {sampled}; spans come about a second after what they tell of")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_id_is_told_from_an_event_id() {
        #[track_caller]
        fn check(text: &str, expect: Option<&str>) {
            assert_eq!(trace_id(text).as_deref(), expect, "{text}");
        }
        const ID: &str = "0af7651916cd43dd8448eb211c80319c";
        check(ID, Some(ID));
        check(&ID.to_uppercase(), Some(ID));
        check(&format!("00-{ID}-b7ad6b7169203331-01"), Some(ID));
        check("0af76519-16cd-43dd-8448-eb211c80319c", None);
        check("order-17", None);
        check("../../admin", None);
    }
}
