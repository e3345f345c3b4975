//! One round: topics and workers up, events and faults, the wait for the end, the evidence, the verdict, and everything
//! away again however it ended.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use tokio::runtime::Handle;

use super::crew::{Crew, tail};
use super::journal;
use super::ledger::{Interruption, Ledger, Produced, Stage, read_executions};
use super::outside::{Generator, Kafka, Keys, committed, ends};
use super::plan::{self, Counts, Fault, Planned};
use super::proxy::Proxy;
use super::report::{Report, Stall, Struck};
use super::worker::Orders;
use super::{Error, Options, PIPELINE, Progress, Watch, now_us};
use crate::adapters::kafka::admin::plan::known_topics;
use crate::adapters::kafka::admin::{Admin, topics};
use crate::app::wire;
use crate::config::{self, Sources, load};

const PARTITIONS: i32 = 8;
/// Retry stages.
const RETRIES: usize = 3;
/// A member that is silent for so long loses its partitions; brokers allow no less by default.
const SESSION: Duration = Duration::from_secs(6);
/// For a start, and for a drain. A machine shared by many may take its time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing has moved for so long: waiting longer would not help.
const STANDSTILL: Duration = Duration::from_secs(90);

/// Names of one round.
struct Names {
    topic: String,
    folder: PathBuf,
}

/// Runs a round.
pub(super) fn conduct(
    options: &Options,
    seed: u64,
    runtime: &Handle,
    watch: &mut dyn Watch,
    stop: &AtomicBool,
) -> Result<Report, Error> {
    let topic = format!("prove-{:08x}", fastrand::u32(..));
    let folder = std::env::temp_dir().join(&topic);
    std::fs::create_dir(&folder)?;
    let names = Names { topic, folder };
    let kafka = Kafka { brokers: options.brokers.clone(), properties: options.properties.clone() };
    let mut round = Round { options, seed, runtime, watch, stop, names: &names, kafka: &kafka, sent: 0 };
    let result = round.run();
    if let Err(Error::Interrupted) = &result {
        round.watch.say("interrupted: this round does not count, what it made is being removed");
    }
    let kept = round.clean_up();
    if let Err(error) = &kept {
        round.watch.say(&format!("not everything could be removed: {error}"));
    }
    result
}

struct Round<'a> {
    options: &'a Options,
    seed: u64,
    runtime: &'a Handle,
    watch: &'a mut dyn Watch,
    stop: &'a AtomicBool,
    names: &'a Names,
    kafka: &'a Kafka,
    /// Events handed to the producer.
    sent: u64,
}

