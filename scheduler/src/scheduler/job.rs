//! One job and its objects: loads what storage has, asks [`step`] what is next, and does it, until only workers can go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use farm::job::{Hardware, JobId, JobSpec};
use farm::plan::Plan;
use farm::storage::{Creation, Kind, Storage, StorageError};
use farm::task::{Marker, TaskId, Token};
use farm::{Code, Failure, Life, keys};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::again::claim_media;
use super::view::Tally;
use super::{Aftercare, PARTITION};
use crate::offers::Served;
use crate::pace::Pace;
use crate::playlist::{self, Set};
use crate::report::Report;
use crate::seal::Seal;
use crate::step::{
    Around, Document, Due, JobResult, JobState, Next, first_seal, is_environment, is_seen, lost, sealed_documents, step,
};

/// Objects fetched at a time.
const FETCHES_MAX: usize = 16;

/// Objects deleted at a time.
const DELETES_MAX: usize = 1000;

/// Epoch of the first plan.
pub(crate) const FIRST_EPOCH: u64 = 1;

/// A job in memory: a copy of what storage has.
pub(super) struct Job {
    pub(super) state: JobState,
    /// Epoch of the plan.
    pub(super) epoch: u64,
}

/// What is to be looked at in storage again.
#[derive(Clone, Debug, Default)]
pub(super) struct News {
    /// Everything.
    pub(super) everything: bool,
    /// Forget failures that lie with the environment: it may have been mended.
    pub(super) forgive: bool,
    /// Tasks that are said to be done, or of which nothing was heard.
    pub(super) tasks: BTreeSet<TaskId>,
    /// Attempts that are said to have failed. Their records may be missing where storage is what failed.
    pub(super) failed: Vec<(TaskId, u32, Failure)>,
    /// Attempts of which nothing is heard any more.
    pub(super) lost: Vec<Lost>,
}

/// An attempt that was begun, and of which nothing is heard any more.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    pub(super) task: TaskId,
    pub(super) attempt: u32,
    /// For how long, in seconds.
    pub(super) silent_s: u64,
}

impl News {
    /// Look at everything, and give the environment a new chance.
    pub(super) fn fresh_start() -> Self {
        Self { everything: true, forgive: true, ..Self::default() }
    }

    /// Whether there is nothing to look at.
    pub(super) fn is_empty(&self) -> bool {
        !self.everything && self.tasks.is_empty() && self.failed.is_empty() && self.lost.is_empty()
    }
}

/// How a job stands when nothing is left to do for it here and now.
pub(super) enum Stand {
    /// Workers have to do these.
    Due(Vec<Due>),
    /// It ended, and everything of it is in place.
    Ended(JobResult),
    /// There is no such job.
    Gone,
    /// The environment has to be mended.
    Halted(Failure),
    /// Storage did not work; trying again may help.
    Trouble(Failure),
}

/// A job after it was driven as far as it goes.
pub(super) struct Driven {
    /// The job, unless it could not be loaded.
    pub(super) job: Option<Job>,
    /// How it stands.
    pub(super) stand: Stand,
    /// How much of it is done.
    pub(super) tally: Tally,
}

/// How jobs are driven, and what their plans go by.
#[derive(Clone)]
pub(super) struct Conduct {
    pub(super) aftercare: Aftercare,
    pub(super) pace: Pace,
    pub(super) served: Served,
    pub(super) hardware: Arc<BTreeMap<String, Hardware>>,
}

impl Conduct {
    /// As in a farm without hardware of which nothing is known yet.
    #[cfg(test)]
    pub(super) fn usual(aftercare: Aftercare) -> Self {
        Self { aftercare, pace: Pace::USUAL, served: Served::NONE, hardware: Arc::default() }
    }
}

/// Drives a life of a job as far as it goes without workers.
pub(super) async fn drive(state: Storage, id: JobId, life: Life, job: Option<Job>, news: News, conduct: Conduct) -> Driven {
    let mut job = job;
    let stand = match drive_on(&state, (&id, life), &mut job, news, conduct).await {
        Ok(stand) => stand,
        Err(failure) if failure.code.may_pass_next_time() => Stand::Trouble(failure),
        Err(failure) => Stand::Halted(failure),
    };
    let tally = job.as_ref().map(|job| Tally::of(&job.state)).unwrap_or_default();
    Driven { job, stand, tally }
}

