//! One delivery, from its message to its settlement.
//!
//! The order is the point: objects, then the marker, then the event, then the acknowledgement. Whatever breaks in between,
//! the delivery comes again, and finds the marker or does the work anew under another token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use farm::broker::{Broker, BrokerError, Delivery, Queue};
use farm::job::{JobId, JobSpec};
use farm::plan::Plan;
use farm::rate::SECOND_NS;
use farm::storage::{Creation, Kind, Storage, StorageError};
use farm::task::{Cost, Event, Marker, Outcome, Progress, TaskId, TaskMessage, Token};
use farm::{Code, Failure, keys, metrics};
use pipelines::{Done, Order};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::attempt::Attempt;
use crate::guard::{Guard, is_cancelled};
use crate::pack::pack;
use crate::process::Spawner;
use crate::retry::{patiently, storage_may_pass};
use crate::source::Source;
use crate::upload::{Uploads, discard};
use crate::work;
use crate::worker::Settings;

/// Shortest time between two words on how far a task is that has come further.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);

/// Time between two words on a task whether or not it has come further: a scheduler that begins to act learns from them what
/// is running.
const BEAT: Duration = Duration::from_secs(1);

/// Longest wait for the broker to take the word that a task is given back.
const GIVE_BACK_WORD: Duration = Duration::from_secs(3);

/// Part of the farm's jobs that is worked on; there is one so far.
const PARTITION: u32 = 0;

/// What a worker's slots share.
pub(crate) struct Farm {
    pub(crate) settings: Settings,
    pub(crate) state: Storage,
    pub(crate) broker: Broker,
    pub(crate) spawner: Spawner,
    /// Given when running children are to be killed and their deliveries given back.
    pub(crate) kill: CancellationToken,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is the broker's no more.
    Settled,
    /// It goes back to the broker: the worker stops, or its surroundings do not work.
    GivenBack,
}

/// What is to become of a delivery.
enum Verdict {
    /// The marker is stored, by us or before.
    Done,
    /// The attempt failed for a reason that is to be known.
    Failed(Failure, Token),
    /// Nothing is to be done, nor told.
    Moot,
    /// It is of an earlier term: whoever acts now has sent it again, or is to know.
    Stale,
    /// It names what is not there.
    Senseless(String),
    /// Not now, or not here.
    GiveBack(Failure),
}

impl From<StorageError> for Verdict {
    fn from(error: StorageError) -> Self {
        match error {
            // Somebody has to mend that, so the scheduler is to know.
            StorageError::Denied(_) | StorageError::Full(_) | StorageError::BadKey(_) => {
                Self::Failed(error.into(), Token::random())
            }
            StorageError::NotFound(_) | StorageError::Unavailable { .. } | StorageError::BadUrl(_) => {
                Self::GiveBack(error.into())
            }
        }
    }
}

/// Does what a delivery asks for, and settles it.
pub(crate) async fn handle(farm: &Farm, delivery: Delivery) -> Settled {
    let message: TaskMessage = match delivery.read() {
        Ok(message) => message,
        Err(failure) => return reject(delivery, &failure.message).await,
    };
    let TaskMessage { job, life, task, attempt, .. } = &message;
    tracing::info!(%job, %task, attempt, "task taken");
    let began = Instant::now();
    let verdict = match execute(farm, &message).await {
        Ok(verdict) | Err(verdict) => verdict,
    };
    measure(task, &verdict, began.elapsed());
    match verdict {
        Verdict::Done => {
            tracing::info!(%job, %task, attempt, "task done");
            acknowledge(farm, delivery, Some(Event::TaskDone { job: job.clone(), task: task.clone() })).await
        }
        Verdict::Failed(failure, token) => {
            tracing::warn!(%job, %task, attempt, code = %failure.code, %failure, "attempt failed");
            let key = keys::fail(job, *life, task, *attempt, &token);
            // Storage may be what failed: the event tells it all the same.
            if let Err(error) = store(&farm.state, &key, &failure, false).await {
                tracing::warn!(%job, %task, %error, "the failure cannot be recorded");
            }
            let event = Event::TaskFailed { job: job.clone(), life: *life, task: task.clone(), attempt: *attempt, failure };
            acknowledge(farm, delivery, Some(event)).await
        }
        Verdict::Moot => {
            tracing::info!(%job, %task, attempt, "the job was cancelled");
            acknowledge(farm, delivery, None).await
        }
        Verdict::Stale => {
            tracing::info!(%job, %task, attempt, "a message of an earlier term");
            acknowledge(farm, delivery, Some(Event::Stale { job: job.clone(), task: task.clone() })).await
        }
        Verdict::Senseless(reason) => reject(delivery, &reason).await,
        Verdict::GiveBack(failure) => {
            // Lost without harm, unless nobody takes the task for so long that it counts as a failed attempt.
            let event = Event::GivenBack { job: job.clone(), task: task.clone() };
            if let Ok(Err(error)) = tokio::time::timeout(GIVE_BACK_WORD, farm.broker.publish(Queue::Events, &event)).await {
                tracing::debug!(%error, "nobody is told that a delivery is given back");
            }
            give_back(delivery, &failure)
        }
    }
}

