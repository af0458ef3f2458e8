//! Acts: takes what [`crate::step`] and [`crate::dispatch`] decide to storage and broker.
//!
//! Nothing here is remembered that storage does not have. What is on the task queue is only a guess: after a restart,
//! every task without a marker is handed out again, and workers drop those that turn out to be done.

mod again;
mod deletion;
mod engine;
mod entry;
mod issue;
mod job;
mod lead;
mod measure;
mod ticks;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use farm::broker::{Broker, Queue};
use farm::encoder::Offered;
use farm::job::{Hardware, JobId, JobSpec};
use farm::presence::Presence;
use farm::storage::{Creation, Kind, Storage};
use farm::task::{Event, Token};
use farm::{Code, Failure, Life, keys};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use again::retry;
pub(crate) use again::{claim_media, current_life, tell_again};
pub use deletion::delete_output;
pub(crate) use deletion::{is_deleted, take_away};
pub(crate) use job::{FIRST_EPOCH, delete_all, fetch, fetch_if_there, has_result, is_published, is_there};
pub use view::{JobView, Phase, Watch};

use self::again::{current_result, is_active};
use crate::dispatch::Window;
use crate::step::JobResult;
use crate::tracer::Traced;
use engine::Engine;
use view::Board;

/// Part of the farm's jobs that this scheduler looks after; there is one so far.
pub(crate) const PARTITION: u32 = 0;

/// What can be set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many tasks are handed out ahead of workers.
    pub window: Window,
    /// A task of which nothing was heard for so long is looked at again, and handed out again when it has no marker. Longer
    /// than an attempt's deadline.
    pub lease: Duration,
    /// How often everything is looked at again, in case a message was lost.
    pub reconcile: Duration,
    /// Wait after storage or broker did not work, the first time; it doubles each time.
    pub retry_first: Duration,
    /// Longest wait of that kind, and the wait until a halted job is tried again.
    pub retry_longest: Duration,
    /// How often the tick comes round that says which scheduler acts.
    pub tick: Duration,
    /// How long a scheduler that begins to act listens for running tasks before it hands any out. Workers are heard of every
    /// second.
    pub settle: Duration,
    /// Shares of the farm by tenant, for those whose is not 1.
    pub weights: Arc<BTreeMap<String, u32>>,
    /// Whether hardware encodes, by tenant, for those who have said it and jobs that do not.
    pub hardware: Arc<BTreeMap<String, Hardware>>,
    /// Who cleans up after a job.
    pub aftercare: Aftercare,
    /// After so many failures of storage in a row, those who wait for a job are told. It is tried again all the same.
    pub troubles_max: u32,
    /// How long a job is to take from when it is first heard of: so many workers are said to be wanted.
    pub scale_target: Duration,
    /// Slots of each of the workers that are wanted.
    pub slots_per_worker: u32,
    /// Where the ends of jobs are noted whose traces are wanted.
    pub traced: Option<Traced>,
}

/// Who cleans up after a job that has ended, and whether its end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aftercare {
    /// All is deleted at once that does not belong to the result, and nobody is told: a farm for one job.
    AtOnce,
    /// The end is put in the outbox and on the list of ended jobs; the janitor deletes later, so that late workers and readers
    /// come to no harm, and a failed job can be taken up again.
    Later,
}

impl Settings {
    /// The usual settings of a farm in one process, with so many slots.
    pub fn for_slots(slots: usize) -> Self {
        Self {
            window: Window::Fixed(slots.saturating_mul(2).max(1)),
            lease: Duration::from_secs(25 * 60),
            reconcile: Duration::from_secs(30),
            retry_first: Duration::from_millis(250),
            retry_longest: Duration::from_secs(30),
            tick: Duration::from_secs(10),
            settle: Duration::ZERO,
            weights: Arc::default(),
            hardware: Arc::default(),
            aftercare: Aftercare::AtOnce,
            troubles_max: 8,
            scale_target: Duration::from_secs(10 * 60),
            slots_per_worker: 2,
            traced: None,
        }
    }

    /// The usual settings of a farm with any number of workers, which come and go.
    pub fn for_farm() -> Self {
        let window = Window::Following { least: 1, most: 10_000 };
        Self { window, settle: Duration::from_secs(3), aftercare: Aftercare::Later, ..Self::for_slots(1) }
    }
}

/// Takes jobs to their end.
pub struct Scheduler;

