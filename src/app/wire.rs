//! From the configuration to what the engine and the adapters are given. Decides nothing.

#[cfg(feature = "postgres")]
pub mod postgres;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::adapters::kafka::Properties;
use crate::adapters::kafka::admin::Connection;
use crate::adapters::kafka::admin::plan::{PipelineTopics, RetryTopic};
use crate::adapters::redis;
use crate::adapters::registry::{self, Registry};
use crate::app::decode::PayloadDecoder;
use crate::config::{self, Config};
use crate::handlers::http::{self, Body, Class, HttpHandler, HttpOptions};
use crate::handlers::log::LogHandler;
use crate::handlers::simulate::{self, SimulateHandler, SimulateOptions};
use crate::handlers::webhook::Webhook;
use crate::ladder::brake::BrakeSettings;
use crate::ladder::breaker::BreakerSettings;
use crate::ladder::gate::OutageSettings;
use crate::ladder::headers::{CompatHeaders, IdSource};
use crate::ladder::lane::{Dedup, Order};
use crate::ladder::rungs::{Ladder, LadderFault, LadderSpec, RetrySpec};
use crate::messages::{self, Decoder, Framing, Reader};
use crate::stage::clock::Clock;
use crate::stage::context::{Forward, StageSettings, Tombstones};
use crate::stage::ports::{Handler, Sampling};
use crate::telemetry::traces::{self, Traces};

/// A pipeline of the configuration that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such message, or its descriptor set cannot be read.
    #[error("pipelines.{pipeline}.message: {source}")]
    Message {
        /// Name of the pipeline.
        pipeline: String,
        /// What is wrong.
        source: messages::Error,
    },
    /// The id field is not in the message.
    #[error("pipelines.{pipeline}.event_id.field: {source}")]
    IdField {
        /// Name of the pipeline.
        pipeline: String,
        /// What is wrong.
        source: messages::Error,
    },
    /// The ladder.
    #[error("pipelines.{pipeline}.{}: {fault}", fault.key())]
    Ladder {
        /// Name of the pipeline.
        pipeline: String,
        /// What is wrong.
        fault: LadderFault,
    },
    /// The schema registry.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The authority for `rediss://`.
    #[error("redis.ca: cannot read {}: {source}", file.display())]
    RedisCa {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The HTTP handler.
    #[error("pipelines.{pipeline}.handler.http.{source}")]
    Http {
        /// Name of the pipeline.
        pipeline: String,
        /// What is wrong.
        source: http::Error,
    },
    /// What the PostgreSQL handler would write.
    #[cfg(feature = "postgres")]
    #[error("{}", faults.iter().map(|f| format!("pipelines.{pipeline}.handler.postgres.{f}")).collect::<Vec<_>>().join("\n"))]
    PostgresPlan {
        /// Name of the pipeline.
        pipeline: String,
        /// What is wrong.
        faults: Vec<crate::handlers::postgres::PlanFault>,
    },
    /// The PostgreSQL handler.
    #[cfg(feature = "postgres")]
    #[error("pipelines.{pipeline}.handler.postgres.{source}")]
    Postgres {
        /// Name of the pipeline.
        pipeline: String,
        /// What is wrong.
        source: Box<crate::handlers::postgres::Error>,
    },
    /// The handler is not in this build.
    #[cfg(not(feature = "postgres"))]
    #[error("pipelines.{pipeline}.handler.postgres: this build has no postgres handler")]
    NoPostgres {
        /// Name of the pipeline.
        pipeline: String,
    },
    /// The webhook of the `dlq` stage.
    #[error("pipelines.{pipeline}.dlq.webhook: {source}")]
    Webhook {
        /// Name of the pipeline.
        pipeline: String,
        /// What is wrong.
        source: reqwest::Error,
    },
    /// The simulating handler.
    #[error("pipelines.{pipeline}.handler.simulate.{source}")]
    Simulate {
        /// Name of the pipeline.
        pipeline: String,
        /// What is wrong.
        source: simulate::Error,
    },
}

