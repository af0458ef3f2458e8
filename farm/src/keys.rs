//! Every storage key of the farm, in one place.
//!
//! State keys are relative to the state prefix, output keys to the job's output prefix.

use sha2::{Digest as _, Sha256};

use crate::Life;
use crate::job::{JobId, VideoCodec};
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

/// Prefix of all failure records of a job, of whatever life.
pub fn fails_prefix(job: &JobId) -> String {
    format!("jobs/{job}/fail/")
}

/// Prefix of all failure records of a life.
pub fn fail_prefix(job: &JobId, life: Life) -> String {
    format!("jobs/{job}/fail/{life}/")
}

/// Record of a failed execution.
pub fn fail(job: &JobId, life: Life, task: &TaskId, attempt: u32, token: &Token) -> String {
    format!("jobs/{job}/fail/{life}/{task}/{attempt}-{token}")
}

/// Prefix of all records of executions of a job that have begun and not ended, of whatever life.
pub fn begins_prefix(job: &JobId) -> String {
    format!("jobs/{job}/begun/")
}

/// Prefix of the records of executions of a task that have begun and not ended.
pub fn begun_prefix(job: &JobId, life: Life, task: &TaskId) -> String {
    format!("jobs/{job}/begun/{life}/{task}/")
}

/// Prefix of such records in a life: `{task}/{attempt}-{token}` follow.
pub fn begun_in(job: &JobId, life: Life) -> String {
    format!("jobs/{job}/begun/{life}/")
}

/// There while an execution runs; it stays when its worker dies.
pub fn begun(job: &JobId, life: Life, task: &TaskId, attempt: u32, token: &Token) -> String {
    format!("jobs/{job}/begun/{life}/{task}/{attempt}-{token}")
}

/// As [`begun`], for an execution beside which its worker runs no other.
pub fn begun_alone(job: &JobId, life: Life, task: &TaskId, attempt: u32, token: &Token) -> String {
    format!("jobs/{job}/begun/{life}/{task}/{attempt}-{token}{ALONE}")
}

/// How the names of such records end.
pub const ALONE: &str = "-alone";

/// There when a life is to stop, or has ended without a result.
pub fn cancel(job: &JobId, life: Life) -> String {
    format!("jobs/{job}/cancel-{life}")
}

/// Which init segment devices make of a rendition, where all its parts are to decode with one: the SHA-256 of the first that
/// came.
pub fn sets(job: &JobId, rendition: &RenditionId) -> String {
    format!("jobs/{job}/sets/{rendition}")
}

/// The exact objects of the result.
pub fn seal(job: &JobId) -> String {
    format!("jobs/{job}/seal.json")
}

/// There when the output of a job was deleted, or is about to be, because somebody asked for it.
pub fn deleted(job: &JobId) -> String {
    format!("jobs/{job}/deleted")
}

/// How a life ended.
pub fn result(job: &JobId, life: Life) -> String {
    format!("jobs/{job}/result-{life}.json")
}

/// Prefix of the lives of a job after the first.
pub fn lives_prefix(job: &JobId) -> String {
    format!("jobs/{job}/lives/")
}

/// There when a life after the first has begun.
pub fn life(job: &JobId, life: Life) -> String {
    format!("jobs/{job}/lives/{life}")
}

/// Everything of a job.
pub fn job_prefix(job: &JobId) -> String {
    format!("jobs/{job}/")
}

/// Listing this finds everything to resume: `{job}/{life}` follow.
pub fn active_prefix(partition: u32) -> String {
    format!("active/{partition}/")
}

/// Prefix of the lives of a job that have not ended.
pub fn active_of(partition: u32, job: &JobId) -> String {
    format!("active/{partition}/{job}/")
}

/// There while a life has not ended.
pub fn active(partition: u32, job: &JobId, life: Life) -> String {
    format!("active/{partition}/{job}/{life}")
}

/// Prefix of the ends that are still to be told: `{job}/{life}` follow, or `{job}/again-{token}`.
pub fn outbox_prefix(partition: u32) -> String {
    format!("outbox/{partition}/")
}

/// Prefix of what is still to be told of the ends of a job.
pub fn outbox_of(partition: u32, job: &JobId) -> String {
    format!("outbox/{partition}/{job}/")
}

/// There while the end of a life is still to be told: an [`crate::ended::Ended`].
pub fn outbox(partition: u32, job: &JobId, life: Life) -> String {
    format!("outbox/{partition}/{job}/{life}")
}

/// There while an end is to be told once more, because somebody asked.
pub fn outbox_again(partition: u32, job: &JobId, token: &Token) -> String {
    format!("outbox/{partition}/{job}/again-{token}")
}

/// Prefix of the lives after which is still to be cleaned up: `{job}/{life}` follow.
pub fn sweep_prefix(partition: u32) -> String {
    format!("sweep/{partition}/")
}

/// There while it is still to be cleaned up after a life that has ended.
pub fn sweep(partition: u32, job: &JobId, life: Life) -> String {
    format!("sweep/{partition}/{job}/{life}")
}

/// There when the end of a life was told, or telling it was given up.
pub fn told(job: &JobId, life: Life) -> String {
    format!("jobs/{job}/told-{life}")
}

/// Prefix of the flags of those who are about to take a job up again after this life.
pub fn retrying_prefix(job: &JobId, life: Life) -> String {
    format!("jobs/{job}/retrying/{life}/")
}

