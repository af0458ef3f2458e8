//! What is next for a job, from what storage says of it. Restart and the happy path are the same path: load, step, act.

use std::collections::BTreeMap;
use std::mem::discriminant;

use farm::edit;
use farm::ended::{Ended, JobOutcome};
use farm::job::{Hardware, JobId, JobSpec, shown_url};
use farm::media::MediaInfo;
use farm::plan::{Plan, RenditionId};
use farm::storage::Kind;
use farm::task::{Marker, Outcome, TaskId};
use farm::text::TextPlan;
use farm::{Class, Code, Failure, Fault, Life, keys};
use serde::{Deserialize, Serialize};

use crate::damage::{self, Accounts};
use crate::edit::Sources;
use crate::offers::Served;
use crate::pace::Pace;
use crate::pin::pin;
use crate::plan::plan_at;
use crate::playlist::{self, Set};
use crate::report::{self, Report};
use crate::seal::{Fallback, Medium, Seal, seal};
use crate::stills;

/// Most attempts at a task.
pub const ATTEMPTS_MAX: u32 = 3;

/// After so many tasks of a job that devices failed at, the rest goes to the processor: it may be the source that they do not bear,
/// and each failure puts a device aside for a moment.
const DEVICE_FAILURES_MAX: usize = 3;

/// How long an attempt waits after the one before, in ms, by its number from 1.
pub fn wait_ms(attempt: u32) -> u64 {
    match attempt {
        0 | 1 => 0,
        2 => 1_000,
        _ => 10_000,
    }
}

/// What a plan goes by beside the job and its source: how things stand in the farm at that time.
#[derive(Clone, Debug, PartialEq)]
pub struct Around {
    /// How fast pictures are encoded.
    pub pace: Pace,
    /// Which hardware there are workers for.
    pub served: Served,
    /// Whether it encodes, where the job does not say.
    pub hardware: Hardware,
}

impl Default for Around {
    fn default() -> Self {
        Self { pace: Pace::USUAL, served: Served::NONE, hardware: Hardware::default() }
    }
}

/// A job as storage has it.
#[derive(Clone, Debug, PartialEq)]
pub struct JobState {
    /// Its name.
    pub job: JobId,
    /// Which of its lives this is: failures, cancellation and result are of this one.
    pub life: Life,
    /// What was asked for.
    pub spec: JobSpec,
    /// What the plan goes by beside the job and its source.
    pub around: Around,
    /// Whether playlists of an earlier job were taken away from its output prefix.
    pub cleared: bool,
    /// Whether it is to stop.
    pub cancelled: bool,
    /// What was decided.
    pub plan: Option<Plan>,
    /// Whether what is published first was published, by this scheduler.
    pub opened: bool,
    /// Which executions count.
    pub markers: BTreeMap<TaskId, Marker>,
    /// Failed attempts by number.
    pub failures: BTreeMap<TaskId, BTreeMap<u32, Failure>>,
    /// The exact objects of the result.
    pub seal: Option<Seal>,
    /// How it ended.
    pub result: Option<JobResult>,
}

impl JobState {
    /// A job of which storage has nothing but the spec, in this life.
    pub fn new(job: JobId, life: Life, spec: JobSpec) -> Self {
        Self {
            job,
            life,
            spec,
            around: Around::default(),
            cleared: false,
            cancelled: false,
            plan: None,
            opened: false,
            markers: BTreeMap::new(),
            failures: BTreeMap::new(),
            seal: None,
            result: None,
        }
    }

    /// Notes a failed attempt; whether it counts. One that was stopped from outside says nothing about its task.
    pub fn note_failure(&mut self, task: TaskId, attempt: u32, failure: Failure) -> bool {
        let counts = !matches!(failure.code, Code::Cancelled | Code::Interrupted);
        if counts {
            self.failures.entry(task).or_default().insert(attempt, failure);
        }
        counts
    }