impl Scheduler {
    /// Starts a scheduler: it takes up every job that is active in `state`, and those that are submitted from now on.
    /// It stops when the handle is dropped.
    ///
    /// Must be called within a tokio runtime.
    pub fn start(settings: Settings, state: Storage, broker: Broker) -> Handle {
        let board = Arc::new(Board::default());
        let (stop, stopped) = oneshot::channel();
        let engine = Engine::new(settings, state.clone(), broker.clone(), Arc::clone(&board));
        let task = tokio::spawn(engine.run(stopped));
        Handle { board, state, broker, stop: Some(stop), task }
    }
}

/// A running scheduler. Dropped, it stops at once: as good as a crash, and as harmless.
pub struct Handle {
    board: Arc<Board>,
    state: Storage,
    broker: Broker,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Handle {
    /// How far a job is, if this scheduler knows it: it is active, or ended a short while ago.
    pub fn view(&self, job: &JobId) -> Option<JobView> {
        self.board.get(job)
    }

    /// What others may wait for.
    pub fn watch(&self) -> Watch {
        self.board.watch()
    }

    /// Jobs of a tenant that have not ended, as far as this scheduler knows.
    pub fn active_of(&self, tenant: &str) -> usize {
        self.board.active_of(tenant)
    }

    /// Jobs of a tenant, or of all, that have not ended, as far as this scheduler knows: at most so many.
    pub fn unended(&self, tenant: Option<&str>, most: usize) -> Vec<JobId> {
        self.board.unended(tenant, most)
    }

    /// Jobs of a tenant, or of all, that have ended since so many had, and how many have by now, as far as this scheduler knows.
    /// Of very many some are missing.
    pub fn ended_since(&self, ends: u64, tenant: Option<&str>) -> (Vec<JobId>, u64) {
        self.board.ended_since(ends, tenant)
    }

    /// The workers of the farm, as far as this scheduler has heard of them lately. Whoever stands by hears of them too.
    pub fn workers(&self) -> Vec<Presence> {
        self.board.workers()
    }

    /// What each of them offers beside encoding on the processor, as far as this scheduler has heard lately.
    pub fn offers(&self) -> BTreeMap<Token, Vec<Offered>> {
        self.board.offers()
    }

    /// Follows a job: the view at once, and then every change. The channel closes when the scheduler stops.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when there is no such job, [`Code::Interrupted`] when the scheduler has stopped, storage's.
    pub async fn follow(&self, job: &JobId) -> Result<watch::Receiver<JobView>, Failure> {
        if self.board.get(job).is_none() {
            let ended = current_result(&self.state, job).await?;
            // One that is still active is to be closed first, which whoever acts is about to do.
            let is_open = ended.is_some() && is_active(&self.state, job).await?;
            if let Some(result) = ended.filter(|_| !is_open) {
                self.board.put(job, JobView { phase: Phase::Ended(result), ..JobView::default() });
            } else if fetch_if_there::<JobSpec>(&self.state, &keys::spec(job)).await?.is_none() {
                return Err(Failure::new(Code::InvalidRequest, format!("there is no job {job}")));
            }
        }
        self.board.follow(job).ok_or_else(|| interrupted(job))
    }

    /// Waits until a job ends, or cannot go on until the environment is mended.
    ///
    /// # Errors
    /// Why it cannot go on; it is kept and tried again. And as [`Handle::follow`].
    pub async fn wait(&self, job: &JobId) -> Result<JobResult, Failure> {
        let mut views = self.follow(job).await?;
        let settled = views.wait_for(|view| matches!(view.phase, Phase::Ended(_) | Phase::Halted(_))).await;
        match settled.map(|view| view.phase.clone()) {
            Ok(Phase::Ended(result)) => Ok(result),
            Ok(Phase::Halted(failure)) => Err(failure),
            Ok(Phase::Waiting | Phase::Probing | Phase::Encoding | Phase::Packing) | Err(_) => Err(interrupted(job)),
        }
    }

    /// As [`submit`].
    ///
    /// # Errors
    /// As [`submit`].
    pub async fn submit(&self, spec: JobSpec) -> Result<JobId, Failure> {
        submit(&self.state, &self.broker, spec).await
    }

    /// As [`cancel`].
    ///
    /// # Errors
    /// As [`cancel`].
    pub async fn cancel(&self, job: &JobId) -> Result<(), Failure> {
        cancel(&self.state, &self.broker, job).await
    }

    /// As [`retry`].
    ///
    /// # Errors
    /// As [`retry`].
    pub async fn retry(&self, job: &JobId) -> Result<(), Failure> {
        retry(&self.state, &self.broker, job).await?;
        self.board.forget(job);
        Ok(())
    }

    /// As [`delete_output`].
    ///
    /// # Errors
    /// As [`delete_output`].
    pub async fn delete_output(&self, job: &JobId) -> Result<(), Failure> {
        delete_output(&self.state, job).await
    }

    /// Stops: hands out nothing more. What workers are doing goes on, and counts when a scheduler is started again.
    pub async fn shutdown(mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that it has stopped already.
            let _ = stop.send(());
        }
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the scheduler ended badly");
        }
    }
}

