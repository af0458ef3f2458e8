//! How jobs stand, as outsiders are told: from storage, and from the scheduler where it knows more.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use farm::edit;
use farm::ended::{Ended, JobOutcome};
use farm::job::{JobId, JobSpec, shown_url};
use farm::plan::{Plan, RenditionId};
use farm::storage::{Entry, Storage};
use farm::task::TaskId;
use farm::{Failure, Life, keys};
use futures::{StreamExt as _, TryStreamExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduler::{JobView, PARTITION, Phase, current_life, fetch, fetch_if_there};
use crate::step::{JobResult, Summary};

/// Objects fetched at a time.
const FETCHES_MAX: usize = 16;

/// How a job stands, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No worker has begun with it yet.
    Waiting,
    /// The source is being looked at.
    Probing,
    /// Picture and sound are being made.
    Encoding,
    /// Parts are being joined.
    Packing,
    /// It is kept until the environment is mended.
    Halted,
    /// It is to stop.
    Cancelling,
    /// The output is complete.
    Done,
    /// There is no output.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl State {
    /// Whether nothing will change any more, unless somebody asks for it.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobStatus {
    /// Its name.
    pub id: JobId,
    /// Who it is for.
    pub tenant: String,
    /// How it stands.
    pub state: State,
    /// The source, without anything that may be secret.
    pub source: String,
    /// The output prefix, without anything that may be secret.
    pub output: String,
    /// How far it is.
    pub progress: Progress,
    /// What was made, when it is done and its output was not deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Made>,
    /// When somebody had its output deleted, in ms since 1970, by storage's clock: there is nothing of it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_ms: Option<u64>,
    /// Why it failed or is halted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

impl JobStatus {
    /// The same, as far as its job has come by now.
    #[must_use]
    pub fn moved(&self, view: &JobView) -> Self {
        Self { progress: Progress::from(view), ..self.clone() }
    }
}

/// What was made, in short; the report has the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Made {
    /// Key of the multivariant playlist under the output prefix; none of still pictures alone, to which `report.json` leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// The renditions.
    pub renditions: Vec<RenditionId>,
    /// How long the result lasts in ns.
    pub duration_ns: u64,
    /// Bytes of all media segments.
    pub bytes: u64,
    /// What a viewer of the result should know.
    pub warnings: Vec<String>,
}

impl From<Summary> for Made {
    fn from(summary: Summary) -> Self {
        let Summary { master, renditions, duration_ns, bytes, warnings } = summary;
        Self { master, renditions, duration_ns, bytes, warnings }
    }
}

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// Tasks that are done.
    pub tasks_done: usize,
    /// Tasks that are known; more than the probe once there is a plan.
    pub tasks_total: usize,
    /// Media gone through, in ns, by the picture and every sound; 0 where it is not known.
    pub media_done_ns: u64,
    /// Media to go through, in ns; 0 where it is not known.
    pub media_total_ns: u64,
}

impl From<&JobView> for Progress {
    fn from(view: &JobView) -> Self {
        let JobView { tasks_done, tasks_total, media_done_ns, media_total_ns, .. } = *view;
        Self { tasks_done, tasks_total, media_done_ns, media_total_ns }
    }
}

/// A job in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listed {
    /// Its name.
    pub id: JobId,
    /// Who it is for.
    pub tenant: String,
    /// Whether it has ended, and how.
    pub state: Standing,
    /// When it was submitted or retried, or when it ended; in ms since 1970, by storage's clock.
    pub since_ms: u64,
}

/// How a job of a list stands, in a word: its own state says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It has not ended.
    Active,
    /// The output is complete.
    Done,
    /// There is no output.
    Failed,
    /// Somebody stopped it; there is no output.
    Cancelled,
}

impl From<JobOutcome> for Standing {
    fn from(outcome: JobOutcome) -> Self {
        match outcome {
            JobOutcome::Done => Self::Done,
            JobOutcome::Failed => Self::Failed,
            JobOutcome::Cancelled => Self::Cancelled,
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Done => JobOutcome::Done.word(),
            Self::Failed => JobOutcome::Failed.word(),
            Self::Cancelled => JobOutcome::Cancelled.word(),
        })
    }
}

/// Which jobs to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those of this tenant.
    pub tenant: Option<String>,
    /// Only those that have ended, or that have not.
    pub ended: Option<bool>,
    /// Only after this job, in the order of the list.
    pub after: Option<JobId>,
    /// At most so many.
    pub limit: usize,
}

