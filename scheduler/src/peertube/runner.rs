//! A runner of one instance: asks for jobs, takes them, and sees each to its end. Nothing is remembered that storage does not
//! have: a job that was taken is done by whichever scheduler acts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farm::storage::{Kind, Storage};
use farm::{Failure, keys, metrics};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::film::Films;
use super::protocol::{Client, Refusal};
use super::settings::{Instance, Token};
use super::{sweep, wake};
use crate::scheduler::{Handle, Watch, fetch};

/// Pauses between two questions: when a job has just ended and others may follow it, while some are being done, and while none is.
const ASK_SOON: Duration = Duration::from_millis(500);
const ASK_BUSY: Duration = Duration::from_secs(5);
const ASK_IDLE: Duration = Duration::from_secs(20);
/// How long others may follow a job that has ended.
const FOLLOW: Duration = Duration::from_secs(3);
/// Pauses after an instance did not answer: each twice as long as the one before.
const AWAY_FIRST: Duration = Duration::from_secs(2);
const AWAY_LONGEST: Duration = Duration::from_secs(300);
/// How often it is looked whether this scheduler acts.
const STANDBY: Duration = Duration::from_secs(1);
/// How often it is looked what need not be kept any more.
const SWEEP: Duration = Duration::from_secs(600);

/// A runner job that was taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Taken {
    pub(super) uuid: String,
    pub(super) kind: String,
    pub(super) payload: Value,
    pub(super) token: Token,
}

/// What a runner works with.
pub(super) struct Runner {
    pub(super) scheduler: Arc<Handle>,
    pub(super) state: Storage,
    pub(super) instance: Instance,
    pub(super) client: Client,
    pub(super) films: Films,
    /// One at a time prepares a video.
    pub(super) preparing: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// How many wait for each job of the farm.
    pub(super) waiting: Mutex<BTreeMap<farm::job::JobId, usize>>,
    /// What the instance makes of its videos, and when it said so.
    pub(super) ahead: tokio::sync::Mutex<Option<(Instant, Vec<u32>)>>,
}

/// What is going on.
#[derive(Default)]
struct Going {
    jobs: JoinSet<String>,
    uuids: BTreeSet<String>,
    is_resumed: bool,
    troubles: u32,
    ended_at: Option<Instant>,
    swept_at: Option<Instant>,
}

impl Runner {
    pub(super) fn slug(&self) -> &str {
        &self.films.slug
    }

    fn record(&self, uuid: &str) -> String {
        format!("{}{uuid}.json", keys::peertube_jobs(self.slug()))
    }

