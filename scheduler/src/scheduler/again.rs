//! A failed job taken up again: what is done stays done.
//!
//! Retry and janitor may meet. Each first says what it is about to do and then looks whether the other has, so that at most
//! one of them goes on: see [`claim_media`].

use bytes::Bytes;
use farm::broker::Broker;
use farm::job::{JobId, JobSpec};
use farm::storage::{Kind, Storage, StorageError};
use farm::task::Token;
use farm::{Code, Failure, keys};

use super::job::{fetch_if_there, told};
use super::{PARTITION, ring};
use crate::step::JobResult;

/// Takes a failed job up again. Its markers stay valid: only what is missing is done. The record of its failures goes.
///
/// # Errors
/// [`Code::InvalidRequest`] when there is no such job, when it has not failed, when it is still being closed, or when its
/// media is gone; storage's errors, after which it can be asked for again.
pub async fn retry(state: &Storage, broker: &Broker, job: &JobId) -> Result<(), Failure> {
    let refuse = |why: &str| Err(Failure::new(Code::InvalidRequest, format!("job {job} {why}")));
    let Some(spec) = fetch_if_there::<JobSpec>(state, &keys::spec(job)).await? else {
        return Err(Failure::new(Code::InvalidRequest, format!("there is no job {job}")));
    };
    let was_begun = is_there(state, &keys::retrying(job)).await?;
    match fetch_if_there::<JobResult>(state, &keys::result(job)).await? {
        Some(JobResult::Failed { .. }) if is_there(state, &keys::active(PARTITION, job)).await? => {
            return refuse("is still being closed: try again in a moment");
        }
        Some(JobResult::Failed { .. }) => {}
        None if was_begun => {}
        None => return refuse("has not ended"),
        Some(JobResult::Done(_)) => return refuse("is done: there is nothing to try again"),
        Some(JobResult::Cancelled) => return refuse("was cancelled: submit it under another id"),
    }
    state.put(&keys::retrying(job), Bytes::new(), Kind::Json).await?;
    if is_there(state, &keys::given_up(job)).await? {
        state.delete(&[keys::retrying(job)]).await?;
        return refuse("failed too long ago, its media is gone: submit it under another id");
    }
    let mut gone: Vec<String> = state.list(&keys::fail_prefix(job)).await?.into_iter().map(|entry| entry.key).collect();
    gone.extend(state.list(&keys::outbox_of(PARTITION, job)).await?.into_iter().map(|entry| entry.key));
    gone.extend([keys::cancel(job), keys::notified(job), keys::sweep(PARTITION, job), keys::ended(PARTITION, &spec.tenant, job)]);
    state.delete(&gone).await?;
    // The result goes before the job is active: an active job with a result would be closed again.
    state.delete(&[keys::result(job)]).await?;
    state.put(&keys::active(PARTITION, job), Bytes::new(), Kind::Json).await?;
    state.delete(&[keys::retrying(job)]).await?;
    ring(broker, job).await;
    Ok(())
}

/// Claims the media of a failed job for deletion: from then on it cannot be taken up again. Whether it was claimed.
///
/// # Errors
/// Storage's.
pub(crate) async fn claim_media(state: &Storage, job: &JobId) -> Result<bool, Failure> {
    state.put(&keys::given_up(job), Bytes::new(), Kind::Json).await?;
    let taken_up = is_there(state, &keys::retrying(job)).await? || is_there(state, &keys::active(PARTITION, job)).await?;
    if taken_up || !is_there(state, &keys::result(job)).await? {
        state.delete(&[keys::given_up(job)]).await?;
        return Ok(false);
    }
    Ok(true)
}

/// Has the end of a job told once more on the results exchange.
///
/// # Errors
/// Storage's.
pub(crate) async fn tell_again(state: &Storage, job: &JobId, result: &JobResult) -> Result<(), Failure> {
    let Some(spec) = fetch_if_there::<JobSpec>(state, &keys::spec(job)).await? else { return Ok(()) };
    let key = keys::outbox_again(PARTITION, job, &Token::random());
    Ok(state.put(&key, told(job, &spec, result)?, Kind::Json).await?)
}

pub(crate) async fn is_there(state: &Storage, key: &str) -> Result<bool, Failure> {
    match state.get(key).await {
        Ok(_) => Ok(true),
        Err(StorageError::NotFound(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
