//! The loop: hears events, drives jobs whose state may have changed, and keeps the task queue filled but short.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use farm::broker::{Broker, BrokerError, Consumer, Delivery, Queue};
use farm::job::JobId;
use farm::storage::{Entry as Listed, Storage, StorageError};
use farm::task::{Event, Progress, TaskId, Word};
use farm::{Class, Code, Failure, Life, keys, metrics};
use tokio::sync::{broadcast, oneshot};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::entry::{Entry, since_ms};
use crate::pace::Pace;

use super::job::{Conduct, Driven, News, Stand, drive};
use super::lead::Lead;
use super::measure::Scale;
use super::view::{Board, Phase, Tally};
use super::{PARTITION, Settings};
use crate::dispatch::Shares;
use crate::offers::{Offers, Served};
use crate::traces::trace_id;

/// Jobs driven at a time.
const DRIVES_MAX: usize = 16;

/// How often the series are set that show a state.
const MEASURE: Duration = Duration::from_secs(5);

/// The scheduler at work.
pub(super) struct Engine {
    pub(super) settings: Settings,
    pub(super) state: Storage,
    pub(super) broker: Broker,
    pub(super) board: Arc<Board>,
    pub(super) jobs: BTreeMap<JobId, Entry>,
    /// Jobs with news.
    pub(super) dirty: BTreeSet<JobId>,
    pub(super) shares: Shares,
    pub(super) work: JoinSet<Work>,
    pub(super) working: HashMap<task::Id, Working>,
    pub(super) scan: Scan,
    pub(super) consumer: Option<Consumer>,
    pub(super) lead: Lead,
    /// Failures to learn the term in a row, and when to try again.
    pub(super) term_troubles: u32,
    pub(super) term_at: Option<Instant>,
    /// Tasks that were heard of since the term began and are not taken into account yet.
    pub(super) heard: BTreeSet<(JobId, TaskId)>,
    /// When tasks were done, those of the last second, and over which queue they went.
    pub(super) finished: VecDeque<(Instant, Class)>,
    /// Failures of the broker in a row, and when to hand out tasks again.
    pub(super) broker_troubles: u32,
    pub(super) issue_at: Option<Instant>,
    /// How fast pictures were encoded so far.
    pub(super) pace: Pace,
    /// What workers offer, and what comes of it.
    pub(super) offers: Offers,
    pub(super) served: Served,
    /// By what it is said how many workers are wanted.
    pub(super) scale: Scale,
}

/// Listing the active jobs.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) is_wanted: bool,
    pub(super) is_running: bool,
    pub(super) troubles: u32,
    pub(super) retry_at: Option<Instant>,
}

/// What came of something that ran beside the loop.
pub(super) enum Work {
    Driven(JobId, Box<Driven>),
    Scanned(Result<Vec<Listed>, StorageError>),
    Termed(Result<u64, Failure>),
}

/// What runs beside the loop, in case it panics.
pub(super) enum Working {
    Drive(JobId),
    Scan,
    Term,
}

impl Engine {
    pub(super) fn new(settings: Settings, state: Storage, broker: Broker, board: Arc<Board>) -> Self {
        let lead = Lead::new(settings.tick, settings.settle);
        Self {
            lead,
            state,
            broker,
            board,
            jobs: BTreeMap::new(),
            dirty: BTreeSet::new(),
            shares: Shares::weighted(Arc::clone(&settings.weights)),
            work: JoinSet::new(),
            working: HashMap::new(),
            scan: Scan::default(),
            consumer: None,
            term_troubles: 0,
            term_at: None,
            heard: BTreeSet::new(),
            finished: VecDeque::new(),
            broker_troubles: 0,
            issue_at: None,
            pace: Pace::USUAL,
            offers: Offers::new(Instant::now(), settings.settle.is_zero()),
            served: Served::NONE,
            scale: Scale::new(),
            settings,
        }
    }

    /// Runs until `stopped` is told or dropped: at once, wherever it is, as a scheduler may be killed anywhere. With the broker
    /// away any of its steps may wait for half a minute.
    pub(super) async fn run(mut self, stopped: oneshot::Receiver<()>) {
        tokio::select! {
            _ = stopped => {}
            () = self.act() => {}
        }
        self.work.shutdown().await;
        self.board.close();
    }

