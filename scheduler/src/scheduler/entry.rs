//! A job as the loop knows it: what is due, what is on its way, and what there is news of.

use std::collections::BTreeMap;
use std::time::Duration;

use farm::job::JobId;
use farm::task::TaskId;
use farm::{Class, Failure, Life, metrics};
use tokio::time::Instant;

use super::job::{Job, Lost, News};
use super::view::{Board, Phase, Tally};
use crate::step::Due;

/// A job as the loop knows it.
#[derive(Default)]
pub(super) struct Entry {
    /// The life that is driven.
    pub(super) life: Life,
    /// Whether another life may be active too, to be looked for when this one has ended.
    pub(super) has_others: bool,
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
    /// Over which queue it went.
    pub(super) class: Class,
    /// Whether it was handed out in this term; if not, it was heard to be running when the term began.
    pub(super) is_ours: bool,
    begun: Begun,
}

/// Whether somebody is at a task.
#[derive(Clone, Copy, Debug)]
enum Begun {
    /// Nobody was heard to be: it may be on the queue.
    No,
    /// Somebody was, and gave it back: it is on the queue again. What is heard of it before this time may be that one's last
    /// word, which comes by another way than the event.
    GivenBack(Instant),
    /// Somebody was.
    Yes,
}

/// How long the last word of one who has given a task back may take to come.
const LAST_WORD: Duration = Duration::from_secs(5);

/// Who is at a task is heard every second: with nothing for so long it is gone.
const SILENCE: Duration = Duration::from_secs(30);

impl Outstanding {
    /// A task that is put on the queue of a class.
    pub(super) fn issued(attempt: u32, class: Class, lease_until: Instant) -> Self {
        Self { attempt, lease_until, class, is_ours: true, begun: Begun::No }
    }

    /// A task that was heard to be running when the term began.
    pub(super) fn adopted(attempt: u32, lease_until: Instant) -> Self {
        Self { attempt, lease_until, class: Class::Cpu, is_ours: false, begun: Begun::Yes }
    }

    /// Whether somebody is at it, as far as is known.
    pub(super) fn is_begun(&self) -> bool {
        matches!(self.begun, Begun::Yes)
    }

    /// The attempt that was lost, when nothing was heard until the lease ran out. A task that nobody was heard to be at is not:
    /// where there are no workers, it waits on the queue.
    fn lost(&self) -> Option<u32> {
        self.is_begun().then_some(self.attempt)
    }

    /// Somebody says at this time that it is at it.
    fn note_begun(&mut self, now: Instant) {
        match self.begun {
            Begun::GivenBack(deaf_until) if now < deaf_until => {}
            Begun::No | Begun::GivenBack(_) | Begun::Yes => self.begun = Begun::Yes,
        }
    }
}

impl Entry {
    /// A task may be done, failed or lost: storage has to say before it is handed out again.
    pub(super) fn look_at(&mut self, task: &TaskId) {
        self.outstanding.remove(task);
        self.running.remove(task);
        self.due.retain(|due| due.task != *task);
        self.news.tasks.insert(task.clone());
    }

    /// A worker is at a task. Whether it is on its way: what is heard of others comes from executions that no longer matter.
    pub(super) fn note_progress(&mut self, task: &TaskId, media_ns: u64, now: Instant, lease: Duration) -> bool {
        let Some(outstanding) = self.outstanding.get_mut(task) else { return false };
        outstanding.lease_until = now + lease;
        outstanding.note_begun(now);
        self.note_start();
        let so_far = self.running.entry(task.clone()).or_default();
        *so_far = media_ns.max(*so_far);
        true
    }

    /// A worker that is well put a task back on the queue.
    pub(super) fn note_given_back(&mut self, task: &TaskId, now: Instant, lease: Duration) {
        self.running.remove(task);
        if let Some(outstanding) = self.outstanding.get_mut(task) {
            (outstanding.lease_until, outstanding.begun) = (now + lease, Begun::GivenBack(now + LAST_WORD));
        }
    }

    /// Takes back tasks from queues that are not served any more, but those of which somebody has just been heard to be at them.
    pub(super) fn leave_queues(&mut self, now: Instant, lease: Duration, is_served: impl Fn(Class) -> bool) {
        let is_heard = |outstanding: &Outstanding| outstanding.is_begun() && now + lease < outstanding.lease_until + SILENCE;
        self.outstanding.retain(|_, outstanding| is_served(outstanding.class) || is_heard(outstanding));
        self.running.retain(|task, _| self.outstanding.contains_key(task));
    }

    /// Has tasks looked at whose lease has run out; which. With `counts`, those that were begun have failed, unless storage
    /// knows better.
    pub(super) fn expire(&mut self, now: Instant, lease: Duration, counts: bool) -> Vec<TaskId> {
        let over = self.outstanding.iter().filter(|(_, outstanding)| outstanding.lease_until <= now);
        let over: Vec<(TaskId, Option<u32>)> = over.map(|(task, outstanding)| (task.clone(), outstanding.lost())).collect();
        for (task, lost) in &over {
            self.look_at(task);
            let lost = lost.filter(|_| counts).map(|attempt| Lost { task: task.clone(), attempt, silent_s: lease.as_secs() });
            self.news.lost.extend(lost);
        }
        over.into_iter().map(|(task, _)| task).collect()
    }

