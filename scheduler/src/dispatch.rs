//! Whose turn it is: the next task among those of all jobs.
//!
//! Every tenant is owed the same amount of work, times its weight. Priority and age count only between jobs of one tenant.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use farm::job::JobId;
use farm::task::TaskId;

/// A task that could be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Who it is for.
    pub tenant: &'a str,
    /// Jobs of a tenant with a higher priority go first.
    pub priority: i32,
    /// When the job was submitted, in any unit: the lower goes first.
    pub submitted: u64,
    /// The job.
    pub job: &'a JobId,
    /// The task.
    pub task: &'a TaskId,
    /// How much work it is, in ns of media.
    pub cost_ns: u64,
}

/// How much work each tenant was given, in ns of media over its weight: start-time fair queueing (Goyal, Vin and Cheng,
/// SIGCOMM 1996).
///
/// The *turn time* is where the tenant stood who was served last. Who has tasks all the while is never behind it, since the
/// hindmost is served first; so whoever is behind it wanted nothing for a while, whether it had no job, or all its tasks were
/// with workers, or its jobs were halted. It starts anew from the turn time: being away saves nothing up, and costs nothing.
/// Between two tenants who both have tasks, what they are given differs by no more than a task of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Where each tenant stands that is ahead of the turn time; all others stand at it.
    given_ns: BTreeMap<String, u64>,
    /// The turn time.
    now_ns: u64,
    /// When each tenant was last given something, counted in tasks: between equals, who waited longest goes first.
    last_turn: BTreeMap<String, u64>,
    turn: u64,
    /// What a tenant is owed against others: 1 where nothing is said.
    weights: Arc<BTreeMap<String, u32>>,
}

impl Shares {
    /// Nothing given yet, with these weights; a tenant of weight 2 is owed twice the work of one of weight 1.
    pub fn weighted(weights: Arc<BTreeMap<String, u32>>) -> Self {
        Self { weights, ..Self::default() }
    }

    /// Notes work that was handed out to the tenant whose turn it was. Anything counts as some work.
    pub fn charge(&mut self, tenant: &str, cost_ns: u64) {
        let weight = self.weights.get(tenant).copied().unwrap_or(1).max(1);
        self.now_ns = self.given(tenant);
        let given_ns = self.now_ns.saturating_add((cost_ns / u64::from(weight)).max(1));
        self.given_ns.insert(tenant.to_owned(), given_ns);
        self.turn += 1;
        self.last_turn.insert(tenant.to_owned(), self.turn);
    }

    /// Forgets what makes no difference any more: of tenants that are not ahead of the others. On an idle farm, everything.
    pub fn tidy(&mut self, is_idle: bool) {
        if is_idle {
            *self = Self::weighted(Arc::clone(&self.weights));
        }
        let now_ns = self.now_ns;
        self.given_ns.retain(|_, given_ns| *given_ns > now_ns);
        let ahead = &self.given_ns;
        self.last_turn.retain(|tenant, _| ahead.contains_key(tenant));
    }

    /// Where a tenant stands.
    fn given(&self, tenant: &str) -> u64 {
        self.given_ns.get(tenant).copied().unwrap_or(0).max(self.now_ns)
    }
}

/// How many tasks may be on the broker's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// So many with workers and on the queue together, where the number of slots is known: twice that.
    Fixed(usize),
    /// As many on the queue as workers are known to take: those that run, or those that were done within the last second.
    Following {
        /// At least so many, so that the first worker finds something.
        least: usize,
        /// At most so many.
        most: usize,
    },
}

/// How many more tasks to hand out, when `outstanding` are on the queue or with workers, of which `running` are known to be with
/// workers, and `finished` were done within the last second.
pub fn room(window: Window, outstanding: usize, running: usize, finished: usize) -> usize {
    match window {
        Window::Fixed(most) => most.saturating_sub(outstanding),
        Window::Following { least, most } => {
            let queued = outstanding.saturating_sub(running);
            running.max(finished).clamp(least, most.max(least)).saturating_sub(queued)
        }
    }
}

/// The task whose turn it is, by its place in `candidates`: of the tenant that was given least, of its most urgent and then
/// oldest job, the one that others wait for first.
pub fn pick_next(candidates: &[Candidate<'_>], shares: &Shares) -> Option<usize> {
    candidates.iter().enumerate().min_by_key(|(_, candidate)| rank(candidate, shares)).map(|(place, _)| place)
}

/// What orders candidates. Names stand in it too, so that the same state always gives the same answer.
fn rank<'a>(candidate: &Candidate<'a>, shares: &Shares) -> impl Ord + use<'a> {
    let last_turn = shares.last_turn.get(candidate.tenant).copied().unwrap_or(0);
    let tenant = (shares.given(candidate.tenant), last_turn, candidate.tenant);
    let job = (Reverse(candidate.priority), candidate.submitted, candidate.job);
    (tenant, job, stage(candidate.task), candidate.task)
}

/// Probes open a job, what is only put together closes one, sound takes long for one task; what can be played early goes before
/// the many chunks.
fn stage(task: &TaskId) -> u8 {
    match task {
        TaskId::Probe | TaskId::ProbeOther(_) => 0,
        TaskId::Pack(_) | TaskId::Mp4(_) => 1,
        TaskId::Audio(_) => 2,
        TaskId::First(_) | TaskId::Text => 3,
        TaskId::Video(_) => 4,
        TaskId::Stills => 5,
    }
}

#[cfg(test)]
mod tests;
