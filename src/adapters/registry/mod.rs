//! A schema registry with Confluent's API: schemas by id, kept here; and what `produce` registers.
//!
//! Invariants
//! - What an id means never changes, so an answer that says it is kept as long as there is room (the schema that was not
//!   used for longest goes first); that an id is unknown, or that nobody answers, is kept for moments only.
//! - However many events wait for one id, it is asked for once; the question does not end with whoever asked it.
//! - One question ends after `retries` and time-outs; nothing here waits for the registry to come back.
//! - The registry is asked for ids that are not known yet, and for nothing else: without it the known ones go on.

mod client;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use reqwest::{StatusCode, Url};
use tokio::time::Instant;

use self::client::{Client, Reference, Registered};
use crate::messages::{Schema, SchemaError, Schemas};

/// How long it is remembered that nobody answered.
const SILENCE: Duration = Duration::from_secs(1);
/// Files of one schema, at most.
const MAX_FILES: usize = 500;

/// Where the registry is and how it is asked.
#[derive(Clone)]
pub struct Options {
    /// One server or several that know the same, each with the path before `/schemas`; a user and password in it are sent.
    pub urls: Vec<Url>,
    /// User and password for servers whose url has none.
    pub basic: Option<(String, String)>,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<String>,
    /// For each try.
    pub timeout: Duration,
    /// Tries after the first.
    pub retries: u32,
    /// Schemas that are kept.
    pub cache: usize,
    /// How long it is remembered that an id is unknown.
    pub unknown_for: Duration,
    /// PEM file of authorities that are trusted beside the system's.
    pub ca: Option<PathBuf>,
}

impl Options {
    /// The defaults for these servers.
    pub fn new(urls: Vec<Url>) -> Self {
        let (timeout, unknown_for) = (Duration::from_secs(5), Duration::from_secs(5));
        Self { urls, basic: None, token: None, timeout, retries: 2, cache: 1_000, unknown_for, ca: None }
    }
}

/// Why the registry cannot be used, or not now.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client cannot be made.
    #[error("registry: {0}")]
    Options(String),
    /// Nobody there.
    #[error("no schema registry answers at {url}: {reason}; start it, or correct registry.urls")]
    Unreachable {
        /// As asked, without user and password.
        url: String,
        /// What the connection says.
        reason: String,
    },
    /// An answer that says no.
    #[error("the schema registry at {url} answers {status}: {text}")]
    Refused {
        /// As asked, without user and password.
        url: String,
        /// Of HTTP.
        status: StatusCode,
        /// What it says about it.
        text: String,
    },
    /// An answer that is none of a registry's.
    #[error("{url} is no schema registry of Confluent's API: {reason}")]
    NotRegistry {
        /// As asked, without user and password.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The schema cannot be had.
    #[error(transparent)]
    Schema(#[from] SchemaError),
}

impl Error {
    fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, .. })
    }
}

/// A `.proto` file to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The name that others import it by, which is its subject, too.
    pub name: String,
    /// Its text.
    pub text: String,
    /// The names of what it imports, Google's own left out.
    pub imports: Vec<String>,
}

type Answer = Result<Arc<Schema>, SchemaError>;

/// A schema registry. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    client: Client,
    unknown_for: Duration,
    cache: Mutex<Cache>,
}

struct Cache {
    known: HashMap<u32, Known>,
    asked: HashMap<u32, Shared<BoxFuture<'static, Answer>>>,
    most: usize,
    /// Counts lookups: what was used last has the highest number.
    uses: u64,
}

struct Known {
    answer: Answer,
    until: Option<Instant>,
    used: u64,
}

impl Cache {
    fn get(&mut self, id: u32) -> Option<Answer> {
        self.uses += 1;
        let known = self.known.get_mut(&id).filter(|known| known.until.is_none_or(|until| Instant::now() < until))?;
        known.used = self.uses;
        Some(known.answer.clone())
    }

    fn put(&mut self, id: u32, answer: Answer, until: Option<Instant>) {
        self.asked.remove(&id);
        self.uses += 1;
        self.known.insert(id, Known { answer, until, used: self.uses });
        if self.known.len() > self.most
            && let Some(oldest) = self.known.iter().min_by_key(|(_, known)| known.used).map(|(id, _)| *id)
        {
            self.known.remove(&oldest);
        }
    }
}

