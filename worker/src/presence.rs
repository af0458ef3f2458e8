//! Tells the farm that this worker is there, and what it is at.

use std::sync::Arc;
use std::time::Duration;

use farm::presence::{Duty, Presence};
use farm::task::Word;
use tokio::time::{sleep, timeout};

use crate::tally::Tally;
use crate::task::Farm;

/// Time between two words when nothing changes: who begins to listen learns of it.
const PAUSE: Duration = Duration::from_secs(10);
/// Shortest time between two words, however much changes.
const PAUSE_SHORTEST: Duration = Duration::from_secs(1);

/// Tells it at once, when something changes, and again and again, until it is dropped. The worker does so many tasks at a time.
pub(crate) async fn tell(farm: Arc<Farm>, tally: Arc<Tally>, slots: usize) {
    let (mut busy, mut devices) = (tally.busy(), farm.keeper.changes());
    loop {
        devices.mark_unchanged();
        let running = *busy.borrow_and_update();
        let duty = if farm.stop.is_cancelled() { Duty::Draining } else { Duty::Taking };
        farm.broker.tell(Word::Here(Presence {
            worker: farm.keeper.name().clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slots: number(slots),
            running: number(running),
            duty,
            devices: farm.keeper.working(),
            speed: farm.speed(),
        }));
        sleep(PAUSE_SHORTEST).await;
        let changed = async {
            // Neither sender ends before this does.
            tokio::select! {
                _ = busy.changed() => {}
                _ = devices.changed() => {}
                () = farm.stop.cancelled(), if duty == Duty::Taking => {}
            }
        };
        // That nothing changes is as good a reason to tell it again.
        let _ = timeout(PAUSE.saturating_sub(PAUSE_SHORTEST), changed).await;
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
