//! A job as the loop knows it: what is due, what is on its way, and what there is news of.

use std::collections::BTreeMap;
use std::time::Duration;

use farm::job::JobId;
use farm::task::TaskId;
use farm::{Failure, metrics};
use tokio::time::Instant;

use super::job::{Job, News};
use super::view::{Board, Phase, Tally};
use crate::step::Due;

/// A job as the loop knows it.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) submitted_ms: u64,
    /// Whether a worker was heard of.
    pub(super) is_started: bool,
    /// Not here while it is driven, or when it could not be loaded yet.
    pub(super) job: Option<Job>,
    pub(super) is_driven: bool,
    pub(super) epoch: u64,
    pub(super) tally: Tally,
    pub(super) phase: Option<Phase>,
    /// Tasks without a marker; those on their way are among them.
    pub(super) due: Vec<Due>,
    /// Tasks on the queue or with workers, as far as is known.
    pub(super) outstanding: BTreeMap<TaskId, Outstanding>,
    /// How far running tasks are, in ns of media.
    pub(super) running: BTreeMap<TaskId, u64>,
    pub(super) news: News,
    /// Failures of storage in a row.
    pub(super) troubles: u32,
    /// Not to be driven before.
    pub(super) retry_at: Option<Instant>,
}

pub(super) struct Outstanding {
    pub(super) attempt: u32,
    pub(super) lease_until: Instant,
    /// Whether it was handed out in this term; if not, it was heard to be running when the term began.
    pub(super) is_ours: bool,
}

impl Entry {
    /// A task may be done, failed or lost: storage has to say before it is handed out again.
    pub(super) fn look_at(&mut self, task: &TaskId) {
        self.outstanding.remove(task);
        self.running.remove(task);
        self.due.retain(|due| due.task != *task);
        self.news.tasks.insert(task.clone());
    }

    /// Takes in what is missing by what storage says.
    pub(super) fn set_due(&mut self, due: Vec<Due>) {
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

    /// A worker was heard of.
    pub(super) fn note_start(&mut self) {
        if !std::mem::replace(&mut self.is_started, true) {
            metrics::scheduler().job_queue_wait.observe(since_ms(self.submitted_ms));
        }
    }

    pub(super) fn halt(&mut self, failure: Failure) {
        self.due.clear();
        self.phase = Some(Phase::Halted(failure));
    }

    pub(super) fn retry(&mut self, news: News, wait: Duration) {
        self.news.everything |= news.everything;
        self.news.forgive |= news.forgive;
        self.retry_at = Some(Instant::now() + wait);
    }

    pub(super) fn show(&self, id: &JobId, board: &Board) {
        if let Some(phase) = &self.phase {
            board.put(id, self.tally.view(phase.clone(), &self.running));
        }
    }
}

/// Seconds since a time that storage told, in ms since 1970. Clocks may differ: never less than 0.
pub(super) fn since_ms(then_ms: u64) -> f64 {
    let then = std::time::UNIX_EPOCH + Duration::from_millis(then_ms);
    then.elapsed().unwrap_or_default().as_secs_f64()
}