    /// Runs while this scheduler acts, until the future is dropped. What was taken stays taken: another scheduler, or the next,
    /// goes on with it.
    pub(super) async fn run(self: Arc<Self>, watch: Watch) {
        let woken = Arc::new(Notify::new());
        let listening = wake::listen(self.instance.clone(), Arc::clone(&woken), watch.clone());
        let _listening = AbortOnDropHandle::new(tokio::spawn(listening));
        let mut going = Going::default();
        loop {
            if !watch.is_acting() {
                going = Going::default();
                sleep(STANDBY).await;
                continue;
            }
            let pause = match self.ask(&mut going).await {
                Ok(true) => continue,
                Ok(false) => going.rest(),
                Err(why) => {
                    going.troubles = going.troubles.saturating_add(1);
                    tracing::warn!(instance = self.slug(), troubles = going.troubles, "{why}");
                    AWAY_FIRST.saturating_mul(1 << (going.troubles - 1).min(16)).min(AWAY_LONGEST)
                }
            };
            metrics::scheduler().peertube_up.with_label_values(&[self.slug()]).set(i64::from(going.troubles == 0));
            metrics::scheduler().peertube_jobs_held.with_label_values(&[self.slug()]).set(going.uuids.len() as i64);
            tokio::select! {
                Some(ended) = going.jobs.join_next() => going.note_end(ended),
                () = woken.notified() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Takes up what was taken before, and takes more. Whether there may be still more to take.
    async fn ask(self: &Arc<Self>, going: &mut Going) -> Result<bool, String> {
        while let Some(ended) = going.jobs.try_join_next() {
            going.note_end(ended);
        }
        if !going.is_resumed {
            for taken in self.taken().await.map_err(|failure| failure.message)? {
                self.start(going, taken);
            }
            going.is_resumed = true;
        }
        if going.swept_at.is_none_or(|at| at.elapsed() >= SWEEP) {
            going.swept_at = Some(Instant::now());
            if let Err(failure) = sweep::sweep(self, sweep::now_ms()).await {
                tracing::warn!(instance = self.slug(), %failure, "what need not be kept is looked for later");
            }
        }
        let free = self.instance.policy.jobs_max.saturating_sub(going.uuids.len());
        if free == 0 {
            return Ok(false);
        }
        let offered = self.client.available().await.map_err(|refusal| refusal.to_string())?;
        going.troubles = 0;
        let mut has_taken = false;
        for job in offered.into_iter().filter(|job| !going.uuids.contains(&job.uuid)).take(free).collect::<Vec<_>>() {
            if !is_name(&job.uuid) {
                return Err("a job has a name that cannot be one".to_owned());
            }
            let token = match self.client.accept(&job.uuid).await {
                Ok(token) => token,
                // Another was faster.
                Err(Refusal::Gone) => continue,
                Err(refusal) => return Err(refusal.to_string()),
            };
            tracing::info!(instance = self.slug(), job = job.uuid, kind = job.kind, "taken");
            let taken = Taken { uuid: job.uuid, kind: job.kind, payload: job.payload, token };
            // Not kept, it would be given to others after two minutes.
            self.keep(&taken).await.map_err(|failure| failure.message)?;
            self.start(going, taken);
            has_taken = true;
        }
        Ok(has_taken && going.uuids.len() < self.instance.policy.jobs_max)
    }

    async fn keep(&self, taken: &Taken) -> Result<(), Failure> {
        let content = serde_json::to_vec(taken).map_err(|error| Failure::new(farm::Code::Internal, error.to_string()))?;
        Ok(self.state.put(&self.record(&taken.uuid), content.into(), Kind::Json).await?)
    }

    /// What was taken and has not ended.
    async fn taken(&self) -> Result<Vec<Taken>, Failure> {
        let mut taken = Vec::new();
        for entry in self.state.list(&keys::peertube_jobs(self.slug())).await? {
            taken.push(fetch(&self.state, &entry.key).await?);
        }
        Ok(taken)
    }

    fn start(self: &Arc<Self>, going: &mut Going, taken: Taken) {
        if going.uuids.insert(taken.uuid.clone()) {
            let runner = Arc::clone(self);
            going.jobs.spawn(async move {
                runner.see_through(&taken).await;
                // A crash before this has it looked at once more, and found to be nobody's business.
                if let Err(error) = runner.state.delete(&[runner.record(&taken.uuid)]).await {
                    tracing::warn!(job = taken.uuid, %error, "a runner job that has ended cannot be forgotten now");
                }
                taken.uuid
            });
        }
    }

    /// Waits for a job no more than so many others do.
    pub(super) fn note_waiting(&self, job: &farm::job::JobId, more: bool) -> usize {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.entry(job.clone()).or_default();
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
        let left = *count;
        if left == 0 {
            waiting.remove(job);
        }
        left
    }

    /// How many wait for a job.
    pub(super) fn waiting_for(&self, job: &farm::job::JobId) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).get(job).copied().unwrap_or(0)
    }
}

impl Going {
    fn note_end(&mut self, ended: Result<String, tokio::task::JoinError>) {
        self.ended_at = Some(Instant::now());
        match ended {
            Ok(uuid) => {
                self.uuids.remove(&uuid);
            }
            Err(error) => {
                tracing::error!(%error, "a runner job ended badly");
                // Which one is not known: all are looked at again.
                *self = Self { troubles: self.troubles, swept_at: self.swept_at, ..Self::default() };
            }
        }
    }

    /// How long to wait until the next question, when nothing else happens.
    fn rest(&self) -> Duration {
        match self.ended_at {
            Some(at) if at.elapsed() < FOLLOW => ASK_SOON,
            _ if self.uuids.is_empty() => ASK_IDLE,
            _ => ASK_BUSY,
        }
    }
}

/// Whether a name from outside can stand in keys and paths.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}