/// Publishes the event, then acknowledges. Without the event confirmed there is no acknowledgement: the delivery comes
/// again and finds the marker, or the attempt is made again.
async fn acknowledge(farm: &Farm, delivery: Delivery, event: Option<Event>) -> Settled {
    if let Some(event) = event
        && let Err(error) = farm.broker.publish(Queue::Events, &event).await
    {
        return give_back(delivery, &error.into());
    }
    if let Err(error) = delivery.ack().await {
        note_lost(&error);
        tracing::warn!(%error, "a finished delivery could not be acknowledged and will come again");
    }
    Settled::Settled
}

async fn reject(delivery: Delivery, reason: &str) -> Settled {
    tracing::warn!(reason, "a delivery is rejected");
    match delivery.reject(reason).await {
        Ok(()) => Settled::Settled,
        Err(error) => {
            note_lost(&error);
            tracing::warn!(%error, "a delivery could not be rejected and will come again");
            Settled::GivenBack
        }
    }
}

fn note_lost(error: &BrokerError) {
    if matches!(error, BrokerError::LostLease) {
        metrics::worker().lost_leases.inc();
    }
}

/// Counts what became of a delivery.
fn measure(task: &TaskId, verdict: &Verdict, took: Duration) {
    let (series, kind) = (metrics::worker(), metrics::kind(task));
    let outcome = match verdict {
        Verdict::Done => "done",
        Verdict::Failed(..) => "failed",
        Verdict::Moot => "moot",
        Verdict::Stale => "stale",
        Verdict::Senseless(_) => "rejected",
        Verdict::GiveBack(_) => "given_back",
    };
    series.tasks.with_label_values(&[kind, outcome]).inc();
    if let Verdict::Done = verdict {
        series.task_duration.with_label_values(&[kind]).observe(took.as_secs_f64());
    }
}

fn give_back(delivery: Delivery, failure: &Failure) -> Settled {
    tracing::warn!(code = %failure.code, %failure, "a delivery is given back");
    drop(delivery);
    Settled::GivenBack
}

