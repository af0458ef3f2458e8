//! Every storage key of the farm, in one place.
//!
//! State keys are relative to the state prefix, output keys to the job's output prefix.

use sha2::{Digest as _, Sha256};

use crate::job::JobId;
use crate::plan::RenditionId;
use crate::task::{TaskId, Token};

/// What a submitter asked for. Immutable.
pub fn spec(job: &JobId) -> String {
    format!("jobs/{job}/spec.json")
}

/// What was decided. Immutable; a later epoch replaces an earlier one.
pub fn plan(job: &JobId, epoch: u64) -> String {
    format!("jobs/{job}/plan-{epoch}.json")
}

/// Prefix of all commit markers of a job.
pub fn done_prefix(job: &JobId) -> String {
    format!("jobs/{job}/done/")
}

/// Commit marker of a task.
pub fn done(job: &JobId, task: &TaskId) -> String {
    format!("jobs/{job}/done/{task}")
}

/// Prefix of all failure records of a job.
pub fn fail_prefix(job: &JobId) -> String {
    format!("jobs/{job}/fail/")
}

/// Record of a failed execution.
pub fn fail(job: &JobId, task: &TaskId, attempt: u32, token: &Token) -> String {
    format!("jobs/{job}/fail/{task}/{attempt}-{token}")
}

/// Prefix of the records of executions of a task that have begun and not ended.
pub fn begun_prefix(job: &JobId, task: &TaskId) -> String {
    format!("jobs/{job}/begun/{task}/")
}

/// There while an execution runs; it stays when its worker dies.
pub fn begun(job: &JobId, task: &TaskId, attempt: u32, token: &Token) -> String {
    format!("jobs/{job}/begun/{task}/{attempt}-{token}")
}

/// As [`begun`], for an execution beside which its worker runs no other.
pub fn begun_alone(job: &JobId, task: &TaskId, attempt: u32, token: &Token) -> String {
    format!("jobs/{job}/begun/{task}/{attempt}-{token}{ALONE}")
}

/// How the names of such records end.
pub const ALONE: &str = "-alone";

/// There when the job is to stop.
pub fn cancel(job: &JobId) -> String {
    format!("jobs/{job}/cancel")
}

/// The exact objects of the result.
pub fn seal(job: &JobId) -> String {
    format!("jobs/{job}/seal.json")
}

/// How the job ended.
pub fn result(job: &JobId) -> String {
    format!("jobs/{job}/result.json")
}

/// Everything of a job.
pub fn job_prefix(job: &JobId) -> String {
    format!("jobs/{job}/")
}

/// Listing this finds everything to resume.
pub fn active_prefix(partition: u32) -> String {
    format!("active/{partition}/")
}

/// There while the job has not ended.
pub fn active(partition: u32, job: &JobId) -> String {
    format!("active/{partition}/{job}")
}

/// Prefix of the jobs whose end is still to be told.
pub fn outbox_prefix(partition: u32) -> String {
    format!("outbox/{partition}/")
}

/// Prefix of what is still to be told of the end of a job.
pub fn outbox_of(partition: u32, job: &JobId) -> String {
    format!("outbox/{partition}/{job}/")
}

/// There while the end of a job is still to be told: an [`crate::ended::Ended`].
pub fn outbox(partition: u32, job: &JobId) -> String {
    format!("outbox/{partition}/{job}/end")
}

/// There while it is to be told once more, because somebody asked.
pub fn outbox_again(partition: u32, job: &JobId, token: &Token) -> String {
    format!("outbox/{partition}/{job}/{token}")
}

/// Prefix of the jobs after which is still to be cleaned up.
pub fn sweep_prefix(partition: u32) -> String {
    format!("sweep/{partition}/")
}

/// There while it is still to be cleaned up after a job that has ended.
pub fn sweep(partition: u32, job: &JobId) -> String {
    format!("sweep/{partition}/{job}")
}

/// There when the end of a job was told, or telling it was given up.
pub fn notified(job: &JobId) -> String {
    format!("jobs/{job}/notified")
}

/// There while a failed job is being taken up again.
pub fn retrying(job: &JobId) -> String {
    format!("jobs/{job}/retrying")
}

/// There when the media of a failed job may be gone, so that it cannot be taken up again.
pub fn given_up(job: &JobId) -> String {
    format!("jobs/{job}/given-up")
}

/// Prefix of all jobs that have ended.
pub fn ended_prefix(partition: u32) -> String {
    format!("ended/{partition}/")
}

/// Prefix of the jobs of a tenant that have ended. Tenants may have any name, so a hash of it stands here.
pub fn ended_of_tenant(partition: u32, tenant: &str) -> String {
    let digest = Sha256::digest(tenant.as_bytes());
    let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("ended/{partition}/{hash}/")
}

/// There when a job has ended: an [`crate::ended::Ended`].
pub fn ended(partition: u32, tenant: &str, job: &JobId) -> String {
    format!("{}{job}", ended_of_tenant(partition, tenant))
}

/// The term of the scheduler that acts.
pub fn term(partition: u32) -> String {
    format!("term/{partition}")
}

/// The multivariant playlist: written last.
pub const MASTER: &str = "master.m3u8";

/// The report.
pub const REPORT: &str = "report.json";

/// Media playlist of a rendition.
pub fn playlist(rendition: &RenditionId) -> String {
    format!("{rendition}/index.m3u8")
}

/// Init segment that one execution wrote.
pub fn init(rendition: &RenditionId, token: &Token) -> String {
    format!("{rendition}/{token}/init.mp4")
}

/// Media segment, by its number in the rendition.
pub fn segment(rendition: &RenditionId, token: &Token, number: u64) -> String {
    format!("{rendition}/{token}/{number:05}.m4s")
}

/// Segments of one execution one after another in one object, to be joined later; by its number in the execution, from 0.
pub fn part(rendition: &RenditionId, token: &Token, number: usize) -> String {
    format!("{rendition}/{token}/part-{number:05}.m4s")
}

/// A whole rendition in one file.
pub fn whole(rendition: &RenditionId, token: &Token) -> String {
    format!("{rendition}/{token}/{rendition}.mp4")
}

/// The token in an output key that an execution wrote, if it is one: `v720/0123456789abcdef/00001.m4s`.
pub fn token_in(output_key: &str) -> Option<&str> {
    let mut parts = output_key.split('/');
    let (rendition, token, name) = (parts.next()?, parts.next()?, parts.next()?);
    let is_rendition = rendition.strip_prefix(['v', 'a']).is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit() || b == b'-'));
    let is_media = [".m4s", ".mp4"].iter().any(|end| name.ends_with(end));
    (parts.next().is_none() && is_rendition && is_media && Token::is_shape_of(token)).then_some(token)
}
