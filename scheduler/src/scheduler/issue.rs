//! Handing out: the tasks whose turn it is, as many as the window has room for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use farm::broker::Queue;
use farm::task::TaskMessage;
use farm::{Class, Life, metrics};
use tokio::time::Instant;

use super::engine::Engine;
use super::entry::Outstanding;
use crate::dispatch::{Candidate, pick_next, room};
use crate::step::Due;

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

/// A task that could be handed out, over this queue.
struct Ready<'a> {
    due: &'a Due,
    class: Class,
    life: Life,
    epoch: u64,
}

/// A class of devices is crowded where so many tasks wait for each that runs, and hardly any for the processor.
const CROWD: usize = 4;

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
            if let Err(error) = self.broker.publish_later(Queue::Tasks(message.class), &message, wait).await {
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
                entry.outstanding.insert(message.task, Outstanding::issued(message.attempt, message.class, lease_until));
            }
        }
    }

    /// The tasks whose turn it is, as many as the window has room for.
    fn choose(&mut self, term: u64) -> Vec<Chosen> {
        while self.finished.front().is_some_and(|(at, _)| at.elapsed() > LATELY) {
            self.finished.pop_front();
        }
        let mut rooms = self.rooms();
        if rooms.values().all(|room| *room == 0) {
            return Vec::new();
        }
        self.shares.tidy(self.jobs.is_empty());
        let mut candidates = Vec::new();
        let mut ready = Vec::new();
        for (id, entry) in &self.jobs {
            let mut left = rooms.clone();
            for due in entry.due.iter().filter(|due| !entry.outstanding.contains_key(&due.task)) {
                // The most pressing come first, and no job can have more than all of the window.
                if left.values().all(|room| *room == 0) {
                    break;
                }
                let class = self.queue_of(due);
                let Some(room) = left.get_mut(&class).filter(|room| **room > 0) else { continue };
                *room -= 1;
                candidates.push(Candidate {
                    tenant: &entry.tally.tenant,
                    priority: entry.tally.priority,
                    submitted: entry.submitted_ms,
                    job: id,
                    task: &due.task,
                    cost_ns: entry.tally.cost_ns(&due.task),
                });
                ready.push(Ready { due, class, life: entry.life, epoch: entry.epoch });
            }
        }
        let mut shares = self.shares.clone();
        let mut chosen = Vec::new();
        while let Some(place) = pick_next(&candidates, &shares) {
            let (candidate, Ready { due, class, life, epoch }) = (candidates.swap_remove(place), ready.swap_remove(place));
            shares.charge(candidate.tenant, candidate.cost_ns);
            let (job, task) = (candidate.job.clone(), due.task.clone());
            let message = TaskMessage { job, life, task, attempt: due.attempt, class, epoch, term };
            let (tenant, cost_ns) = (candidate.tenant.to_owned(), candidate.cost_ns);
            chosen.push(Chosen { message, wait_ms: due.wait_ms, tenant, cost_ns });
            let room = rooms.entry(class).or_default();
            *room = room.saturating_sub(1);
            if *room == 0 {
                let others = candidates.into_iter().zip(ready).filter(|(_, other)| other.class != class);
                (candidates, ready) = others.unzip();
            }
        }
        chosen
    }

    /// Over which queue a task goes: that of the device which the plan has for it, while there are workers with such.
    fn queue_of(&self, due: &Due) -> Class {
        if self.served.has(due.class) { due.class } else { Class::Cpu }
    }

    /// How many tasks may go on each queue. What waits for one class of devices does not hold up what goes to others.
    fn rooms(&self) -> BTreeMap<Class, usize> {
        let (mut outstanding, mut running) = (BTreeMap::<Class, usize>::new(), BTreeMap::<Class, usize>::new());
        for entry in self.jobs.values() {
            for (task, on_its_way) in &entry.outstanding {
                *outstanding.entry(on_its_way.class).or_default() += 1;
                *running.entry(on_its_way.class).or_default() += usize::from(entry.running.contains_key(task));
            }
        }
        let of = |counts: &BTreeMap<Class, usize>, class| counts.get(&class).copied().unwrap_or(0);
        let served = Class::ALL.into_iter().filter(|class| self.served.has(*class));
        let room_of = |class| {
            let finished = self.finished.iter().filter(|(_, of)| *of == class).count();
            (class, room(self.settings.window, of(&outstanding, class), of(&running, class), finished))
        };
        served.map(room_of).collect()
    }

    /// Classes of devices that have much more to do than the processor: what is planned now goes there, so that a few devices do
    /// not hold up a farm of many workers.
    pub(super) fn crowded(&self) -> BTreeSet<Class> {
        let (mut waiting, mut running) = (BTreeMap::<Class, usize>::new(), BTreeMap::<Class, usize>::new());
        for entry in self.jobs.values() {
            for due in &entry.due {
                let queue = entry.outstanding.get(&due.task).map_or_else(|| self.queue_of(due), |on_its_way| on_its_way.class);
                let counts = if entry.running.contains_key(&due.task) { &mut running } else { &mut waiting };
                *counts.entry(queue).or_default() += 1;
            }
        }
        let of = |counts: &BTreeMap<Class, usize>, class| counts.get(&class).copied().unwrap_or(0);
        let is_idle = of(&waiting, Class::Cpu) <= of(&running, Class::Cpu);
        let is_crowded = |class: &Class| of(&waiting, *class) > CROWD * of(&running, *class).max(1);
        Class::ALL.into_iter().filter(|class| class.is_hardware() && is_idle && is_crowded(class)).collect()
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
