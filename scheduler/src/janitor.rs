//! Cleans up after jobs, a while after they have ended, and forgets them when they are old.
//!
//! It deletes nothing that a result names, but for those of which somebody has asked that. Whatever else may be under the same
//! output prefix, of a job that came later, is left to that job's own clean-up.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use farm::job::{JobId, JobSpec};
use farm::storage::{Entry, Storage};
use farm::task::Marker;
use farm::{Failure, Life, keys, metrics};

use crate::scheduler::{
    PARTITION, Watch, claim_media, current_life, delete_all, fetch, fetch_if_there, has_result, is_deleted, is_published,
    is_there, take_away,
};
use crate::seal::Seal;
use crate::step::JobResult;

/// What the janitor waits for.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// From the end of a job until what does not belong to its result is deleted, and a failed one cannot be retried any more.
    pub grace: Duration,
    /// From the end of a job until its state is deleted; never, when there is none. The result is kept.
    pub retention: Option<Duration>,
    /// Uploads that were begun so long ago and not finished are aborted.
    pub upload_age_max: Duration,
    /// Pause between two rounds.
    pub pause: Duration,
}

impl Default for Settings {
    /// A day of grace, states are kept, uploads may take two days, a round every 10 minutes.
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self { grace: day, retention: None, upload_age_max: 2 * day, pause: Duration::from_secs(600) }
    }
}

/// Cleans up, while this scheduler acts, until the future is dropped.
pub async fn run(settings: Settings, state: Storage, watch: Watch) {
    loop {
        if watch.is_acting()
            && let Err(failure) = round(&settings, &state).await
        {
            tracing::warn!(%failure, "the janitor will come again");
        }
        tokio::time::sleep(settings.pause).await;
    }
}

/// Cleans up after every job whose grace is over. One that cannot be cleaned up after now is left to the next round.
///
/// # Errors
/// When jobs cannot be listed.
pub async fn round(settings: &Settings, state: &Storage) -> Result<(), Failure> {
    let prefix = keys::sweep_prefix(PARTITION);
    for entry in state.list(&prefix).await? {
        let ended = entry.key.strip_prefix(&prefix).and_then(Life::in_key);
        let Some((id, life)) = ended.filter(|_| age(entry.modified_ms) >= settings.grace) else { continue };
        match sweep(settings, state, &id, life).await {
            Ok(Swept::Clean) => state.delete(&[entry.key]).await?,
            Ok(Swept::Later) => tracing::info!(job = %id, "it is looked at once more"),
            Err(failure) => tracing::warn!(job = %id, %failure, "cannot be cleaned up after now"),
        }
    }
    match settings.retention {
        Some(retention) => forget(state, retention).await,
        None => Ok(()),
    }
}

fn age(modified_ms: u64) -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_millis(modified_ms)).unwrap_or_default()
}

/// What came of cleaning up after a job.
enum Swept {
    /// Nothing is left to do.
    Clean,
    /// Not now.
    Later,
}

/// Deletes what a job that ended with this life left behind.
async fn sweep(settings: &Settings, state: &Storage, id: &JobId, life: Life) -> Result<Swept, Failure> {
    let Some(spec) = fetch_if_there::<JobSpec>(state, &keys::spec(id)).await? else { return Ok(Swept::Clean) };
    // It was taken up again, and there will be another sweep when that life has ended.
    if current_life(state, id).await? != life {
        return Ok(Swept::Clean);
    }
    let Some(result) = fetch_if_there::<JobResult>(state, &keys::result(id, life)).await? else { return Ok(Swept::Later) };
    let output = state.open_beside(&spec.output.url)?;
    let is_asked_for = is_deleted(state, id).await?;
    let unwanted = match result {
        // What stands there beside it may be of a job that goes on.
        _ if is_asked_for => Vec::new(),
        JobResult::Done(_) => beside_the_result(state, &output, id).await?,
        JobResult::Failed { .. } | JobResult::Cancelled if !claim_media(state, id, life).await? => return Ok(Swept::Later),
        JobResult::Failed { .. } | JobResult::Cancelled => of_no_result(state, &output, id, life).await?,
    };
    if is_asked_for {
        // What whoever asked had no time for, or what came late.
        metrics::scheduler().janitor_deleted.inc_by(take_away(state, &output, id).await? as u64);
    }
    if !unwanted.is_empty() {
        tracing::info!(job = %id, objects = unwanted.len(), "left-over media is deleted");
        metrics::scheduler().janitor_deleted.inc_by(unwanted.len() as u64);
    }
    delete_all(&output, unwanted).await?;
    // There is one round for each job: what is old enough then.
    let aborted = output.abort_stale_uploads(settings.upload_age_max.min(settings.grace.max(Duration::from_secs(3600)))).await?;
    if aborted > 0 {
        tracing::info!(job = %id, aborted, "uploads that nobody finished are aborted");
    }
    // Asked for meanwhile, it is to be looked at once more.
    if !is_asked_for && is_deleted(state, id).await? {
        return Ok(Swept::Later);
    }
    Ok(Swept::Clean)
}

