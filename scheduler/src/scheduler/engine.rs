//! The loop: hears events, drives jobs whose state may have changed, and keeps the task queue filled but short.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use farm::broker::{Broker, BrokerError, Consumer, Delivery, Queue};
use farm::job::JobId;
use farm::storage::{Entry as Listed, Storage, StorageError};
use farm::task::{Event, Progress, TaskId, TaskMessage};
use farm::{Code, Failure, keys};
use tokio::sync::{broadcast, oneshot};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::job::{Driven, Job, News, Stand, drive};
use super::view::{Board, Phase, Tally};
use super::{PARTITION, Settings};
use crate::dispatch::{Candidate, Shares, pick_next};
use crate::step::Due;

/// Jobs driven at a time.
const DRIVES_MAX: usize = 16;

/// The scheduler at work.
pub(super) struct Engine {
    settings: Settings,
    state: Storage,
    broker: Broker,
    board: Arc<Board>,
    jobs: BTreeMap<JobId, Entry>,
    /// Jobs with news.
    dirty: BTreeSet<JobId>,
    shares: Shares,
    /// Whether tenants may have come or gone since `shares` was told.
    tenants_changed: bool,
    work: JoinSet<Work>,
    /// Which job a running drive is for, in case it panics; a scan is for none.
    working: HashMap<task::Id, Option<JobId>>,
    scan: Scan,
    consumer: Option<Consumer>,
    /// Failures of the broker in a row, and when to hand out tasks again.
    broker_troubles: u32,
    issue_at: Option<Instant>,
}

/// A job as the loop knows it.
#[derive(Default)]
struct Entry {
    submitted_ms: u64,
    /// Not here while it is driven, or when it could not be loaded yet.
    job: Option<Job>,
    is_driven: bool,
    epoch: u64,
    tally: Tally,
    phase: Option<Phase>,
    /// Tasks without a marker; those on their way are among them.
    due: Vec<Due>,
    /// Tasks on the queue or with workers, as far as is known.
    outstanding: BTreeMap<TaskId, Outstanding>,
    /// How far running tasks are, in ns of media.
    running: BTreeMap<TaskId, u64>,
    news: News,
    /// Failures of storage in a row.
    troubles: u32,
    /// Not to be driven before.
    retry_at: Option<Instant>,
}

struct Outstanding {
    attempt: u32,
    lease_until: Instant,
}

/// Listing the active jobs.
#[derive(Default)]
struct Scan {
    is_wanted: bool,
    is_running: bool,
    troubles: u32,
    retry_at: Option<Instant>,
}

/// What came of something that ran beside the loop.
enum Work {
    Driven(JobId, Box<Driven>),
    Scanned(Result<Vec<Listed>, StorageError>),
}

/// A task chosen to be handed out.
struct Chosen {
    message: TaskMessage,
    wait_ms: u64,
    tenant: String,
    cost_ns: u64,
}

impl Engine {
    pub(super) fn new(settings: Settings, state: Storage, broker: Broker, board: Arc<Board>) -> Self {
        Self {
            settings,
            state,
            broker,
            board,
            jobs: BTreeMap::new(),
            dirty: BTreeSet::new(),
            shares: Shares::default(),
            tenants_changed: false,
            work: JoinSet::new(),
            working: HashMap::new(),
            scan: Scan::default(),
            consumer: None,
            broker_troubles: 0,
            issue_at: None,
        }
    }

