//! What the service manager is told that started this process, where one asks for that: systemd with `Type=notify`.
//!
//! It asks by variables of the environment (sd_notify(3), sd_watchdog_enabled(3)). Children have neither them nor the socket.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::task::AbortOnDropHandle;

/// Shortest pause between two signs of life.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// A service whose manager is told how it is: that it lives, until this is dropped.
pub struct Attended {
    _living: Option<AbortOnDropHandle<()>>,
}

impl Attended {
    /// Says that the service is ready, and from then on that it lives, as often as is asked for. Needs a running tokio runtime
    /// with time.
    pub fn ready() -> Self {
        tell(NotifyState::Ready);
        let pause = sd_notify::watchdog_enabled().map(|within| (within / 2).max(PAUSE_MIN));
        Self { _living: pause.map(|pause| AbortOnDropHandle::new(tokio::spawn(live(pause)))) }
    }

    /// Says that the service is about to end. Its manager waits for that as if it had asked for it.
    pub fn stopping(&self) {
        tell(NotifyState::Stopping);
    }
}

/// Says again and again that the service lives. A runtime that gets to nothing any more does not get to this.
async fn live(pause: Duration) {
    loop {
        tell(NotifyState::Watchdog);
        tokio::time::sleep(pause).await;
    }
}

fn tell(state: NotifyState<'_>) {
    // Where nobody asks, nothing is said, and that is no error.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager is not told how this service is");
    }
}
