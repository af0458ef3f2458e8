//! A runner of one instance: asks for jobs, takes them, and sees each to its end. Nothing is remembered that storage does not
//! have: a job that was taken is done by whichever scheduler acts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farm::job::JobId;
use farm::storage::{Kind, Storage};
use farm::task::Token as RandomToken;
use farm::{Code, Failure, keys, metrics};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::film::Films;
use super::order::{Order, is_name};
use super::protocol::{Available, Client, Refusal};
use super::settings::{Instance, Token};
use super::{sweep, wake};
use crate::scheduler::{Handle, Watch, fetch_if_there};

/// Pauses between two questions: when a job has just ended and others may follow it, while some are being done, and while none is.
const ASK_SOON: Duration = Duration::from_millis(500);
const ASK_BUSY: Duration = Duration::from_secs(5);
const ASK_IDLE: Duration = Duration::from_secs(10);
/// How long others may follow a job that has ended.
const FOLLOW: Duration = Duration::from_secs(3);
/// Pauses after an instance did not answer: each twice as long as the one before.
const AWAY_FIRST: Duration = Duration::from_secs(2);
const AWAY_LONGEST: Duration = Duration::from_secs(300);
/// How often it is looked whether this scheduler acts.
const STANDBY: Duration = Duration::from_secs(1);
/// How long the farm goes on with what nobody waits for any more: the instance may have lost sight of this runner, and give it
/// the same again.
const LINGER: Duration = Duration::from_secs(10);
/// How often it is looked what need not be kept any more.
const SWEEP: Duration = Duration::from_secs(600);

/// A runner job that was taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Taken {
    pub(super) uuid: String,
    pub(super) kind: String,
    pub(super) payload: Value,
    pub(super) token: Token,
    /// What is made for this taking alone is called so: after a crash it is found again.
    #[serde(default = "random_name")]
    pub(super) name: String,
}

fn random_name() -> String {
    RandomToken::random().to_string()
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
    pub(super) waiting: Counts<JobId>,
    /// How many runner jobs are held of each video.
    pub(super) held: Counts<String>,
    /// Whether this scheduler is the one that acts.
    pub(super) watch: Watch,
    /// What the instance makes of its videos, and when it said so.
    pub(super) ahead: tokio::sync::Mutex<Option<(Instant, Vec<u32>)>>,
}

