//! When a worker ends by itself: after so many tasks, or after so long without one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use farm::{Class, metrics};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// When a worker takes no more tasks by itself: never, unless something is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// When it has settled so many, done or not. What other slots are at then still comes to its end.
    pub tasks: Option<u32>,
    /// When no slot had one for so long.
    pub idle: Option<Duration>,
}

/// How often is looked whether tasks could come.
const LOOK: Duration = Duration::from_secs(5);

/// What the slots of a worker are at, as far as it matters for that.
pub(crate) struct Tally {
    ends: Ends,
    settled: AtomicU32,
    busy: watch::Sender<usize>,
    stop: CancellationToken,
}

impl Tally {
    /// Of a worker that has done nothing yet. `stop` is given when it is to take no more.
    pub(crate) fn new(ends: Ends, stop: CancellationToken) -> Self {
        Self { ends, settled: AtomicU32::new(0), busy: watch::Sender::new(0), stop }
    }

    /// A slot for tasks of this class has one, until what is returned is dropped.
    pub(crate) fn begin(&self, class: Class) -> Busy<'_> {
        show(class, 1);
        self.busy.send_modify(|busy| *busy += 1);
        Busy { tally: self, class }
    }

    /// How many slots have a task.
    pub(crate) fn busy(&self) -> watch::Receiver<usize> {
        self.busy.subscribe()
    }

    /// A task was settled.
    pub(crate) fn note_settled(&self) {
        let settled = self.settled.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if self.ends.tasks.is_some_and(|tasks| settled >= tasks) && !self.stop.is_cancelled() {
            tracing::info!(settled, "as many tasks as were to be done");
            self.stop.cancel();
        }
    }

    /// Looks after the time without a task, until no more are taken. Where none can come, since the broker is away, it does not
    /// count.
    pub(crate) async fn watch(&self, is_connected: impl Fn() -> bool) {
        let Some(idle) = self.ends.idle else { return };
        let mut busy = self.busy.subscribe();
        let mut since = Instant::now();
        loop {
            let now = Instant::now();
            if *busy.borrow_and_update() > 0 || !is_connected() {
                since = now;
            } else if since + idle <= now {
                tracing::info!(seconds = idle.as_secs(), "no task for long enough");
                self.stop.cancel();
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                // A task that came and went meanwhile is one all the same. The sender is here, so this is never an error.
                _ = busy.changed() => since = Instant::now(),
                () = sleep_until((since + idle).min(now + LOOK)) => {}
            }
        }
    }
}

/// A slot that has a task.
pub(crate) struct Busy<'a> {
    tally: &'a Tally,
    class: Class,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        show(self.class, -1);
        self.tally.busy.send_modify(|busy| *busy = busy.saturating_sub(1));
    }
}

/// Shows in numbers that so many slots more have a task.
fn show(class: Class, more: i64) {
    let series = metrics::worker();
    if class.is_hardware() {
        series.device_slots_busy.with_label_values(&[class.word()]).add(more);
    } else {
        series.slots_busy.add(more);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use tokio::time::timeout;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const IDLE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_no_slot_had_a_task_for_so_long() {
        let stop = CancellationToken::new();
        let tally = Tally::new(Ends { tasks: None, idle: Some(IDLE) }, stop.clone());
        let is_connected = AtomicBool::new(false);
        let mut watch = std::pin::pin!(tally.watch(|| is_connected.load(Ordering::Relaxed)));
        assert!(timeout(10 * IDLE, watch.as_mut()).await.is_err(), "no task can come");
        is_connected.store(true, Ordering::Relaxed);
        assert!(timeout(IDLE - LOOK - SECOND, watch.as_mut()).await.is_err());
        let (first, second) = (tally.begin(Class::Cpu), tally.begin(Class::Nvenc));
        assert!(timeout(10 * IDLE, watch.as_mut()).await.is_err(), "two slots are busy");
        drop(first);
        assert!(timeout(10 * IDLE, watch.as_mut()).await.is_err(), "one is");
        drop(second);
        assert!(timeout(IDLE - SECOND, watch.as_mut()).await.is_err(), "it counts from the last task on");
        drop(tally.begin(Class::Cpu));
        assert!(timeout(IDLE - SECOND, watch.as_mut()).await.is_err(), "however short that was");
        assert!(!stop.is_cancelled());
        timeout(2 * SECOND, watch.as_mut()).await.expect("it ends");
        assert!(stop.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_after_so_many_tasks_and_not_when_they_were_only_begun() {
        let stop = CancellationToken::new();
        let tally = Tally::new(Ends { tasks: Some(2), idle: None }, stop.clone());
        tally.watch(|| true).await;
        for _ in 0..5 {
            drop(tally.begin(Class::Cpu));
        }
        tally.note_settled();
        assert!(!stop.is_cancelled());
        tally.note_settled();
        assert!(stop.is_cancelled());
        tally.note_settled();
    }

    #[tokio::test(start_paused = true)]
    async fn it_never_ends_by_itself_unless_something_is_said_and_is_not_watched_when_it_stops() {
        let stop = CancellationToken::new();
        let tally = Tally::new(Ends::default(), stop.clone());
        for _ in 0..1000 {
            drop(tally.begin(Class::Cpu));
            tally.note_settled();
        }
        tally.watch(|| true).await;
        assert!(!stop.is_cancelled());
        let tally = Tally::new(Ends { tasks: None, idle: Some(IDLE) }, stop.clone());
        let busy = tally.begin(Class::Cpu);
        stop.cancel();
        timeout(SECOND, tally.watch(|| true)).await.expect("it does not wait for what is busy");
        drop(busy);
    }
}