    /// Runs until `stopped` is told or dropped.
    pub(super) async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut progress = self.broker.listen();
        // The first tick comes at once: starting is reconciling.
        let mut reconcile = interval(self.settings.reconcile);
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.pump();
            self.issue().await;
            let wake_at = self.wake_at();
            tokio::select! {
                _ = &mut stopped => break,
                _ = reconcile.tick() => self.reconcile().await,
                delivery = next_delivery(&mut self.consumer) => self.hear(delivery).await,
                said = next_progress(&mut progress) => self.note_progress(&said),
                Some(done) = self.work.join_next_with_id() => self.settle(done),
                () = sleep_until(wake_at) => self.expire(),
            }
        }
        self.work.shutdown().await;
        self.board.close();
    }

    /// Starts what is to be done beside the loop.
    fn pump(&mut self) {
        let now = Instant::now();
        if self.scan.is_wanted && !self.scan.is_running && self.scan.retry_at.is_none_or(|at| at <= now) {
            self.scan = Scan { is_running: true, troubles: self.scan.troubles, ..Scan::default() };
            let state = self.state.clone();
            let started = self.work.spawn(async move { Work::Scanned(state.list(&keys::active_prefix(PARTITION)).await) });
            self.working.insert(started.id(), None);
        }
        let mut ready = Vec::new();
        for id in &self.dirty {
            let is_ready = |entry: &Entry| !entry.is_driven && entry.retry_at.is_none_or(|at| at <= now);
            if self.work.len() + ready.len() < DRIVES_MAX && self.jobs.get(id).is_some_and(is_ready) {
                ready.push(id.clone());
            }
        }
        for id in ready {
            self.dirty.remove(&id);
            let Some(entry) = self.jobs.get_mut(&id) else { continue };
            entry.is_driven = true;
            entry.retry_at = None;
            let (job, news) = (entry.job.take(), std::mem::take(&mut entry.news));
            let (state, driven_id) = (self.state.clone(), id.clone());
            let started = self.work.spawn(async move {
                let driven = drive(state, driven_id.clone(), job, news).await;
                Work::Driven(driven_id, Box::new(driven))
            });
            self.working.insert(started.id(), Some(id));
        }
    }

    /// Hands out tasks until the window is full.
    async fn issue(&mut self) {
        if self.issue_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.issue_at = None;
        for Chosen { message, wait_ms, tenant, cost_ns } in self.choose() {
            let wait = Duration::from_millis(wait_ms);
            if let Err(error) = self.broker.publish_later(Queue::Tasks, &message, wait).await {
                self.broker_troubles = self.broker_troubles.saturating_add(1);
                self.issue_at = Some(Instant::now() + self.settings.backoff(self.broker_troubles));
                tracing::warn!(%error, "tasks cannot be handed out now");
                return;
            }
            self.broker_troubles = 0;
            tracing::debug!(job = %message.job, task = %message.task, attempt = message.attempt, "handed out");
            self.shares.charge(&tenant, cost_ns);
            if let Some(entry) = self.jobs.get_mut(&message.job) {
                let lease_until = Instant::now() + wait + self.settings.lease;
                entry.outstanding.insert(message.task, Outstanding { attempt: message.attempt, lease_until });
            }
        }
    }

    /// The tasks whose turn it is, as many as the window has room for.
    fn choose(&mut self) -> Vec<Chosen> {
        let outstanding: usize = self.jobs.values().map(|entry| entry.outstanding.len()).sum();
        let room = self.settings.window.saturating_sub(outstanding);
        if room == 0 {
            return Vec::new();
        }
        if std::mem::take(&mut self.tenants_changed) {
            let known = self.jobs.values().filter(|entry| entry.phase.is_some());
            self.shares.set_present(known.map(|entry| entry.tally.tenant.clone()).collect());
        }
        let mut candidates = Vec::new();
        let mut dues = Vec::new();
        for (id, entry) in &self.jobs {
            let free = entry.due.iter().filter(|due| !entry.outstanding.contains_key(&due.task));
            // The most pressing come first, and no job can have more than all of the window.
            for due in free.take(room) {
                candidates.push(Candidate {
                    tenant: &entry.tally.tenant,
                    priority: entry.tally.priority,
                    submitted: entry.submitted_ms,
                    job: id,
                    task: &due.task,
                    cost_ns: entry.tally.cost_ns(&due.task),
                });
                dues.push((due, entry.epoch));
            }
        }
        let mut shares = self.shares.clone();
        let mut chosen = Vec::new();
        while chosen.len() < room
            && let Some(place) = pick_next(&candidates, &shares)
        {
            let (candidate, (due, epoch)) = (candidates.swap_remove(place), dues.swap_remove(place));
            shares.charge(candidate.tenant, candidate.cost_ns);
            let message = TaskMessage { job: candidate.job.clone(), task: due.task.clone(), attempt: due.attempt, epoch };
            chosen.push(Chosen {
                message,
                wait_ms: due.wait_ms,
                tenant: candidate.tenant.to_owned(),
                cost_ns: candidate.cost_ns,
            });
        }
        chosen
    }

    /// Looks at everything again: what no message told is found now.
    async fn reconcile(&mut self) {
        self.scan.is_wanted = true;
        for (id, entry) in &mut self.jobs {
            entry.news.everything = true;
            self.dirty.insert(id.clone());
        }
        if self.consumer.is_none() {
            match self.broker.consume(Queue::Events).await {
                Ok(consumer) => self.consumer = Some(consumer),
                Err(error) => tracing::warn!(%error, "events cannot be heard now"),
            }
        }
    }

    async fn hear(&mut self, delivery: Result<Delivery, BrokerError>) {
        let delivery = match delivery {
            Ok(delivery) => delivery,
            Err(error) => {
                tracing::warn!(%error, "events cannot be heard until the next look");
                self.consumer = None;
                return;
            }
        };
        let settled = match delivery.read::<Event>() {
            Ok(event) => {
                self.note(event);
                // Before anything is done about it: the event only says where to look, and after a crash all is looked at.
                delivery.ack().await
            }
            Err(failure) => {
                tracing::error!(%failure, "an event cannot be understood");
                delivery.reject(&failure.message).await
            }
        };
        if let Err(error) = settled {
            tracing::debug!(%error, "an event will come again");
        }
    }

    fn note(&mut self, event: Event) {
        let (job, task) = match &event {
            Event::Submitted { job } => (job.clone(), None),
            Event::TaskDone { job, task } | Event::TaskFailed { job, task, .. } => (job.clone(), Some(task.clone())),
        };
        let Some(entry) = self.jobs.get_mut(&job) else {
            // An event of a job that has ended needs nothing; one that is new is in the list of active ones.
            self.scan.is_wanted |= task.is_none();
            return;
        };
        match task {
            None => entry.news.everything = true,
            Some(task) => entry.look_at(&task),
        }
        if let Event::TaskFailed { task, attempt, failure, .. } = event {
            tracing::warn!(%job, %task, attempt, %failure, "an attempt failed");
            entry.news.failed.push((task, attempt, failure));
        }
        self.dirty.insert(job);
    }

    fn note_progress(&mut self, progress: &Progress) {
        let Some(entry) = self.jobs.get_mut(&progress.job) else { return };
        // What was heard of a task that is not on its way comes from an execution that no longer matters.
        let Some(outstanding) = entry.outstanding.get_mut(&progress.task) else { return };
        outstanding.lease_until = Instant::now() + self.settings.lease;
        let so_far = entry.running.entry(progress.task.clone()).or_default();
        *so_far = progress.media_ns.max(*so_far);
        entry.show(&progress.job, &self.board);
    }

    /// Takes in what ran beside the loop.
    fn settle(&mut self, done: Result<(task::Id, Work), JoinError>) {
        match done {
            Ok((id, Work::Driven(job, driven))) => {
                self.working.remove(&id);
                self.settle_driven(job, *driven);
            }
            Ok((id, Work::Scanned(listed))) => {
                self.working.remove(&id);
                self.settle_scan(listed);
            }
            Err(error) => {
                tracing::error!(%error, "a part of the scheduler ended badly");
                let why = error.to_string();
                match self.working.remove(&error.id()) {
                    Some(Some(job)) => {
                        let stand = Stand::Trouble(Failure::new(Code::Internal, why));
                        self.settle_driven(job, Driven { job: None, stand, tally: Tally::default() });
                    }
                    Some(None) => self.settle_scan(Err(StorageError::Unavailable { key: String::new(), why })),
                    None => {}
                }
            }
        }
    }

    fn settle_scan(&mut self, listed: Result<Vec<Listed>, StorageError>) {
        self.scan.is_running = false;
        let prefix = keys::active_prefix(PARTITION);
        let listed = match listed {
            Ok(listed) => listed,
            Err(error) => {
                self.scan.troubles = self.scan.troubles.saturating_add(1);
                self.scan.is_wanted = true;
                self.scan.retry_at = Some(Instant::now() + self.settings.backoff(self.scan.troubles));
                tracing::warn!(%error, "active jobs cannot be listed now");
                return;
            }
        };
        self.scan.troubles = 0;
        for active in listed {
            let id = active.key.strip_prefix(&prefix).map(|id| JobId::try_from(id.to_owned()));
            let Some(Ok(id)) = id else { continue };
            self.jobs.entry(id.clone()).or_insert_with(|| {
                self.dirty.insert(id);
                Entry { submitted_ms: active.modified_ms, news: News::fresh_start(), ..Entry::default() }
            });
        }
    }

    fn settle_driven(&mut self, id: JobId, driven: Driven) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        entry.is_driven = false;
        self.tenants_changed |= entry.phase.is_none();
        if let Some(job) = &driven.job {
            entry.epoch = job.epoch;
            entry.tally = driven.tally;
        }
        entry.job = driven.job;
        match driven.stand {
            Stand::Due(due) => entry.set_due(due),
            Stand::Halted(failure) => {
                tracing::error!(job = %id, %failure, "halted");
                entry.halt(failure);
                entry.retry(News::fresh_start(), self.settings.retry_longest);
            }
            Stand::Trouble(failure) => {
                tracing::warn!(job = %id, %failure, "cannot go on now");
                entry.troubles = entry.troubles.saturating_add(1);
                entry.retry(News { everything: true, ..News::default() }, self.settings.backoff(entry.troubles));
                if entry.troubles >= self.settings.troubles_max {
                    entry.halt(failure);
                }
            }
            Stand::Ended(result) => {
                tracing::info!(job = %id, "ended");
                self.tenants_changed = true;
                entry.phase = Some(Phase::Ended(result));
                entry.show(&id, &self.board);
                self.jobs.remove(&id);
                self.dirty.remove(&id);
                return;
            }
            Stand::Gone => {
                self.tenants_changed = true;
                self.jobs.remove(&id);
                self.dirty.remove(&id);
                self.board.remove(&id);
                return;
            }
        }
        entry.show(&id, &self.board);
        if !entry.news.is_empty() {
            self.dirty.insert(id);
        }
    }

    /// When something is due that no message will tell.
    fn wake_at(&self) -> Instant {
        let leases = self.jobs.values().flat_map(|entry| entry.outstanding.values()).map(|outstanding| outstanding.lease_until);
        let retries = self.jobs.values().filter(|entry| !entry.is_driven).filter_map(|entry| entry.retry_at);
        let others = [self.scan.retry_at.filter(|_| !self.scan.is_running), self.issue_at].into_iter().flatten();
        leases.chain(retries).chain(others).min().unwrap_or_else(|| Instant::now() + self.settings.reconcile)
    }

    /// Lets waits end that are over, and has tasks looked at of which nothing was heard for too long.
    fn expire(&mut self) {
        let now = Instant::now();
        self.scan.retry_at.take_if(|at| *at <= now);
        for (id, entry) in &mut self.jobs {
            entry.retry_at.take_if(|at| *at <= now);
            let expired = entry.outstanding.iter().filter(|(_, outstanding)| outstanding.lease_until <= now);
            for task in expired.map(|(task, _)| task.clone()).collect::<Vec<_>>() {
                tracing::warn!(job = %id, %task, "nothing was heard of it");
                entry.look_at(&task);
                self.dirty.insert(id.clone());
            }
        }
    }
}