/// How a job stands; `None` when there is no such job. `view` is what the scheduler knows of it.
///
/// # Errors
/// Storage's.
pub async fn status(state: &Storage, id: &JobId, view: Option<JobView>) -> Result<Option<JobStatus>, Failure> {
    let Some(spec) = fetch_if_there::<JobSpec>(state, &keys::spec(id)).await? else { return Ok(None) };
    let life = current_life(state, id).await?;
    let entries = state.list(&keys::job_prefix(id)).await?;
    let deleted = keys::deleted(id);
    let deleted_ms = entries.iter().find(|entry| entry.key == deleted).map(|entry| entry.modified_ms);
    let listed: Vec<String> = entries.into_iter().map(|entry| entry.key).collect();
    let is_there = |key: String| listed.contains(&key);
    let result = match is_there(keys::result(id, life)) {
        true => fetch_if_there::<JobResult>(state, &keys::result(id, life)).await?,
        false => None,
    };
    // A view of a job that was taken up again since says that it has ended.
    let view = view.filter(|view| !matches!(view.phase, Phase::Ended(_)));
    let progress = match (&result, &view) {
        (None, Some(view)) if !matches!(view.phase, Phase::Waiting) => Progress::from(view),
        _ => counted(state, id, &spec, &listed).await?,
    };
    let (word, result, error) = match (result, view.map(|view| view.phase)) {
        (Some(JobResult::Done(_)), _) if deleted_ms.is_some() => (State::Done, None, None),
        (Some(JobResult::Done(summary)), _) => (State::Done, Some(summary.into()), None),
        (Some(JobResult::Failed { failure, .. }), _) => (State::Failed, None, Some(failure)),
        (Some(JobResult::Cancelled), _) => (State::Cancelled, None, None),
        (None, _) if is_there(keys::cancel(id, life)) => (State::Cancelling, None, None),
        (None, Some(Phase::Halted(failure))) => (State::Halted, None, Some(failure)),
        (None, Some(Phase::Probing)) => (State::Probing, None, None),
        (None, Some(Phase::Encoding)) => (State::Encoding, None, None),
        (None, Some(Phase::Packing)) => (State::Packing, None, None),
        (None, None | Some(Phase::Waiting | Phase::Ended(_))) if progress.tasks_done > 0 => (State::Encoding, None, None),
        (None, None | Some(Phase::Waiting | Phase::Ended(_))) => (State::Waiting, None, None),
    };
    let (source, output) = (shown_url(&spec.source.url), shown_url(&spec.output.url));
    let (id, tenant) = (id.clone(), spec.tenant);
    Ok(Some(JobStatus { id, tenant, state: word, source, output, progress, result, deleted_ms, error }))
}

/// How far a job is by its markers.
async fn counted(state: &Storage, id: &JobId, spec: &JobSpec, listed: &[String]) -> Result<Progress, Failure> {
    let done = keys::done_prefix(id);
    let tasks_done = listed.iter().filter(|key| key.starts_with(&done)).count();
    let prefix = format!("{}plan-", keys::job_prefix(id));
    let Some(plan) = listed.iter().rfind(|key| key.starts_with(&prefix)) else {
        return Ok(Progress { tasks_done, tasks_total: 1, ..Progress::default() });
    };
    let plan: Plan = fetch(state, plan).await?;
    let tasks = TaskId::encodes_of(&plan).chain(TaskId::joins_of(&plan)).count();
    // The probe is a task too, and so are those of other sources, which edits name.
    let probes = 1 + edit::others(&spec.edit).count();
    Ok(Progress { tasks_done, tasks_total: probes + tasks, ..Progress::default() })
}

/// Where a job of a list was found.
struct Found {
    id: JobId,
    life: Life,
    since_ms: u64,
    place: Place,
}

impl Found {
    /// Who it is for, where that is known already.
    fn tenant(&self) -> Option<&str> {
        match &self.place {
            Place::Active { tenant } => Some(tenant),
            Place::Ended(_) => None,
        }
    }

    /// Whether it may be of this tenant, or of any.
    fn is_of(&self, tenant: Option<&str>) -> bool {
        tenant.is_none_or(|wanted| self.tenant().is_none_or(|tenant| tenant == wanted))
    }
}

enum Place {
    /// Among the active ones.
    Active {
        /// Who it is for.
        tenant: String,
    },
    /// Among the ended ones, under this key.
    Ended(String),
}

/// Jobs: those that have not ended, the oldest first; then those that have, the last first. `tenant_of` is who a job is for
/// where the scheduler knows it; for other active jobs the spec is read.
///
/// # Errors
/// Storage's.
pub async fn list(
    state: &Storage,
    filter: &Filter,
    tenant_of: impl Fn(&JobId) -> Option<String>,
) -> Result<Vec<Listed>, Failure> {
    let entries = state.list(&keys::active_prefix(PARTITION)).await?;
    let mut ended = if filter.ended == Some(false) { Vec::new() } else { ended(state, filter).await? };
    // One that is just being closed is in both lists, and of one that was taken up again an earlier life may be in the other.
    let mut last: HashMap<JobId, Life> = HashMap::new();
    let ids = ended.iter().map(|job| (job.id.clone(), job.life)).chain(entries.iter().filter_map(active_life));
    ids.for_each(|(id, life)| {
        let known = last.entry(id).or_insert(life);
        *known = life.max(*known);
    });
    ended.retain(|job| last.get(&job.id) == Some(&job.life));
    let mut found = Vec::new();
    if filter.ended != Some(true) {
        found = active(state, entries, tenant_of).await?;
        let closing: HashSet<&JobId> = ended.iter().map(|job| &job.id).collect();
        let is_wanted = |job: &Found| job.is_of(filter.tenant.as_deref());
        found.retain(|job| is_wanted(job) && last.get(&job.id) == Some(&job.life) && !closing.contains(&job.id));
    }
    found.extend(ended);
    let from = filter.after.as_ref().and_then(|after| found.iter().position(|job| job.id == *after)).map_or(0, |place| place + 1);
    let page: Vec<Found> = found.into_iter().skip(from).take(filter.limit).collect();
    let lines: Vec<Option<Listed>> =
        futures::stream::iter(page).map(|job| line(state, job)).buffered(FETCHES_MAX).try_collect().await?;
    Ok(lines.into_iter().flatten().collect())
}

