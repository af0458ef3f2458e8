//! What the engine shows of itself now and then: jobs by phase, tasks by kind, how much is left to do, and how many workers that
//! calls for.

use std::collections::BTreeMap;
use std::time::Duration;

use farm::job::JobId;
use farm::presence::Duty;
use farm::rate::SECOND_NS;
use farm::task::{Outcome, TaskId};
use farm::{Class, metrics};
use tokio::time::Instant;

use super::engine::Engine;
use super::entry::{Entry, Outstanding};
use super::view::Phase;
use crate::offers::Served;
use crate::wanted::{Aim, Costs, Expected, Load, Need, Price, Wanted, spent};

/// Longest wait until all jobs that were listed were looked at once.
const LOOK_MAX: Duration = Duration::from_secs(120);

impl Engine {
    /// Sets the series that show a state.
    pub(super) fn measure(&mut self) {
        let series = metrics::scheduler();
        let mut jobs: BTreeMap<&str, i64> = metrics::PHASES.iter().map(|phase| (*phase, 0)).collect();
        let empty = || metrics::KINDS.iter().map(|kind| (*kind, 0)).collect();
        let (mut runnable, mut outstanding): (BTreeMap<&str, i64>, BTreeMap<&str, i64>) = (empty(), empty());
        let mut backlog_ns: u64 = 0;
        for entry in self.jobs.values() {
            *jobs.entry(phase_word(entry.phase.as_ref())).or_default() += 1;
            for due in &entry.due {
                let place = if entry.outstanding.contains_key(&due.task) { &mut outstanding } else { &mut runnable };
                *place.entry(metrics::kind(&due.task)).or_default() += 1;
            }
            backlog_ns = backlog_ns.saturating_add(entry.tally.left_ns());
        }
        jobs.iter().for_each(|(phase, count)| series.jobs.with_label_values(&[*phase]).set(*count));
        runnable.iter().for_each(|(kind, count)| series.tasks_runnable.with_label_values(&[*kind]).set(*count));
        outstanding.iter().for_each(|(kind, count)| series.tasks_outstanding.with_label_values(&[*kind]).set(*count));
        series.backlog_media_seconds.set(i64::try_from(backlog_ns / SECOND_NS).unwrap_or(i64::MAX));
        for duty in Duty::ALL {
            let count = i64::try_from(self.board.count_workers(duty)).unwrap_or(i64::MAX);
            series.workers.with_label_values(&[duty.word()]).set(count);
        }
        let wanted = self.wanted();
        for class in Class::ALL {
            match &wanted {
                Some(wanted) => {
                    let workers = wanted.get(&class).copied().unwrap_or(0);
                    series.wanted_workers.with_label_values(&[class.word()]).set(workers.into());
                }
                // No series rather than a wrong one, which would take workers away. That there is none is no error.
                None => drop(series.wanted_workers.remove_label_values(&[class.word()])),
            }
        }
    }