impl Entry {
    /// A task may be done, failed or lost: storage has to say before it is handed out again.
    fn look_at(&mut self, task: &TaskId) {
        self.outstanding.remove(task);
        self.running.remove(task);
        self.due.retain(|due| due.task != *task);
        self.news.tasks.insert(task.clone());
    }

    /// Takes in what is missing by what storage says.
    fn set_due(&mut self, due: Vec<Due>) {
        self.troubles = 0;
        // What is due again after a failure nobody told of, or not any more, is on its way no longer.
        self.outstanding
            .retain(|task, outstanding| due.iter().any(|due| due.task == *task && due.attempt <= outstanding.attempt));
        self.running.retain(|task, _| self.outstanding.contains_key(task));
        let is_media = |due: &Due| matches!(due.task, TaskId::Video(_) | TaskId::Audio(_));
        self.phase = Some(match due.iter().any(|due| due.task == TaskId::Probe) {
            true => Phase::Probing,
            false if due.iter().any(is_media) => Phase::Encoding,
            false => Phase::Packing,
        });
        self.due = due;
        // News that came meanwhile is about tasks that were not looked at yet.
        self.due.retain(|due| !self.news.tasks.contains(&due.task));
    }

    fn halt(&mut self, failure: Failure) {
        self.due.clear();
        self.phase = Some(Phase::Halted(failure));
    }

    fn retry(&mut self, news: News, wait: Duration) {
        self.news.everything |= news.everything;
        self.news.forgive |= news.forgive;
        self.retry_at = Some(Instant::now() + wait);
    }

    fn show(&self, id: &JobId, board: &Board) {
        if let Some(phase) = &self.phase {
            board.put(id, self.tally.view(phase.clone(), &self.running));
        }
    }
}

impl Settings {
    /// The wait after so many failures in a row, from 1.
    fn backoff(&self, failures: u32) -> Duration {
        let doubled = 1_u32.checked_shl(failures.saturating_sub(1).min(30)).unwrap_or(u32::MAX);
        self.retry_first.saturating_mul(doubled).min(self.retry_longest)
    }
}

/// The next event; never when nothing can be heard. Cancel-safe.
async fn next_delivery(consumer: &mut Option<Consumer>) -> Result<Delivery, BrokerError> {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}

/// The next word on progress. Cancel-safe.
async fn next_progress(progress: &mut broadcast::Receiver<Progress>) -> Progress {
    loop {
        match progress.recv().await {
            Ok(said) => return said,
            // Some was missed; the next is as good.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
