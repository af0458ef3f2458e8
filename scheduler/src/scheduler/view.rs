//! How far jobs are, for those who watch or wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use farm::Failure;
use farm::encoder::{Offer, Offered};
use farm::job::JobId;
use farm::plan::Plan;
use farm::presence::{Duty, Presence};
use farm::rate::SECOND_NS;
use farm::task::{TaskId, Token};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::offers::Offers;
use crate::step::{JobResult, JobState};
use crate::workers::Workers;

/// Ended jobs that are remembered.
const ENDED_MAX: usize = 1000;

/// What tasks count as that go through no media, in ns of it.
pub(super) const SMALL_TASK_NS: u64 = SECOND_NS;

/// How far a job is.
#[derive(Clone, Debug, PartialEq)]
pub struct JobView {
    /// Who it is for; empty while it is not known.
    pub tenant: String,
    /// What is going on.
    pub phase: Phase,
    /// Tasks that are done.
    pub tasks_done: usize,
    /// Tasks that are known; more than the probe once there is a plan.
    pub tasks_total: usize,
    /// Media gone through, in ns; running tasks count as far as they are.
    pub media_done_ns: u64,
    /// Media to go through, in ns: every chunk of the picture and every sound, or the picture for still pictures alone. 0 until
    /// there is a plan.
    pub media_total_ns: u64,
    /// How long the result will last, in ns. 0 until there is a plan.
    pub duration_ns: u64,
    /// Whether what comes first of the result was published.
    pub opened: bool,
}

/// What is going on with a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// No worker has begun with it yet.
    Waiting,
    /// The source is being looked at.
    Probing,
    /// Picture and sound are being made.
    Encoding,
    /// Parts are being joined.
    Packing,
    /// It is kept until the environment is mended, and tried again now and then.
    Halted(Failure),
    /// It ended.
    Ended(JobResult),
}

impl Default for JobView {
    fn default() -> Self {
        Self {
            tenant: String::new(),
            phase: Phase::Waiting,
            tasks_done: 0,
            tasks_total: 1,
            media_done_ns: 0,
            media_total_ns: 0,
            duration_ns: 0,
            opened: false,
        }
    }
}

/// How much of a job is done, by what storage says.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) tenant: String,
    pub(super) priority: i32,
    tasks_done: usize,
    tasks_total: usize,
    media_done_ns: u64,
    media_total_ns: u64,
    duration_ns: u64,
    opened: bool,
    /// Media in ns of each encode task without a marker.
    open: BTreeMap<TaskId, u64>,
}

impl Tally {
    pub(super) fn of(job: &JobState) -> Self {
        let media = job.plan.as_ref().map(media_by_task).unwrap_or_default();
        let joins = job.plan.iter().flat_map(TaskId::joins_of).filter(|task| !job.markers.contains_key(task)).count();
        let media_total_ns = media.values().sum();
        let open: BTreeMap<TaskId, u64> = media.into_iter().filter(|(task, _)| !job.markers.contains_key(task)).collect();
        let left = joins + usize::from(!job.markers.contains_key(&TaskId::Probe)) + open.len();
        Self {
            tenant: job.spec.tenant.clone(),
            priority: job.spec.priority,
            tasks_done: job.markers.len(),
            tasks_total: job.markers.len() + left,
            media_done_ns: media_total_ns - open.values().sum::<u64>(),
            media_total_ns,
            duration_ns: job.plan.as_ref().map_or(0, |plan| plan.duration_ns),
            opened: job.opened,
            open,
        }
    }

    /// Whether a task of it is done.
    pub(super) fn has_begun(&self) -> bool {
        self.tasks_done > 0
    }

    /// Media still to be gone through by encode tasks, in ns.
    pub(super) fn left_ns(&self) -> u64 {
        self.open.values().sum()
    }

    /// How much work a task is, in ns of media.
    pub(super) fn cost_ns(&self, task: &TaskId) -> u64 {
        self.open.get(task).copied().unwrap_or(SMALL_TASK_NS)
    }

    /// The view of it, with running tasks as far as they are.
    pub(super) fn view(&self, phase: Phase, running: &BTreeMap<TaskId, u64>) -> JobView {
        let under_way = self.open.iter().filter_map(|(task, whole)| running.get(task).map(|so_far| (*so_far).min(*whole)));
        JobView {
            tenant: self.tenant.clone(),
            phase,
            tasks_done: self.tasks_done,
            tasks_total: self.tasks_total.max(1),
            media_done_ns: self.media_done_ns + under_way.sum::<u64>(),
            media_total_ns: self.media_total_ns,
            duration_ns: self.duration_ns,
            opened: self.opened,
        }
    }
}

