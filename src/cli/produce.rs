//! `pipeline produce`: flags, progress and the summary. The publishing itself is in [`publish`].
//!
//! Standard output carries the summary alone; progress and failures go to standard error.

mod client;
pub mod publish;
pub(super) mod schema;
mod source;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

pub(crate) use client::CLIENT_ID;
pub use publish::{Error, Failure, Partitioner, ProduceRequest, Summary, Update, run};
pub use source::Source;

use crate::messages::Decoder;
use crate::messages::generate::Options;
use crate::stage::ports::Tracer;

/// Events generated when neither `--count` nor `--json` is given.
const DEFAULT_COUNT: u64 = 1_000;
/// Without a terminal a line of progress comes this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Encodes and publishes events to a pipeline's main topic: generated ones, or JSON lines.
///
/// Idempotent, acknowledged by all in-sync replicas. Each event gets an id, a correlation id and a trace.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  pipeline produce --pipeline orders --count 10000 --key-field customer_id
  pipeline produce --pipeline orders --rate 300 --garbage-ratio 0.01
  pipeline produce --pipeline orders --register --count 100
  echo '{\"uniqueId\":\"a-1\",\"quantity\":2}' | pipeline produce --pipeline orders --json - --id-field unique_id")]
pub struct ProduceArgs {
    /// The pipeline whose main topic and message are meant; may be left out when the file has only one
    #[arg(long, value_name = "NAME")]
    pub pipeline: Option<String>,
    /// How many events: 1000 generated ones by default, all lines with --json
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub count: Option<u64>,
    /// Events per second; as fast as the broker takes them by default
    #[arg(long, value_name = "R", value_parser = super::values::rate, allow_negative_numbers = true)]
    pub rate: Option<f64>,
    /// Publish these messages, one a line in the proto3 JSON mapping; `-` is standard input
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// The field that becomes the record's key, dots between levels; without it keys are null
    #[arg(long, value_name = "FIELD")]
    pub key_field: Option<String>,
    /// The field that holds the event's id; by default ids are made: `<run>-<n>`, with --json n is the line
    #[arg(long, value_name = "FIELD")]
    pub id_field: Option<String>,
    /// How records are spread over partitions
    #[arg(long, value_enum, default_value_t)]
    pub partitioner: Partitioner,
    /// Create the pipeline's topics first where they are missing
    #[arg(long)]
    pub create_topics: bool,
    /// Same seed, same contents of generated events; ids differ in every run
    #[arg(long, value_name = "S", default_value_t = 0, conflicts_with = "json", allow_negative_numbers = true)]
    pub seed: u64,
    /// Pad generated payloads to about this many bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0, conflicts_with = "json", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(..=8 << 20))]
    pub size: u64,
    /// Share of generated events, 0 to 1, whose value is made undecodable
    #[arg(long, value_name = "R", default_value_t = 0.0, conflicts_with = "json", value_parser = super::values::share, allow_negative_numbers = true)]
    pub garbage_ratio: f64,
    /// Schema id to write with `framing: confluent`; without one the newest of `<topic>-value` in the configured registry
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    pub schema_id: Option<u32>,
    /// Register the message's .proto file as `<topic>-value` first, and what it imports under their names
    #[arg(long, conflicts_with = "schema_id")]
    pub register: bool,
    /// With --register: the folder that holds the .proto files of a message of `descriptor_set`, by their import names
    #[arg(long, value_name = "DIR", requires = "register")]
    pub proto_path: Option<PathBuf>,
    /// How the summary is written
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub report: Report,
}

/// How a summary is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Report {
    /// For people.
    #[default]
    Text,
    /// One JSON object on one line.
    Json,
}

/// What the configuration says about where to publish.
#[derive(Clone, Debug)]
pub struct Target {
    /// `kafka.brokers`.
    pub brokers: String,
    /// librdkafka properties for a producer.
    pub properties: BTreeMap<String, String>,
    /// The pipeline's main topic.
    pub topic: String,
    /// The pipeline's message and framing.
    pub decoder: Decoder,
    /// `startup_timeout`.
    pub startup_timeout: Duration,
    /// `telemetry.sample_ratio`.
    pub sample_ratio: f64,
    /// Takes the first span of each traced event.
    pub tracer: Option<Arc<dyn Tracer>>,
}

