//! The stages as they are now, for all who watch: one look every two seconds while somebody does.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;

use super::Shared;
use super::answer::Refused;
use super::shelf::now_ms;
use crate::admin::outside::{Outside, StageLook, StageStatus, Status};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// Rates are means over so long.
const WINDOW: Duration = Duration::from_secs(10);
/// Those who watch at the same time.
const MAX_WATCHERS: usize = 64;

/// Looks while somebody watches; ends when it is dropped.
pub(super) struct Live {
    latest: watch::Sender<Option<Arc<str>>>,
    wake: Arc<Notify>,
    watchers: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Live {
    pub(super) fn start(mut outside: Outside) -> Self {
        let (latest, wake) = (watch::Sender::new(None), Arc::new(Notify::new()));
        let task = tokio::spawn({
            let (latest, wake) = (latest.clone(), Arc::clone(&wake));
            async move {
                let mut rates = Rates::default();
                loop {
                    while latest.receiver_count() == 0 {
                        latest.send_replace(None); // nobody is to see what is old
                        rates = Rates::default();
                        wake.notified().await;
                    }
                    let next = tokio::time::Instant::now() + EVERY;
                    let seen = look(&mut outside, &mut rates).await;
                    latest.send_replace(Some(seen.to_string().into()));
                    tokio::time::sleep_until(next).await;
                }
            }
        });
        Self { latest, wake, watchers: Arc::new(Semaphore::new(MAX_WATCHERS)), task }
    }
}

/// `GET /api/live`: an event for each look.
pub(super) async fn stream(
    State(shared): State<Arc<Shared>>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refused> {
    let live = &shared.live;
    let Ok(place) = Arc::clone(&live.watchers).try_acquire_owned() else {
        let status = axum::http::StatusCode::SERVICE_UNAVAILABLE;
        return Err(Refused::new(status, format!("{MAX_WATCHERS} pages watch already; close one")));
    };
    let mut looks = live.latest.subscribe();
    looks.mark_changed();
    live.wake.notify_one();
    let stream = futures::stream::unfold((looks, place), |(mut looks, place)| async move {
        loop {
            looks.changed().await.ok()?;
            let look = looks.borrow_and_update().clone();
            if let Some(look) = look {
                return Some((Ok(Event::default().data(look)), (looks, place)));
            }
        }
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

async fn look(outside: &mut Outside, rates: &mut Rates) -> Value {
    let status = outside.look().await;
    let status = match status {
        Ok(status) => status,
        Err(error) => return json!({ "at_ms": now_ms(), "error": error.to_string(), "pipelines": [] }),
    };
    let rates = rates.note(&status, Instant::now());
    let pipelines = status.pipelines.iter().map(|pipeline| {
        let stages = pipeline.stages.iter().map(|stage| {
            let mut told = json!(stage);
            if let (StageLook::Seen(seen), Some(object)) = (stage, told.as_object_mut()) {
                let (done, come) = rates.get(&seen.topic).copied().unwrap_or_default();
                object.insert("done_per_second".into(), json!(done));
                object.insert("come_per_second".into(), json!(come));
            }
            told
        });
        json!({ "pipeline": pipeline.pipeline, "stages": stages.collect::<Vec<_>>() })
    });
    json!({ "at_ms": now_ms(), "pipelines": pipelines.collect::<Vec<_>>() })
}

/// Positions and ends of the last looks, by topic.
#[derive(Default)]
struct Rates {
    looks: VecDeque<(Instant, BTreeMap<String, (u64, u64)>)>,
}

impl Rates {
    /// Takes in a look: events that were done and that have come per second, by topic; `None` until there are two looks.
    fn note(&mut self, status: &Status, now: Instant) -> BTreeMap<String, (Option<f64>, Option<f64>)> {
        let stages = status.pipelines.iter().flat_map(|pipeline| &pipeline.stages);
        let seen = stages.filter_map(|stage| match stage {
            StageLook::Seen(StageStatus { topic, position, end, .. }) => Some((topic.clone(), (*position, *end))),
            StageLook::Unseen(_) => None,
        });
        let seen: BTreeMap<_, _> = seen.collect();
        while self.looks.len() > 1 && self.looks.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.looks.pop_front();
        }
        let rate = |topic: &String, pick: fn(&(u64, u64)) -> u64, last: u64| {
            let (at, then) = self.looks.iter().find(|(_, then)| then.contains_key(topic))?;
            let grown = last.checked_sub(pick(then.get(topic)?))?;
            Some((grown as f64 / now.duration_since(*at).as_secs_f64().max(0.001) * 10.0).round() / 10.0)
        };
        let rates = seen.iter().map(|(topic, (position, end))| {
            (topic.clone(), (rate(topic, |seen| seen.0, *position), rate(topic, |seen| seen.1, *end)))
        });
        let rates = rates.collect();
        self.looks.push_back((now, seen));
        rates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::outside::PipelineStatus;

    fn status(position: u64, end: u64) -> Status {
        let stage = StageStatus { topic: "orders".into(), position, end, ..StageStatus::default() };
        Status { pipelines: vec![PipelineStatus { pipeline: "p".into(), stages: vec![StageLook::Seen(stage)] }] }
    }

    #[test]
    fn a_rate_is_what_positions_grew_by_within_the_window() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let mut at = |seconds: u64, position, end| {
            rates.note(&status(position, end), start + Duration::from_secs(seconds))["orders"]
        };
        assert_eq!(at(0, 100, 500), (None, None), "one look says nothing");
        assert_eq!(at(2, 120, 500), (Some(10.0), Some(0.0)));
        assert_eq!(at(4, 140, 600), (Some(10.0), Some(25.0)));
        assert_eq!(at(20, 140, 600), (Some(0.0), Some(0.0)), "what was before the window is forgotten");
        assert_eq!(at(22, 5, 600).0, None, "a group that was set back has no rate");
    }
}