/// Making still pictures of a video beside others is about as much work as encoding this part of it.
const STILLS_DIVISOR: u64 = 20;

/// The same of reading its text.
const TEXT_DIVISOR: u64 = 100;

/// How much media each encode task goes through, in ns.
fn media_by_task(plan: &Plan) -> BTreeMap<TaskId, u64> {
    let picture = plan
        .passes()
        .flat_map(|pass| pass.pieces().map(move |(task, chunk)| (task, pass.video.rate.start_ns(chunk.end - chunk.start))));
    let samples_ns = |samples: u64, rate: u32| u128::from(samples) * u128::from(SECOND_NS) / u128::from(rate).max(1);
    let sound = (0..).map(TaskId::Audio).zip(&plan.audio);
    let sound = sound.map(|(task, audio)| (task, u64::try_from(samples_ns(audio.samples, audio.rate)).unwrap_or(u64::MAX)));
    let stills_ns = if plan.has_media() { plan.duration_ns / STILLS_DIVISOR } else { plan.duration_ns };
    let stills = plan.stills.as_ref().map(|_| (TaskId::Stills, stills_ns));
    let text = plan.text.as_ref().map(|_| (TaskId::Text, plan.duration_ns / TEXT_DIVISOR));
    picture.chain(sound).chain(stills).chain(text).collect()
}

/// Where views are put up and looked at, and what workers say of themselves.
pub(super) struct Board {
    views: Mutex<Views>,
    workers: Mutex<Workers>,
    /// What workers offer, to be shown.
    offers: Mutex<Offers>,
    /// When the time of workers begins.
    since: Instant,
    signals: Arc<Signals>,
}

impl Default for Board {
    fn default() -> Self {
        let (views, workers, signals, since) = (Mutex::default(), Mutex::default(), Arc::default(), Instant::now());
        Self { views, workers, offers: Mutex::new(Offers::new(since, true)), since, signals }
    }
}

#[derive(Default)]
struct Signals {
    is_acting: AtomicBool,
    ended: Notify,
}

/// What other parts of a scheduler go by.
#[derive(Clone, Default)]
pub struct Watch {
    signals: Arc<Signals>,
}

impl Watch {
    /// Whether this scheduler is the one that acts.
    pub fn is_acting(&self) -> bool {
        self.signals.is_acting.load(Ordering::Relaxed)
    }

    /// Has what waits in [`Watch::ended`] look again.
    pub fn wake(&self) {
        self.signals.ended.notify_one();
    }

    /// Waits until a job ends, or this scheduler begins to act; returns at once when that was since the last call.
    pub async fn ended(&self) {
        self.signals.ended.notified().await;
    }
}

#[derive(Default)]
struct Views {
    by_job: BTreeMap<JobId, watch::Sender<JobView>>,
    /// Those that have ended, each with how many had by then; the oldest first.
    ended: VecDeque<(u64, JobId)>,
    /// How many have ended so far.
    ends: u64,
    closed: bool,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Views> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts up a view. The oldest ended job is forgotten when there are too many.
    pub(super) fn put(&self, job: &JobId, view: JobView) {
        let mut views = self.lock();
        let has_ended = matches!(view.phase, Phase::Ended(_));
        let place = views.by_job.entry(job.clone()).or_insert_with(|| watch::Sender::new(JobView::default()));
        if has_ended && !matches!(place.send_replace(view.clone()).phase, Phase::Ended(_)) {
            views.ends += 1;
            let ends = views.ends;
            views.ended.push_back((ends, job.clone()));
        } else {
            let mut goes_on = false;
            place.send_if_modified(|shown| {
                let changed = *shown != view;
                goes_on = !has_ended && matches!(shown.phase, Phase::Ended(_));
                *shown = view;
                changed
            });
            if goes_on {
                views.ended.retain(|(_, ended)| ended != job);
            }
        }
        while views.ended.len() > ENDED_MAX {
            if let Some((_, oldest)) = views.ended.pop_front() {
                views.by_job.remove(&oldest);
            }
        }
    }

    /// What others may wait for.
    pub(super) fn watch(&self) -> Watch {
        Watch { signals: Arc::clone(&self.signals) }
    }

