//! Plans and jobs: a dry run is made in the background and kept for its confirmation; confirmed, it is run here to its
//! end whether or not anybody watches. Jobs of other processes are seen in the book.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Shared;
use super::answer::{Refused, blocking, read};
use super::ask::{CorrectionAsk, OrderAsk};
use super::shelf::{Error, Shelf, lock, now_ms};
use crate::adapters::kafka::scan::Progress;
use crate::admin::dlq::book::{Job, JobState};
use crate::admin::dlq::page::Place;
use crate::admin::dlq::redrive::{self, Order, Plan};

/// Plans that are kept for their confirmation; the oldest go first.
const MAX_PLANS: usize = 16;
/// Dry runs at the same time.
const MAX_PLANNING: usize = 4;
/// Jobs that are shown.
const MAX_JOBS: usize = 100;
/// A running job that told nothing for so long was killed.
const ALIVE_MS: u64 = 15_000;
/// How long a job may take to end its transaction when the console ends.
const DRAIN: Duration = Duration::from_secs(20);

/// What is planned, at work or was, of one pipeline.
#[derive(Default)]
pub(super) struct Works(Mutex<VecDeque<Arc<Work>>>);

/// One order.
struct Work {
    id: String,
    order: Order,
    phase: Mutex<Phase>,
    stop: AtomicBool,
}

/// How far it is.
enum Phase {
    Planning(Progress),
    Planned(Box<Plan>),
    /// Confirmed; the job as it was told last.
    Running(Box<Job>),
    Ended(Box<Job>),
    /// Nothing, or nothing more, was done.
    Failed {
        error: String,
        /// Another job is at work, which could be taken over.
        busy: bool,
        /// What a second try would run.
        plan: Option<Box<Plan>>,
    },
}

impl Phase {
    fn is_running(&self) -> bool {
        matches!(self, Phase::Running(_))
    }

    fn is_planning(&self) -> bool {
        matches!(self, Phase::Planning(_))
    }
}

impl Work {
    fn tell(&self) -> Value {
        let phase = lock(&self.phase);
        let mut told = match &*phase {
            Phase::Planning(progress) => json!({ "phase": "planning", "read": progress.read, "total": progress.total }),
            Phase::Planned(plan) => {
                let Plan { job, already, sample, unknown } = &**plan;
                json!({ "phase": "planned", "job": job, "already": already, "sample": sample, "unknown": unknown })
            }
            Phase::Running(job) => json!({ "phase": "running", "job": job }),
            Phase::Ended(job) => json!({ "phase": "ended", "job": job }),
            Phase::Failed { error, busy, plan } => {
                json!({ "phase": "failed", "error": error, "busy": busy, "job": plan.as_ref().map(|plan| &plan.job) })
            }
        };
        told["id"] = self.id.clone().into();
        told["stopping"] = self.stop.load(Ordering::Relaxed).into();
        told["rate"] = json!(self.order.rate);
        told["stop_at"] = json!(self.order.stop_at);
        told["drop_unknown"] = self.order.drop_unknown.into();
        told["corrected"] = (!self.order.corrected.is_empty()).into();
        told
    }

