//! The trace of a job that has ended, as OpenTelemetry has them: the job, its tasks in it, and in each the attempts at it.
//!
//! Nothing is noted for it while work runs: a trace is made of what storage has at the end. Its ids are made of the job's, so it
//! can be sent again and is the same, and whoever knows a job knows its trace: see [`trace_id`].

mod otlp;

use std::collections::BTreeMap;

use farm::job::JobId;
use farm::storage::Entry;
use farm::task::{Cost, FailedAttempt, Marker, TaskId, Token};
use farm::{Code, Life, keys, metrics};
use sha2::{Digest as _, Sha256};

pub use self::otlp::Request;
use self::otlp::{Attribute, Happening, Span, Status};
use crate::step::JobResult;

/// Most executions that are told of a job: with their tasks and the job they are fewer than 10 000 spans.
pub const EXECUTIONS_MAX: usize = 4999;

/// ns of a ms.
const MS_NS: u64 = 1_000_000;

/// A key of a job that tells of an execution in one of its lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// The key.
    pub key: String,
    /// When it was written, in ms since 1970 by storage's clock.
    pub at_ms: u64,
    /// The task.
    pub task: TaskId,
    /// What is stored there.
    pub what: What,
}

/// What is stored under such a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The marker of the execution that counts.
    Marker,
    /// The record of one that failed.
    Failure(Name),
    /// Nothing: an execution has begun, and did not end by itself.
    Begun(Name),
}

/// How keys name an execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Number of the attempt.
    pub attempt: u32,
    /// Its token.
    pub token: String,
}

impl Name {
    /// Of the last part of a key: `{attempt}-{token}`.
    fn read(text: &str) -> Option<Self> {
        let (attempt, token) = text.strip_suffix(keys::ALONE).unwrap_or(text).split_once('-')?;
        Token::is_shape_of(token).then_some(Self { attempt: attempt.parse().ok()?, token: token.to_owned() })
    }
}

/// When what became of a life of a job, in ms since 1970 by storage's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// It was submitted, or taken up again.
    pub began_ms: u64,
    /// It was planned, if it was.
    pub planned_ms: Option<u64>,
    /// It was known which objects count, if it ever was.
    pub sealed_ms: Option<u64>,
    /// Its result was stored.
    pub ended_ms: u64,
}

impl Times {
    /// Among all keys of the job; none while it has not ended.
    pub fn among(job: &JobId, life: Life, listed: &[Entry]) -> Option<Self> {
        let at = |key: &str| listed.iter().find(|entry| entry.key == key).map(|entry| entry.modified_ms);
        let submitted_ms = at(&keys::spec(job));
        let began_ms = if life == Life::FIRST { submitted_ms } else { at(&keys::life(job, life)).or(submitted_ms) }?;
        let plans = format!("{}plan-", keys::job_prefix(job));
        let planned_ms = listed.iter().filter(|entry| entry.key.starts_with(&plans)).map(|entry| entry.modified_ms).max();
        let ended_ms = at(&keys::result(job, life))?.max(began_ms);
        Some(Self { began_ms, planned_ms, sealed_ms: at(&keys::seal(job)), ended_ms })
    }
}

/// What the keys of a job say of executions in one of its lives.
pub fn noted(job: &JobId, life: Life, listed: &[Entry]) -> Vec<Noted> {
    let (done, failed, begun) = (keys::done_prefix(job), keys::fail_prefix(job, life), keys::begun_in(job, life));
    let of = |entry: &Entry| {
        let named = |rest: &str| {
            let (task, name) = rest.split_once('/')?;
            Some((task.parse::<TaskId>().ok()?, Name::read(name)?))
        };
        let (task, what) = if let Some(task) = entry.key.strip_prefix(&done) {
            (task.parse().ok()?, What::Marker)
        } else if let Some(rest) = entry.key.strip_prefix(&failed) {
            named(rest).map(|(task, name)| (task, What::Failure(name)))?
        } else {
            named(entry.key.strip_prefix(&begun)?).map(|(task, name)| (task, What::Begun(name)))?
        };
        Some(Noted { key: entry.key.clone(), at_ms: entry.modified_ms, task, what })
    };
    listed.iter().filter_map(of).collect()
}

/// An execution of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// The task.
    pub task: TaskId,
    /// Number of the attempt; older markers do not say.
    pub attempt: Option<u32>,
    /// Its token.
    pub token: String,
    /// When it was noted, in ms since 1970 by storage's clock: at its end, or, of one without an end, when it began.
    pub at_ms: u64,
    /// The worker, where that is known.
    pub worker: Option<Token>,
    /// How it ended.
    pub end: End,
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// What it made counts.
    Done {
        /// What it cost.
        cost: Cost,
        /// Bytes of what it made.
        bytes: u64,
        /// The device, where it was not the processor.
        device: Option<String>,
    },
    /// It failed.
    Failed {
        /// Why. Nothing else is told of a failure: messages may quote what a source says.
        code: Code,
        /// How long it took, where that is known.
        wall_ms: Option<u64>,
    },
    /// Nothing is known of its end: its worker is gone, or was still at it when the job ended.
    Unknown,
}