/// What is going on. Dropped, all of it stops.
struct Going {
    jobs: JoinSet<Option<Order>>,
    /// The runner job of each of them.
    uuids: HashMap<task::Id, String>,
    /// What the farm may be stopped from doing.
    leaving: JoinSet<()>,
    is_resumed: bool,
    troubles: u32,
    ended_at: Option<Instant>,
    swept_at: Instant,
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
    pub(super) async fn run(self: Arc<Self>) {
        let woken = Arc::new(Notify::new());
        let listening = wake::listen(self.instance.clone(), Arc::clone(&woken), self.watch.clone());
        let _listening = AbortOnDropHandle::new(tokio::spawn(listening));
        let mut going = Going::new();
        loop {
            if !self.watch.is_acting() {
                going = Going::new();
                self.show(&going, false);
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
            self.show(&going, going.troubles == 0);
            tokio::select! {
                Some(ended) = going.jobs.join_next_with_id() => self.note_end(&mut going, ended),
                Some(_) = going.leaving.join_next() => {}
                () = woken.notified() => {}
                () = sleep(pause) => {}
                () = self.stands_by() => {}
            }
        }
    }

    fn show(&self, going: &Going, is_up: bool) {
        let series = metrics::scheduler();
        series.peertube_up.with_label_values(&[self.slug()]).set(i64::from(is_up));
        let held = i64::try_from(going.uuids.len()).unwrap_or(i64::MAX);
        series.peertube_jobs_held.with_label_values(&[self.slug()]).set(held);
    }

    /// Waits until this scheduler does not act any more.
    async fn stands_by(&self) {
        while self.watch.is_acting() {
            sleep(STANDBY).await;
        }
    }

    /// Takes up what was taken before, and takes more. Whether there may be still more to take.
    async fn ask(self: &Arc<Self>, going: &mut Going) -> Result<bool, String> {
        while let Some(ended) = going.jobs.try_join_next_with_id() {
            self.note_end(going, ended);
        }
        if !going.is_resumed {
            for taken in self.taken().await.map_err(|failure| failure.message)? {
                self.start(going, taken);
            }
            let held = going.uuids.values().cloned().collect();
            self.stop_orphans(&held).await.map_err(|failure| failure.message)?;
            going.is_resumed = true;
        }
        if going.swept_at.elapsed() >= SWEEP {
            going.swept_at = Instant::now();
            if let Err(failure) = sweep::sweep(self, sweep::now_ms()).await {
                tracing::warn!(instance = self.slug(), %failure, "what need not be kept is looked for later");
            }
        }
        let free = self.instance.policy.jobs_max.saturating_sub(going.uuids.len());
        if free == 0 {
            return Ok(false);
        }
        let offered = self.client.available().await.map_err(|refusal| refusal.to_string())?;
        let (mut has_taken, mut trouble) = (false, None);
        let is_new = |job: &Available| is_name(&job.uuid) && !going.uuids.values().any(|own| *own == job.uuid);
        for job in offered.into_iter().filter(is_new).take(free).collect::<Vec<_>>() {
            let token = match self.client.accept(&job.uuid).await {
                Ok(token) => token,
                // Another was faster.
                Err(Refusal::Gone) => continue,
                // The next one may do all the same.
                Err(refusal) => {
                    trouble = Some(refusal.to_string());
                    continue;
                }
            };
            tracing::info!(instance = self.slug(), job = job.uuid, kind = job.kind, "taken");
            let taken = Taken { uuid: job.uuid, kind: job.kind, payload: job.payload, token, name: random_name() };
            if let Err(failure) = self.keep(&taken).await {
                // Not kept, it may be nobody's for ever: not every version takes away by itself what it hears no more of.
                let runner = Arc::clone(self);
                going.leaving.spawn(async move {
                    runner.give_back(&taken, "the farm's storage does not work").await;
                });
                return Err(failure.message);
            }
            self.start(going, taken);
            has_taken = true;
        }
        match trouble {
            Some(why) => Err(why),
            None => {
                going.troubles = 0;
                Ok(has_taken && going.uuids.len() < self.instance.policy.jobs_max)
            }
        }
    }

    async fn keep(&self, taken: &Taken) -> Result<(), Failure> {
        let content = serde_json::to_vec(taken).map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
        Ok(self.state.put(&self.record(&taken.uuid), content.into(), Kind::Json).await?)
    }

    /// What was taken and has not ended.
    async fn taken(&self) -> Result<Vec<Taken>, Failure> {
        let mut taken = Vec::new();
        for entry in self.state.list(&keys::peertube_jobs(self.slug())).await? {
            match fetch_if_there(&self.state, &entry.key).await {
                Ok(own) => taken.extend(own),
                Err(failure) if failure.code == Code::Internal => {
                    tracing::error!(instance = self.slug(), %failure, "a runner job is left to the instance");
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(taken)
    }

    /// Stops what the farm does for runner jobs that are not held: whoever was to stop it did not come to it.
    async fn stop_orphans(&self, held: &BTreeSet<String>) -> Result<(), Failure> {
        let prefix = keys::peertube_videos(self.slug());
        for entry in self.state.list(&prefix).await? {
            let video = entry.key.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix("/film.json"));
            let Some(video) = video else { continue };
            let known = self.films.get(video).await?.unwrap_or_default();
            for job in known.orphans(self.is_held(video), held) {
                self.stop(&job).await;
            }
        }
        Ok(())
    }

    /// Stops a job of the farm that nobody waits for. One that has ended stays as it is.
    async fn stop(&self, job: &JobId) {
        if self.waiting_for(job) == 0
            && self.watch.is_acting()
            && let Err(failure) = self.scheduler.cancel(job).await
        {
            tracing::debug!(%job, %failure, "nobody waits for it, and it is not stopped");
        }
    }

    /// Stops, after a while, what the farm did for a runner job that has ended otherwise than done, if nobody else waits for it.
    async fn let_go(&self, runner_job: &str, order: &Order) {
        sleep(LINGER).await;
        // Whoever prepares the video may be about to wait for one of its jobs.
        let _alone = self.alone(&order.video).await;
        match self.films.get(&order.video).await {
            Ok(video) => {
                for job in video.unwrap_or_default().jobs_for(runner_job, &order.wanted) {
                    self.stop(&job).await;
                }
            }
            Err(failure) => tracing::warn!(instance = self.slug(), %failure, "what nobody waits for goes on"),
        }
    }

    fn start(self: &Arc<Self>, going: &mut Going, taken: Taken) {
        let (runner, uuid) = (Arc::clone(self), taken.uuid.clone());
        let held = Order::read(&taken.kind, &taken.payload).ok().map(|order| Held::of(&self.held, order.video));
        // Before the task begins, so that nobody takes the video for one that is not asked for.
        let started = going.jobs.spawn(async move {
            let to_stop = runner.see_through(&taken).await;
            // A crash before this has it looked at once more, and found to be nobody's business.
            if let Err(error) = runner.state.delete(&[runner.record(&taken.uuid)]).await {
                tracing::warn!(job = taken.uuid, %error, "a runner job that has ended cannot be forgotten now");
            }
            drop(held);
            to_stop
        });
        going.uuids.insert(started.id(), uuid);
    }

    fn note_end(self: &Arc<Self>, going: &mut Going, ended: Result<(task::Id, Option<Order>), task::JoinError>) {
        going.ended_at = Some(Instant::now());
        match ended {
            Ok((id, to_stop)) => {
                if let (Some(uuid), Some(order)) = (going.uuids.remove(&id), to_stop) {
                    let runner = Arc::clone(self);
                    going.leaving.spawn(async move { runner.let_go(&uuid, &order).await });
                }
            }
            Err(error) => {
                // What stands of it in storage is taken up by whoever acts next, if the instance does not offer it again before.
                let uuid = going.uuids.remove(&error.id());
                tracing::error!(job = uuid, %error, "a runner job ended badly");
            }
        }
    }

    /// Waits for a job of the farm, as long as what this gives is there.
    pub(super) fn wait_for(&self, job: JobId) -> Held<JobId> {
        Held::of(&self.waiting, job)
    }

    /// How many wait for a job.
    fn waiting_for(&self, job: &JobId) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).get(job).copied().unwrap_or(0)
    }

    /// Whether a runner job of this video is held.
    pub(super) fn is_held(&self, video: &str) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains_key(video)
    }

    /// Holds everybody else off a video, as long as what this gives is there.
    pub(super) async fn alone(&self, video: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut preparing = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
            preparing.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(preparing.entry(video.to_owned()).or_default())
        };
        lock.lock_owned().await
    }
}

/// Counts of things that are needed.
pub(super) type Counts<K> = Arc<Mutex<BTreeMap<K, usize>>>;

/// Something is needed as long as this is there.
pub(super) struct Held<K: Ord> {
    counts: Counts<K>,
    pub(super) what: K,
}

impl<K: Ord + Clone> Held<K> {
    fn of(counts: &Counts<K>, what: K) -> Self {
        *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(what.clone()).or_default() += 1;
        Self { counts: Arc::clone(counts), what }
    }
}

impl<K: Ord> Drop for Held<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.what) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.what);
            }
        }
    }
}

impl Going {
    fn new() -> Self {
        Self {
            jobs: JoinSet::new(),
            uuids: HashMap::new(),
            leaving: JoinSet::new(),
            is_resumed: false,
            troubles: 0,
            ended_at: None,
            swept_at: Instant::now(),
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