    async fn act(&mut self) {
        let mut words = self.broker.listen();
        // The first tick comes at once: starting is reconciling.
        let mut reconcile = interval(self.settings.reconcile);
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut measure = interval(MEASURE);
        measure.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.pump();
            self.issue().await;
            let wake_at = self.wake_at();
            tokio::select! {
                _ = reconcile.tick() => self.reconcile().await,
                _ = measure.tick() => {
                    self.note_offers();
                    self.served.crowded = self.crowded();
                    self.measure();
                }
                delivery = next_delivery(&mut self.consumer) => self.hear(delivery).await,
                said = next_word(&mut words) => match said {
                    Word::Progress(progress) => self.note_progress(&progress),
                    Word::Offer(offer) => {
                        self.board.note_offer(offer.clone());
                        self.offers.note(offer, Instant::now());
                        self.note_offers();
                    }
                    Word::Here(presence) => self.board.note_worker(presence),
                },
                Some(done) = self.work.join_next_with_id() => self.settle(done),
                () = sleep_until(wake_at) => self.expire().await,
            }
        }
    }

    /// Starts what is to be done beside the loop.
    fn pump(&mut self) {
        if self.lead.term().is_none() {
            return;
        }
        let now = Instant::now();
        if self.scan.is_wanted && !self.scan.is_running && self.scan.retry_at.is_none_or(|at| at <= now) {
            self.scan = Scan { is_running: true, troubles: self.scan.troubles, ..Scan::default() };
            let state = self.state.clone();
            let started = self.work.spawn(async move {
                let _timer = metrics::scheduler().reconcile_duration.start_timer();
                Work::Scanned(state.list(&keys::active_prefix(PARTITION)).await)
            });
            self.working.insert(started.id(), Working::Scan);
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
            let conduct = Conduct {
                aftercare: self.settings.aftercare,
                pace: self.pace,
                served: self.served.clone(),
                hardware: Arc::clone(&self.settings.hardware),
            };
            let (state, driven_id, life) = (self.state.clone(), id.clone(), entry.life);
            let started = self.work.spawn(async move {
                let driven = drive(state, driven_id.clone(), life, job, news, conduct).await;
                Work::Driven(driven_id, Box::new(driven))
            });
            self.working.insert(started.id(), Working::Drive(id));
        }
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
        self.beat().await;
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
            Ok(Event::Tick) => {
                self.tick().await;
                delivery.ack().await
            }
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
            Event::Tick => return,
            Event::Submitted { job } => (job.clone(), None),
            Event::TaskDone { job, task }
            | Event::TaskFailed { job, task, .. }
            | Event::Stale { job, task }
            | Event::GivenBack { job, task } => (job.clone(), Some(task.clone())),
        };
        if let (Event::GivenBack { .. }, Some(task)) = (&event, &task) {
            self.heard.remove(&(job.clone(), task.clone()));
            if let Some(entry) = self.jobs.get_mut(&job) {
                entry.note_given_back(task, Instant::now(), self.settings.lease);
            }
            return;
        }
        if let (Event::Stale { .. }, Some(task)) = (&event, &task) {
            // It was running when this term began, and its worker is gone. If it is ours, a message of this term is on its way.
            self.heard.remove(&(job.clone(), task.clone()));
            let is_ours = |entry: &Entry| entry.outstanding.get(task).is_none_or(|outstanding| outstanding.is_ours);
            if self.jobs.get(&job).is_none_or(is_ours) {
                return;
            }
        }
        let Some(entry) = self.jobs.get_mut(&job) else {
            // An event of a job that has ended needs nothing; one that is new is in the list of active ones.
            self.scan.is_wanted |= task.is_none();
            return;
        };
        match task {
            None => (entry.news.everything, entry.has_others) = (true, true),
            Some(task) => {
                entry.note_start();
                let class = entry.outstanding.get(&task).map(|outstanding| outstanding.class);
                entry.look_at(&task);
                self.finished.push_back((Instant::now(), class.unwrap_or_default()));
            }
        }
        if let Event::TaskFailed { life, task, attempt, failure, .. } = event
            && life == entry.life
        {
            tracing::warn!(%job, %task, attempt, %failure, "an attempt failed");
            let labels = [metrics::kind(&task), &failure.code.to_string()];
            metrics::scheduler().task_failures.with_label_values(&labels).inc();
            entry.news.failed.push((task, attempt, failure));
        }
        self.dirty.insert(job);
    }

    fn note_progress(&mut self, progress: &Progress) {
        if self.lead.issue_at().is_some_and(|at| at > Instant::now()) {
            self.heard.insert((progress.job.clone(), progress.task.clone()));
        }
        let Some(entry) = self.jobs.get_mut(&progress.job) else { return };
        if entry.note_progress(&progress.task, progress.media_ns, Instant::now(), self.settings.lease) {
            entry.show(&progress.job, &self.board);
        }
    }

    /// Looks at what is offered by now. Tasks on the queue of a class that nobody serves any more are handed out again.
    fn note_offers(&mut self) {
        let now = Instant::now();
        if !self.broker.stats().connected {
            self.offers.was_deaf(now);
        }
        self.offers.expire(now);
        let crowded = std::mem::take(&mut self.served.crowded);
        self.served = self.offers.served(now);
        self.served.crowded = crowded;
        for entry in self.jobs.values_mut() {
            entry.leave_queues(now, self.settings.lease, |class| !self.offers.is_gone(class, now));
        }
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
            Ok((id, Work::Termed(taken))) => {
                self.working.remove(&id);
                self.settle_term(taken);
            }
            Err(error) => {
                tracing::error!(%error, "a part of the scheduler ended badly");
                let why = error.to_string();
                match self.working.remove(&error.id()) {
                    Some(Working::Drive(job)) => {
                        let stand = Stand::Trouble(Failure::new(Code::Internal, why));
                        self.settle_driven(job, Driven { job: None, stand, tally: Tally::default() });
                    }
                    Some(Working::Scan) => self.settle_scan(Err(StorageError::Unavailable { key: String::new(), why })),
                    Some(Working::Term) => self.settle_term(Err(Failure::new(Code::Internal, why))),
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
        self.scale.is_listed = true;
        if listed.is_empty() {
            // Nothing can be running.
            self.lead.settle_now(Instant::now());
        }
        for active in listed {
            let Some((id, life)) = active.key.strip_prefix(&prefix).and_then(Life::in_key) else { continue };
            let entry = self.jobs.entry(id.clone()).or_insert_with(|| {
                self.dirty.insert(id);
                Entry { life, submitted_ms: active.modified_ms, news: News::fresh_start(), ..Entry::default() }
            });
            // One after the other: there may be an older one that nobody closed to its end.
            entry.has_others |= entry.life != life;
        }
    }

    fn settle_driven(&mut self, id: JobId, driven: Driven) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        entry.is_driven = false;
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
                tracing::info!(job = %id, trace_id = trace_id(&id, entry.life), "ended");
                if let Some(job) = &entry.job {
                    self.pace = job.state.pace_after(self.pace);
                }
                let series = metrics::scheduler();
                series.jobs_finished.with_label_values(&[result.outcome().word()]).inc();
                series.job_duration.observe(since_ms(entry.submitted_ms));
                if let Some(traced) = &self.settings.traced {
                    traced.note(&id, entry.life);
                }
                entry.phase = Some(Phase::Ended(result));
                entry.show(&id, &self.board);
                self.board.note_end();
                self.scan.is_wanted |= entry.has_others;
                self.jobs.remove(&id);
                self.dirty.remove(&id);
                return;
            }
            Stand::Gone => {
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
        let settled = self.lead.issue_at().filter(|at| *at > Instant::now());
        let mine = [Some(self.lead.wake_at()).filter(|_| self.consumer.is_some()), self.term_at, settled].into_iter().flatten();
        let first = leases.chain(retries).chain(others).chain(mine).min();
        first.unwrap_or_else(|| Instant::now() + self.settings.reconcile)
    }

    /// Lets waits end that are over, and has tasks looked at of which nothing was heard for too long.
    async fn expire(&mut self) {
        let now = Instant::now();
        self.beat().await;
        if self.term_at.is_some_and(|at| at <= now) {
            self.ask_term(self.lead.term());
        }
        self.scan.retry_at.take_if(|at| *at <= now);
        self.issue_at.take_if(|at| *at <= now);
        // On a standby, silence says nothing: it may be the one that is cut off.
        let counts = self.lead.term().is_some();
        for (id, entry) in &mut self.jobs {
            entry.retry_at.take_if(|at| *at <= now);
            for task in entry.expire(now, self.settings.lease, counts) {
                tracing::warn!(job = %id, %task, "nothing was heard of it");
                self.dirty.insert(id.clone());
            }
        }
    }
}

impl Settings {
    /// The wait after so many failures in a row, from 1.
    pub(super) fn backoff(&self, failures: u32) -> Duration {
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

/// The next word of a worker. Cancel-safe.
async fn next_word(words: &mut broadcast::Receiver<Word>) -> Word {
    loop {
        match words.recv().await {
            Ok(said) => return said,
            // Some was missed; the next is as good.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
