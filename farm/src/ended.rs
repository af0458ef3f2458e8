//! How a job ended, as everybody outside is told: on the results exchange, in the signed call, and in lists of jobs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Code;
use crate::job::JobId;

/// The end of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ended {
    /// The job.
    pub job: JobId,
    /// Who it was for.
    pub tenant: String,
    /// How it ended.
    pub outcome: JobOutcome,
    /// What went wrong, for programs, unless it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// What went wrong, for people, unless it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The output prefix, without anything that may be secret.
    pub output: String,
    /// Key of the multivariant playlist below the output prefix, when it is done; none of still pictures alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
}

/// How a job ended, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobOutcome {
    /// The output is complete.
    Done,
    /// There is no output.
    Failed,
    /// Somebody stopped it; there is no output.
    Cancelled,
}

impl JobOutcome {
    /// Every outcome.
    pub const ALL: [Self; 3] = [Self::Done, Self::Failed, Self::Cancelled];

    /// The word, as it is serialized.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}