    /// The pace that the job's end shows; as it was where it shows none.
    pub fn pace_after(&self, pace: Pace) -> Pace {
        let (Some(plan), Some(seal), Some(Ok(info))) = (&self.plan, &self.seal, self.info()) else { return pace };
        // What a device does is not seen in CPU time, nor what there is to decode for clips.
        if plan.edit.is_some() || plan.passes().any(|pass| pass.video.class().is_hardware()) {
            return pace;
        }
        let used = plan.video.as_ref().and_then(|video| info.video.iter().find(|track| track.track == video.track));
        used.map_or(pace, |track| pace.after(plan, track, seal))
    }

    /// What the probe found.
    fn info(&self) -> Option<Result<&MediaInfo, Failure>> {
        self.found(&TaskId::Probe)
    }

    /// What is known of the job's source, and of the others that its edits name; or what is still to be found out.
    fn sources(&self) -> Result<Result<Known<'_>, Vec<TaskId>>, Failure> {
        let others = edit::others(&self.spec.edit);
        let probes: Vec<(u32, TaskId)> = others.map(|(number, _, _)| (number, TaskId::ProbeOther(number))).collect();
        let all = [&TaskId::Probe].into_iter().chain(probes.iter().map(|(_, task)| task));
        let unknown: Vec<TaskId> = all.filter(|task| !self.markers.contains_key(task)).cloned().collect();
        match self.info() {
            Some(main) if unknown.is_empty() => {
                let found = probes.iter().filter_map(|(number, task)| Some(self.found(task)?.map(|info| (*number, info))));
                Ok(Ok((main?, found.collect::<Result<_, _>>()?)))
            }
            _ => Ok(Err(unknown)),
        }
    }

    fn found(&self, probe: &TaskId) -> Option<Result<&MediaInfo, Failure>> {
        self.markers.get(probe).map(|marker| match &marker.outcome {
            Outcome::Probed { info } => Ok(info.as_ref()),
            Outcome::Encoded { .. } | Outcome::Pictured { .. } | Outcome::Texted { .. } | Outcome::Packed { .. } => {
                Err(Failure::new(Code::Internal, "the probe's marker is of another kind"))
            }
        })
    }
}

/// The source of a job, and others by number.
type Known<'a> = (&'a MediaInfo, BTreeMap<u32, &'a MediaInfo>);

/// How a life of a job ended. Stored as `result-{life}.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobResult {
    /// The output is complete.
    Done(Summary),
    /// There is no output.
    Failed {
        /// Why.
        failure: Failure,
        /// The task that could not be done, if it was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<FailedTask>,
    },
    /// It was cancelled; there is no output.
    Cancelled,
}

/// A task that could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedTask {
    /// The task.
    pub task: TaskId,
    /// How many attempts were made at it.
    pub attempts: u32,
}

impl JobResult {
    /// In a word.
    pub fn outcome(&self) -> JobOutcome {
        match self {
            Self::Done(_) => JobOutcome::Done,
            Self::Failed { .. } => JobOutcome::Failed,
            Self::Cancelled => JobOutcome::Cancelled,
        }
    }

    /// As everybody outside is told of it.
    pub fn ended(&self, job: &JobId, spec: &JobSpec) -> Ended {
        let (code, message) = match self {
            Self::Done(_) => (None, None),
            Self::Failed { failure, .. } => (Some(failure.code), Some(failure.message.clone())),
            Self::Cancelled => (Some(Code::Cancelled), Some("the job was cancelled".to_owned())),
        };
        let master = match self {
            Self::Done(summary) => summary.master.clone(),
            Self::Failed { .. } | Self::Cancelled => None,
        };
        let output = shown_url(&spec.output.url);
        Ended { job: job.clone(), tenant: spec.tenant.clone(), outcome: self.outcome(), code, message, output, master }
    }
}

/// A finished job in short; the report has the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Key of the multivariant playlist under the output prefix; none of still pictures alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// What was made.
    pub renditions: Vec<RenditionId>,
    /// How long the result lasts in ns.
    pub duration_ns: u64,
    /// Bytes of all media segments.
    pub bytes: u64,
    /// What a viewer of the result should know.
    pub warnings: Vec<String>,
}

/// A text object for the output prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Key under the output prefix.
    pub key: String,
    /// The text.
    pub content: String,
    /// What it is.
    pub kind: Kind,
}

