//! Time limits for others, measured in time in which this process ran.
//!
//! A worker that was stopped for a while (SIGSTOP, a frozen container) finds all its timers run out when it wakes, and its
//! children, which were stopped with it, have had no time at all. So a limit is waited for in slices: a stop uses up one.

use std::time::Duration;

const SLICES: u32 = 10;

/// Waits for `work` at most `limit` of waking time; `None` when that is over. Not exact: a stop may take a tenth of it.
pub(crate) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    for _ in 0..SLICES {
        if let Ok(done) = tokio::time::timeout(limit / SLICES, &mut work).await {
            return Some(done);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance, sleep, sleep_until};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_was_stopped_has_not_waited_meanwhile() {
        let (begin, limit, stop) = (Instant::now(), Duration::from_secs(10), Duration::from_secs(3600));
        assert_eq!(within(limit, sleep(limit * 2)).await, None);
        assert_eq!(begin.elapsed(), limit);
        let woken = Instant::now() + stop;
        let mut waiting = std::pin::pin!(within(limit, sleep_until(woken + limit / 2)));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        advance(stop).await;
        assert_eq!(waiting.await, Some(()));
        assert_eq!(within(Duration::ZERO, std::future::ready(7)).await, Some(7), "what is there needs no time");
    }
}