async fn drive_on(
    state: &Storage,
    (id, life): (&JobId, Life),
    slot: &mut Option<Job>,
    news: News,
    conduct: Conduct,
) -> Result<Stand, Failure> {
    let news = if slot.is_none() { News { everything: true, ..news } } else { news };
    if slot.is_none() {
        let Some(spec) = fetch_if_there::<JobSpec>(state, &keys::spec(id)).await? else {
            // A submitter stores the spec first, so nobody is about to.
            tracing::warn!(job = %id, "active without a spec: forgotten");
            state.delete(&[keys::active(PARTITION, id, life)]).await?;
            return Ok(Stand::Gone);
        };
        *slot = Some(Job { state: JobState::new(id.clone(), life, spec), epoch: FIRST_EPOCH });
    }
    let Some(job) = slot.as_mut() else { return Ok(Stand::Gone) };
    let hardware = conduct.hardware.get(&job.state.spec.tenant).copied().unwrap_or_default();
    job.state.around = Around { pace: conduct.pace, served: conduct.served, hardware };
    let mut is_fresh = news.everything;
    job.refresh(state, news).await?;
    let output = state.open_beside(&job.state.spec.output.url)?;
    loop {
        match step(&job.state) {
            next if is_seen(&next) && !is_fresh => {
                job.refresh_everything(state, false).await?;
                is_fresh = true;
            }
            Next::Run(due) => return Ok(Stand::Due(due)),
            Next::Halt(failure) => return Ok(Stand::Halted(failure)),
            Next::Clear => {
                clear(&output).await?;
                job.state.cleared = true;
            }
            Next::StorePlan(plan) => job.state.plan = Some(store_once(state, &keys::plan(id, job.epoch), *plan).await?),
            Next::StoreSeal(seal) => job.state.seal = Some(store_once(state, &keys::seal(id), seal).await?),
            Next::Open(documents) => {
                publish(&output, documents).await?;
                job.state.opened = true;
                // Whoever was held up here may have written over what came after. Then it is written once more; where the life
                // has ended otherwise, what was published goes with its end.
                job.refresh_everything(state, false).await?;
                if let Some(documents) = sealed_documents(&job.state)? {
                    publish(&output, documents).await?;
                }
            }
            Next::Publish { documents, result } => {
                publish(&output, documents).await?;
                job.state.result = Some(store_once(state, &keys::result(id, life), result).await?);
            }
            Next::Finish(result) => job.state.result = Some(store_once(state, &keys::result(id, life), result).await?),
            Next::Close(result) => {
                close(state, &output, &job.state, &result, conduct.aftercare).await?;
                return Ok(Stand::Ended(result));
            }
        }
    }
}

impl Job {
    /// Brings the copy up to date.
    async fn refresh(&mut self, state: &Storage, news: News) -> Result<(), Failure> {
        if news.everything {
            self.refresh_everything(state, news.forgive).await?;
        } else {
            for task in news.tasks {
                if let Some(marker) = fetch_if_there(state, &keys::done(&self.state.job, &task)).await? {
                    self.state.markers.insert(task, marker);
                    continue;
                }
                let prefix = format!("{}{task}/", keys::fail_prefix(&self.state.job, self.state.life));
                let records = state.list(&prefix).await?.into_iter().map(|entry| entry.key).collect();
                self.fetch_failures(state, records, false).await?;
            }
        }
        for (task, attempt, failure) in news.failed {
            let is_known = self.state.failures.get(&task).is_some_and(|attempts| attempts.contains_key(&attempt));
            if !is_known {
                self.record(state, task, attempt, failure).await?;
            }
        }
        for Lost { task, attempt, silent_s } in news.lost {
            if let Some(failure) = lost(&self.state, &task, attempt, silent_s) {
                tracing::warn!(job = %self.state.job, %task, attempt, "the attempt is lost and counts as failed");
                self.record(state, task, attempt, failure).await?;
            }
        }
        Ok(())
    }

    /// Notes a failed attempt of which no worker has stored a record.
    async fn record(&mut self, state: &Storage, task: TaskId, attempt: u32, failure: Failure) -> Result<(), Failure> {
        if self.state.note_failure(task.clone(), attempt, failure.clone()) {
            let key = keys::fail(&self.state.job, self.state.life, &task, attempt, &Token::random());
            let content =
                serde_json::to_vec(&failure).map_err(|error| Failure::new(Code::Internal, format!("{key}: {error}")))?;
            state.put(&key, content.into(), Kind::Json).await?;
        }
        Ok(())
    }