/// A task that has no marker, and the attempt that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The task.
    pub task: TaskId,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// How long it is to wait, in ms.
    pub wait_ms: u64,
    /// Whose device it may take. After a failed attempt none: what failed may have been the device.
    pub class: Class,
}

/// What is next for a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Take away what an earlier job left at the output prefix that would look like this one's result.
    Clear,
    /// Do these tasks, as slots are free; some may be on their way already.
    Run(Vec<Due>),
    /// Store what was decided.
    StorePlan(Box<Plan>),
    /// Store these in this order: a part of the result that can be played already.
    Open(Vec<Document>),
    /// Store which objects count.
    StoreSeal(Seal),
    /// Store these in this order, and then the result: it makes the job finished.
    Publish {
        /// Media playlists, the report, and last the multivariant playlist; of still pictures alone there are no playlists.
        documents: Vec<Document>,
        /// The result.
        result: JobResult,
    },
    /// Store this result without publishing anything.
    Finish(JobResult),
    /// The result is stored: take away what does not belong to it, and forget the job.
    Close(JobResult),
    /// Nothing can be done until somebody mends the environment. The job is kept, to go on from here.
    Halt(Failure),
}

/// What is next for a job in this state.
pub fn step(job: &JobState) -> Next {
    if let Some(result) = &job.result {
        return Next::Close(result.clone());
    }
    if job.cancelled {
        return Next::Finish(JobResult::Cancelled);
    }
    forward(job).unwrap_or_else(|Defeat { failure, at }| Next::Finish(JobResult::Failed { failure, at }))
}

/// Why a job cannot go on, and the task at which it ended, if it was one.
struct Defeat {
    failure: Failure,
    at: Option<FailedTask>,
}

impl From<Failure> for Defeat {
    fn from(failure: Failure) -> Self {
        Self { failure, at: None }
    }
}

/// Whether a step is seen outside, so that it is to be decided on what storage has now and not on a copy of a while ago.
pub fn is_seen(next: &Next) -> bool {
    matches!(next, Next::Open(_) | Next::Publish { .. } | Next::Finish(_))
}

/// What is to be noted of an attempt of which nothing was heard any more for so many seconds, when storage has neither a
/// marker of its task nor a failure of the attempt or of a later one: somebody was at it, and is gone.
pub fn lost(job: &JobState, task: &TaskId, attempt: u32, silent_s: u64) -> Option<Failure> {
    let is_settled = job.markers.contains_key(task)
        || job.failures.get(task).and_then(BTreeMap::last_key_value).is_some_and(|(last, _)| *last >= attempt);
    let message = format!("attempt {attempt} at {task} was begun, and nothing was heard of it for {silent_s} s");
    (!is_settled).then(|| Failure::new(Code::ChildStalled, message))
}

/// The way of a job that was not cancelled.
fn forward(job: &JobState) -> Result<Next, Defeat> {
    let Some(decided) = &job.plan else {
        if !job.cleared {
            return Ok(Next::Clear);
        }
        return match job.sources()? {
            Err(unknown) => run(job, unknown),
            Ok((main, others)) => {
                for info in [main].into_iter().chain(others.values().copied()) {
                    damage::judge_probe(job.spec.damage, info)?;
                }
                let plan = plan_at(job.around.pace, &job.spec, &Sources { main, others: &others })?;
                let policy = job.spec.hardware.unwrap_or(job.around.hardware);
                match pin(plan, policy, &job.around.served) {
                    Ok(plan) => Ok(Next::StorePlan(Box::new(plan))),
                    Err(failure) if failure.code == Code::SchedulerUnavailable => Ok(Next::Halt(failure)),
                    Err(failure) => Err(failure.into()),
                }
            }
        };
    };
    let probed = || job.info().ok_or_else(|| Failure::new(Code::Internal, "a job that was encoded has no probe"))?;
    if let Some(seal) = &job.seal {
        return Ok(publish(job, probed()?, decided, seal)?);
    }
    match missing(job, decided) {
        tasks if tasks.is_empty() => {
            let seal = Seal { fallbacks: fallbacks(job), ..seal(decided, &job.markers)? };
            damage::judge(job.spec.damage, probed()?, decided, &Accounts::of(decided, &seal))?;
            damage::judge_stills(decided, &seal)?;
            Ok(Next::StoreSeal(seal))
        }
        tasks => match (!job.opened).then(|| first_seal(job, decided)).flatten() {
            Some(first) => {
                let (stage, seal) = first?;
                damage::judge(job.spec.damage, probed()?, &stage, &Accounts::of(&stage, &seal))?;
                Ok(Next::Open(documents(&stage, &seal, None)?))
            }
            None => run(job, tasks),
        },
    }
}