impl Round<'_> {
    fn run(&mut self) -> Result<Report, Error> {
        let Counts { workers, .. } = self.counts();
        let brokers = self.kafka.broker_count()?;
        let server = (self.options.outages > 0).then(|| server_of(&self.options.redis)).transpose()?;
        let proxy =
            server.as_ref().map(|(address, _)| self.runtime.block_on(Proxy::start(address.clone()))).transpose()?;
        let redis = match (&server, &proxy) {
            (Some((address, _)), Some(proxy)) => {
                self.options.redis.replacen(address, &format!("127.0.0.1:{}", proxy.port()), 1)
            }
            _ => self.options.redis.clone(),
        };
        let config = self.write_config(&redis, brokers.min(3))?;
        let pipeline = config.pipelines.first().ok_or_else(|| Error::Options("no pipeline".into()))?;
        self.create_topics(&config)?;
        let faults = plan::faults(self.seed, self.counts());
        self.tell_plan(&faults, brokers);

        let mut crew = Crew::new(self.options.program.clone(), self.orders(pipeline, workers));
        for worker in 0..workers {
            crew.start(worker)?;
        }
        self.wait_until_ready(&mut crew)?;
        let generator = Generator::new(self.kafka, &self.names.topic)?;
        generator.wait_for_topic(PARTITIONS)?;
        let begun = Instant::now();
        let mut struck = self.under_fire(&mut crew, &generator, &faults, proxy.as_ref(), begun)?;
        let (produced, refused) = generator.finish()?;
        let mut problems: Vec<String> =
            refused.iter().map(|text| format!("not acknowledged, so nothing can be said of it: {text}")).collect();
        problems.extend(self.wait_for_the_end(&mut crew, pipeline, produced.len() as u64, faults.len(), begun)?);
        let wall = begun.elapsed();
        problems.extend(crew.stop(PATIENCE));

        self.watch.say("reading everything back");
        let (ledger, stalls) = self.evidence(&crew, pipeline, produced, &mut struck, &mut problems)?;
        Ok(Report::new(self.seed, &ledger, struck, stalls, problems, wall))
    }

    fn counts(&self) -> Counts {
        let Options { workers, kills, freezes, outages, lease, .. } = *self.options;
        Counts { workers, kills, freezes, outages, lease }
    }

    fn interrupted(&self) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    // ------------------------------------------------------------------------------------------ before

    /// The workers' configuration: what a user would write, with short delays, and without breaker and brake: this load
    /// fails on purpose.
    fn write_config(&self, redis: &str, replication: usize) -> Result<config::Config, Error> {
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let properties = serde_json::to_string(&self.options.properties).map_err(std::io::Error::from)?;
        let Options { brokers, lease, .. } = self.options;
        let topic = &self.names.topic;
        let lease_ms = lease.as_millis();
        let yaml = format!(
            "kafka: {{ brokers: {}, properties: {properties}, session_timeout: {}s, startup_timeout: 2m }}
redis: {{ url: {}, prefix: {topic} }}
pipelines:
  {PIPELINE}:
    topic: {topic}
    group: {topic}-g
    message: shop.v1.OrderPlaced
    partitions: {PARTITIONS}
    replication: {replication}
    retries: [ {{ delay: 1s }}, {{ delay: 2s }}, {{ delay: 4s }} ]
    idempotency: {{ lease: {lease_ms}ms }}
    breaker: {{ enabled: false }}
    brake: {{ enabled: false }}
    handler: {{ log: {{}} }}
",
            text(brokers),
            SESSION.as_secs(),
            text(redis),
        );
        let file = self.config_file();
        write_private(&file, &yaml)?;
        Ok(load(&Sources::new(Some(file))).map_err(|faults| Error::Options(faults.to_string()))?.config)
    }

    fn config_file(&self) -> PathBuf {
        self.names.folder.join("topics.yaml")
    }

    fn create_topics(&self, config: &config::Config) -> Result<(), Error> {
        let all: Vec<_> = config.pipelines.iter().map(wire::topics).collect();
        let connection = wire::connection(config);
        let known = known_topics(&all);
        let report = self.runtime.block_on(async {
            let admin = Admin::connect(connection, PATIENCE).await?;
            topics::create(&admin, &all, &known, false).await
        })?;
        match report.topics.iter().find(|topic| !topic.state.is_good()) {
            None => Ok(()),
            Some(topic) => Err(Error::Options(format!("topic {}: {}", topic.spec.topic, topic.state.as_str()))),
        }
    }

    /// Every stage in two workers at least, where there are several; the first half of them static members.
    fn orders(&self, pipeline: &config::Pipeline, workers: usize) -> Vec<Orders> {
        let stages: Vec<String> = pipeline.stages().into_iter().map(|(name, _)| name).collect();
        let of = |worker: usize| {
            let mine = |index: usize| workers < 4 || (index + worker).is_multiple_of(2);
            Orders {
                name: format!("w{worker}"),
                config: self.config_file(),
                stages: stages.iter().enumerate().filter(|(i, _)| mine(*i)).map(|(_, s)| s.clone()).collect(),
                instance: (worker < workers.div_ceil(2)).then(|| format!("w{worker}")),
                folder: self.names.folder.clone(),
                latency: self.options.latency,
            }
        };
        (0..workers).map(of).collect()
    }

    fn tell_plan(&mut self, faults: &[Planned], brokers: usize) {
        let Options { events, rate, workers, .. } = self.options;
        let mut text = format!(
            "topic {}, {PARTITIONS} partitions, {brokers} broker(s); {workers} workers, the first {} with a static id\n\
             {events} events at {rate:.0}/s, seed {}; breaker and brake off; faults, at the share of events sent:",
            self.names.topic,
            workers.div_ceil(2),
            self.seed
        );
        for Planned { at, fault } in faults {
            text.push_str(&format!("\n  {:5.1} %  {fault}", at * 100.0));
        }
        self.watch.say(&text);
    }

    fn wait_until_ready(&self, crew: &mut Crew) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE * 2;
        while !crew.all_ready() {
            self.interrupted()?;
            if let Some(ended) = crew.ended() {
                return Err(Error::Worker(ended));
            }
            if Instant::now() > deadline {
                let log = crew.lives.first().map_or_else(String::new, |life| tail(&life.orders.log()));
                return Err(Error::Worker(format!("the workers did not start within {:?}\n{log}", PATIENCE * 2)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    // ------------------------------------------------------------------------------------------ events and faults

    /// Sends all events at the wanted rate while the plan is carried out.
    fn under_fire(
        &mut self,
        crew: &mut Crew,
        generator: &Generator,
        faults: &[Planned],
        proxy: Option<&Proxy>,
        begun: Instant,
    ) -> Result<Vec<Struck>, Error> {
        let events = self.options.events;
        let mut fire = Fire { crew, proxy, faults, struck: Vec::new(), pending: Vec::new(), begun };
        let mut told = Instant::now();
        while self.sent < events || fire.struck.len() < faults.len() || !fire.pending.is_empty() {
            self.interrupted()?;
            let wanted = (begun.elapsed().as_secs_f64() * self.options.rate) as u64;
            while self.sent < wanted.min(events) && generator.send(plan::event(self.seed, self.sent, PARTITIONS))? {
                self.sent += 1;
            }
            let share = self.sent as f64 / events as f64;
            fire.step(share, self.watch)?;
            if let Some(ended) = fire.crew.ended() {
                return Err(Error::Worker(ended));
            }
            if told.elapsed() > Duration::from_millis(250) {
                told = Instant::now();
                let (at, acknowledged, struck) = (begun.elapsed(), generator.acknowledged(), fire.struck.len());
                self.watch.progress(Progress { at, events, acknowledged, struck, faults: faults.len(), open: None });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(fire.struck)
    }

    /// Waits until every group has committed the end of its log. What is wrong if it does not come.
    fn wait_for_the_end(
        &mut self,
        crew: &mut Crew,
        pipeline: &config::Pipeline,
        acknowledged: u64,
        faults: usize,
        begun: Instant,
    ) -> Result<Option<String>, Error> {
        let lookers: Vec<(BaseConsumer, String)> = pipeline
            .stages()
            .iter()
            .map(|(stage, topic)| Ok((self.kafka.looker(&pipeline.stage_group(stage))?, (*topic).to_owned())))
            .collect::<Result<_, Error>>()?;
        let mut moved = (Instant::now(), (0, 0));
        loop {
            self.interrupted()?;
            if let Some(ended) = crew.ended() {
                return Err(Error::Worker(ended));
            }
            // In the ladder's order: what a stage has committed has reached the next one's log.
            let (mut done, mut all) = (0, 0);
            for (looker, topic) in &lookers {
                done += committed(looker, topic, PARTITIONS)?.iter().sum::<i64>();
                all += ends(looker, topic, PARTITIONS)?.iter().sum::<i64>();
            }
            let (at, events, open) = (begun.elapsed(), self.options.events, Some(all - done));
            self.watch.progress(Progress { at, events, acknowledged, struck: faults, faults, open });
            if done == all {
                return Ok(None);
            }
            if moved.1 != (done, all) {
                moved = (Instant::now(), (done, all));
            } else if moved.0.elapsed() > STANDSTILL {
                return Ok(Some(format!("nothing moved for {STANDSTILL:?}, {} records are open", all - done)));
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    // ------------------------------------------------------------------------------------------ after

    fn evidence(
        &mut self,
        crew: &Crew,
        pipeline: &config::Pipeline,
        produced: Vec<Produced>,
        struck: &mut [Struck],
        problems: &mut Vec<String>,
    ) -> Result<(Ledger, Vec<Stall>), Error> {
        let mut stages = Vec::new();
        for (index, (stage, topic)) in pipeline.stages().into_iter().enumerate() {
            let looker = self.kafka.looker(&pipeline.stage_group(&stage))?;
            let (committed, ends) = (committed(&looker, topic, PARTITIONS)?, ends(&looker, topic, PARTITIONS)?);
            let delay = index.checked_sub(1).and_then(|i| pipeline.retries.get(i)).map(|retry| retry.delay);
            stages.push(Stage {
                name: stage,
                topic: topic.to_owned(),
                delay_ms: delay.map_or(0, |delay| delay.as_millis() as u64),
                copies: self.kafka.read_back(topic, PARTITIONS, self.stop)?,
                offsets: (0..PARTITIONS).zip(committed).zip(ends).map(|((p, c), e)| (p, c, e)).collect(),
            });
        }
        let (mut executions, mut interruptions, mut stalls) = (Vec::new(), Vec::new(), Vec::new());
        // Of a worker's runtime.
        let threads = std::thread::available_parallelism()?.get();
        for life in &crew.lives {
            let blows: Vec<_> = life.blows.iter().map(|(_, blow)| *blow).collect();
            // A worker killed at its start has no files.
            let file = match std::fs::read_to_string(life.orders.executions()) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            // A line that the kill cut off was not synced: nothing came of it.
            let whole = &file[..file.rfind('\n').map_or(0, |end| end + 1)];
            executions.extend(read_executions(whole).map_err(Error::Evidence)?);
            let told = journal::read(&life.orders.marks(), &blows, threads)?;
            for ((fault, _), interruption) in life.blows.iter().zip(&told.interruptions) {
                struck[*fault].held(interruption);
            }
            interruptions.extend(told.interruptions);
            for (blow, interruption) in told.stalls {
                let lasted = Duration::from_micros(blow.to_us - blow.from_us);
                stalls.push(Stall { worker: life.orders.name.clone(), lasted, held: interruption.in_hand.len() });
                interruptions.push(interruption);
            }
            interruptions.push(told.unanswered);
        }
        interruptions.retain(|i: &Interruption| !i.in_hand.is_empty() || !i.unacknowledged.is_empty());
        let (count, keys) = Keys::connect(&self.options.redis)?.open(&self.keys())?;
        if count == 0 && !executions.is_empty() {
            problems.push("redis holds no key of this run: somebody else removed them".to_owned());
        }
        Ok((Ledger { group: pipeline.group.clone(), stages, produced, executions, interruptions, keys }, stalls))
    }

    /// Every key that a claim of this round can have, as the contract names them: prefix, group, topic, event id, hop.
    fn keys(&self) -> Vec<String> {
        let topic = &self.names.topic;
        let ids = (0..self.sent).map(|n| plan::event(self.seed, n, PARTITIONS).id);
        ids.flat_map(|id| (0..=RETRIES).map(move |hop| format!("{topic}:{topic}-g:{topic}:{id}:{hop}"))).collect()
    }

    fn clean_up(&mut self) -> Result<(), Error> {
        let topic = &self.names.topic;
        let folder = &self.names.folder;
        if self.options.keep {
            self.watch.say(&format!("kept: topics and keys {topic}…, the workers' files in {}", folder.display()));
            return Ok(());
        }
        // Those of the ladder's own bookkeeping, too.
        let names = self.kafka.topics_of(topic)?;
        let topics: Vec<&str> = names.iter().map(String::as_str).collect();
        let deleted = self.runtime.block_on(self.kafka.delete_topics(&topics));
        let removed = Keys::connect(&self.options.redis).and_then(|mut redis| redis.remove(&self.keys()));
        std::fs::remove_dir_all(folder)?;
        deleted.and(removed)
    }
}

/// Carries the plan out.
struct Fire<'a> {
    crew: &'a mut Crew,
    proxy: Option<&'a Proxy>,
    faults: &'a [Planned],
    struck: Vec<Struck>,
    /// What has to be undone, and when.
    pending: Vec<(Instant, usize, Undo)>,
    begun: Instant,
}

enum Undo {
    Start(usize),
    Wake(usize),
    Mend(u64),
}

impl Fire<'_> {
    fn step(&mut self, share: f64, watch: &mut dyn Watch) -> Result<(), Error> {
        let now = Instant::now();
        let due: Vec<_> = self.pending.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, fault, undo) in due {
            match undo {
                Undo::Start(worker) => self.crew.start(worker)?,
                Undo::Wake(worker) => self.crew.wake(worker, fault)?,
                Undo::Mend(from_us) => {
                    if let Some(proxy) = self.proxy {
                        proxy.set(None);
                    }
                    self.crew.was_cut_off(fault, from_us);
                }
            }
        }
        let number = self.struck.len();
        if let Some(planned) = self.faults.get(number)
            && planned.at <= share
            && let Some(fault) = self.strike(number, planned.fault)?
        {
            let at = self.begun.elapsed();
            watch.say(&format!("{:6.1} s  {fault}", at.as_secs_f64()));
            self.struck.push(Struck::new(fault, at));
        }
        Ok(())
    }

    /// `None`: not now. A worker that is down or frozen already is spared, the next one has its turn.
    fn strike(&mut self, number: usize, fault: Fault) -> Result<Option<Fault>, Error> {
        let now = Instant::now();
        match fault {
            Fault::Kill { worker, down } => {
                let Some(worker) = self.crew.at_work(worker) else { return Ok(None) };
                self.crew.kill(worker, number)?;
                self.pending.push((now + down, number, Undo::Start(worker)));
                Ok(Some(Fault::Kill { worker, down }))
            }
            Fault::Freeze { worker, lasts } => {
                let Some(worker) = self.crew.at_work(worker) else { return Ok(None) };
                self.crew.freeze(worker, number)?;
                self.pending.push((now + lasts, number, Undo::Wake(worker)));
                Ok(Some(Fault::Freeze { worker, lasts }))
            }
            Fault::Outage { cut, lasts } => {
                if self.pending.iter().any(|(.., undo)| matches!(undo, Undo::Mend(_))) {
                    return Ok(None);
                }
                let from_us = now_us();
                if let Some(proxy) = self.proxy {
                    proxy.set(Some(cut));
                }
                self.pending.push((now + lasts, number, Undo::Mend(from_us)));
                Ok(Some(Fault::Outage { cut, lasts }))
            }
        }
    }
}

/// `host:port` of a redis url, and the port alone.
pub(super) fn server_of(url: &str) -> Result<(String, String), Error> {
    let wrong = |why: &str| {
        Error::Options(format!(
            "redis outages need a proxy in front of a plain redis://host:port url, and {why}; --redis-outages 0 does without"
        ))
    };
    let rest = url.strip_prefix("redis://").ok_or_else(|| wrong("this one is no plain redis://"))?;
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let address = rest.split(['/', '?']).next().unwrap_or_default();
    let (_, port) = address.rsplit_once(':').ok_or_else(|| wrong("this one names no port"))?;
    Ok((address.to_owned(), port.to_owned()))
}

/// Only for this user: it may hold passwords.
fn write_private(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}
