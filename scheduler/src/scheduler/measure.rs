//! What the engine shows of itself now and then: jobs by phase, tasks by kind, and how much is left to do.

use std::collections::BTreeMap;

use farm::metrics;
use farm::rate::SECOND_NS;

use super::engine::Engine;
use super::view::Phase;

impl Engine {
    /// Sets the series that show a state.
    pub(super) fn measure(&self) {
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
    }
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