/// Job and life of an entry among the active ones.
fn active_life(entry: &Entry) -> Option<(JobId, Life)> {
    entry.key.strip_prefix(&keys::active_prefix(PARTITION)).and_then(Life::in_key)
}

/// Whose the active jobs are, as far as it was asked for before: that never changes.
#[derive(Debug, Default)]
pub struct Owners {
    known: Mutex<HashMap<JobId, String>>,
}

impl Owners {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Jobs that have not ended by what storage says, of a tenant or of all: at most so many, the oldest first. `tenant_of` is as for
/// [`list`].
///
/// # Errors
/// Storage's.
pub async fn unended(
    state: &Storage,
    (tenant, most): (Option<&str>, usize),
    owners: &Owners,
    tenant_of: impl Fn(&JobId) -> Option<String>,
) -> Result<Vec<JobId>, Failure> {
    let entries = state.list(&keys::active_prefix(PARTITION)).await?;
    let known = |id: &JobId| owners.lock().get(id).cloned();
    let found = active(state, entries, |id| known(id).or_else(|| tenant_of(id))).await?;
    // What is active no more is not asked for again.
    *owners.lock() = found.iter().filter_map(|job| Some((job.id.clone(), job.tenant()?.to_owned()))).collect();
    let mut seen = HashSet::new();
    let wanted = found.into_iter().filter(|job| job.is_of(tenant)).map(|job| job.id);
    // Of a job that was taken up again there may be two lives.
    Ok(wanted.filter(|id| seen.insert(id.clone())).take(most).collect())
}

/// Those among the active ones of which it can be told who they are for.
async fn active(
    state: &Storage,
    mut entries: Vec<Entry>,
    tenant_of: impl Fn(&JobId) -> Option<String>,
) -> Result<Vec<Found>, Failure> {
    entries.sort_by(|a, b| (a.modified_ms, &a.key).cmp(&(b.modified_ms, &b.key)));
    let ids = entries.into_iter().filter_map(|entry| {
        let (id, life) = active_life(&entry)?;
        Some((tenant_of(&id), id, life, entry.modified_ms))
    });
    let found: Vec<Option<Found>> = futures::stream::iter(ids.collect::<Vec<_>>())
        .map(|(known, id, life, since_ms)| async move {
            let tenant = match known {
                Some(tenant) => Some(tenant),
                None => fetch_if_there::<JobSpec>(state, &keys::spec(&id)).await?.map(|spec| spec.tenant),
            };
            Ok::<_, Failure>(tenant.map(|tenant| Found { id, life, since_ms, place: Place::Active { tenant } }))
        })
        .buffered(FETCHES_MAX)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}

async fn ended(state: &Storage, filter: &Filter) -> Result<Vec<Found>, Failure> {
    let prefix = match &filter.tenant {
        Some(tenant) => keys::ended_of_tenant(PARTITION, tenant),
        None => keys::ended_prefix(PARTITION),
    };
    let mut entries = state.list(&prefix).await?;
    entries.sort_by(|a, b| (b.modified_ms, &a.key).cmp(&(a.modified_ms, &b.key)));
    let found = entries.into_iter().filter_map(|entry| {
        // The tenant's hash stands before.
        let (_, tail) = entry.key.strip_prefix(&keys::ended_prefix(PARTITION))?.split_once('/')?;
        let (id, life) = Life::in_key(tail)?;
        Some(Found { id, life, since_ms: entry.modified_ms, place: Place::Ended(entry.key) })
    });
    Ok(found.collect())
}

/// A line of the list; none for a job that went away meanwhile.
async fn line(state: &Storage, job: Found) -> Result<Option<Listed>, Failure> {
    let Found { id, since_ms, place, .. } = job;
    let (tenant, state) = match place {
        Place::Active { tenant } => (tenant, Standing::Active),
        Place::Ended(key) => match fetch_if_there::<Ended>(state, &key).await? {
            Some(ended) => (ended.tenant, ended.outcome.into()),
            None => return Ok(None),
        },
    };
    Ok(Some(Listed { id, tenant, state, since_ms }))
}