fn interrupted(job: &JobId) -> Failure {
    Failure::new(Code::Interrupted, format!("job {job} goes on when a scheduler is started again"))
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
        self.board.close();
    }
}

/// What submitting a job came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Accepted {
    /// It is new.
    New,
    /// The same was submitted before, and is on its way.
    Known,
    /// The same was submitted before, and has ended.
    Ended(JobResult),
    /// Something else was submitted before under this id: nothing was done.
    Other,
}

/// Takes a job in. When this returns, the job is stored, and any scheduler on this state will take it to its end.
/// The same id with the same spec is the same job.
///
/// # Errors
/// [`Code::InvalidRequest`] for a spec that cannot be done or an id that stands for another job; storage's errors.
pub async fn submit(state: &Storage, broker: &Broker, spec: JobSpec) -> Result<JobId, Failure> {
    match accept(state, broker, spec).await? {
        (id, Accepted::New | Accepted::Known | Accepted::Ended(_)) => Ok(id),
        (id, Accepted::Other) => {
            Err(Failure::new(Code::InvalidRequest, format!("id: job {id} was submitted before with another message")))
        }
    }
}

/// As [`submit`]; tells also whether the job is new, and whether the id stands for another.
///
/// # Errors
/// [`Code::InvalidRequest`] for a spec that cannot be done; storage's errors.
pub async fn accept(state: &Storage, broker: &Broker, mut spec: JobSpec) -> Result<(JobId, Accepted), Failure> {
    spec.check()?;
    state.open_beside(&spec.output.url)?;
    let id = match spec.id.clone() {
        Some(id) => id,
        None => JobId::try_from(Token::random().to_string())?,
    };
    spec.id = Some(id.clone());
    let key = keys::spec(&id);
    let (stored, is_new): (JobSpec, bool) = match fetch_if_there(state, &key).await? {
        Some(stored) => (stored, false),
        None => {
            let content = serde_json::to_vec(&spec).map_err(|error| Failure::new(Code::Internal, format!("{key}: {error}")))?;
            match state.put_new(&key, content.into(), Kind::Json).await? {
                Creation::Created => (spec.clone(), true),
                Creation::Existed => (fetch(state, &key).await?, false),
            }
        }
    };
    if stored != spec {
        return Ok((id, Accepted::Other));
    }
    let life = if is_new { Life::FIRST } else { current_life(state, &id).await? };
    if !is_new && let Some(result) = fetch_if_there::<JobResult>(state, &keys::result(&id, life)).await? {
        return Ok((id, Accepted::Ended(result)));
    }
    if is_deleted(state, &id).await? {
        // That was noted of an earlier job of this name, while that was forgotten: this one has no output yet.
        state.delete(&[keys::deleted(&id)]).await?;
    }
    let active = keys::active(PARTITION, &id, life);
    // Not again where it is there: its age is the job's. A server that only says so must not lose the job.
    let created = state.put_new(&active, bytes::Bytes::new(), Kind::Json).await?;
    if created == Creation::Existed && !is_there(state, &active).await? {
        state.put(&active, bytes::Bytes::new(), Kind::Json).await?;
    }
    ring(broker, &id).await;
    Ok((id, if is_new { Accepted::New } else { Accepted::Known }))
}

/// Asks for a job to be stopped. It may still end as done when it is at its very end.
///
/// # Errors
/// [`Code::InvalidRequest`] when there is no such job; storage's errors.
pub async fn cancel(state: &Storage, broker: &Broker, job: &JobId) -> Result<(), Failure> {
    if fetch_if_there::<JobSpec>(state, &keys::spec(job)).await?.is_none() {
        return Err(Failure::new(Code::InvalidRequest, format!("there is no job {job}")));
    }
    let life = current_life(state, job).await?;
    if fetch_if_there::<JobResult>(state, &keys::result(job, life)).await?.is_none() {
        state.put(&keys::cancel(job, life), bytes::Bytes::new(), Kind::Json).await?;
        ring(broker, job).await;
    }
    Ok(())
}

/// Has the scheduler look at a whole job. Without it, it looks in its own time.
async fn ring(broker: &Broker, job: &JobId) {
    if let Err(error) = broker.publish(Queue::Events, &Event::Submitted { job: job.clone() }).await {
        tracing::warn!(%job, %error, "the scheduler cannot be told; it will find the job at its next look");
    }
}

#[cfg(test)]
pub(crate) mod tests;