impl Error {
    /// The process's exit code: 69 when a server that the handler needs does not answer, else 64.
    pub fn exit_code(&self) -> u8 {
        match self {
            #[cfg(feature = "postgres")]
            Error::Postgres { source, .. } => source.exit_code(),
            _ => 64,
        }
    }
}

/// Brokers and client properties.
pub fn properties(config: &Config) -> Properties {
    let kafka = &config.kafka;
    let map = |p: &config::Properties| p.reveal().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let mut properties = Properties {
        brokers: kafka.brokers.clone(),
        common: map(&kafka.properties),
        consumer: map(&kafka.consumer_properties),
        producer: map(&kafka.producer_properties),
    };
    let max_poll = kafka.max_poll_interval.max(kafka.session_timeout).as_millis().to_string();
    properties.consumer.entry("max.poll.interval.ms".into()).or_insert(max_poll);
    properties
}

/// The deduplication records in Redis, or in a Redis Cluster.
///
/// # Errors
/// When it does not answer within the start-up time-out, or is not fit.
///
/// # Panics
/// Outside a tokio runtime.
pub async fn redis(config: &Config, options: redis::Options) -> Result<redis::Store, redis::Error> {
    let url = &config.redis.url;
    match url.one() {
        Some(url) => redis::connect(url.reveal(), options).await,
        None => {
            redis::connect_cluster(&url.all().iter().map(config::Endpoint::reveal).collect::<Vec<_>>(), options).await
        }
    }
}

/// Where the admin client finds the cluster.
pub fn connection(config: &Config) -> Connection {
    let properties = properties(config);
    Connection { brokers: properties.brokers, properties: properties.common }
}

/// How Redis is connected to.
///
/// # Errors
/// When the authority's file cannot be read.
pub fn redis_options(config: &Config) -> Result<redis::Options, Error> {
    let read = |file: &PathBuf| std::fs::read(file).map_err(|source| Error::RedisCa { file: file.clone(), source });
    Ok(redis::Options {
        startup_timeout: config.kafka.startup_timeout,
        ca_pem: config.redis.ca.as_ref().map(read).transpose()?,
        prefix: config.redis.prefix.clone(),
        ..redis::Options::default()
    })
}

/// The export of spans, where an endpoint is configured; `service` is this process's `service.name`.
///
/// # Errors
/// When the endpoint cannot be used at all. That nothing answers there is no error.
///
/// # Panics
/// Outside a tokio runtime.
pub fn traces(config: &Config, service: &'static str) -> Result<Option<Traces>, traces::Error> {
    let Some(endpoint) = &config.telemetry.otlp_endpoint else { return Ok(None) };
    let mut url = endpoint.url().clone();
    let mut headers = Vec::new();
    if let (user, password) = (url.username(), url.password().unwrap_or_default())
        && (user, password) != ("", "")
    {
        let decode = |text| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
        let pair = [decode(user), decode(password)].join(&b':');
        headers.push(("authorization".to_owned(), format!("Basic {}", traces::base64(&pair))));
    }
    headers.extend(config.telemetry.otlp_headers.reveal().map(|(name, value)| (name.to_owned(), value.to_owned())));
    // The url has a host, so neither can fail.
    url.set_username("").and_then(|()| url.set_password(None)).ok();
    let options = traces::Options {
        endpoint: url.to_string(),
        headers,
        ca: config.telemetry.otlp_ca.clone(),
        service,
        instance: config.instance.clone().unwrap_or_else(|| format!("{:016x}", fastrand::u64(..))),
    };
    Traces::start(options).map(Some)
}

/// Which events are traced.
pub fn sampling(config: &Config) -> Sampling {
    Sampling { ratio: config.telemetry.sample_ratio.0, on_failure: config.telemetry.sample_on_failure }
}