    /// How many workers of each class are wanted. Who stands by wants none, and begins anew when it acts again. Nothing while it
    /// is not known yet what there is to do.
    fn wanted(&mut self) -> Option<BTreeMap<Class, u32>> {
        if self.lead.term().is_none() {
            self.scale = Scale::new();
            return Some(BTreeMap::new());
        }
        // A job is driven before anything is known of it; where new ones come all the time, some never are.
        let is_looked_at = || self.jobs.values().all(|entry| entry.phase.is_some()) || self.scale.since.elapsed() > LOOK_MAX;
        self.scale.is_known = self.scale.is_known || self.scale.is_listed && is_looked_at();
        if !self.scale.is_known {
            return None;
        }
        let target_ns = u64::try_from(self.settings.scale_target.as_nanos()).unwrap_or(u64::MAX);
        let slots = self.settings.slots_per_worker;
        // As workers have them: half as many for devices.
        let aim = |class: Class| Aim { target_ns, slots: if class.is_cpu() { slots } else { slots.div_ceil(2) } };
        let now_ns = u64::try_from(self.scale.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.scale.jobs.retain(|id, _| self.jobs.contains_key(id));
        let mut loads = BTreeMap::<Class, Load>::new();
        for (id, entry) in &self.jobs {
            let heard = self.scale.hear(id, entry, now_ns);
            for (class, need) in self.scale.needs(entry, heard.costs, &self.served) {
                loads.entry(class).or_default().add(need, now_ns.saturating_sub(heard.at_ns), aim(class));
            }
        }
        let follow = |class: Class| {
            let load = loads.get(&class).copied().unwrap_or_default();
            (class, self.scale.wanted.entry(class).or_default().follow(&load, aim(class), now_ns))
        };
        Some(Class::ALL.into_iter().map(follow).collect())
    }
}

/// What is kept from one measure to the next, to say how many workers are wanted.
pub(super) struct Scale {
    /// When time begins.
    since: Instant,
    /// Whether the active jobs were listed.
    pub(super) is_listed: bool,
    /// Whether all of them were looked at once.
    is_known: bool,
    jobs: BTreeMap<JobId, Heard>,
    expected: Expected,
    prices: BTreeMap<Class, Price>,
    wanted: BTreeMap<Class, Wanted>,
}

/// What is kept of a job.
#[derive(Clone, Copy)]
struct Heard {
    /// When it was first heard of.
    at_ns: u64,
    /// None until it is planned.
    costs: Option<Costs>,
    /// Markers by which prices were measured.
    measured: usize,
}

impl Scale {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            is_listed: false,
            is_known: false,
            jobs: BTreeMap::new(),
            expected: Expected::USUAL,
            prices: BTreeMap::new(),
            wanted: BTreeMap::new(),
        }
    }

    /// Looks at a job, and learns from it what was not known. One that is being driven is not here: then the next time.
    fn hear(&mut self, id: &JobId, entry: &Entry, now_ns: u64) -> Heard {
        let heard = self.jobs.entry(id.clone()).or_insert(Heard { at_ns: now_ns, costs: None, measured: 0 });
        let Some(state) = entry.job.as_ref().map(|job| &job.state) else { return *heard };
        let (Some(plan), Some(probed)) = (&state.plan, state.markers.get(&TaskId::Probe)) else { return *heard };
        let Outcome::Probed { info } = &probed.outcome else { return *heard };
        let costs = *heard.costs.get_or_insert_with(|| {
            let costs = Costs::of(plan, info);
            self.expected = self.expected.planned(costs.whole_ns(price(&self.prices, Class::Cpu)));
            costs
        });
        if heard.measured != state.markers.len() {
            heard.measured = state.markers.len();
            for (class, (wall_ms, pixels)) in spent(plan, &costs, &state.markers) {
                let measured = price(&self.prices, class).measured(wall_ms, pixels);
                self.prices.insert(class, measured);
            }
        }
        *heard
    }

    /// What a job needs of each class; nothing while it is halted, for no worker can do anything about that.
    fn needs(&self, entry: &Entry, costs: Option<Costs>, served: &Served) -> BTreeMap<Class, Need> {
        let mut needs = BTreeMap::<Class, Need>::new();
        if matches!(entry.phase, Some(Phase::Halted(_))) {
            return needs;
        }
        let is_running = |task: &TaskId| entry.outstanding.get(task).is_some_and(Outstanding::is_begun);
        let Some(costs) = costs else {
            let running = entry.due.iter().map(|due| u64::from(is_running(&due.task))).sum();
            needs.insert(Class::Cpu, self.expected.need(running));
            return needs;
        };
        for due in &entry.due {
            let class = match entry.outstanding.get(&due.task) {
                Some(outstanding) => outstanding.class,
                None if served.has(due.class) => due.class,
                None => Class::Cpu,
            };
            let so_far_ns = entry.running.get(&due.task).copied().unwrap_or(0);
            let left_ns = entry.tally.cost_ns(&due.task).saturating_sub(so_far_ns);
            let slot_ns = costs.slot_ns(price(&self.prices, class), &due.task, left_ns);
            needs.entry(class).or_default().add(slot_ns, is_running(&due.task));
        }
        if needs.is_empty() {
            // All that was due has just been done, and what comes next is being looked for.
            needs.entry(Class::Cpu).or_default().add(0, false);
        }
        needs
    }
}

fn price(prices: &BTreeMap<Class, Price>, class: Class) -> Price {
    prices.get(&class).copied().unwrap_or(Price::usual(class))
}

fn phase_word(phase: Option<&Phase>) -> &'static str {
    match phase {
        None | Some(Phase::Waiting | Phase::Ended(_)) => "waiting",
        Some(Phase::Probing) => "probing",
        Some(Phase::Encoding) => "encoding",
        Some(Phase::Packing) => "packing",
        Some(Phase::Halted(_)) => "halted",
    }
}

#[cfg(test)]
mod tests;