/// Does the task unless it is done or moot already, and stores its marker.
async fn execute(farm: &Farm, message: &TaskMessage) -> Result<Verdict, Verdict> {
    let TaskMessage { job, life, task, epoch, .. } = message;
    let done = keys::done(job, task);
    match patiently(storage_may_pass, || farm.state.get(&done)).await {
        Ok(_) => return Ok(Verdict::Done),
        Err(StorageError::NotFound(_)) => {}
        Err(error) => return Err(error.into()),
    }
    if is_cancelled(&farm.state, job, *life).await? {
        return Ok(Verdict::Moot);
    }
    if is_stale(farm, message).await? {
        return Ok(Verdict::Stale);
    }
    let spec: JobSpec = load(&farm.state, &keys::spec(job)).await?;
    let output = farm.state.open_beside(&spec.output.url).map_err(|error| match error {
        StorageError::BadUrl(_) => Verdict::Senseless(error.to_string()),
        error => error.into(),
    })?;
    let token = Token::random();
    let guard = Guard::new(farm.kill.clone(), farm.settings.deadline).of_job(farm.state.clone(), job.clone(), *life);
    let media_ns = Arc::default();
    let execution = Execution { farm, message, spec: &spec, output: &output, token: token.clone(), guard: &guard, media_ns };
    let _beat = execution.beat();
    let began = Instant::now();
    let made = match task {
        TaskId::Probe => execution.probe().await,
        TaskId::Video(_) | TaskId::Audio(_) => {
            let plan: Plan = load(&farm.state, &keys::plan(job, *epoch)).await?;
            let encode = work::encode(&plan, task).ok_or_else(|| senseless(job, task))?;
            execution.encode(&plan, encode).await
        }
        TaskId::Pack(rendition) => {
            let plan: Plan = load(&farm.state, &keys::plan(job, *epoch)).await?;
            work::parts_of(&plan, rendition).ok_or_else(|| senseless(job, task))?;
            let packed = guard.hold(pack(&farm.state, &output, (job, &plan), rendition, &token)).await;
            if packed.is_err() {
                discard(&output, &[keys::whole(rendition, &token)]).await;
            }
            let wall_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            packed.map(|object| (Outcome::Packed { object }, Cost { wall_ms, ..Cost::default() }))
        }
    };
    match made {
        Ok((outcome, cost)) => {
            let marker = Marker { task: task.clone(), token, outcome, cost };
            commit(farm, job, &output, &marker).await?;
            execution.count(&marker.outcome, began.elapsed());
            Ok(Verdict::Done)
        }
        Err(failure) => Err(match failure.code {
            Code::Interrupted => Verdict::GiveBack(failure),
            Code::Cancelled => Verdict::Moot,
            _ => Verdict::Failed(failure, token),
        }),
    }
}