/// The topics of a pipeline.
pub fn topics(pipeline: &config::Pipeline) -> PipelineTopics {
    let retries = pipeline.retries.iter().enumerate().map(|(i, retry)| RetryTopic {
        name: format!("retry-{}", i + 1),
        topic: retry.topic.clone(),
        delay: retry.delay,
    });
    PipelineTopics {
        pipeline: pipeline.name.clone(),
        topic: pipeline.topic.clone(),
        group: pipeline.group.clone(),
        partitions: i32::try_from(pipeline.partitions).unwrap_or(i32::MAX),
        replication: i32::from(pipeline.replication),
        retries: retries.collect(),
        retention: pipeline.retention,
        dlq_topic: pipeline.dlq.topic.clone(),
        dlq_retention: pipeline.dlq.retention,
    }
}

/// The ladder of a pipeline.
///
/// # Errors
/// The first fault; the configuration has checked them all already.
pub fn ladder(pipeline: &config::Pipeline) -> Result<Ladder, Error> {
    build(pipeline, spec(pipeline))
}

/// The pipeline's ladder with a former rung put back where its name (`….retry-2`) says it was, and its index. What
/// fails there goes on to the rung that now stands at that place, or to the DLQ where there is none.
///
/// # Errors
/// When the ladder has no room for it.
pub fn ladder_with_orphan(pipeline: &config::Pipeline, topic: &str) -> Result<(Ladder, usize), Error> {
    let mut spec = spec(pipeline);
    let last = spec.retries.len() + 1;
    let named = topic.rsplit_once(".retry-").and_then(|(_, n)| n.parse::<usize>().ok());
    let index = named.unwrap_or(last).clamp(1, last);
    let long = Duration::from_secs(24 * 60 * 60).max(pipeline.ladder_length() * 2);
    let fitting = spec.retries.get(index - 1).map_or(long, |next| next.delay.saturating_sub(Duration::from_millis(1)));
    spec.retries.insert(index - 1, RetrySpec { delay: fitting, topic: Some(topic.to_owned()), jitter: 0.0 });
    // Its own delay is known no more, and a delay bounds the dues that are believed: those that it wrote have to hold.
    Ok((build(pipeline, spec)?.with_delay(index, long), index))
}

fn spec(pipeline: &config::Pipeline) -> LadderSpec {
    LadderSpec {
        pipeline: pipeline.name.clone(),
        group: pipeline.group.clone(),
        topic: pipeline.topic.clone(),
        retries: pipeline
            .retries
            .iter()
            .map(|r| RetrySpec { delay: r.delay, topic: Some(r.topic.clone()), jitter: r.jitter })
            .collect(),
        dlq_topic: Some(pipeline.dlq.topic.clone()),
        max_event_age: pipeline.max_event_age,
        max_deferrals: pipeline.max_deferrals,
    }
}

fn build(pipeline: &config::Pipeline, spec: LadderSpec) -> Result<Ladder, Error> {
    Ladder::new(spec).map_err(|faults| {
        let fault = faults.into_iter().next();
        let pipeline = pipeline.name.clone();
        Error::Ladder { pipeline, fault: fault.unwrap_or(LadderFault::TooManyRetries { count: 0 }) }
    })
}

/// What reads the pipeline's messages by the declaration that is at hand, whatever a registry says.
///
/// # Errors
/// When there is no such message.
pub fn decoder(pipeline: &config::Pipeline) -> Result<Decoder, Error> {
    let framing = match pipeline.framing {
        config::Framing::Plain => Framing::Plain,
        config::Framing::Confluent => Framing::Confluent,
    };
    Decoder::new(pipeline.message_name(), pipeline.descriptor_set.as_deref(), framing)
        .map_err(|source| Error::Message { pipeline: pipeline.name.clone(), source })
}

