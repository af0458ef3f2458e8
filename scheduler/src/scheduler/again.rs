//! A failed job taken up again: what is done stays done.
//!
//! Whoever acts may act on an old copy: a scheduler that was paused or cut off, a request that storage carries out late. Storage
//! has no conditional writes to fence them with, so they are fenced by names. A job has *lives*, numbered from 1; its current
//! one is the highest under `lives/`. What a life says of itself (failures, cancellation, result, whether its end was told, its
//! place among active and ended jobs) stands under its number, and everything that is written there is written again without
//! harm. So whoever drives an old life only repeats what was said of that one. What was made (plan, markers, seal, playlists)
//! is a function of spec and markers, the same for every life.
//!
//! **A job is never lost.** [`retry`] of life *n*, whose stored result is a failure, writes `active/…/n+1` first and
//! `lives/n+1` second. Stopped before the first, the job has still failed, and can be taken up again. Stopped between the
//! two, life *n+1* is active: any scheduler finds it and writes `lives/n+1` itself before it does anything else. Stopped later,
//! only leftovers remain, which nobody goes by: ended lives that are not the last, and sweeps of them. An active life leaves
//! the list only after its result is stored. Two who retry at once begin the same life; one who is late finds its result there,
//! and has it closed once more.
//!
//! **Every end is told once.** An end is put in the outbox under its life unless `told-n` is there; whoever tells it writes
//! `told-n` before taking it out, and tells nothing for which that is there. A life that comes after changes neither.
//!
//! **Media is deleted only when no later life can want it.** Who deletes media of a job without a result, janitor,
//! [`close`](super::job) or [`delete_output`](super::delete_output), claims it first ([`claim_media`]). Both sides raise a flag of their own and then look for
//! those of the other: retry raises `retrying/n/…`, looks for `given-up/n/…`, begins the life, and takes its flag down last. Who
//! claims raises `given-up/n/…`, and then looks, in this order, for `retrying/n/…`, for active lives after *n*, and for
//! lives after *n*. If neither saw the other, each had looked before the other raised its flag, which cannot be; and a flag that
//! is down again has left an active life behind, and that one a life. If each saw the other, both draw back.
//! A retry that was cut off leaves its flag up; it is taken for dead after [`RETRY_TIME_MAX`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use farm::broker::Broker;
use farm::job::{JobId, JobSpec};
use farm::storage::{Entry, Kind, Storage};
use farm::task::Token;
use farm::{Code, Failure, Life, keys};

use super::job::{fetch_if_there, is_there, told};
use super::{PARTITION, ring};
use crate::step::JobResult;

/// Longest that taking up a job again can take: much longer than a request may last.
const RETRY_TIME_MAX: Duration = Duration::from_secs(3600);

/// The current life of a job: the last that has begun.
///
/// # Errors
/// Storage's.
pub(crate) async fn current_life(state: &Storage, job: &JobId) -> Result<Life, Failure> {
    let listed = state.list(&keys::lives_prefix(job)).await?;
    Ok(lives(&listed).max().unwrap_or(Life::FIRST))
}

/// How the current life of a job ended, if it has.
///
/// # Errors
/// Storage's.
pub(crate) async fn current_result(state: &Storage, job: &JobId) -> Result<Option<JobResult>, Failure> {
    fetch_if_there(state, &keys::result(job, current_life(state, job).await?)).await
}

/// Whether the current life of a job is not closed yet.
///
/// # Errors
/// Storage's.
pub(crate) async fn is_active(state: &Storage, job: &JobId) -> Result<bool, Failure> {
    is_there(state, &keys::active(PARTITION, job, current_life(state, job).await?)).await
}

/// The lives that the keys of a listing end with.
fn lives(listed: &[Entry]) -> impl Iterator<Item = Life> {
    listed.iter().filter_map(|entry| entry.key.rsplit('/').next()?.parse().ok())
}

/// Takes a failed job up again. Its markers stay valid: only what is missing is done.
///
/// # Errors
/// [`Code::InvalidRequest`] when there is no such job, when it has not failed, when it is still being closed, or when its
/// media is gone; storage's errors, after which it can be asked for again.
pub async fn retry(state: &Storage, broker: &Broker, job: &JobId) -> Result<(), Failure> {
    let refuse = |why: &str| Err(Failure::new(Code::InvalidRequest, format!("job {job} {why}")));
    let Some(spec) = fetch_if_there::<JobSpec>(state, &keys::spec(job)).await? else {
        return Err(Failure::new(Code::InvalidRequest, format!("there is no job {job}")));
    };
    let life = current_life(state, job).await?;
    match fetch_if_there::<JobResult>(state, &keys::result(job, life)).await? {
        Some(JobResult::Failed { .. }) if is_there(state, &keys::active(PARTITION, job, life)).await? => {
            return refuse("is still being closed: try again in a moment");
        }
        Some(JobResult::Failed { .. }) => {}
        None => return refuse("has not ended"),
        Some(JobResult::Done(_)) => return refuse("is done: there is nothing to try again"),
        Some(JobResult::Cancelled) => return refuse("was cancelled: submit it under another id"),
    }
    let flag = keys::retrying(job, life, &Token::random());
    state.put(&flag, Bytes::new(), Kind::Json).await?;
    if !state.list(&keys::given_up_prefix(job, life)).await?.is_empty() {
        state.delete(&[flag]).await?;
        return refuse("cannot be taken up again, its media is gone: submit it under another id");
    }
    let next = life.next();
    state.put(&keys::active(PARTITION, job, next), Bytes::new(), Kind::Json).await?;
    state.put(&keys::life(job, next), Bytes::new(), Kind::Json).await?;
    state.delete(&[flag, keys::ended(PARTITION, &spec.tenant, job, life), keys::sweep(PARTITION, job, life)]).await?;
    ring(broker, job).await;
    Ok(())
}

/// Claims the media of a job that ended with this life, for deletion: from then on it cannot be taken up again. Whether it was
/// claimed; if not, it is being taken up again, or was.
///
/// # Errors
/// Storage's.
pub(crate) async fn claim_media(state: &Storage, job: &JobId, life: Life) -> Result<bool, Failure> {
    let flag = keys::given_up(job, life, &Token::random());
    state.put(&flag, Bytes::new(), Kind::Json).await?;
    if is_wanted(state, job, life).await? {
        state.delete(&[flag]).await?;
        return Ok(false);
    }
    Ok(true)
}

/// Whether somebody takes a job up again after this life, or has.
async fn is_wanted(state: &Storage, job: &JobId, life: Life) -> Result<bool, Failure> {
    let is_alive = |flag: &Entry| {
        let raised = UNIX_EPOCH + Duration::from_millis(flag.modified_ms);
        SystemTime::now().duration_since(raised).unwrap_or_default() < RETRY_TIME_MAX
    };
    if state.list(&keys::retrying_prefix(job, life)).await?.iter().any(is_alive) {
        return Ok(true);
    }
    let active = state.list(&keys::active_of(PARTITION, job)).await?;
    Ok(lives(&active).any(|other| other > life) || current_life(state, job).await? > life)
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

#[cfg(test)]
mod tests;