    /// One listing tells what there is; what never changes is fetched once.
    async fn refresh_everything(&mut self, state: &Storage, forgive: bool) -> Result<(), Failure> {
        let (id, life) = (self.state.job.clone(), self.state.life);
        let listed: Vec<String> = state.list(&keys::job_prefix(&id)).await?.into_iter().map(|entry| entry.key).collect();
        let is_listed = |key: &String| listed.contains(key);
        // Whoever began this life may have stopped in between: see the argument in `again`.
        if life != Life::FIRST && !is_listed(&keys::life(&id, life)) {
            state.put(&keys::life(&id, life), Bytes::new(), Kind::Json).await?;
        }
        let plan_prefix = format!("{}plan-", keys::job_prefix(&id));
        let epochs = listed.iter().filter_map(|key| key.strip_prefix(&plan_prefix)?.strip_suffix(".json")?.parse().ok());
        if let Some(epoch) = epochs.max().filter(|epoch| self.state.plan.is_none() || *epoch > self.epoch) {
            self.state.plan = Some(fetch::<Plan>(state, &keys::plan(&id, epoch)).await?);
            self.epoch = epoch;
        }
        let done = keys::done_prefix(&id);
        let marked = listed.iter().filter_map(|key| key.strip_prefix(&done)?.parse::<TaskId>().ok());
        let unknown: Vec<TaskId> = marked.filter(|task| !self.state.markers.contains_key(task)).collect();
        let fetched: Vec<(TaskId, Marker)> = futures::stream::iter(unknown)
            .map(|task| {
                let key = keys::done(&id, &task);
                async move { Ok::<_, Failure>((task, fetch(state, &key).await?)) }
            })
            .buffered(FETCHES_MAX)
            .try_collect()
            .await?;
        self.state.markers.extend(fetched);
        let records = listed.iter().filter(|key| key.starts_with(&keys::fail_prefix(&id, life))).cloned().collect();
        self.state.failures.clear();
        self.fetch_failures(state, records, forgive).await?;
        self.state.cancelled = is_listed(&keys::cancel(&id, life));
        if self.state.seal.is_none() && is_listed(&keys::seal(&id)) {
            self.state.seal = Some(fetch::<Seal>(state, &keys::seal(&id)).await?);
        }
        if self.state.result.is_none() && is_listed(&keys::result(&id, life)) {
            self.state.result = Some(fetch::<JobResult>(state, &keys::result(&id, life)).await?);
        }
        Ok(())
    }

    /// Fetches failure records, `jobs/{job}/fail/{life}/{task}/{attempt}-{token}`. With `forgive`, those that lie with the
    /// environment are deleted instead.
    async fn fetch_failures(&mut self, state: &Storage, records: Vec<String>, forgive: bool) -> Result<(), Failure> {
        let prefix = keys::fail_prefix(&self.state.job, self.state.life);
        let mut forgiven = Vec::new();
        for key in records {
            let parsed = key.strip_prefix(&prefix).and_then(|rest| {
                let (task, execution) = rest.split_once('/')?;
                let (attempt, _token) = execution.split_once('-')?;
                Some((task.parse::<TaskId>().ok()?, attempt.parse::<u32>().ok()?))
            });
            let Some((task, attempt)) = parsed else { continue };
            let Some(failure) = fetch_if_there::<Failure>(state, &key).await? else { continue };
            if forgive && is_environment(failure.code) {
                forgiven.push(key);
            } else {
                self.state.note_failure(task, attempt, failure);
            }
        }
        Ok(state.delete(&forgiven).await?)
    }
}

/// Takes away playlists and report of an earlier job, the multivariant playlist first: without it, nothing looks finished.
async fn clear(output: &Storage) -> Result<(), Failure> {
    delete_masters(output).await?;
    delete_where(output, is_document).await
}

async fn delete_masters(output: &Storage) -> Result<(), Failure> {
    Ok(output.delete(&[keys::MASTER, keys::FILES_MASTER].map(str::to_owned)).await?)
}

async fn publish(output: &Storage, documents: Vec<Document>) -> Result<(), Failure> {
    for document in documents {
        output.put(&document.key, Bytes::from(document.content), document.kind).await?;
    }
    Ok(())
}