/// The schema registry, where the configuration has one.
///
/// # Errors
/// When its options cannot be used. That nothing answers there is no error.
pub fn registry(config: &Config) -> Result<Option<Registry>, Error> {
    let keys = &config.registry;
    if keys.urls.is_empty() {
        return Ok(None);
    }
    let reveal = |secret: &config::Secret| secret.reveal().to_owned();
    let password = keys.password.as_ref().map(reveal).unwrap_or_default();
    Ok(Some(Registry::new(registry::Options {
        urls: keys.urls.iter().map(|url| url.url().clone()).collect(),
        basic: keys.user.clone().map(|user| (user, password)),
        token: keys.token.as_ref().map(reveal),
        timeout: keys.timeout,
        retries: keys.retries,
        cache: keys.cache,
        unknown_for: keys.unknown_for,
        ca: keys.ca.clone(),
    })?))
}

/// What reads the pipeline's values, by the writers' schemas where they are registered.
///
/// # Errors
/// When there is no registry and no such message.
pub fn reader(pipeline: &config::Pipeline, registry: Option<&Registry>) -> Result<Reader, Error> {
    match registry {
        Some(registry) if pipeline.framing == config::Framing::Confluent => Ok(Reader::Registered {
            schemas: Arc::new(registry.clone()),
            message: pipeline.message.as_deref().map(Into::into),
        }),
        _ => decoder(pipeline).map(Reader::Own),
    }
}

/// What the stages know of a value before its handler is called.
///
/// # Errors
/// When there is no such message, or it has no such id field.
pub fn payload_decoder(pipeline: &config::Pipeline, has_registry: bool) -> Result<PayloadDecoder, Error> {
    let is_registered = has_registry && pipeline.framing == config::Framing::Confluent;
    let config::EventId::Field(path) = &pipeline.event_id else {
        return Ok(if is_registered {
            PayloadDecoder::Framed(None)
        } else {
            PayloadDecoder::Own(decoder(pipeline)?, None)
        });
    };
    let decoder = decoder(pipeline)?;
    let field = decoder.path(path).map_err(|source| Error::IdField { pipeline: pipeline.name.clone(), source })?;
    Ok(if is_registered {
        PayloadDecoder::Framed(Some((decoder, field)))
    } else {
        PayloadDecoder::Own(decoder, Some(field))
    })
}

/// What the `dlq` stage calls when letters come, where it is configured.
///
/// # Errors
/// When the TLS library cannot be set up.
///
/// # Panics
/// Outside a tokio runtime.
pub fn webhook(pipeline: &config::Pipeline) -> Result<Option<Webhook>, Error> {
    let dlq = &pipeline.dlq;
    let start = |url: &config::Endpoint| {
        Webhook::start(url.url().clone(), dlq.webhook_every, &pipeline.name, &dlq.topic)
            .map_err(|source| Error::Webhook { pipeline: pipeline.name.clone(), source })
    };
    dlq.webhook.as_ref().map(start).transpose()
}

/// What can be checked of the handler without a server.
///
/// # Errors
/// When its options are faulty.
pub fn check_handler(pipeline: &config::Pipeline) -> Result<(), Error> {
    match &pipeline.handler {
        #[cfg(feature = "postgres")]
        config::Handler::Postgres(keys) => postgres::plan(pipeline, keys).map(drop),
        _ => Ok(()),
    }
}