impl Execution {
    /// The one that counts.
    pub fn done(task: TaskId, at_ms: u64, marker: Marker) -> Self {
        let bytes = marker.outcome.objects().iter().map(|object| object.bytes).sum();
        let Marker { token, cost, device, attempt, worker, .. } = marker;
        Self { task, attempt, token: token.to_string(), at_ms, worker, end: End::Done { cost, bytes, device } }
    }

    /// One that failed.
    pub fn failed(task: TaskId, at_ms: u64, name: Name, record: FailedAttempt) -> Self {
        let end = End::Failed { code: record.failure.code, wall_ms: record.wall_ms };
        Self { task, attempt: Some(name.attempt), token: name.token, at_ms, worker: record.worker, end }
    }

    /// One without an end.
    pub fn begun(task: TaskId, at_ms: u64, name: Name) -> Self {
        Self { task, attempt: Some(name.attempt), token: name.token, at_ms, worker: None, end: End::Unknown }
    }

    /// How long it took in ms, where that is known.
    fn wall_ms(&self) -> Option<u64> {
        match &self.end {
            End::Done { cost, .. } => Some(cost.wall_ms),
            End::Failed { wall_ms, .. } => *wall_ms,
            End::Unknown => None,
        }
    }

    /// Whether it is a scheduler's word that nothing was heard any more of an execution that somebody else began: under a token of
    /// its own.
    fn is_word_of(&self, begun: &Self) -> bool {
        matches!(self.end, End::Failed { wall_ms: None, .. }) && self.attempt == begun.attempt
    }
}

/// What is known of a life of a job that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The job.
    pub job: JobId,
    /// Its life.
    pub life: Life,
    /// Who it was for.
    pub tenant: String,
    /// When what became of it.
    pub times: Times,
    /// How it ended.
    pub result: JobResult,
    /// Executions, in any order.
    pub executions: Vec<Execution>,
    /// Executions beyond [`EXECUTIONS_MAX`], of which nothing is told.
    pub left_out: usize,
}

/// The id of the trace of a life of a job, in hex: the first 16 bytes of the SHA-256 of `shoal/{job}/{life}`.
pub fn trace_id(job: &JobId, life: Life) -> String {
    hex(&format!("shoal/{job}/{life}"), 16)
}

/// The first so many bytes of the SHA-256 of a text, in hex.
fn hex(text: &str, bytes: usize) -> String {
    Sha256::digest(text.as_bytes()).iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

/// The trace.
pub fn trace(facts: &Facts) -> Request {
    let id = trace_id(&facts.job, facts.life);
    let trace = id.as_str();
    let root = hex(&format!("{trace}/job"), 8);
    let root = root.as_str();
    let mut by_task: BTreeMap<&TaskId, Vec<&Execution>> = BTreeMap::new();
    // What an earlier life has made is in the trace of that one.
    let (kept, made): (Vec<&Execution>, Vec<&Execution>) =
        facts.executions.iter().partition(|execution| execution.at_ms < facts.times.began_ms);
    for execution in made {
        by_task.entry(&execution.task).or_default().push(execution);
    }
    let mut spans = vec![job_span(facts, (trace, root), by_task.len(), kept.len())];
    for (task, executions) in by_task {
        let runs = runs(facts.times, &executions);
        let id = hex(&format!("{trace}/{task}"), 8);
        let id = id.as_str();
        spans.extend(task_span(task, &runs, (trace, root, id)));
        spans.extend(runs.iter().map(|run| attempt_span(run, (trace, id))));
    }
    Request::of(spans)
}

/// An execution, and from when to when it was.
struct Run<'a> {
    of: &'a Execution,
    start_ms: u64,
    end_ms: u64,
}

/// When the executions of a task were, in the order in which they began; none reaches beyond the job.
fn runs<'a>(times: Times, executions: &[&'a Execution]) -> Vec<Run<'a>> {
    let (unended, ended): (Vec<&Execution>, Vec<&Execution>) =
        executions.iter().copied().partition(|execution| execution.end == End::Unknown);
    let mut runs: Vec<Run<'a>> = Vec::with_capacity(executions.len());
    for of in ended.iter().copied() {
        let begun_ms = || unended.iter().filter(|begun| of.is_word_of(begun)).map(|begun| begun.at_ms).min();
        let start_ms = of.wall_ms().map(|wall_ms| of.at_ms.saturating_sub(wall_ms)).or_else(begun_ms).unwrap_or(of.at_ms);
        runs.push(Run { of, start_ms, end_ms: of.at_ms });
    }
    let is_told = |begun: &Execution| ended.iter().any(|other| other.token == begun.token || other.is_word_of(begun));
    for of in unended.iter().copied().filter(|begun| !is_told(begun)) {
        // It was over when another began, if not before.
        let next_ms = runs.iter().map(|run| run.start_ms).filter(|start_ms| *start_ms >= of.at_ms).min();
        runs.push(Run { of, start_ms: of.at_ms, end_ms: next_ms.unwrap_or(times.ended_ms) });
    }
    for run in &mut runs {
        run.start_ms = run.start_ms.clamp(times.began_ms, times.ended_ms);
        run.end_ms = run.end_ms.clamp(run.start_ms, times.ended_ms);
    }
    runs.sort_by(|one, other| (one.start_ms, &one.of.token).cmp(&(other.start_ms, &other.of.token)));
    runs
}

