//! The output of a job that has ended, deleted because somebody asks for it.
//!
//! **What is the job's** is told by names. Media stands under the tokens of executions, which no other job has: those that the
//! seal or the markers name, and those that left a record of having begun or failed. A media playlist names executions too, so
//! one that names this job's is this job's. The multivariant playlist and the report of another job may read the same: they
//! are this job's while every media playlist of its seal stands in its place, since a later job takes all of them away before it
//! makes anything. Of still pictures alone the report names the executions. All else under the prefix stays.
//!
//! **In which order**: the multivariant playlist first, so that nothing half deleted looks whole; then all that leads to media;
//! then the media playlists, which are the proof of the above; media last. So whoever is stopped in between, and asked again,
//! finds by the same rules what is left. Storage has no conditional deletes: a job that publishes to the same place at the very
//! moment in which this one's playlists are looked at and taken away may lose its own.
//!
//! **It comes to its end.** That it is deleted is noted before anything goes, and the job is left to the janitor once more, who
//! deletes what a request had no time for, or what a worker or scheduler that was late has written since. To ask twice is to have
//! it looked at twice.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use farm::job::{JobId, JobSpec};
use farm::storage::{Kind, Storage, StorageError};
use farm::task::{Marker, Token};
use farm::{Code, Failure, keys};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, sleep};

use super::PARTITION;
use super::again::{claim_media, current_life};
use super::job::{delete_all, fetch, fetch_if_there, is_published, is_there, published_playlists};
use crate::published::Published;
use crate::seal::Seal;
use crate::step::JobResult;

/// How long a job that has just ended is waited for to be closed, and how often that is looked at.
const CLOSING_MAX: Duration = Duration::from_secs(5);
const CLOSING_LOOK: Duration = Duration::from_millis(100);

/// Markers fetched at a time.
const FETCHES_MAX: usize = 16;

/// Deletes what a job that has ended has made and published. One that failed cannot be taken up again after it.
///
/// # Errors
/// [`Code::InvalidRequest`] when there is no such job, when it has not ended, is still being closed, or is being taken up again;
/// storage's errors, after which it can be asked for again.
pub async fn delete_output(state: &Storage, job: &JobId) -> Result<(), Failure> {
    let refuse = |why: &str| Err(Failure::new(Code::InvalidRequest, format!("job {job} {why}")));
    let Some(spec) = fetch_if_there::<JobSpec>(state, &keys::spec(job)).await? else {
        return Err(Failure::new(Code::InvalidRequest, format!("there is no job {job}")));
    };
    let life = current_life(state, job).await?;
    let Some(result) = fetch_if_there::<JobResult>(state, &keys::result(job, life)).await? else {
        return refuse("has not ended: cancel it, or wait until it has");
    };
    let active = keys::active(PARTITION, job, life);
    let patience = Instant::now() + CLOSING_MAX;
    while is_there(state, &active).await? {
        if Instant::now() > patience {
            return refuse("is still being closed: try again in a moment");
        }
        sleep(CLOSING_LOOK).await;
    }
    let may_go_on = matches!(result, JobResult::Failed { .. });
    if may_go_on && !is_deleted(state, job).await? && !claim_media(state, job, life).await? {
        return refuse("is being taken up again");
    }
    state.put_new(&keys::deleted(job), Bytes::new(), Kind::Json).await?;
    state.put(&keys::sweep(PARTITION, job, life), Bytes::new(), Kind::Json).await?;
    if !is_there(state, &keys::spec(job)).await? {
        // It was forgotten meanwhile, and what was noted is of nothing.
        state.delete(&[keys::deleted(job), keys::sweep(PARTITION, job, life)]).await?;
        return Err(Failure::new(Code::InvalidRequest, format!("there is no job {job}")));
    }
    let output = state.open_beside(&spec.output.url)?;
    let objects = take_away(state, &output, job).await?;
    tracing::info!(%job, objects, "its output is deleted");
    Ok(())
}

/// Whether the output of a job was deleted, or is about to be.
///
/// # Errors
/// Storage's.
pub(crate) async fn is_deleted(state: &Storage, job: &JobId) -> Result<bool, Failure> {
    is_there(state, &keys::deleted(job)).await
}

/// Takes away what is of a job that has ended, and nothing else; how many objects.
///
/// # Errors
/// Storage's.
pub(crate) async fn take_away(state: &Storage, output: &Storage, job: &JobId) -> Result<usize, Failure> {
    let seal = fetch_if_there::<Seal>(state, &keys::seal(job)).await?;
    let tokens = tokens(state, job, seal.as_ref()).await?;
    let mut objects = 0;
    if let Some(seal) = &seal {
        let Documents { masters, leading, media } = own_documents(output, seal, &tokens).await?;
        for some in [masters, leading, media] {
            objects += some.len();
            delete_all(output, some).await?;
        }
    }
    let is_own = |key: &String| keys::token_in(key).is_some_and(|token| tokens.contains(token));
    let media: Vec<String> = output.list("").await?.into_iter().map(|entry| entry.key).filter(is_own).collect();
    objects += media.len();
    delete_all(output, media).await?;
    Ok(objects)
}