/// The handler that the configuration names. One that needs a server waits for it, at most `startup_timeout`.
///
/// # Errors
/// When its options are faulty, or what it needs is not there.
#[cfg_attr(not(feature = "postgres"), allow(unused_variables, reason = "only its server is waited for"))]
pub async fn handler(
    pipeline: &config::Pipeline,
    registry: Option<&Registry>,
    clock: &Arc<dyn Clock>,
    startup_timeout: Duration,
) -> Result<Arc<dyn Handler>, Error> {
    Ok(match &pipeline.handler {
        #[cfg(feature = "postgres")]
        config::Handler::Postgres(keys) => Arc::new(postgres::handler(pipeline, keys, startup_timeout).await?),
        #[cfg(not(feature = "postgres"))]
        config::Handler::Postgres(_) => return Err(Error::NoPostgres { pipeline: pipeline.name.clone() }),
        config::Handler::Log(_) => Arc::new(LogHandler),
        config::Handler::Simulate(s) => {
            let options = SimulateOptions {
                seed: s.seed,
                fail_ratio: s.fail_ratio.0,
                dead_ratio: s.dead_ratio.0,
                permanent_ratio: s.permanent_ratio.0,
                max_failures: s.max_failures,
                latency: s.latency,
                jitter: s.jitter,
                record: s.record.clone(),
                fsync: s.fsync,
            };
            let handler = SimulateHandler::new(options, Arc::clone(clock));
            Arc::new(handler.map_err(|source| Error::Simulate { pipeline: pipeline.name.clone(), source })?)
        }
        config::Handler::Http(h) => {
            let class = |class: &config::StatusClass| match class {
                config::StatusClass::Done => Class::Done,
                config::StatusClass::Transient => Class::Transient,
                config::StatusClass::Permanent => Class::Permanent,
            };
            let body = match h.body {
                config::HttpBody::Protobuf => Body::Protobuf,
                config::HttpBody::Json => Body::Json(reader(pipeline, registry)?),
            };
            let options = HttpOptions {
                url: h.url.reveal().to_owned(),
                timeout: h.timeout,
                connect_timeout: h.connect_timeout,
                body,
                classify: h.classify.0.iter().map(|(status, c)| (*status, class(c))).collect(),
                headers: h.headers.reveal().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
                pool_idle_timeout: h.pool_idle_timeout,
                pool_max_idle: h.pool_max_idle,
                ca: h.ca.clone(),
            };
            let handler = HttpHandler::new(options, Arc::clone(clock));
            Arc::new(handler.map_err(|source| Error::Http { pipeline: pipeline.name.clone(), source })?)
        }
    })
}

/// Where the ids of events come from.
pub fn id_source(pipeline: &config::Pipeline) -> IdSource {
    match &pipeline.event_id {
        config::EventId::Header(names) => IdSource::Headers(names.clone()),
        config::EventId::Field(_) => IdSource::Field,
    }
}

/// What stops the pipeline in an outage.
pub fn outage(pipeline: &config::Pipeline) -> OutageSettings {
    let (breaker, brake) = (&pipeline.breaker, &pipeline.brake);
    OutageSettings {
        breaker: breaker.enabled.then_some(BreakerSettings {
            consecutive_failures: breaker.consecutive_failures,
            min_time: breaker.min_time,
            slow_failures: breaker.slow_failures,
            slow_time: breaker.slow_time,
            cool_down: breaker.cool_down,
            max_cool_down: breaker.max_cool_down,
        }),
        brake: brake.enabled.then_some(BrakeSettings {
            ratio: brake.ratio.0,
            min_events: brake.min_events,
            window: brake.window.saturating_add(pipeline.ladder_length()),
            cool_down: brake.cool_down,
            max_cool_down: brake.max_cool_down,
        }),
    }
}

