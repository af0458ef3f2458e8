//! Trying again what may pass the next time: a few times, with growing pauses.

use std::time::Duration;

use farm::storage::StorageError;

/// Pauses before the second, third and fourth try.
const PAUSES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
/// Longest pause that somebody else may ask for.
const ASKED_PAUSE_MAX: Duration = Duration::from_secs(30);

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
    hopefully(|error| if may_pass(error) { Hope::Soon } else { Hope::None }, work).await
}

/// As [`patiently`], with longer pauses where they are asked for.
///
/// # Errors
/// The last one.
pub(crate) async fn hopefully<T, E, W: Future<Output = Result<T, E>>>(
    hope: impl Fn(&E) -> Hope,
    mut work: impl FnMut() -> W,
) -> Result<T, E> {
    for pause in PAUSES {
        let error = match work().await {
            Err(error) => error,
            done => return done,
        };
        match hope(&error) {
            Hope::None => return Err(error),
            Hope::Soon => tokio::time::sleep(pause).await,
            Hope::After(asked) => tokio::time::sleep(asked.clamp(pause, ASKED_PAUSE_MAX)).await,
        }
    }
    work().await
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
        let busy: Result<(), ()> = hopefully(|()| Hope::After(Duration::from_secs(9)), || std::future::ready(Err(()))).await;
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
}