/// Whether a message is of an earlier term than the one that is stored.
async fn is_stale(farm: &Farm, message: &TaskMessage) -> Result<bool, StorageError> {
    let key = keys::term(PARTITION);
    match patiently(storage_may_pass, || farm.state.get(&key)).await {
        Ok(term) => {
            let term = std::str::from_utf8(&term).ok().and_then(|term| term.trim().parse::<u64>().ok());
            Ok(term.is_some_and(|term| message.term < term))
        }
        Err(StorageError::NotFound(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Stores the marker. From here on the objects may count, so an error leaves them: whether the marker was stored is then
/// not known.
async fn commit(farm: &Farm, job: &JobId, output: &Storage, marker: &Marker) -> Result<(), StorageError> {
    match store(&farm.state, &keys::done(job, &marker.task), marker, true).await? {
        Creation::Created => Ok(()),
        Creation::Existed => {
            // A retry of our own write may find what it wrote itself, so only a marker that names others condemns our objects.
            let there: Option<Marker> = load(&farm.state, &keys::done(job, &marker.task)).await.ok();
            if there.is_some_and(|there| there.token != marker.token) {
                discard(output, &objects_of(&marker.outcome)).await;
            }
            Ok(())
        }
    }
}

fn objects_of(outcome: &Outcome) -> Vec<String> {
    match outcome {
        Outcome::Probed { .. } => Vec::new(),
        Outcome::Encoded { renditions, .. } => {
            let objects = renditions.iter().flat_map(|made| std::iter::once(&made.init).chain(&made.objects));
            objects.map(|object| object.key.clone()).collect()
        }
        Outcome::Packed { object } => vec![object.key.clone()],
    }
}

fn senseless(job: &JobId, task: &TaskId) -> Verdict {
    Verdict::Senseless(format!("the plan of {job} has no task {task}"))
}

/// A JSON object of a job's state.
async fn load<T: DeserializeOwned>(state: &Storage, key: &str) -> Result<T, Verdict> {
    match patiently(storage_may_pass, || state.get(key)).await {
        Ok(json) => {
            serde_json::from_slice(&json).map_err(|error| Verdict::Senseless(format!("{key} cannot be understood: {error}")))
        }
        Err(StorageError::NotFound(_)) => Err(Verdict::Senseless(format!("{key} is not there"))),
        Err(error) => Err(error.into()),
    }
}

async fn store(state: &Storage, key: &str, value: &(impl Serialize + Sync), new: bool) -> Result<Creation, StorageError> {
    let json =
        serde_json::to_vec(value).map_err(|error| StorageError::Unavailable { key: key.to_owned(), why: error.to_string() })?;
    let json = bytes::Bytes::from(json);
    match new {
        true => patiently(storage_may_pass, || state.put_new(key, json.clone(), Kind::Json)).await,
        false => patiently(storage_may_pass, || state.put(key, json.clone(), Kind::Json)).await.map(|()| Creation::Created),
    }
}

/// One run of a task, under its own token.
struct Execution<'a> {
    farm: &'a Farm,
    message: &'a TaskMessage,
    spec: &'a JobSpec,
    output: &'a Storage,
    token: Token,
    guard: &'a Guard,
    /// How much of the source this execution has gone through, in ns of media.
    media_ns: Arc<AtomicU64>,
}

impl Execution<'_> {
    /// Says how far it is, at once and then once a second, until what is returned is dropped.
    fn beat(&self) -> AbortOnDropHandle<()> {
        let (broker, media_ns, token) = (self.farm.broker.clone(), Arc::clone(&self.media_ns), self.token.clone());
        let TaskMessage { job, task, .. } = self.message.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let media_ns = media_ns.load(Ordering::Relaxed);
                broker.tell(Progress { job: job.clone(), task: task.clone(), token: token.clone(), media_ns });
                tokio::time::sleep(BEAT).await;
            }
        }))
    }

    /// Counts what was made.
    fn count(&self, outcome: &Outcome, took: Duration) {
        let Outcome::Encoded { renditions, .. } = outcome else { return };
        let series = metrics::worker();
        let bytes = renditions.iter().map(|made| made.segments.iter().map(|segment| segment.bytes).sum::<u64>()).sum();
        series.output_bytes.inc_by(bytes);
        let seconds = self.media_ns.load(Ordering::Relaxed) as f64 / SECOND_NS as f64;
        series.media_encoded.inc_by(seconds as u64);
        series.encode_speed.observe(seconds / took.as_secs_f64().max(f64::MIN_POSITIVE));
    }

    async fn probe(&self) -> Result<(Outcome, Cost), Failure> {
        let attempt = async {
            let source = Source::open(&self.spec.source, self.farm.state.stores()).await?;
            Ok((self.attempt(&Order::Probe, &source, None).await?, source.version()))
        };
        match self.guard.hold(attempt).await? {
            ((Done::Probed(mut info), cost), version) => {
                info.version = Some(version);
                Ok((Outcome::Probed { info }, cost))
            }
            ((Done::Encoded(_), _), _) => Err(Failure::new(Code::Internal, "an encode came of a probe")),
        }
    }

    async fn encode(&self, plan: &Plan, encode: work::Encode) -> Result<(Outcome, Cost), Failure> {
        let mut uploads = Uploads::new(self.output.clone(), plan.layout, self.token.clone(), encode.renditions);
        let attempt = async {
            let source = Source::open(&self.spec.source, self.farm.state.stores()).await?;
            let source = source.check(plan.source.as_ref(), &self.spec.source)?;
            let (done, cost) = self.attempt(&encode.order, &source, Some(&mut uploads)).await?;
            let renditions = uploads.finish().await?;
            match done {
                Done::Encoded(account) => Ok((Outcome::Encoded { renditions, account }, cost)),
                Done::Probed(_) => Err(Failure::new(Code::Internal, "a probe came of an encode")),
            }
        };
        let made = self.guard.hold(attempt).await;
        if made.is_err() {
            uploads.abandon().await;
        }
        made
    }

    async fn attempt(&self, order: &Order, source: &Source, uploads: Option<&mut Uploads>) -> Result<(Done, Cost), Failure> {
        let Farm { settings, spawner, .. } = self.farm;
        let mut told: Option<Instant> = None;
        let mut progress = |media_ns| {
            self.media_ns.store(media_ns, Ordering::Relaxed);
            metrics::worker().last_progress.set(metrics::now_seconds());
            if told.is_none_or(|last| last.elapsed() >= PROGRESS_PAUSE) {
                told = Some(Instant::now());
                let TaskMessage { job, task, .. } = self.message.clone();
                self.farm.broker.tell(Progress { job, task, token: self.token.clone(), media_ns });
            }
        };
        let stall = settings.stall;
        let attempt = Attempt { spawner, command: &settings.child, stall, order, source, uploads, progress: &mut progress };
        attempt.run().await
    }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