/// Media that the seal does not name, if the result there is this job's. The listing comes first: a later job takes the
/// multivariant playlist away before it writes any media, so what is listed here is not of a later job.
async fn beside_the_result(state: &Storage, output: &Storage, id: &JobId) -> Result<Vec<String>, Failure> {
    let listed = output.list("").await?;
    let seal: Seal = fetch(state, &keys::seal(id)).await?;
    if !is_published(output, &seal).await? {
        tracing::info!(job = %id, "another result is in its place: nothing is deleted");
        return Ok(Vec::new());
    }
    let sealed: BTreeSet<&str> = seal.keys().collect();
    let keys = listed.into_iter().map(|entry| entry.key);
    Ok(keys.filter(|key| keys::token_in(key).is_some() && !sealed.contains(key.as_str())).collect())
}

/// Media of a job that ended without a result: what its markers name, and what was there when it ended; if no other job has
/// put a result in its place.
async fn of_no_result(state: &Storage, output: &Storage, id: &JobId, life: Life) -> Result<Vec<String>, Failure> {
    let listed = output.list("").await?;
    if has_result(output).await? {
        return Ok(Vec::new());
    }
    let result = keys::result(id, life);
    let about = state.list(&keys::job_prefix(id)).await?.into_iter().find(|entry| entry.key == result);
    let Some(ended_ms) = about.map(|entry| entry.modified_ms) else { return Ok(Vec::new()) };
    let mut tokens = BTreeSet::new();
    for entry in state.list(&keys::done_prefix(id)).await? {
        tokens.extend(fetch_if_there::<Marker>(state, &entry.key).await?.map(|marker| marker.token.to_string()));
    }
    let is_left =
        |entry: &Entry| keys::token_in(&entry.key).is_some_and(|token| entry.modified_ms <= ended_ms || tokens.contains(token));
    Ok(listed.into_iter().filter(is_left).map(|entry| entry.key).collect())
}

/// Deletes the state of jobs that ended long ago.
async fn forget(state: &Storage, retention: Duration) -> Result<(), Failure> {
    for entry in state.list(&keys::ended_prefix(PARTITION)).await? {
        // The tenant's hash stands before.
        let ended = entry.key.strip_prefix(&keys::ended_prefix(PARTITION)).and_then(|rest| rest.split_once('/'));
        let ended = ended.and_then(|(_, tail)| Life::in_key(tail));
        let Some((id, life)) = ended.filter(|_| age(entry.modified_ms) >= retention) else { continue };
        if current_life(state, &id).await? > life {
            // Another life has begun since: this one is in no list any more.
            state.delete(&[entry.key]).await?;
            continue;
        }
        let untold = state.list(&keys::outbox_of(PARTITION, &id)).await?;
        let active = state.list(&keys::active_of(PARTITION, &id)).await?;
        if !untold.is_empty() || !active.is_empty() || is_there(state, &keys::sweep(PARTITION, &id, life)).await? {
            continue;
        }
        // From then on it is in no list; what a crash leaves of it takes room and does no harm.
        state.delete(&[entry.key]).await?;
        let keys = state.list(&keys::job_prefix(&id)).await?.into_iter().map(|entry| entry.key).collect();
        delete_all(state, keys).await?;
        tracing::info!(job = %id, "forgotten");
    }
    Ok(())
}