/// Settings of each stage, by rung.
pub fn settings(pipeline: &config::Pipeline) -> Vec<StageSettings> {
    let last = pipeline.retries.len() + 1;
    let has = |kind| pipeline.compat_headers.contains(&kind);
    let common = StageSettings {
        concurrency: pipeline.concurrency,
        handler_timeout: pipeline.handler_timeout,
        order: match pipeline.order {
            config::Order::None => Order::None,
            config::Order::Stage => Order::Stage,
            config::Order::Ladder => Order::Ladder,
        },
        forward: match pipeline.forward {
            config::Forward::Idempotent => Forward::Idempotent,
            config::Forward::Transactional => Forward::Transactional,
        },
        order_patience: pipeline.order_patience,
        order_room: pipeline.order_room,
        decode: true,
        tombstones: match pipeline.tombstones {
            config::Tombstones::DeadLetter => Tombstones::DeadLetter,
            config::Tombstones::Deliver => Tombstones::Deliver,
            config::Tombstones::Skip => Tombstones::Skip,
        },
        dedup: match (pipeline.idempotency.store, pipeline.idempotency.on_unavailable) {
            (config::Store::Off, _) => Dedup::Off,
            (_, config::OnUnavailable::Pause) => Dedup::Required,
            (_, config::OnUnavailable::Process) => Dedup::BestEffort,
        },
        lease: pipeline.idempotency.lease,
        done_ttl: pipeline.idempotency.done_ttl,
        handed_ttl: pipeline.idempotency.handed_ttl,
        redriven_ttl: pipeline.dlq.retention.max(Duration::from_secs(1)),
        id_source: id_source(pipeline),
        compat: CompatHeaders { kafka: has(config::CompatHeaders::Kafka), spring: has(config::CompatHeaders::Spring) },
        max_waiting: pipeline.window.waiting,
        max_waiting_bytes: usize::try_from(pipeline.window.waiting_bytes.0).unwrap_or(usize::MAX),
        max_in_flight: pipeline.window.in_flight,
        max_in_flight_bytes: usize::try_from(pipeline.window.in_flight_bytes.0).unwrap_or(usize::MAX),
    };
    (0..=last)
        .map(|index| {
            let retry = index.checked_sub(1).and_then(|i| pipeline.retries.get(i));
            StageSettings {
                concurrency: retry.and_then(|r| r.concurrency).unwrap_or(common.concurrency),
                // The dlq stage claims nothing (rule 10), and whatever lies there is looked at, in any order.
                dedup: if index == last { Dedup::Off } else { common.dedup },
                order: if index == last { Order::None } else { common.order },
                // From there nothing is sent on.
                forward: if index == last { Forward::Idempotent } else { common.forward },
                decode: index != last,
                tombstones: if index == last { Tombstones::Deliver } else { common.tombstones },
                ..common.clone()
            }
        })
        .collect()
}

#[cfg(test)]
mod settings_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn pipeline() -> config::Pipeline {
        let yaml = "pipelines: { p: { topic: t, group: g, message: shop.v1.OrderPlaced, handler: { log: {} }, \
                    retries: [ { delay: 5s }, { delay: 5m } ] } }";
        load(&Sources::inline("test", yaml)).unwrap().config.pipelines.remove(0)
    }

    #[test]
    fn a_former_rung_goes_back_to_its_place_and_leads_to_the_rung_that_stands_there_now() {
        for (topic, index, next) in [
            ("t.g.retry-1", 1, "t.g.retry-1x"),
            ("t.g.retry-2", 2, "t.g.retry-2x"),
            ("t.g.retry-3", 3, "t.g.dlq"),
            ("t.g.retry-9", 3, "t.g.dlq"),
            ("t.g.renamed", 3, "t.g.dlq"),
        ] {
            let mut pipeline = pipeline();
            pipeline.retries[0].topic = "t.g.retry-1x".into();
            pipeline.retries[1].topic = "t.g.retry-2x".into();
            let (ladder, at) = ladder_with_orphan(&pipeline, topic).unwrap();
            assert_eq!((at, &*ladder.rungs()[at].topic, &*ladder.rungs()[at + 1].topic), (index, topic, next));
            let day = Duration::from_secs(24 * 60 * 60);
            assert!(ladder.rungs()[at].delay >= Some(day), "the dues that it wrote hold: {:?}", ladder.rungs()[at]);
        }
    }

    #[test]
    fn the_dlq_stage_claims_nothing_and_a_rungs_own_concurrency_wins() {
        let mut pipeline = pipeline();
        pipeline.retries[1].concurrency = Some(3);
        let settings = settings(&pipeline);
        let concurrency: Vec<_> = settings.iter().map(|s| s.concurrency).collect();
        assert_eq!(concurrency, [64, 64, 3, 64]);
        let dedup: Vec<_> = settings.iter().map(|s| s.dedup).collect();
        assert_eq!(dedup, [Dedup::Required, Dedup::Required, Dedup::Required, Dedup::Off]);
    }
}