/// The part of a result that is published before the rest, once it is made: its plan, and its objects.
pub fn first_seal(job: &JobState, plan: &Plan) -> Option<Result<(Plan, Seal), Failure>> {
    let stage = plan.first_stage()?;
    let is_made = TaskId::encodes_of(&stage).chain(TaskId::joins_of(&stage)).all(|task| job.markers.contains_key(&task));
    is_made.then(|| seal(&stage, &job.markers).map(|seal| (stage, seal)))
}

/// Every task that can be done now and has no marker, the most pressing first.
fn missing(job: &JobState, plan: &Plan) -> Vec<TaskId> {
    let is_missing = |task: &TaskId| !job.markers.contains_key(task);
    let encodes: Vec<TaskId> = TaskId::encodes_of(plan).filter(is_missing).collect();
    let rungs = plan.rungs();
    // Every piece of a pass is a part of every rung of it.
    let is_made = |id: &RenditionId| match rungs.iter().find(|(rung, _)| rung.id == *id) {
        Some((_, pass)) => !encodes.iter().any(|task| discriminant(task) == discriminant(&pass.task(0))),
        None => (0..).zip(&plan.audio).all(|(index, audio)| audio.id != *id || !is_missing(&TaskId::Audio(index))),
    };
    let can_be_joined = |task: &TaskId| match task {
        TaskId::Pack(id) => is_made(id),
        TaskId::Mp4(id) => is_made(id) && plan.main_sound().is_none_or(|(_, sound)| is_made(&sound.id)),
        _ => true,
    };
    let joins: Vec<TaskId> = TaskId::joins_of(plan).filter(|task| is_missing(task) && can_be_joined(task)).collect();
    joins.into_iter().chain(encodes).collect()
}

/// These tasks with the attempts that are due, unless one has failed too often.
fn run(job: &JobState, tasks: Vec<TaskId>) -> Result<Next, Defeat> {
    let mut due = Vec::with_capacity(tasks.len());
    let mut halted = None;
    let is_borne = device_failures(job).count() < DEVICE_FAILURES_MAX;
    let planned = job.plan.as_ref().filter(|_| is_borne);
    for task in tasks {
        match verdict(job.failures.get(&task)) {
            Verdict::Try(attempt) => {
                let planned = planned.filter(|_| attempt == 1).map(|plan| task.class_in(plan));
                due.push(Due { task, attempt, wait_ms: wait_ms(attempt), class: planned.unwrap_or_default() });
            }
            Verdict::Halt(failure) => halted = halted.or(Some(failure)),
            Verdict::Fail { failure, attempts } => return Err(Defeat { failure, at: Some(FailedTask { task, attempts }) }),
        }
    }
    Ok(halted.map_or(Next::Run(due), Next::Halt))
}

/// Attempts that devices failed at.
fn device_failures(job: &JobState) -> impl Iterator<Item = (&TaskId, u32, &Failure)> {
    job.failures
        .iter()
        .flat_map(|(task, attempts)| attempts.iter().map(move |(attempt, failure)| (task, *attempt, failure)))
        .filter(|(_, _, failure)| failure.code == Code::DeviceFailed)
}

/// What was made on the processor because a device failed at it.
fn fallbacks(job: &JobState) -> Vec<Fallback> {
    let told =
        |(task, attempt, failure): (&TaskId, u32, &Failure)| Fallback { task: task.clone(), attempt, failure: failure.clone() };
    device_failures(job).map(told).collect()
}