/// Takes away what does not belong to the result, has the end told, and takes the job from the active ones.
async fn close(
    state: &Storage,
    output: &Storage,
    job: &JobState,
    result: &JobResult,
    aftercare: Aftercare,
) -> Result<(), Failure> {
    let (at_once, id, life) = (aftercare == Aftercare::AtOnce, &job.job, job.life);
    match result {
        JobResult::Done(_) if at_once => keep_only_sealed(state, output, job).await?,
        JobResult::Done(_) => delete_all(output, superfluous(state, job).await?).await?,
        JobResult::Failed { .. } | JobResult::Cancelled => {
            // Tells workers that are still at it to stop. The result is stored, so it cannot turn it into a cancelled job.
            state.put(&keys::cancel(id, life), Bytes::new(), Kind::Json).await?;
            // Without a plan nothing of this job was ever written. A failed job keeps its media to be taken up again, and
            // published nothing.
            let goes = job.plan.is_some() && (at_once || *result == JobResult::Cancelled);
            if goes && claim_media(state, id, life).await? {
                take_back(output, job, at_once).await?;
            } else {
                take_back_first(output, job).await?;
            }
        }
    }
    if !at_once {
        announce(state, job, result).await?;
    }
    Ok(state.delete(&[keys::active(PARTITION, id, life)]).await?)
}

/// Takes away what a job without a result has written. Where the place is not its own (`alone`), only what is surely this
/// job's: another may be at work there, or have its result there.
async fn take_back(output: &Storage, job: &JobState, alone: bool) -> Result<(), Failure> {
    if alone {
        delete_masters(output).await?;
        return delete_where(output, |key| is_document(key) || keys::token_in(key).is_some()).await;
    }
    if let Some(seal) = &job.seal
        && is_published(output, seal).await?
    {
        clear(output).await?;
    }
    take_back_first(output, job).await?;
    let tokens: BTreeSet<String> = job.markers.values().map(|marker| marker.token.to_string()).collect();
    delete_where(output, |key| keys::token_in(key).is_some_and(|token| tokens.contains(token))).await
}