/// Flag of one who is about to take a job up again after this life.
pub fn retrying(job: &JobId, life: Life, token: &Token) -> String {
    format!("jobs/{job}/retrying/{life}/{token}")
}

/// Prefix of the flags of those who delete the media of a job that ended with this life.
pub fn given_up_prefix(job: &JobId, life: Life) -> String {
    format!("jobs/{job}/given-up/{life}/")
}

/// Flag of one who deletes the media of a job that ended with this life, so that it cannot be taken up again.
pub fn given_up(job: &JobId, life: Life, token: &Token) -> String {
    format!("jobs/{job}/given-up/{life}/{token}")
}

/// Prefix of all lives that have ended: the tenant's hash and `{job}/{life}` follow.
pub fn ended_prefix(partition: u32) -> String {
    format!("ended/{partition}/")
}

/// Prefix of the lives of a tenant's jobs that have ended. Tenants may have any name, so a hash of it stands here.
pub fn ended_of_tenant(partition: u32, tenant: &str) -> String {
    let digest = Sha256::digest(tenant.as_bytes());
    let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("ended/{partition}/{hash}/")
}

/// There when a life has ended: an [`crate::ended::Ended`].
pub fn ended(partition: u32, tenant: &str, job: &JobId, life: Life) -> String {
    format!("{}{job}/{life}", ended_of_tenant(partition, tenant))
}

/// The term of the scheduler that acts.
pub fn term(partition: u32) -> String {
    format!("term/{partition}")
}

/// Everything that is kept for instances of PeerTube.
pub const PEERTUBE: &str = "peertube/";

/// Prefix of the runner jobs of an instance that were taken and not ended.
pub fn peertube_jobs(instance: &str) -> String {
    format!("{PEERTUBE}{instance}/jobs/")
}

/// Prefix of the videos that are kept for an instance.
pub fn peertube_videos(instance: &str) -> String {
    format!("{PEERTUBE}{instance}/videos/")
}

/// Prefix of all that is kept of a video for an instance.
pub fn peertube_video(instance: &str, video: &str) -> String {
    format!("{}{video}/", peertube_videos(instance))
}

/// The multivariant playlist: written last.
pub const MASTER: &str = "master.m3u8";

/// Where both layouts are made, the multivariant playlist of the one with a file per rendition.
pub const FILES_MASTER: &str = "single-file.m3u8";

/// The report.
pub const REPORT: &str = "report.json";

/// Media playlist of a rendition.
pub fn playlist(rendition: &RenditionId) -> String {
    format!("{rendition}/index.m3u8")
}

/// Playlist of the key frames of a rendition alone.
pub fn i_frame_playlist(rendition: &RenditionId) -> String {
    format!("{rendition}/i-frames.m3u8")
}

/// Where both layouts are made, the media playlist of a rendition's file.
pub fn file_playlist(rendition: &RenditionId) -> String {
    format!("{rendition}/single-file.m3u8")
}

/// Where both layouts are made, the playlist of the key frames of a rendition's file.
pub fn file_i_frame_playlist(rendition: &RenditionId) -> String {
    format!("{rendition}/single-file-i-frames.m3u8")
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

/// Segment of a rendition of text, by its number from 1.
pub fn text_segment(rendition: &RenditionId, token: &Token, number: usize) -> String {
    format!("{rendition}/{token}/{number:05}.vtt")
}

/// A whole rendition in one file.
pub fn whole(rendition: &RenditionId, token: &Token) -> String {
    format!("{rendition}/{token}/{rendition}.mp4")
}

/// A plain MP4 of a rung and the main sound.
pub fn download(rendition: &RenditionId, token: &Token) -> String {
    format!("{rendition}/{token}/download.mp4")
}

/// Where the samples of what one execution made of a rendition are.
pub fn samples(rendition: &RenditionId, token: &Token) -> String {
    format!("{rendition}/{token}/samples.json")
}

/// Where everything of still pictures is.
pub const STILLS_FOLDER: &str = "stills/";

/// The track that leads to the pictures of a storyboard.
pub const STORYBOARD: &str = "stills/storyboard.vtt";

/// The poster that one execution made.
pub fn poster(token: &Token) -> String {
    format!("{STILLS_FOLDER}{token}/poster.jpg")
}

/// A sheet of a storyboard, by its number from 0.
pub fn sheet(token: &Token, number: usize) -> String {
    format!("{STILLS_FOLDER}{token}/storyboard-{number:05}.jpg")
}

/// Whether a name is one of those that renditions have: of picture, sound or text.
pub fn is_rendition(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    let is_picture = |rest: &str| VideoCodec::ALL.iter().any(|codec| rest.strip_suffix(codec.suffix()).is_some_and(is_number));
    name.strip_prefix('v').is_some_and(is_picture) || name.strip_prefix(['a', 't']).is_some_and(is_number)
}

/// The token in an output key that an execution wrote, if it is one: `v720/0123456789abcdef/00001.m4s`.
pub fn token_in(output_key: &str) -> Option<&str> {
    let mut parts = output_key.split('/');
    let (rendition, token, name) = (parts.next()?, parts.next()?, parts.next()?);
    let is_media = is_rendition(rendition) && [".m4s", ".mp4", ".vtt", ".json"].iter().any(|end| name.ends_with(end));
    let is_still = rendition == STILLS_FOLDER.trim_end_matches('/') && name.ends_with(".jpg");
    (parts.next().is_none() && (is_media || is_still) && Token::is_shape_of(token)).then_some(token)
}