fn job_span(facts: &Facts, (trace, id): (&str, &str), tasks: usize, kept: usize) -> Span {
    let Facts { job, life, tenant, times, result, left_out, .. } = facts;
    let mut attributes = vec![
        Attribute::text("shoal.job", job.to_string()),
        Attribute::text("shoal.life", life.to_string()),
        Attribute::text("shoal.tenant", tenant.clone()),
        Attribute::text("shoal.outcome", result.outcome().word().to_owned()),
        Attribute::number("shoal.tasks", count(tasks)),
        Attribute::number("shoal.tasks_of_earlier_lives", count(kept)),
        Attribute::number("shoal.attempts_left_out", count(*left_out)),
    ];
    let status = match result {
        JobResult::Done(summary) => {
            attributes.push(Attribute::number("shoal.media_ms", summary.duration_ns / MS_NS));
            attributes.push(Attribute::number("shoal.output_bytes", summary.bytes));
            Some(Status::Ok)
        }
        JobResult::Failed { failure, at } => {
            attributes.extend(at.iter().map(|at| Attribute::text("shoal.failed_task", at.task.to_string())));
            Some(Status::Error(failure.code))
        }
        JobResult::Cancelled => None,
    };
    let events = [("planned", times.planned_ms), ("sealed", times.sealed_ms)];
    let events = events.into_iter().filter_map(|(name, at_ms)| {
        let at_ms = at_ms.filter(|at_ms| (times.began_ms..=times.ended_ms).contains(at_ms))?;
        Some(Happening::new(name, at_ms * MS_NS))
    });
    let (start_ns, end_ns) = (times.began_ms * MS_NS, times.ended_ms * MS_NS);
    Span::new((trace, id, None), "job".to_owned(), start_ns..end_ns, attributes, status).with(events.collect())
}

/// The span of a task, from the beginning of its first execution to the end of its last; none without any.
fn task_span(task: &TaskId, runs: &[Run<'_>], (trace, root, id): (&str, &str, &str)) -> Option<Span> {
    let start_ms = runs.iter().map(|run| run.start_ms).min()?;
    let end_ms = runs.iter().map(|run| run.end_ms).max()?;
    let last_failure = runs.iter().rev().find_map(|run| match run.of.end {
        End::Failed { code, .. } => Some(Status::Error(code)),
        End::Done { .. } | End::Unknown => None,
    });
    let is_done = runs.iter().any(|run| matches!(run.of.end, End::Done { .. }));
    let status = if is_done { Some(Status::Ok) } else { last_failure };
    let attributes = vec![
        Attribute::text("shoal.kind", metrics::kind(task).to_owned()),
        Attribute::number("shoal.attempts", count(runs.len())),
    ];
    let when = start_ms * MS_NS..end_ms * MS_NS;
    Some(Span::new((trace, id, Some(root)), task.to_string(), when, attributes, status))
}

fn attempt_span(run: &Run<'_>, (trace, parent): (&str, &str)) -> Span {
    let Execution { task, attempt, token, worker, end, .. } = run.of;
    let mut attributes = vec![Attribute::text("shoal.task", task.to_string()), Attribute::text("shoal.execution", token.clone())];
    attributes.extend(attempt.map(|attempt| Attribute::number("shoal.attempt", attempt.into())));
    attributes.extend(worker.iter().map(|worker| Attribute::text("shoal.worker", worker.to_string())));
    let status = match end {
        End::Done { cost, bytes, device } => {
            attributes.push(Attribute::number("shoal.cpu_ms", cost.cpu_ms));
            attributes.push(Attribute::number("shoal.rss_kib", cost.rss_kib));
            attributes.push(Attribute::number("shoal.output_bytes", *bytes));
            attributes.extend(device.iter().map(|device| Attribute::text("shoal.device", device.clone())));
            Some(Status::Ok)
        }
        End::Failed { code, .. } => Some(Status::Error(*code)),
        End::Unknown => None,
    };
    let id = hex(&format!("{trace}/{task}/{token}"), 8);
    let when = run.start_ms * MS_NS..run.end_ms * MS_NS;
    Span::new((trace, id.as_str(), Some(parent)), "attempt".to_owned(), when, attributes, status)
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
