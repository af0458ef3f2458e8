//! What of a failed job goes to the dead queue: enough to find it and to see why, and nothing secret.

use farm::broker::DeadLetter;
use farm::job::{JobId, JobSpec, shown_url};
use farm::task::TaskId;
use farm::{Code, Failure, Life};
use serde::Serialize;

use crate::step::JobResult;

/// A failed job, as the letter's body has it in JSON.
#[derive(Serialize)]
struct FailedJob<'a> {
    job: &'a JobId,
    tenant: &'a str,
    /// Which life of the job failed.
    life: Life,
    /// The task that could not be done, if it was one, and how many attempts were made at it.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'a TaskId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    code: Code,
    message: &'a str,
    source: String,
    output: String,
}

/// The letter about a life of a job that has failed; none about one that ended otherwise.
///
/// # Errors
/// [`Code::Internal`] when it cannot be written as JSON.
pub(super) fn letter(job: &JobId, life: Life, spec: &JobSpec, result: &JobResult) -> Result<Option<DeadLetter>, Failure> {
    let JobResult::Failed { failure, at } = result else { return Ok(None) };
    let failed = FailedJob {
        job,
        tenant: &spec.tenant,
        life,
        task: at.as_ref().map(|at| &at.task),
        attempts: at.as_ref().map(|at| at.attempts),
        code: failure.code,
        message: &failure.message,
        source: shown_url(&spec.source.url),
        output: shown_url(&spec.output.url),
    };
    let body = serde_json::to_vec(&failed).map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
    Ok(Some(DeadLetter::new(&format!("job {job} failed: {}: {}", failure.code, failure.message), &body)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::step::FailedTask;

    #[test]
    fn a_letter_names_job_task_and_reason_and_no_secret() {
        let mut spec = crate::testing::spec();
        spec.source.url = "https://me:secret@tube.example/a.mkv?key=secret".parse().expect("a URL");
        spec.source.headers.insert("authorization".to_owned(), "secret".to_owned());
        let job = JobId::try_from("film".to_owned()).expect("an id");
        let at = Some(FailedTask { task: TaskId::Video(3), attempts: 3 });
        let result = JobResult::Failed { failure: Failure::new(Code::ChildCrashed, "it crashed"), at };
        let written = letter(&job, Life::FIRST, &spec, &result).expect("JSON").expect("a letter");
        assert_eq!(written.reason, "job film failed: child_crashed: it crashed");
        let expected = json!({
            "job": "film", "tenant": "default", "life": 1, "task": "video-00003", "attempts": 3,
            "code": "child_crashed", "message": "it crashed",
            "source": "https://tube.example/a.mkv", "output": "file:///out/",
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&written.body).ok(), Some(expected));
        assert_eq!(letter(&job, Life::FIRST, &spec, &JobResult::Cancelled).expect("JSON"), None);
    }
}