/// Takes away what was published of a job before the rest. Who is late with it writes only some of it: what is not there is
/// nobody else's.
async fn take_back_first(output: &Storage, job: &JobState) -> Result<(), Failure> {
    let Some(Ok((_, first))) = job.plan.as_ref().and_then(|plan| first_seal(job, plan)) else { return Ok(()) };
    for (key, ours) in published_playlists(&first) {
        match output.get(&key).await {
            Ok(there) if there == ours.as_bytes() => {}
            Err(StorageError::NotFound(_)) if key != keys::MASTER => {}
            Ok(_) | Err(StorageError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    clear(output).await
}

/// Whether the result at an output is that of this seal. The multivariant playlist of another job may read the same; media
/// playlists name executions, and so does the report where there are none.
pub(crate) async fn is_published(output: &Storage, seal: &Seal) -> Result<bool, Failure> {
    let playlists = published_playlists(seal);
    if playlists.is_empty() {
        let made = seal.stills.clone().unwrap_or_default();
        return Ok(published_report(output).await?.is_some_and(|report| report.is_of(&made)));
    }
    for (key, ours) in playlists {
        match output.get(&key).await {
            Ok(there) if there == ours.as_bytes() => {}
            Ok(_) | Err(StorageError::NotFound(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Whether there is a whole result at an output, of whatever job.
pub(crate) async fn has_result(output: &Storage) -> Result<bool, Failure> {
    let has_playlists = is_there(output, keys::MASTER).await?;
    Ok(has_playlists || published_report(output).await?.is_some_and(|report| report.is_of_stills_alone()))
}

/// The report at an output, if there is one that can be understood.
async fn published_report(output: &Storage) -> Result<Option<Report>, Failure> {
    match output.get(keys::REPORT).await {
        Ok(there) => Ok(serde_json::from_slice(&there).ok()),
        Err(StorageError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The playlists of picture and sound as they are published, by key, the multivariant ones first.
pub(super) fn published_playlists(seal: &Seal) -> Vec<(String, String)> {
    let sets = Set::all(seal);
    let masters = sets.iter().map(|set| (set.names.master().to_owned(), playlist::multivariant(set)));
    let media = sets.iter().flat_map(|set| set.renditions.iter().map(|made| (set.names, made)));
    masters.chain(media.map(|(names, made)| (names.media(&made.id), playlist::media(made)))).collect()
}

/// What is told of the end of a job.
pub(crate) fn told(id: &JobId, spec: &JobSpec, result: &JobResult) -> Result<Bytes, Failure> {
    let content = serde_json::to_vec(&result.ended(id, spec)).map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
    Ok(content.into())
}

/// Puts a life that has ended on the list of those, and has its end told unless that was done already.
async fn announce(state: &Storage, job: &JobState, result: &JobResult) -> Result<(), Failure> {
    let (id, life) = (&job.job, job.life);
    let content = told(id, &job.spec, result)?;
    state.put(&keys::ended(PARTITION, &job.spec.tenant, id, life), content.clone(), Kind::Json).await?;
    if !is_there(state, &keys::told(id, life)).await? {
        state.put(&keys::outbox(PARTITION, id, life), content, Kind::Json).await?;
    }
    Ok(())
}

/// What the markers of a finished job name and its seal does not: init segments that are equal, and parts that were joined.
/// They are this job's own and in no result, so they need not wait for the janitor.
async fn superfluous(state: &Storage, job: &JobState) -> Result<Vec<String>, Failure> {
    let stored: Seal = fetch(state, &keys::seal(&job.job)).await?;
    if job.seal.as_ref() != Some(&stored) {
        return Ok(Vec::new());
    }
    let sealed: BTreeSet<&str> = stored.keys().collect();
    let keys = job.markers.values().flat_map(|marker| marker.outcome.objects()).map(|object| object.key.as_str());
    Ok(keys.filter(|key| !sealed.contains(key)).map(str::to_owned).collect())
}

/// Deletes media that the seal does not name: of attempts that failed or came too late, of earlier jobs, parts that were
/// joined.
async fn keep_only_sealed(state: &Storage, output: &Storage, job: &JobState) -> Result<(), Failure> {
    let stored: Seal = fetch(state, &keys::seal(&job.job)).await?;
    if job.seal.as_ref() != Some(&stored) {
        // Another scheduler sealed at the same time, on a storage without conditional writes. Both results are complete,
        // and it is not known whose playlists are there: garbage is better than damage.
        tracing::warn!(job = %job.job, "sealed twice: nothing is deleted");
        return Ok(());
    }
    let sealed: BTreeSet<&str> = stored.keys().collect();
    delete_where(output, |key| keys::token_in(key).is_some() && !sealed.contains(key)).await
}

async fn delete_where(output: &Storage, is_unwanted: impl Fn(&str) -> bool) -> Result<(), Failure> {
    let unwanted: Vec<String> =
        output.list("").await?.into_iter().map(|entry| entry.key).filter(|key| is_unwanted(key)).collect();
    delete_all(output, unwanted).await
}

/// Deletes these, some at a time.
pub(crate) async fn delete_all(storage: &Storage, keys: Vec<String>) -> Result<(), Failure> {
    for some in keys.chunks(DELETES_MAX) {
        storage.delete(some).await?;
    }
    Ok(())
}

/// Whether an output key is one that [`Next::Publish`] writes.
fn is_document(key: &str) -> bool {
    let is_playlist = |end: &str| key.strip_suffix(end).is_some_and(keys::is_rendition);
    [keys::MASTER, keys::FILES_MASTER, keys::REPORT, keys::STORYBOARD].contains(&key)
        || ["/index.m3u8", "/i-frames.m3u8", "/single-file.m3u8", "/single-file-i-frames.m3u8"].into_iter().any(is_playlist)
}

/// Stores what is decided once; what another scheduler decided before counts instead.
async fn store_once<T: Serialize + DeserializeOwned>(state: &Storage, key: &str, decided: T) -> Result<T, Failure> {
    let content = serde_json::to_vec(&decided).map_err(|error| Failure::new(Code::Internal, format!("{key}: {error}")))?;
    match state.put_new(key, content.into(), Kind::Json).await? {
        Creation::Created => Ok(decided),
        Creation::Existed => fetch(state, key).await,
    }
}

/// A JSON object of the state.
pub(crate) async fn fetch<T: DeserializeOwned>(state: &Storage, key: &str) -> Result<T, Failure> {
    let content = state.get(key).await?;
    serde_json::from_slice(&content).map_err(|error| Failure::new(Code::Internal, format!("{key} cannot be understood: {error}")))
}

/// Whether an object is there.
pub(crate) async fn is_there(state: &Storage, key: &str) -> Result<bool, Failure> {
    match state.get(key).await {
        Ok(_) => Ok(true),
        Err(StorageError::NotFound(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// As [`fetch`], or `None` when it is not there.
pub(crate) async fn fetch_if_there<T: DeserializeOwned>(state: &Storage, key: &str) -> Result<Option<T>, Failure> {
    match state.get(key).await {
        Err(StorageError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
        Ok(content) => {
            let unreadable = |error| Failure::new(Code::Internal, format!("{key} cannot be understood: {error}"));
            serde_json::from_slice(&content).map(Some).map_err(unreadable)
        }
    }
}