/// What the failed attempts at a task mean.
enum Verdict {
    /// Try, with this attempt.
    Try(u32),
    /// The environment has to be mended first.
    Halt(Failure),
    /// It will not get better.
    Fail {
        /// Why.
        failure: Failure,
        /// How many attempts were made.
        attempts: u32,
    },
}

fn verdict(failures: Option<&BTreeMap<u32, Failure>>) -> Verdict {
    let Some((last, failure)) = failures.and_then(BTreeMap::last_key_value) else { return Verdict::Try(1) };
    let hopeless = failures.into_iter().flat_map(BTreeMap::values).find(|failure| !failure.may_pass_next_time());
    match hopeless.or((*last >= ATTEMPTS_MAX).then_some(failure)) {
        Some(failure) if is_environment(failure.code) => Verdict::Halt(failure.clone()),
        Some(failure) => Verdict::Fail { failure: failure.clone(), attempts: *last },
        None => Verdict::Try(last.saturating_add(1)),
    }
}

/// Whether a failure says nothing about the job, only about where it ran: then it is tried again when that is mended. A
/// mistake in Shoal is not mended by waiting.
pub fn is_environment(code: Code) -> bool {
    code.fault() == Fault::Environment && code != Code::Internal
}

/// What is published of a sealed job; none of one that is not.
///
/// # Errors
/// [`Code::Internal`] when there is no report to be made.
pub fn sealed_documents(job: &JobState) -> Result<Option<Vec<Document>>, Failure> {
    let (Some(plan), Some(seal), Some(Ok(info))) = (&job.plan, &job.seal, job.info()) else { return Ok(None) };
    documents(plan, seal, Some(&report::report(&job.spec, info, plan, seal))).map(Some)
}

/// Everything but the media: playlists and report from the seal alone, so that any scheduler writes the same. The multivariant
/// playlist is last.
fn documents(plan: &Plan, seal: &Seal, report: Option<&Report>) -> Result<Vec<Document>, Failure> {
    let mut documents: Vec<Document> = Vec::new();
    let mut list = |key, content| documents.push(Document { key, content, kind: Kind::Playlist });
    for set in Set::all(seal) {
        for rendition in set.renditions {
            list(set.names.media(&rendition.id), playlist::media(rendition));
            if let Medium::Picture { .. } = rendition.medium {
                list(set.names.i_frames(&rendition.id), playlist::i_frames_only(rendition));
            }
        }
    }
    let text_ns = plan.text.as_ref().map(TextPlan::segments).unwrap_or_default();
    for text in &seal.text {
        list(keys::playlist(&text.track.id), playlist::text(&text.made, &text_ns));
    }
    if let Some((board, made)) = plan.stills.as_ref().and_then(|plan| plan.storyboard.as_ref()).zip(seal.stills.as_ref()) {
        let content = stills::track(board, made, plan.duration_ns);
        documents.push(Document { key: keys::STORYBOARD.to_owned(), content, kind: Kind::TextTrack });
    }
    if let Some(report) = report {
        let unwritten = |error| Failure::new(Code::Internal, format!("report: {error}"));
        let content = serde_json::to_string_pretty(report).map_err(unwritten)?;
        documents.push(Document { key: keys::REPORT.to_owned(), content, kind: Kind::Json });
    }
    for set in Set::all(seal).iter().rev() {
        let (key, content) = (set.names.master().to_owned(), playlist::multivariant(set));
        documents.push(Document { key, content, kind: Kind::Playlist });
    }
    Ok(documents)
}

fn publish(job: &JobState, info: &MediaInfo, plan: &Plan, seal: &Seal) -> Result<Next, Failure> {
    let report = report::report(&job.spec, info, plan, seal);
    let documents = documents(plan, seal, Some(&report))?;
    let result = JobResult::Done(Summary {
        master: Set::all(seal).first().map(|set| set.names.master().to_owned()),
        renditions: seal.ids().cloned().collect(),
        duration_ns: plan.duration_ns,
        bytes: seal.renditions.iter().map(|rendition| rendition.bytes()).sum(),
        warnings: report.warnings,
    });
    Ok(Next::Publish { documents, result })
}

#[cfg(test)]
mod tests;
