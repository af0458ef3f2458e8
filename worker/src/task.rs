//! One delivery, from its message to its settlement.
//!
//! The order is the point: objects, then the marker, then the event, then the acknowledgement. Whatever breaks in between,
//! the delivery comes again, and finds the marker or does the work anew under another token.

mod encode;
mod stills;
mod text;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use farm::broker::{Broker, BrokerError, Delivery, Queue};
use farm::edit::{self, OVERLAY_BYTES_MAX};
use farm::job::{JobId, JobSpec, SourceSpec, shown_url};
use farm::media::MediaInfo;
use farm::outbound::Reach;
use farm::plan::Plan;
use farm::rate::SECOND_NS;
use farm::storage::{Creation, Kind, Storage, StorageError, Stores};
use farm::task::{Cost, Event, FailedAttempt, Marker, Object, Outcome, Progress, TaskId, TaskMessage, Token, Word};
use farm::{Code, Failure, keys, metrics};
use pipelines::{Done, Order};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::attempt::{Attempt, Sink};
use crate::begun::{Begun, Company, Deaths, Gate};
use crate::devices::Keeper;
use crate::guard::{Guard, is_cancelled};
use crate::mp4::mp4;
use crate::pack::pack;
use crate::process::{Spawner, Urgency};
use crate::retry::{Patience, patiently, storage_may_pass};
use crate::running::{Place, Running};
use crate::source::Source;
use crate::speed::Speed;
use crate::upload::discard;
use crate::work;
use crate::worker::Settings;

/// Shortest time between two words on how far a task is that has come further.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);

/// Time between two words on a task whether or not it has come further: a scheduler that begins to act learns from them what
/// is running.
const BEAT: Duration = Duration::from_secs(1);

/// How often is looked whether a delivery is still ours.
const LEASE_LOOK: Duration = Duration::from_secs(1);
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
    /// What the slots are at.
    pub(crate) running: Running,
    /// Whom they let in.
    pub(crate) gate: Gate,
    /// The devices that they use.
    pub(crate) keeper: Arc<Keeper>,
    /// How fast they go through media.
    pub(crate) speed: Mutex<Speed>,
    /// Given when no more is to be begun.
    pub(crate) stop: CancellationToken,
    /// Given when running children are to be killed and their deliveries given back.
    pub(crate) kill: CancellationToken,
}

impl Farm {
    /// By which ways sources are reached.
    pub(crate) fn places(&self) -> (&Stores, &Reach) {
        (self.state.stores(), &self.settings.reach)
    }

    /// Seconds of media gone through per second by all slots, in the last minute.
    pub(crate) fn speed(&self) -> Option<f64> {
        self.speed.lock().unwrap_or_else(PoisonError::into_inner).now(tokio::time::Instant::now())
    }

    /// Takes note of media that a task went through, in ns.
    fn note_media(&self, task: &TaskId, media_ns: u64) {
        let is_encoded = matches!(task, TaskId::Video(_) | TaskId::First(_) | TaskId::Audio(_));
        if is_encoded && media_ns > 0 {
            self.speed.lock().unwrap_or_else(PoisonError::into_inner).note(media_ns, tokio::time::Instant::now());
        }
    }
}

/// What became of a delivery.
pub(crate) enum Handled {
    /// It is the broker's no more.
    Settled,
    /// It goes back to the broker: the worker stops, or the delivery was lost.
    GivenBack,
    /// It is to be postponed, by [`postpone`]: what is around the worker does not work. Until then it is ours, so that the slot is
    /// given no other.
    Unsettled(Delivery),
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
    /// Not here: the worker is to stop.
    GiveBack(Failure),
    /// Not now.
    Postpone(Failure),
}

impl From<StorageError> for Verdict {
    fn from(error: StorageError) -> Self {
        match error {
            // Somebody has to mend that, so the scheduler is to know.
            StorageError::Denied(_) | StorageError::Full(_) | StorageError::BadKey(_) => {
                Self::Failed(error.into(), Token::random())
            }
            StorageError::NotFound(_) | StorageError::Unavailable { .. } | StorageError::BadUrl(_) => {
                Self::Postpone(error.into())
            }
        }
    }
}