    /// Takes in what is missing by what storage says.
    pub(super) fn set_due(&mut self, due: Vec<Due>) {
        self.troubles = 0;
        // What is due again after a failure nobody told of, or not any more, is on its way no longer.
        self.outstanding
            .retain(|task, outstanding| due.iter().any(|due| due.task == *task && due.attempt <= outstanding.attempt));
        self.running.retain(|task, _| self.outstanding.contains_key(task));
        let is_media = |due: &Due| matches!(due.task, TaskId::Video(_) | TaskId::First(_) | TaskId::Audio(_));
        // What is due once more was tried: somebody was at it, perhaps before this scheduler began to listen.
        let is_begun = self.is_started || self.tally.has_begun() || due.iter().any(|due| due.attempt > 1);
        self.phase = Some(match due.iter().any(|due| matches!(due.task, TaskId::Probe | TaskId::ProbeOther(_))) {
            true if !is_begun => Phase::Waiting,
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
            if self.phase == Some(Phase::Waiting) {
                self.phase = Some(Phase::Probing);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(1500);

    /// An entry with the second attempt at the probe handed out at that time.
    fn issued(now: Instant) -> Entry {
        let mut entry = Entry::default();
        entry.outstanding.insert(TaskId::Probe, Outstanding::issued(2, Class::Cpu, now + LEASE));
        entry
    }

    /// The attempts that are lost when nothing is heard from that time on.
    fn lost(mut entry: Entry, now: Instant, counts: bool) -> Vec<u32> {
        assert!(entry.expire(now + LEASE - Duration::from_secs(1), LEASE, counts).is_empty(), "not before its time");
        assert_eq!(entry.expire(now + LEASE, LEASE, counts), [TaskId::Probe]);
        assert!(entry.outstanding.is_empty() && entry.running.is_empty() && entry.news.tasks.contains(&TaskId::Probe));
        entry.news.lost.iter().map(|lost| lost.attempt).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_waits_until_a_worker_has_begun_with_it_and_never_again() {
        let now = Instant::now();
        let due = |attempt| Due { task: TaskId::Probe, attempt, wait_ms: 0, class: Class::Cpu };
        let mut entry = issued(now);
        entry.set_due(vec![due(1)]);
        assert_eq!(entry.phase, Some(Phase::Waiting));
        assert!(!entry.note_progress(&TaskId::Video(0), 1, now, LEASE), "of another life");
        assert_eq!(entry.phase, Some(Phase::Waiting));
        assert!(entry.note_progress(&TaskId::Probe, 1, now, LEASE));
        assert_eq!(entry.phase, Some(Phase::Probing));
        entry.note_given_back(&TaskId::Probe, now, LEASE);
        entry.set_due(vec![due(1)]);
        assert_eq!(entry.phase, Some(Phase::Probing));
        let mut failed_before = Entry::default();
        failed_before.set_due(vec![due(2)]);
        assert_eq!(failed_before.phase, Some(Phase::Probing));
        let mut planned = Entry::default();
        planned.set_due(vec![Due { task: TaskId::Video(0), ..due(1) }]);
        assert_eq!(planned.phase, Some(Phase::Encoding));
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_nobody_serves_is_left_but_for_what_somebody_is_at() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let on = |class| {
            let mut entry = Entry::default();
            entry.outstanding.insert(TaskId::Video(1), Outstanding::issued(1, class, start + LEASE));
            entry
        };
        let is_left = |mut entry: Entry, now, served| {
            entry.leave_queues(now, LEASE, |class| class == served);
            entry.outstanding.is_empty()
        };
        assert!(!is_left(on(Class::Nvenc), start, Class::Nvenc));
        assert!(is_left(on(Class::Nvenc), start, Class::Vaapi));
        let begun = || {
            let mut entry = on(Class::Nvenc);
            entry.note_progress(&TaskId::Video(1), 1, start + second, LEASE);
            entry
        };
        assert!(!is_left(begun(), start + SILENCE, Class::Cpu));
        assert!(is_left(begun(), start + second + SILENCE, Class::Cpu), "whoever was at it is gone");
        assert!(!is_left(begun(), start + LEASE, Class::Nvenc), "or another is");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_only_after_somebody_was_heard_to_be_at_it_and_did_not_give_it_back() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(lost(issued(start), start, true), [0_u32; 0], "it may be on the queue");
        let mut begun = issued(start);
        assert!(begun.note_progress(&TaskId::Probe, 1, start + second, LEASE));
        assert!(!begun.note_progress(&TaskId::Video(0), 1, start + second, LEASE), "nobody was sent that");
        assert_eq!(lost(begun, start + second, true), [2]);
        let mut cut_off = issued(start);
        cut_off.note_progress(&TaskId::Probe, 1, start, LEASE);
        assert_eq!(lost(cut_off, start, false), [0_u32; 0], "on a standby silence says nothing");
        let given_back = || {
            let mut entry = issued(start);
            entry.note_progress(&TaskId::Probe, 1, start, LEASE);
            entry.note_given_back(&TaskId::Probe, start, LEASE);
            assert!(entry.running.is_empty());
            entry.note_progress(&TaskId::Probe, 1, start + second, LEASE);
            entry
        };
        assert_eq!(lost(given_back(), start + second, true), [0_u32; 0], "a last word that came late");
        let mut taken_again = given_back();
        taken_again.note_progress(&TaskId::Probe, 1, start + LAST_WORD, LEASE);
        assert_eq!(lost(taken_again, start + LAST_WORD, true), [2]);
    }
}
