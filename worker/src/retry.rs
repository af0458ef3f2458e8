//! Trying again what may pass the next time, with growing pauses.

use std::time::Duration;

use farm::storage::StorageError;
use tokio::time::Instant;

/// First pause; each is twice as long as the one before.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// Longest pause that nobody asked for.
const PAUSE_LONGEST: Duration = Duration::from_secs(15);
/// Tries of the impatient.
const SHORT_TRIES: u32 = 4;
/// Longest pause that somebody else may ask of the impatient.
const SHORT_ASKED_MAX: Duration = Duration::from_secs(30);
/// How long after the first failure the patient begin their last try: a server that is restarted, a load balancer that moves.
const LONG_WAIT: Duration = Duration::from_secs(120);

/// How long to wait for what may come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Four tries: nothing is lost yet, or nothing is known to be there.
    Short,
    /// Two minutes of tries: it was there before, and giving up costs the work of an attempt.
    Long,
}

impl Patience {
    /// The pause after so many failures in a row (from 1), the first of them so long ago. `None` when patience is at its end.
    fn pause(self, failures: u32, since_first: Duration, asked: Duration) -> Option<Duration> {
        let doubled = PAUSE_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_LONGEST);
        match self {
            Self::Short => (failures < SHORT_TRIES).then(|| doubled.max(asked.min(SHORT_ASKED_MAX))),
            Self::Long => {
                let left = LONG_WAIT.saturating_sub(since_first);
                (!left.is_zero()).then(|| doubled.max(asked).min(left))
            }
        }
    }
}

/// What there is to hope for after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hope {
    /// Nothing: it will be the same the next time.
    None,
    /// It may pass the next time.
    Soon,
    /// As [`Hope::Soon`], but not before so long.
    After(Duration),
}

/// Does `work` until it succeeds, fails for good, or has failed four times.
///
/// # Errors
/// The last one.
pub(crate) async fn patiently<T, E, W: Future<Output = Result<T, E>>>(
    may_pass: impl Fn(&E) -> bool,
    work: impl FnMut() -> W,
) -> Result<T, E> {
    hopefully(Patience::Short, |error| if may_pass(error) { Hope::Soon } else { Hope::None }, work).await
}

/// Does `work` until it succeeds, fails for good, or patience is at its end. Pauses are longer where that is asked for.
///
/// # Errors
/// The last one.
pub(crate) async fn hopefully<T, E, W: Future<Output = Result<T, E>>>(
    patience: Patience,
    hope: impl Fn(&E) -> Hope,
    mut work: impl FnMut() -> W,
) -> Result<T, E> {
    let (mut failures, mut first_failure) = (0, None);
    loop {
        let error = match work().await {
            Err(error) => error,
            done => return done,
        };
        failures += 1;
        let since_first = first_failure.get_or_insert_with(Instant::now).elapsed();
        let pause = match hope(&error) {
            Hope::None => None,
            Hope::Soon => patience.pause(failures, since_first, Duration::ZERO),
            Hope::After(asked) => patience.pause(failures, since_first, asked),
        };
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(error),
        }
    }
}

/// Whether a storage operation may pass the next time. All of ours can be repeated: no object is written twice with
/// different content.
pub(crate) fn storage_may_pass(error: &StorageError) -> bool {
    matches!(error, StorageError::Unavailable { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_gives_up_after_four_tries_and_at_once_when_there_is_no_hope() {
        for (failures, tries, passes) in [(0, 1, true), (3, 4, true), (9, 4, false)] {
            let mut count = 0;
            let done = patiently(
                |_: &u32| true,
                || {
                    count += 1;
                    std::future::ready(if count > failures { Ok(()) } else { Err(count) })
                },
            );
            assert_eq!(done.await.is_ok(), passes);
            assert_eq!(count, tries);
        }
        let began = tokio::time::Instant::now();
        let refused = || std::future::ready(Err(()));
        let busy: Result<(), ()> = hopefully(Patience::Short, |()| Hope::After(Duration::from_secs(9)), refused).await;
        assert_eq!((busy, began.elapsed().as_secs()), (Err(()), 27));
        let mut count = 0;
        let done = patiently(
            |_: &u32| false,
            || {
                count += 1;
                std::future::ready(Err::<(), _>(7))
            },
        );
        assert_eq!(done.await, Err(7));
        assert_eq!(count, 1);
    }

    /// Tries at what works again after so many seconds, and what came of them when.
    async fn outage(seconds: u64, hope: Hope) -> (Result<(), ()>, u32, u64) {
        let (began, mut tries) = (Instant::now(), 0);
        let done = hopefully(
            Patience::Long,
            |()| hope,
            || {
                tries += 1;
                std::future::ready(if began.elapsed().as_secs() >= seconds { Ok(()) } else { Err(()) })
            },
        );
        let done = done.await;
        (done, tries, began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn the_patient_bear_an_outage_of_two_minutes_and_no_longer() {
        // After 0.5, 1, 2, 4 and 8 s, then every 15 s.
        assert_eq!(outage(100, Hope::Soon).await, (Ok(()), 12, 105));
        assert_eq!(outage(119, Hope::Soon).await, (Ok(()), 13, 120));
        assert_eq!(outage(1000, Hope::Soon).await, (Err(()), 13, 120));
        assert_eq!(outage(1000, Hope::None).await, (Err(()), 1, 0));
        // Asked to, they come less often, but not too late for the last try.
        assert_eq!(outage(90, Hope::After(Duration::from_secs(40))).await, (Ok(()), 4, 120));
        assert_eq!(outage(1000, Hope::After(Duration::from_secs(3600))).await, (Err(()), 2, 120));
    }
}
