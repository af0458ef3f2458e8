//! Lives of a job: the first begins when it is submitted, another each time it is taken up again after it failed.
//!
//! What one life says of itself stands under its number, and is never taken away for another: so whoever acts on an old copy
//! of a job writes about a life that is over, and harms none that came later. What was made (plan, markers, seal) belongs to
//! the job, and counts in every life.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::job::JobId;

/// Number of a life, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Life(u32);

impl Life {
    /// The one that begins with the submission.
    pub const FIRST: Self = Self(1);

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Job and life of a key that ends with them: `{job}/{life}`.
    pub fn in_key(tail: &str) -> Option<(JobId, Self)> {
        let (job, life) = tail.split_once('/')?;
        Some((JobId::try_from(job.to_owned()).ok()?, life.parse().ok()?))
    }
}

impl Default for Life {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is no number of a life.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no number of a life")]
pub struct NotALife(String);

impl FromStr for Life {
    type Err = NotALife;

    fn from_str(text: &str) -> Result<Self, NotALife> {
        let number = text.parse().ok().filter(|number| *number >= 1 && !text.starts_with(['+', '0']));
        number.map(Self).ok_or_else(|| NotALife(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_job_and_life_or_nothing() {
        let read = |tail: &str| Life::in_key(tail).map(|(job, life)| format!("{job} {life}"));
        assert_eq!(read("film.1/12"), Some("film.1 12".to_owned()));
        assert_eq!(Life::in_key("film/1").map(|(_, life)| life), Some(Life::FIRST));
        for odd in ["film", "film/", "film/0", "film/+1", "film/01", "film/one", "film/1/2", "/1", "film/again-0123456789abcdef"]
        {
            assert_eq!(read(odd), None, "{odd}");
        }
    }
}