/// Publishes as the flags say, shows progress and writes the summary: whether every event was published. Blocks.
///
/// The caller creates the topics when [`ProduceArgs::create_topics`] is set, and may set `stop` on a signal.
///
/// # Errors
/// As [`run`], and when the input file cannot be opened.
pub fn execute(args: &ProduceArgs, target: Target, stop: Arc<AtomicBool>) -> Result<bool, Error> {
    let total = match &args.json {
        None => Some(args.count.unwrap_or(DEFAULT_COUNT)),
        Some(_) => args.count,
    };
    let request = request(args, target, stop)?;
    let mut progress = Progress::new(total);
    let summary = run(request, &mut |update| progress.update(&update));
    progress.end();
    let summary = summary?;
    let text = match args.report {
        Report::Json => serde_json::to_string(&summary).unwrap_or_default(),
        Report::Text => describe(&summary),
    };
    // A reader that has gone away is not our failure: the events are published.
    drop(writeln!(std::io::stdout(), "{text}"));
    Ok(summary.failed == 0)
}

fn request(args: &ProduceArgs, target: Target, stop: Arc<AtomicBool>) -> Result<ProduceRequest, Error> {
    if target.decoder.framing() == crate::messages::Framing::Confluent && args.schema_id.is_none() {
        return Err(Error::Config(
            "the pipeline has `framing: confluent`: name the schema with --schema-id ID, or configure registry.urls"
                .to_owned(),
        ));
    }
    let source = match &args.json {
        None => Source::Generated {
            count: args.count.unwrap_or(DEFAULT_COUNT),
            options: Options {
                seed: args.seed,
                size: usize::try_from(args.size).unwrap_or(usize::MAX),
                id_field: args.id_field.clone(),
            },
            garbage_ratio: args.garbage_ratio,
        },
        Some(path) => {
            let lines: Box<dyn BufRead + Send> = if path.as_os_str() == "-" {
                Box::new(BufReader::new(std::io::stdin()))
            } else {
                let file =
                    File::open(path).map_err(|e| Error::Config(format!("cannot open {}: {e}", path.display())))?;
                Box::new(BufReader::new(file))
            };
            Source::Json { lines, limit: args.count }
        }
    };
    Ok(ProduceRequest {
        properties: target.properties,
        schema_id: args.schema_id.unwrap_or_default(),
        key_field: args.key_field.clone(),
        id_field: args.id_field.clone(),
        partitioner: args.partitioner,
        rate: args.rate,
        sample_ratio: target.sample_ratio,
        tracer: target.tracer,
        startup_timeout: target.startup_timeout,
        stop,
        ..ProduceRequest::new(target.brokers, target.topic, target.decoder, source)
    })
}

fn describe(summary: &Summary) -> String {
    let seconds = Duration::from_millis(summary.elapsed_ms).as_secs_f64();
    let mut text = format!("published {} events to {} in {seconds:.1} s", summary.published, summary.topic);
    if let (Some(first), Some(last)) = (&summary.first_id, &summary.last_id) {
        text.push_str(&format!("\nevent ids {first} … {last}"));
    }
    if summary.garbage > 0 {
        text.push_str(&format!("\nof them undecodable on purpose: {}", summary.garbage));
    }
    if summary.failed > 0 {
        text.push_str(&format!("\nfailed: {}, each named on standard error", summary.failed));
    }
    if summary.interrupted {
        text.push_str("\nended early by a signal");
    }
    text
}

/// A bar on a terminal, else a line from time to time.
struct Progress {
    bar: Option<ProgressBar>,
    total: Option<u64>,
    line: Instant,
}

impl Progress {
    fn new(total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let (bar, template) = match total {
                Some(total) => (ProgressBar::new(total), "{bar:30} {pos}/{len} acknowledged, {per_sec}, {eta} left"),
                None => (ProgressBar::no_length(), "{spinner} {pos} acknowledged, {per_sec}"),
            };
            bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, total, line: Instant::now() }
    }

    fn update(&mut self, update: &Update<'_>) {
        match (update, &self.bar) {
            (Update::Progress { acknowledged, .. }, Some(bar)) => bar.set_position(*acknowledged),
            (Update::Progress { acknowledged, .. }, None) => {
                if self.line.elapsed() >= LINE_EVERY {
                    self.line = Instant::now();
                    let of = self.total.map_or_else(String::new, |total| format!(" of {total}"));
                    eprintln!("{acknowledged}{of} events acknowledged");
                }
            }
            (Update::Failed(failure), Some(bar)) => bar.suspend(|| eprintln!("{failure}")),
            (Update::Failed(failure), None) => eprintln!("{failure}"),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