    /// Says whether this scheduler acts.
    pub(super) fn set_acting(&self, is_acting: bool) {
        self.signals.is_acting.store(is_acting, Ordering::Relaxed);
        self.watch().wake();
    }

    /// Says that a job has ended.
    pub(super) fn note_end(&self) {
        self.watch().wake();
    }

    /// Jobs of a tenant that have not ended.
    pub(super) fn active_of(&self, tenant: &str) -> usize {
        let is_active = |view: &JobView| !matches!(view.phase, Phase::Ended(_)) && view.tenant == tenant;
        self.lock().by_job.values().filter(|place| is_active(&place.borrow())).count()
    }

    /// Jobs of a tenant, or of all, that have not ended and of which it is known who they are for: at most so many.
    pub(super) fn unended(&self, tenant: Option<&str>, most: usize) -> Vec<JobId> {
        let is_wanted = |view: &JobView| {
            let is_of = tenant.map_or(!view.tenant.is_empty(), |tenant| view.tenant == tenant);
            is_of && !matches!(view.phase, Phase::Ended(_))
        };
        let views = self.lock();
        let wanted = views.by_job.iter().filter(|(_, place)| is_wanted(&place.borrow()));
        wanted.map(|(job, _)| job.clone()).take(most).collect()
    }

    /// Jobs of a tenant, or of all, that have ended since so many had, and how many have by now. Of very many some are missing.
    pub(super) fn ended_since(&self, ends: u64, tenant: Option<&str>) -> (Vec<JobId>, u64) {
        let views = self.lock();
        let is_of = |job: &JobId| match (tenant, views.by_job.get(job)) {
            (Some(tenant), Some(place)) => place.borrow().tenant == tenant,
            (Some(_), None) => false,
            (None, _) => true,
        };
        let since = views.ended.iter().filter(|(number, job)| *number > ends && is_of(job));
        (since.map(|(_, job)| job.clone()).collect(), views.ends)
    }

    /// Takes note of what a worker says of itself.
    pub(super) fn note_worker(&self, presence: Presence) {
        let now_ms = self.now_ms();
        self.heard().note(presence, now_ms);
    }

    /// The workers that are there.
    pub(super) fn workers(&self) -> Vec<Presence> {
        self.heard().now(self.now_ms()).cloned().collect()
    }

    /// Takes note of what a worker offers.
    pub(super) fn note_offer(&self, offer: Offer) {
        let now = Instant::now();
        let mut offers = self.offered();
        offers.expire(now);
        offers.note(offer, now);
    }

    /// What each of the workers offers beside encoding on the processor.
    pub(super) fn offers(&self) -> BTreeMap<Token, Vec<Offered>> {
        self.offered().now(Instant::now())
    }

    fn offered(&self) -> MutexGuard<'_, Offers> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of them take tasks, or do not. Those that are gone are forgotten.
    pub(super) fn count_workers(&self, duty: Duty) -> usize {
        let (now_ms, mut workers) = (self.now_ms(), self.heard());
        workers.expire(now_ms);
        workers.count(duty, now_ms)
    }

    fn heard(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The view of a job, if it is known.
    pub(super) fn get(&self, job: &JobId) -> Option<JobView> {
        self.lock().by_job.get(job).map(|sender| sender.borrow().clone())
    }

    /// Follows a job, known or not. `None` when the scheduler has stopped.
    pub(super) fn follow(&self, job: &JobId) -> Option<watch::Receiver<JobView>> {
        let mut views = self.lock();
        if views.closed {
            return None;
        }
        let place = views.by_job.entry(job.clone()).or_insert_with(|| watch::Sender::new(JobView::default()));
        Some(place.subscribe())
    }

    /// Forgets that a job has ended: it goes on.
    pub(super) fn forget(&self, job: &JobId) {
        let mut views = self.lock();
        views.ended.retain(|(_, ended)| ended != job);
        if let Some(place) = views.by_job.get(job) {
            place.send_replace(JobView::default());
        }
    }

    /// Takes a job off the board that does not exist; those who follow it are told.
    pub(super) fn remove(&self, job: &JobId) {
        self.lock().by_job.remove(job);
    }

    /// Tells all who follow that nothing will come any more.
    pub(super) fn close(&self) {
        let mut views = self.lock();
        views.closed = true;
        views.by_job.clear();
    }
}
