//! Handing out: the tasks whose turn it is, as many as the window has room for.

use std::time::Duration;

use farm::broker::Queue;
use farm::metrics;
use farm::task::TaskMessage;
use tokio::time::Instant;

use super::engine::Engine;
use super::entry::Outstanding;
use crate::dispatch::{Candidate, pick_next, room};

/// How long a finished task counts as a sign that workers are fast.
const LATELY: Duration = Duration::from_secs(1);

/// How long after a new term has begun the tasks that were heard of are remembered, for jobs that are still being loaded.
const HEARD_KEPT: Duration = Duration::from_secs(60);

/// A task chosen to be handed out.
pub(super) struct Chosen {
    message: TaskMessage,
    wait_ms: u64,
    tenant: String,
    cost_ns: u64,
}

impl Engine {
    /// Hands out tasks until the window is full.
    pub(super) async fn issue(&mut self) {
        let now = Instant::now();
        let Some(term) = self.lead.term() else { return };
        if [self.issue_at, self.lead.issue_at()].into_iter().flatten().any(|at| at > now) {
            return;
        }
        self.issue_at = None;
        self.adopt(now);
        for Chosen { message, wait_ms, tenant, cost_ns } in self.choose(term) {
            let wait = Duration::from_millis(wait_ms);
            if let Err(error) = self.broker.publish_later(Queue::Tasks, &message, wait).await {
                self.broker_troubles = self.broker_troubles.saturating_add(1);
                self.issue_at = Some(Instant::now() + self.settings.backoff(self.broker_troubles));
                tracing::warn!(%error, "tasks cannot be handed out now");
                return;
            }
            self.broker_troubles = 0;
            let reason = if message.attempt > 1 { "retry" } else { "first" };
            metrics::scheduler().tasks_issued.with_label_values(&[reason]).inc();
            tracing::debug!(job = %message.job, task = %message.task, attempt = message.attempt, "handed out");
            self.shares.charge(&tenant, cost_ns);
            if let Some(entry) = self.jobs.get_mut(&message.job) {
                let lease_until = Instant::now() + wait + self.settings.lease;
                entry.outstanding.insert(message.task, Outstanding::issued(message.attempt, lease_until));
            }
        }
    }

    /// The tasks whose turn it is, as many as the window has room for.
    fn choose(&mut self, term: u64) -> Vec<Chosen> {
        while self.finished.front().is_some_and(|at| at.elapsed() > LATELY) {
            self.finished.pop_front();
        }
        let outstanding = self.jobs.values().map(|entry| entry.outstanding.len()).sum();
        let running = self.jobs.values().map(|entry| entry.running.len()).sum();
        let room = room(self.settings.window, outstanding, running, self.finished.len());
        if room == 0 {
            return Vec::new();
        }
        self.shares.tidy(self.jobs.is_empty());
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
                dues.push((due, entry.life, entry.epoch));
            }
        }
        let mut shares = self.shares.clone();
        let mut chosen = Vec::new();
        while chosen.len() < room
            && let Some(place) = pick_next(&candidates, &shares)
        {
            let (candidate, (due, life, epoch)) = (candidates.swap_remove(place), dues.swap_remove(place));
            shares.charge(candidate.tenant, candidate.cost_ns);
            let (job, task) = (candidate.job.clone(), due.task.clone());
            let message = TaskMessage { job, life, task, attempt: due.attempt, epoch, term };
            chosen.push(Chosen {
                message,
                wait_ms: due.wait_ms,
                tenant: candidate.tenant.to_owned(),
                cost_ns: candidate.cost_ns,
            });
        }
        chosen
    }

    /// Takes into account what was heard to be running when the term began, so that it is not handed out a second time.
    fn adopt(&mut self, now: Instant) {
        if self.heard.is_empty() {
            return;
        }
        if self.lead.issue_at().is_none_or(|at| now > at + HEARD_KEPT) {
            self.heard.clear();
        }
        let (jobs, lease_until) = (&mut self.jobs, now + self.settings.lease);
        self.heard.retain(|(job, task)| {
            let Some(entry) = jobs.get_mut(job) else { return true };
            let Some(due) = entry.due.iter().find(|due| due.task == *task) else { return true };
            let adopted = Outstanding::adopted(due.attempt, lease_until);
            entry.outstanding.entry(task.clone()).or_insert(adopted);
            entry.running.entry(task.clone()).or_default();
            false
        });
    }
}