    fn plan(&self, shelf: &Shelf) {
        let planned = shelf.desk().and_then(|desk| {
            let planned = desk.plan(&self.order, |progress| {
                *lock(&self.phase) = Phase::Planning(progress);
                if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            Ok(planned?)
        });
        *lock(&self.phase) = match planned {
            Ok(Some(plan)) => Phase::Planned(Box::new(plan)),
            Ok(None) => Phase::Failed { error: "the dry run was stopped".into(), busy: false, plan: None },
            Err(error) => Phase::Failed { error: error.to_string(), busy: false, plan: None },
        };
    }

    fn run(&self, shelf: &Shelf, plan: Plan, take_over: bool) {
        let order = Order { take_over, ..self.order.clone() };
        let again = Box::new(plan.clone());
        let mut begun = false;
        let ended = shelf.desk().and_then(|desk| {
            let ended = desk.execute(plan, &order, &self.stop, |job| {
                begun = true;
                *lock(&self.phase) = Phase::Running(Box::new(job.clone()));
            });
            Ok(ended?)
        });
        *lock(&self.phase) = match ended {
            Ok(job) => Phase::Ended(Box::new(job)),
            Err(error) => {
                tracing::warn!(pipeline = shelf.name, plan = self.id, %error, "a job of the console ended early");
                let busy = matches!(error, Error::Dlq(redrive::Error::Busy { .. }));
                let error = match &error {
                    Error::Dlq(redrive::Error::Busy { id, who, moved, planned }) => {
                        format!("job {id} of {who} is at work on this DLQ: {moved} of {planned} letters")
                    }
                    _ => error.to_string(),
                };
                Phase::Failed { error, busy, plan: (!begun).then_some(again) }
            }
        };
    }
}

impl Works {
    fn find(&self, id: &str) -> Result<Arc<Work>, Refused> {
        let found = lock(&self.0).iter().find(|work| work.id == id).cloned();
        found.ok_or_else(|| Refused::not_found("this plan is no longer kept; make it again"))
    }

    /// Begins a dry run.
    fn add(&self, shelf: &Arc<Shelf>, order: Order) -> Result<Arc<Work>, Refused> {
        let id = format!("{:x}-{:04x}", now_ms(), fastrand::u16(..));
        let phase = Mutex::new(Phase::Planning(Progress::default()));
        let work = Arc::new(Work { id, order, phase, stop: AtomicBool::new(false) });
        let mut works = lock(&self.0);
        if works.iter().filter(|work| lock(&work.phase).is_planning()).count() >= MAX_PLANNING {
            let error = format!("{MAX_PLANNING} dry runs are under way; wait for one, or stop it");
            return Err(Refused::new(StatusCode::TOO_MANY_REQUESTS, error));
        }
        while works.len() >= MAX_PLANS {
            let idle = works.iter().position(|work| {
                let phase = lock(&work.phase);
                !phase.is_running() && !phase.is_planning()
            });
            match idle {
                Some(idle) => drop(works.remove(idle)),
                None => break,
            }
        }
        works.push_back(Arc::clone(&work));
        drop(works);
        let (shelf, planned) = (Arc::clone(shelf), Arc::clone(&work));
        tokio::task::spawn_blocking(move || planned.plan(&shelf));
        Ok(work)
    }

    /// Runs a plan: once, and none beside another.
    fn run(&self, shelf: &Arc<Shelf>, id: &str, take_over: bool) -> Result<Arc<Work>, Refused> {
        let work = self.find(id)?;
        let works = lock(&self.0); // held, so that of two at once one is first
        if let Some(other) = works.iter().find(|other| lock(&other.phase).is_running()) {
            let what =
                if other.id == id { "this plan is run already" } else { "another job of this console is at work" };
            return Err(Refused::conflict(what));
        }
        let mut phase = lock(&work.phase);
        let plan = match &*phase {
            Phase::Planned(plan) => plan.clone(),
            Phase::Failed { plan: Some(plan), .. } => plan.clone(),
            Phase::Planning(_) => return Err(Refused::conflict("the dry run is not at its end yet")),
            _ => return Err(Refused::conflict("this plan was run already; make it again to go on")),
        };
        if plan.job.planned == 0 {
            return Err(Refused::conflict("nothing to do: no open letter is selected"));
        }
        *phase = Phase::Running(Box::new(plan.job.clone()));
        drop(phase);
        drop(works);
        let (shelf, running) = (Arc::clone(shelf), Arc::clone(&work));
        tokio::task::spawn_blocking(move || running.run(&shelf, *plan, take_over));
        Ok(work)
    }

    /// Ids of the jobs that are at work here.
    fn running(&self) -> Vec<(String, String)> {
        let works = lock(&self.0);
        let running = works.iter().filter_map(|work| match &*lock(&work.phase) {
            Phase::Running(job) => Some((job.id.clone(), work.id.clone())),
            _ => None,
        });
        running.collect()
    }

    /// Has everything end, and waits until it has, or for a while.
    pub(super) async fn stop_all(&self) {
        let until = tokio::time::Instant::now() + DRAIN;
        for work in lock(&self.0).iter() {
            work.stop.store(true, Ordering::Relaxed);
        }
        while !self.running().is_empty() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// `POST …/plans`: begins a dry run.
pub(super) async fn plan(
    State(shared): State<Arc<Shared>>,
    Path(pipeline): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Refused> {
    let shelf = shared.shelf(&pipeline)?;
    let order = read::<OrderAsk>(&body)?.order(&shelf.ladder, now_ms())?;
    let work = shelf.works.add(&shelf, order)?;
    Ok((StatusCode::ACCEPTED, Json(work.tell())))
}

/// `POST …/letters/P:O/plans`: begins the dry run of one letter with another value.
pub(super) async fn plan_corrected(
    State(shared): State<Arc<Shared>>,
    Path((pipeline, place)): Path<(String, String)>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Refused> {
    let shelf = shared.shelf(&pipeline)?;
    let place: Place = place.parse().map_err(Refused::bad)?;
    if !shared.show_values {
        return Err(Refused::new(StatusCode::FORBIDDEN, "values are hidden here, so they cannot be corrected"));
    }
    let ask: CorrectionAsk = read(&body)?;
    if let Some(Err(error)) = shelf.reader.own().map(|decoder| decoder.from_json(&ask.json)) {
        return Err(Refused::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()));
    }
    let mut order = ask.order(place, &shelf.ladder)?;
    order.corrected.insert((place.partition, place.offset), ask.json);
    let work = shelf.works.add(&shelf, order)?;
    Ok((StatusCode::ACCEPTED, Json(work.tell())))
}

/// `GET …/plans/ID`.
pub(super) async fn look(
    State(shared): State<Arc<Shared>>,
    Path((pipeline, id)): Path<(String, String)>,
) -> Result<Json<Value>, Refused> {
    Ok(Json(shared.shelf(&pipeline)?.works.find(&id)?.tell()))
}

/// How a plan is to be run.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RunAsk {
    /// Stop a job that is at work.
    take_over: bool,
}

/// `POST …/plans/ID/run`: confirms it.
pub(super) async fn run(
    State(shared): State<Arc<Shared>>,
    Path((pipeline, id)): Path<(String, String)>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Refused> {
    let shelf = shared.shelf(&pipeline)?;
    let ask: RunAsk = if body.is_empty() { RunAsk::default() } else { read(&body)? };
    let work = shelf.works.run(&shelf, &id, ask.take_over)?;
    Ok((StatusCode::ACCEPTED, Json(work.tell())))
}

/// `POST …/plans/ID/stop`: ends a dry run or a job after the letters at hand.
pub(super) async fn stop(
    State(shared): State<Arc<Shared>>,
    Path((pipeline, id)): Path<(String, String)>,
) -> Result<Json<Value>, Refused> {
    let work = shared.shelf(&pipeline)?.works.find(&id)?;
    work.stop.store(true, Ordering::Relaxed);
    Ok(Json(work.tell()))
}

/// `GET …/jobs`: the newest first, wherever they run.
pub(super) async fn jobs(
    State(shared): State<Arc<Shared>>,
    Path(pipeline): Path<String>,
) -> Result<Json<Value>, Refused> {
    let shelf = shared.shelf(&pipeline)?;
    blocking(move || {
        let book = shelf.book()?;
        let mut jobs: Vec<&Job> = book.jobs().values().collect();
        jobs.sort_by_key(|job| std::cmp::Reverse((job.started_ms, &job.id)));
        let (here, now) = (shelf.works.running(), u64::try_from(now_ms()).unwrap_or_default());
        let told = jobs.iter().take(MAX_JOBS).map(|job| {
            let plan = here.iter().find(|(id, _)| *id == job.id).map(|(_, plan)| plan);
            let is_silent = plan.is_none() && now.saturating_sub(job.updated_ms) > ALIVE_MS;
            let mut told = json!(job);
            told["plan"] = json!(plan);
            told["interrupted"] = (job.state == JobState::Running && is_silent).into();
            told
        });
        let told: Vec<Value> = told.collect();
        Ok(Json(json!({ "jobs": told, "more": jobs.len().saturating_sub(MAX_JOBS) })))
    })
    .await
}