impl Registry {
    /// A registry; nothing is asked yet.
    ///
    /// # Errors
    /// When the authorities cannot be read, or the options make no HTTP client.
    pub fn new(options: Options) -> Result<Self, Error> {
        let cache = Cache { known: HashMap::new(), asked: HashMap::new(), most: options.cache.max(1), uses: 0 };
        let unknown_for = options.unknown_for;
        Ok(Self(Arc::new(Inner { client: Client::new(options)?, unknown_for, cache: Mutex::new(cache) })))
    }

    /// The newest schema of a subject and its id.
    ///
    /// # Errors
    /// When there is none, or the registry does not answer.
    pub async fn latest(&self, subject: &str) -> Result<(u32, Arc<Schema>), Error> {
        let latest: Registered = self.0.client.get(&["subjects", subject, "versions", "latest"]).await?;
        Ok((latest.id, self.fetch(latest.id).await?))
    }

    /// Registers the last of these files under `subject` and those before it, which it or they import, under their names:
    /// the schema's id. What is registered already stays as it is.
    ///
    /// # Errors
    /// When the registry does not answer or does not take a file: it is not compatible with the one before it.
    pub async fn register(&self, subject: &str, sources: &[Source]) -> Result<u32, Error> {
        let mut versions = BTreeMap::new();
        let mut id = 0;
        for (n, source) in sources.iter().enumerate() {
            let subject = if n + 1 == sources.len() { subject } else { &source.name };
            let references = source.imports.iter().filter_map(|name| {
                let version = *versions.get(name)?;
                Some(Reference { name: name.clone(), subject: name.clone(), version })
            });
            let registered = self.0.client.register(subject, &source.text, references.collect()).await?;
            id = registered.id;
            versions.insert(source.name.clone(), registered.version);
        }
        Ok(id)
    }
}

impl Schemas for Registry {
    fn known(&self, id: u32) -> Option<Answer> {
        self.0.cache().get(id)
    }

    fn fetch(&self, id: u32) -> BoxFuture<'_, Answer> {
        let mut cache = self.0.cache();
        if let Some(answer) = cache.get(id) {
            return std::future::ready(answer).boxed();
        }
        let ask = move || {
            let inner = Arc::clone(&self.0);
            let task = tokio::spawn(async move {
                let answer = inner.load(id).await;
                inner.remember(id, answer.clone());
                answer
            });
            let ended = move |why: tokio::task::JoinError| Err(SchemaError::Unavailable { id, why: why.to_string() });
            task.map(move |answer| answer.unwrap_or_else(ended)).boxed().shared()
        };
        cache.asked.entry(id).or_insert_with(ask).clone().boxed()
    }
}

impl Inner {
    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, id: u32, answer: Answer) {
        let keep = match &answer {
            Ok(_) | Err(SchemaError::Unusable { .. }) => None,
            Err(SchemaError::Unknown { .. }) => Some(self.unknown_for),
            Err(SchemaError::Unavailable { .. }) => Some(SILENCE),
        };
        if let Err(error) = &answer {
            tracing::warn!(schema_id = id, %error, "a schema is not to be had; events that need it fail");
        }
        self.cache().put(id, answer, keep.map(|keep| Instant::now() + keep));
    }

    async fn load(&self, id: u32) -> Answer {
        let unavailable = |error: Error| SchemaError::Unavailable { id, why: error.to_string() };
        let unusable = |why: String| SchemaError::Unusable { id, why };
        let root: client::Body = match self.client.get(&["schemas", "ids", &id.to_string()]).await {
            Err(error) if error.is_unknown() => return Err(SchemaError::Unknown { id }),
            root => root.map_err(unavailable)?,
        };
        if root.schema_type != "PROTOBUF" {
            return Err(unusable(format!("is {}, not PROTOBUF", root.schema_type)));
        }
        let name = format!("schema {id}");
        let mut texts = HashMap::from([(name.clone(), root.schema)]);
        let mut references = root.references;
        while let Some(Reference { name, subject, version }) = references.pop() {
            if texts.contains_key(&name) {
                continue;
            }
            if texts.len() >= MAX_FILES {
                return Err(unusable(format!("imports more than {MAX_FILES} files")));
            }
            let file = self.client.get(&["subjects", &subject, "versions", &version.to_string()]).await;
            let file: client::Body = file.map_err(unavailable)?;
            references.extend(file.references);
            texts.insert(name, file.schema);
        }
        let compiled = tokio::task::spawn_blocking(move || Schema::compile(&name, texts)).await;
        compiled.unwrap_or_else(|panic| Err(format!("cannot be compiled: {panic}"))).map(Arc::new).map_err(unusable)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("servers", &self.0.client.shown()).finish_non_exhaustive()
    }
}