/// Does what a delivery asks for, and settles it.
pub(crate) async fn handle(farm: &Farm, delivery: Delivery) -> Handled {
    let message: TaskMessage = match delivery.read() {
        Ok(message) => message,
        Err(failure) => return reject(delivery, &failure.message).await,
    };
    let TaskMessage { job, life, task, attempt, .. } = &message;
    let place = match turn(farm, &delivery, &message).await {
        Turn::Ours(place) => place,
        Turn::Covered => {
            count(task, "covered");
            return finish(delivery).await;
        }
        Turn::Over => return Handled::GivenBack,
    };
    tracing::info!(%job, %task, attempt, "task taken");
    let began = Instant::now();
    let verdict = match execute(farm, &message, &delivery).await {
        Ok(verdict) | Err(verdict) => verdict,
    };
    measure(task, &verdict, began.elapsed());
    let event = match verdict {
        Verdict::Done => {
            tracing::info!(%job, %task, attempt, "task done");
            Some(Event::TaskDone { job: job.clone(), task: task.clone() })
        }
        Verdict::Failed(failure, token) => {
            tracing::warn!(%job, %task, attempt, code = %failure.code, %failure, "attempt failed");
            let key = keys::fail(job, *life, task, *attempt, &token);
            let wall_ms = Some(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
            let record = FailedAttempt { failure: failure.clone(), wall_ms, worker: Some(farm.keeper.name().clone()) };
            // Storage may be what failed: the event tells it all the same.
            if let Err(error) = store(&farm.state, &key, &record, false).await {
                tracing::warn!(%job, %task, %error, "the failure cannot be recorded");
            }
            Some(Event::TaskFailed { job: job.clone(), life: *life, task: task.clone(), attempt: *attempt, failure })
        }
        Verdict::Moot => {
            tracing::info!(%job, %task, attempt, "the job was cancelled");
            None
        }
        Verdict::Stale => {
            tracing::info!(%job, %task, attempt, "a message of an earlier term");
            Some(Event::Stale { job: job.clone(), task: task.clone() })
        }
        Verdict::Senseless(reason) => return reject(delivery, &reason).await,
        Verdict::GiveBack(failure) => {
            tracing::warn!(code = %failure.code, %failure, "a delivery is given back");
            tell_given_back(farm, &message).await;
            return Handled::GivenBack;
        }
        Verdict::Postpone(failure) => {
            tell_given_back(farm, &message).await;
            return unsettled(delivery, &failure);
        }
    };
    // Without the event confirmed there is no acknowledgement: the delivery comes again and finds the marker, or the attempt is
    // made again.
    if let Some(event) = event
        && let Err(error) = farm.broker.publish(Queue::Events, &event).await
    {
        return unsettled(delivery, &error.into());
    }
    place.note_told();
    finish(delivery).await
}

/// Whether it is a delivery's turn.
enum Turn {
    /// It is, and no other slot takes the same task meanwhile.
    Ours(Place),
    /// Another slot has done what it asks for, and told of it.
    Covered,
    /// The worker stops, or the delivery was lost.
    Over,
}

/// Waits until no other slot is at the same task: after a lost connection a delivery may come again that is still worked on.
async fn turn(farm: &Farm, delivery: &Delivery, message: &TaskMessage) -> Turn {
    loop {
        let other = match farm.running.take(message) {
            Ok(place) => return Turn::Ours(place),
            Err(other) => other,
        };
        tracing::info!(job = %message.job, task = %message.task, "a delivery waits for what another slot makes of it");
        tokio::select! {
            biased;
            is_covered = other.covers(message.attempt) => if is_covered {
                return Turn::Covered;
            },
            () = excused(farm, delivery) => return Turn::Over,
        }
    }
}

/// Waits until whatever becomes of a delivery is no fault of its task: the worker is to stop, or the delivery was lost.
async fn excused(farm: &Farm, delivery: &Delivery) {
    let lost = async {
        while delivery.is_ours() {
            tokio::time::sleep(LEASE_LOOK).await;
        }
        tracing::warn!("a delivery was lost with its connection: the work on it goes on");
    };
    tokio::select! {
        () = farm.stop.cancelled() => {}
        () = lost => {}
    }
}

/// Tells the scheduler that a task was not done for no fault of its own. Lost without harm, unless nobody takes the task for so
/// long that it counts as a failed attempt.
async fn tell_given_back(farm: &Farm, message: &TaskMessage) {
    let event = Event::GivenBack { job: message.job.clone(), task: message.task.clone() };
    if let Ok(Err(error)) = tokio::time::timeout(GIVE_BACK_WORD, farm.broker.publish(Queue::Events, &event)).await {
        tracing::debug!(%error, "nobody is told that a delivery is given back");
    }
}

/// Acknowledges what is done and told.
async fn finish(delivery: Delivery) -> Handled {
    if let Err(error) = delivery.ack().await {
        note_lost(&error);
        tracing::warn!(%error, "a finished delivery could not be acknowledged and will come again");
    }
    Handled::Settled
}

/// Postpones a delivery that cannot be done for now, by a pause that grows every time. A message given back instead would be the
/// next to come, and after a few times dead.
pub(crate) async fn postpone(delivery: Delivery) {
    let pause = delivery.pause();
    if let Err(error) = delivery.postpone(pause).await {
        note_lost(&error);
        tracing::warn!(%error, "a delivery could not be postponed and will come again");
    }
}

fn unsettled(delivery: Delivery, failure: &Failure) -> Handled {
    tracing::warn!(code = %failure.code, %failure, postponed = delivery.postponed(), "a delivery is postponed");
    Handled::Unsettled(delivery)
}

async fn reject(delivery: Delivery, reason: &str) -> Handled {
    tracing::warn!(reason, "a delivery is rejected");
    match delivery.reject(reason).await {
        Ok(()) => Handled::Settled,
        Err(error) => {
            note_lost(&error);
            tracing::warn!(%error, "a delivery could not be rejected and will come again");
            Handled::GivenBack
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
    let outcome = match verdict {
        Verdict::Done => "done",
        Verdict::Failed(..) => "failed",
        Verdict::Moot => "moot",
        Verdict::Stale => "stale",
        Verdict::Senseless(_) => "rejected",
        Verdict::GiveBack(_) => "given_back",
        Verdict::Postpone(_) => "postponed",
    };
    count(task, outcome);
    if let Verdict::Done = verdict {
        metrics::worker().task_duration.with_label_values(&[metrics::kind(task)]).observe(took.as_secs_f64());
    }
}

fn count(task: &TaskId, outcome: &str) {
    metrics::worker().tasks.with_label_values(&[metrics::kind(task), outcome]).inc();
}

/// Does the task unless it is done or moot already, or workers die of it.
async fn execute(farm: &Farm, message: &TaskMessage, delivery: &Delivery) -> Result<Verdict, Verdict> {
    let TaskMessage { job, life, task, .. } = message;
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
    let token = Token::random();
    let deaths = if delivery.came_before() { Deaths::of(&farm.state, message).await? } else { Deaths::default() };
    let company = match deaths.company() {
        Ok(company) => company,
        Err(failure) => {
            deaths.forget(&farm.state).await;
            return Ok(Verdict::Failed(failure, token));
        }
    };
    if company == Company::None {
        tracing::warn!(%job, %task, "workers died at it: it is done with nothing beside it");
    }
    let _entered = tokio::select! {
        entered = farm.gate.enter(company) => entered.map_err(Verdict::Postpone)?,
        () = excused(farm, delivery) => {
            return Err(Verdict::GiveBack(Failure::new(Code::Interrupted, "it was not begun")));
        }
    };
    let begun = Begun::note(&farm.state, message, &token, (company, deaths)).await?;
    begun.hold(excused(farm, delivery), Box::pin(make(farm, message, token))).await
}

/// Does the task and stores its marker.
async fn make(farm: &Farm, message: &TaskMessage, token: Token) -> Result<Verdict, Verdict> {
    let TaskMessage { job, life, task, .. } = message;
    let spec: JobSpec = load(&farm.state, &keys::spec(job)).await?;
    let output = farm.state.open_beside(&spec.output.url).map_err(|error| match error {
        StorageError::BadUrl(_) => Verdict::Senseless(error.to_string()),
        error => error.into(),
    })?;
    let guard = Guard::new(farm.kill.clone(), farm.settings.deadline).of_job(farm.state.clone(), job.clone(), *life);
    let media_ns = Arc::default();
    let execution = Execution { farm, message, spec: &spec, output: &output, token: token.clone(), guard: &guard, media_ns };
    let _beat = execution.beat();
    let (began, mut device) = (Instant::now(), None);
    let made = match task {
        TaskId::Probe => execution.probe(&spec.source).await,
        TaskId::ProbeOther(number) => {
            let other = edit::others(&spec.edit).find(|(other, _, _)| other == number);
            let (_, step, source) = other.ok_or_else(|| senseless(job, task))?;
            let probed = if step.names_media() { execution.probe(source).await } else { execution.look_at(source).await };
            probed.map_err(|failure| failure.about(&shown_url(&source.url)))
        }
        TaskId::Video(_) | TaskId::First(_) | TaskId::Audio(_) => {
            let plan = execution.plan().await?;
            let encode = work::encode(&plan, task).ok_or_else(|| senseless(job, task))?;
            execution.encode(&plan, encode).await.map(|(made, made_on)| {
                device = made_on;
                made
            })
        }
        TaskId::Stills => {
            let plan = execution.plan().await?;
            let stills = plan.stills.as_ref().ok_or_else(|| senseless(job, task))?;
            execution.stills(plan.source.as_ref(), stills).await
        }
        TaskId::Text => {
            let plan = execution.plan().await?;
            let text = plan.text.as_ref().ok_or_else(|| senseless(job, task))?;
            execution.text(plan.source.as_ref(), text).await
        }
        TaskId::Pack(rendition) => {
            let plan = execution.plan().await?;
            work::parts_of(&plan, rendition).ok_or_else(|| senseless(job, task))?;
            let packing = pack(&farm.state, &output, (job, &plan), rendition, &token);
            execution.joined(keys::whole(rendition, &token), packing).await
        }
        TaskId::Mp4(rendition) => {
            let plan = execution.plan().await?;
            work::tracks_of(&plan, rendition).ok_or_else(|| senseless(job, task))?;
            let making = mp4(&farm.state, &output, (job, &plan), rendition, &token);
            execution.joined(keys::download(rendition, &token), making).await
        }
    };
    match made {
        Ok((outcome, cost)) => {
            let (attempt, worker) = (Some(message.attempt), Some(farm.keeper.name().clone()));
            let marker = Marker { task: task.clone(), token, outcome, cost, device, attempt, worker };
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
                let keys: Vec<String> = marker.outcome.objects().into_iter().map(|object| object.key.clone()).collect();
                discard(output, &keys).await;
            }
            Ok(())
        }
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
                let (job, task, token) = (job.clone(), task.clone(), token.clone());
                broker.tell(Word::Progress(Progress { job, task, token, media_ns }));
                tokio::time::sleep(BEAT).await;
            }
        }))
    }

    /// What was decided about the job.
    async fn plan(&self) -> Result<Plan, Verdict> {
        load(&self.farm.state, &keys::plan(&self.message.job, self.message.epoch)).await
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

    async fn probe(&self, source: &SourceSpec) -> Result<(Outcome, Cost), Failure> {
        let attempt = async {
            // Whoever asked for it waits to hear that there is nothing at that place.
            let source = Source::open(source, self.farm.places(), Patience::Short).await?;
            Ok((self.attempt((&Order::Probe, Urgency::Usual), &source, Sink::None).await?, source.version()))
        };
        match self.guard.hold(attempt).await? {
            ((Done::Probed(mut info), cost), version) => {
                info.version = Some(version);
                Ok((Outcome::Probed { info }, cost))
            }
            _ => Err(Failure::new(Code::Internal, "something else came of a probe")),
        }
    }

    /// Finds out which version there is of a picture that is to be laid over.
    async fn look_at(&self, source: &SourceSpec) -> Result<(Outcome, Cost), Failure> {
        let source = self.guard.hold(Source::open(source, self.farm.places(), Patience::Short)).await?;
        if source.bytes() > OVERLAY_BYTES_MAX {
            let message = format!("a picture file of {} bytes: up to {OVERLAY_BYTES_MAX} are read", source.bytes());
            return Err(Failure::new(Code::LimitExceeded, message));
        }
        Ok((Outcome::Probed { info: Box::new(MediaInfo::unknown(source.version())) }, Cost::default()))
    }

    /// Puts an object together of what others made; without a child.
    async fn joined(&self, key: String, work: impl Future<Output = Result<Object, Failure>>) -> Result<(Outcome, Cost), Failure> {
        let began = Instant::now();
        let made = self.guard.hold(work).await;
        if made.is_err() {
            discard(self.output, &[key]).await;
        }
        let wall_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        made.map(|object| (Outcome::Packed { object }, Cost { wall_ms, ..Cost::default() }))
    }

    async fn attempt(
        &self,
        (order, urgency): (&Order, Urgency),
        source: &Source,
        sink: Sink<'_>,
    ) -> Result<(Done, Cost), Failure> {
        let Farm { settings, spawner, .. } = self.farm;
        let mut told: Option<Instant> = None;
        let mut progress = |media_ns| {
            let before = self.media_ns.swap(media_ns, Ordering::Relaxed);
            self.farm.note_media(&self.message.task, media_ns.saturating_sub(before));
            metrics::worker().last_progress.set(metrics::now_seconds());
            if told.is_none_or(|last| last.elapsed() >= PROGRESS_PAUSE) {
                told = Some(Instant::now());
                let TaskMessage { job, task, .. } = self.message.clone();
                self.farm.broker.tell(Word::Progress(Progress { job, task, token: self.token.clone(), media_ns }));
            }
        };
        let stall = settings.stall;
        let attempt = Attempt { spawner, command: &settings.child, urgency, stall, order, source, sink, progress: &mut progress };
        attempt.run().await
    }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
