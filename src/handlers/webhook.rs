//! Tells a URL that dead letters came: one POST for all that came since the last, at most one in a given time.
//!
//! It is a bell, not a record, which is the DLQ itself. Letters never wait for it; a call that fails is made up for by the
//! next; what a process did not tell before it ended is not told.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Method, Request, Url, redirect};
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Those that come within this time after the first are told with it.
const GATHER: Duration = Duration::from_secs(1);
/// Letters told one by one.
const SAMPLES: usize = 5;
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A dead letter, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Letter {
    /// Its event's id.
    pub event_id: String,
    /// Its class.
    pub class: String,
    /// Its error.
    pub error: String,
    /// Its partition on the DLQ.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
}

/// What was not told yet.
#[derive(Debug, Default, Serialize)]
struct News {
    count: u64,
    by_class: BTreeMap<&'static str, u64>,
    letters: Vec<Letter>,
}

/// The body of a POST.
#[derive(Serialize)]
struct Body<'a> {
    /// For a chat room.
    text: String,
    pipeline: &'a str,
    topic: &'a str,
    #[serde(flatten)]
    news: &'a News,
}

#[derive(Default)]
struct Shared {
    news: Mutex<News>,
    came: Notify,
}

impl Shared {
    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells of the dead letters of one pipeline; ends when it is dropped.
pub struct Webhook {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Webhook {
    /// Calls `url` at most once `every` so long about what comes to `topic`.
    ///
    /// # Errors
    /// When the TLS library cannot be set up.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(url: Url, every: Duration, pipeline: &str, topic: &str) -> Result<Self, reqwest::Error> {
        let client = Client::builder().no_proxy().redirect(redirect::Policy::none()).timeout(TIMEOUT).build()?;
        let shared = Arc::new(Shared::default());
        let (pipeline, topic) = (pipeline.to_owned(), topic.to_owned());
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                loop {
                    shared.came.notified().await;
                    tokio::time::sleep(GATHER.min(every)).await;
                    let news = std::mem::take(&mut *shared.news());
                    if news.count == 0 {
                        continue; // told with those before
                    }
                    if let Err(error) = post(&client, &url, &pipeline, &topic, &news).await {
                        tracing::warn!(pipeline, %error, letters = news.count, "dlq.webhook was not told of these letters; the next call tells them, too");
                        shared.news().put_back(news);
                        shared.came.notify_one();
                    }
                    tokio::time::sleep(every.saturating_sub(GATHER)).await;
                }
            }
        });
        Ok(Self { shared, task })
    }

    /// A letter came; `class` is what it is counted as.
    pub(super) fn note(&self, class: &'static str, letter: impl FnOnce() -> Letter) {
        let mut news = self.shared.news();
        news.count += 1;
        *news.by_class.entry(class).or_default() += 1;
        if news.letters.len() < SAMPLES {
            news.letters.push(letter());
        }
        drop(news);
        self.shared.came.notify_one();
    }
}

impl News {
    /// What came meanwhile is later.
    fn put_back(&mut self, mut before: Self) {
        before.count += self.count;
        for (class, count) in &self.by_class {
            *before.by_class.entry(class).or_default() += count;
        }
        let room = SAMPLES - before.letters.len();
        before.letters.extend(self.letters.drain(..).take(room));
        *self = before;
    }
}

/// In a sentence.
impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let classes: Vec<_> = self.by_class.iter().map(|(class, count)| format!("{count} {class}")).collect();
        let letters = if self.count == 1 { "letter" } else { "letters" };
        write!(f, "{} new dead {letters} ({})", self.count, classes.join(", "))
    }
}

/// The URL may hold a secret: no message names it.
async fn post(client: &Client, url: &Url, pipeline: &str, topic: &str, news: &News) -> Result<(), reqwest::Error> {
    let body = Body { text: format!("{pipeline}: {news} on {topic}"), pipeline, topic, news };
    let mut request = Request::new(Method::POST, url.clone());
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // A struct of texts and numbers always has a JSON form.
    *request.body_mut() = Some(serde_json::to_vec(&body).unwrap_or_default().into());
    let answer = client.execute(request).await.map_err(reqwest::Error::without_url)?;
    answer.error_for_status().map(drop).map_err(reqwest::Error::without_url)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::post;
    use serde_json::Value;
    use tokio::sync::mpsc;

    use super::*;

    /// A server that refuses the first `refuse` calls, and what it is told.
    async fn server(refuse: usize) -> (Url, mpsc::UnboundedReceiver<Value>) {
        let (told, calls) = mpsc::unbounded_channel();
        let left = Arc::new(AtomicUsize::new(refuse));
        let app = Router::new().fallback(post(move |body: String| {
            told.send(serde_json::from_str(&body).unwrap()).unwrap();
            let refused = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            std::future::ready(if refused { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK })
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (url, calls)
    }

    fn letter(n: i64) -> Letter {
        let (class, error) = ("permanent".to_owned(), format!("order {n} not found"));
        Letter { event_id: format!("event-{n}"), class, error, partition: 0, offset: n }
    }

    #[tokio::test]
    async fn what_comes_together_is_one_call_and_what_was_refused_is_told_again() {
        let (url, mut calls) = server(1).await;
        let every = Duration::from_millis(300);
        let webhook = Webhook::start(url, every, "orders", "orders.billing.dlq").unwrap();
        let begun = tokio::time::Instant::now();
        for n in 0..20 {
            webhook.note("permanent", || letter(n));
        }
        let refused = calls.recv().await.unwrap();
        webhook.note("poison", || letter(20));
        let told = calls.recv().await.unwrap();
        assert_eq!((&refused["count"], &told["count"]), (&20.into(), &21.into()));
        assert_eq!(told["by_class"], serde_json::json!({ "permanent": 20, "poison": 1 }));
        assert_eq!(told["text"], "orders: 21 new dead letters (20 permanent, 1 poison) on orders.billing.dlq");
        assert_eq!(told["letters"].as_array().unwrap().len(), SAMPLES);
        assert_eq!(told["letters"][0]["event_id"], "event-0");
        webhook.note("permanent", || letter(21));
        assert_eq!(calls.recv().await.unwrap()["count"], 1, "what was told is not told again");
        assert!(begun.elapsed() >= 3 * every, "one call each {every:?}");
        drop(webhook);
        assert!(calls.try_recv().is_err());
    }
}
