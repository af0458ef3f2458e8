//! What ends an execution from outside: its deadline, the job's cancellation, the end of the worker.

use std::time::Duration;

use farm::job::JobId;
use farm::keys;
use farm::storage::{Storage, StorageError};
use farm::{Code, Failure, Life};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often a running execution looks whether its job was cancelled.
const CANCEL_POLL: Duration = Duration::from_secs(3);
/// Longest wait for storage to say whether a job was cancelled.
const CANCEL_ANSWER: Duration = Duration::from_secs(10);

/// Ends work from outside.
pub(crate) struct Guard {
    kill: CancellationToken,
    limit: Duration,
    deadline: Instant,
    job: Option<(Storage, JobId, Life)>,
}

impl Guard {
    /// Ends work after `limit` from now, or when `kill` is given.
    pub(crate) fn new(kill: CancellationToken, limit: Duration) -> Self {
        Self { kill, limit, deadline: Instant::now() + limit, job: None }
    }

    /// Ends it also when this life of a job is cancelled.
    pub(crate) fn of_job(self, state: Storage, job: JobId, life: Life) -> Self {
        Self { job: Some((state, job, life)), ..self }
    }

    /// The same, with so much more time.
    pub(crate) fn later_by(&self, more: Duration) -> Self {
        Self { kill: self.kill.clone(), limit: self.limit, deadline: self.deadline + more, job: self.job.clone() }
    }

    /// Does `work`, or drops it when it is ended from outside.
    ///
    /// # Errors
    /// The work's own; [`Code::Interrupted`], [`Code::Cancelled`] or [`Code::DeadlineExceeded`] when ended.
    pub(crate) async fn hold<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = self.kill.cancelled() => Err(Failure::new(Code::Interrupted, "the worker was asked to stop")),
            () = tokio::time::sleep_until(self.deadline) => {
                let message = format!("the attempt took longer than its deadline of {} s", self.limit.as_secs_f64());
                Err(Failure::new(Code::DeadlineExceeded, message))
            }
            () = self.cancelled() => Err(Failure::new(Code::Cancelled, "the job was cancelled")),
            done = work => done,
        }
    }

    async fn cancelled(&self) {
        let Some((state, job, life)) = &self.job else { return std::future::pending().await };
        loop {
            tokio::time::sleep(CANCEL_POLL).await;
            match tokio::time::timeout(CANCEL_ANSWER, is_cancelled(state, job, *life)).await {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::debug!(%error, "cannot tell whether the job was cancelled"),
                Err(_) => tracing::debug!("storage does not say in time whether the job was cancelled"),
            }
        }
    }
}

/// Whether a life of a job was cancelled.
///
/// # Errors
/// When storage does not say.
pub(crate) async fn is_cancelled(state: &Storage, job: &JobId, life: Life) -> Result<bool, StorageError> {
    match state.get(&keys::cancel(job, life)).await {
        Ok(_) => Ok(true),
        Err(StorageError::NotFound(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How work ends that takes so long.
    async fn code(guard: &Guard, long: Duration) -> Result<(), Code> {
        let work = async {
            tokio::time::sleep(long).await;
            Ok(())
        };
        guard.hold(work).await.map_err(|failure| failure.code)
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_is_given_is_not_taken_from_the_deadline() {
        let second = Duration::from_secs(1);
        let kill = CancellationToken::new();
        let guard = Guard::new(kill.clone(), 10 * second);
        let later = guard.later_by(5 * second);
        assert_eq!(code(&guard, 11 * second).await, Err(Code::DeadlineExceeded));
        assert_eq!(code(&later, 4 * second).await, Ok(()), "a second is left of the five");
        assert_eq!(code(&later, 4 * second).await, Err(Code::DeadlineExceeded));
        kill.cancel();
        assert_eq!(code(&later.later_by(60 * second), second).await, Err(Code::Interrupted), "it ends with the other");
    }
}