/// What was written at the end of a job and still stands in its place, in the order in which it goes.
#[derive(Default)]
struct Documents {
    /// Multivariant playlists.
    masters: Vec<String>,
    /// All others that lead to media, the report last.
    leading: Vec<String>,
    /// Media playlists of picture and sound.
    media: Vec<String>,
}

async fn own_documents(output: &Storage, seal: &Seal, tokens: &BTreeSet<String>) -> Result<Documents, Failure> {
    let is_master = |key: &str| [keys::MASTER, keys::FILES_MASTER].contains(&key);
    let (mut masters, mut media, mut is_whole) = (Vec::new(), Vec::new(), true);
    for (key, ours) in published_playlists(seal) {
        if is_master(&key) {
            masters.push(key);
            continue;
        }
        match there(output, &key, &ours, tokens).await? {
            There::Ours => media.push(key),
            There::Nothing | There::Others => is_whole = false,
        }
    }
    // Of still pictures alone there are no playlists.
    let is_own = if seal.renditions.is_empty() { is_published(output, seal).await? } else { is_whole };
    if !is_own {
        return Ok(Documents { media, ..Documents::default() });
    }
    let published = Published::of(seal);
    let others = published.documents().filter(|key| !is_master(key) && !media.iter().any(|known| known == key));
    let mut leading: Vec<String> = others.map(str::to_owned).collect();
    leading.sort_by_key(|key| key == keys::REPORT);
    Ok(Documents { masters, leading, media })
}

/// What stands under a key.
enum There {
    Ours,
    Others,
    Nothing,
}

/// By what would be written there now, or by the executions that it names: another version may have written it.
async fn there(output: &Storage, key: &str, ours: &str, tokens: &BTreeSet<String>) -> Result<There, Failure> {
    let names_ours = |content: &[u8]| {
        let content = String::from_utf8_lossy(content);
        content.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| tokens.contains(word))
    };
    match output.get(key).await {
        Ok(content) if content == ours.as_bytes() || names_ours(&content) => Ok(There::Ours),
        Ok(_) => Ok(There::Others),
        Err(StorageError::NotFound(_)) => Ok(There::Nothing),
        Err(error) => Err(error.into()),
    }
}

/// The tokens of all executions of a job that are known: what any of them wrote is the job's.
async fn tokens(state: &Storage, job: &JobId, seal: Option<&Seal>) -> Result<BTreeSet<String>, Failure> {
    let listed: Vec<String> = state.list(&keys::job_prefix(job)).await?.into_iter().map(|entry| entry.key).collect();
    let (fails, begins, done) = (keys::fails_prefix(job), keys::begins_prefix(job), keys::done_prefix(job));
    let records = listed.iter().filter(|key| key.starts_with(&fails) || key.starts_with(&begins));
    let mut tokens: BTreeSet<String> = records.filter_map(|key| token_of(key)).map(str::to_owned).collect();
    if let Some(seal) = seal {
        tokens.extend(seal.executions.iter().map(|execution| execution.token.to_string()));
        tokens.extend(seal.keys().filter_map(keys::token_in).map(str::to_owned));
        return Ok(tokens);
    }
    let marked: Vec<String> = listed.into_iter().filter(|key| key.starts_with(&done)).collect();
    let markers: Vec<Marker> = futures::stream::iter(marked)
        .map(|key| async move { fetch::<Marker>(state, &key).await })
        .buffered(FETCHES_MAX)
        .try_collect()
        .await?;
    tokens.extend(markers.into_iter().map(|marker| marker.token.to_string()));
    Ok(tokens)
}

/// The token in the name of an execution's record: `…/{attempt}-{token}`, with or without an end of its own.
fn token_of(record: &str) -> Option<&str> {
    let (_, name) = record.rsplit_once('/')?;
    let (_, token) = name.strip_suffix(keys::ALONE).unwrap_or(name).split_once('-')?;
    Token::is_shape_of(token).then_some(token)
}

#[cfg(test)]
mod tests {
    use farm::Life;
    use farm::task::TaskId;

    use super::*;

    #[test]
    fn a_record_of_an_execution_tells_its_token_and_nothing_else_does() {
        let (job, token) = (JobId::try_from("film-1".to_owned()).expect("an id"), Token::random());
        for task in [TaskId::Probe, TaskId::Video(3), TaskId::Audio(0)] {
            let fail = keys::fail(&job, Life::FIRST, &task, 2, &token);
            let begun = keys::begun(&job, Life::FIRST, &task, 2, &token);
            let alone = keys::begun_alone(&job, Life::FIRST, &task, 2, &token);
            assert!(fail.starts_with(&keys::fails_prefix(&job)));
            assert!([&begun, &alone].iter().all(|key| key.starts_with(&keys::begins_prefix(&job))));
            for key in [fail, begun, alone] {
                assert_eq!(token_of(&key), Some(token.as_str()), "{key}");
            }
        }
        for other in [keys::spec(&job), keys::done(&job, &TaskId::Probe), keys::cancel(&job, Life::FIRST)] {
            assert_eq!(token_of(&other), None, "{other}");
        }
    }
}
