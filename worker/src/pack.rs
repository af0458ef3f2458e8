//! Packing: the parts of a rendition, which several executions made, joined into one file. No child takes part.

use farm::job::JobId;
use farm::plan::{Plan, RenditionId};
use farm::storage::{Kind, Part, Storage};
use farm::task::{Encoded, Marker, Object, Outcome, TaskId, Token};
use farm::{Code, Failure, keys};

use crate::retry::{patiently, storage_may_pass};
use crate::work::{Medium, parts_of};

/// Joins init segment and parts of a rendition under `token`.
///
/// # Errors
/// [`Code::InvalidRequest`] for a rendition that the plan has not; [`Code::Internal`] when its parts do not fit together;
/// of the storage.
pub(crate) async fn pack(
    state: &Storage,
    output: &Storage,
    (job, plan): (&JobId, &Plan),
    rendition: &RenditionId,
    token: &Token,
) -> Result<Object, Failure> {
    let unknown = || Failure::new(Code::InvalidRequest, format!("the plan has no rendition {rendition}"));
    let (medium, tasks) = parts_of(plan, rendition).ok_or_else(unknown)?;
    let parts = made(state, job, &tasks, rendition).await?;
    let recipe = recipe(rendition, &parts)?;
    join(output, keys::whole(rendition, token), &recipe, medium).await
}

/// Joins what a file is made of.
///
/// # Errors
/// Of the storage.
pub(crate) async fn join(output: &Storage, key: String, recipe: &Recipe, medium: Medium) -> Result<Object, Failure> {
    let kind = match medium {
        Medium::Picture => Kind::VideoMp4,
        Medium::Sound => Kind::AudioMp4,
    };
    let bytes = patiently(storage_may_pass, || output.join(&key, &recipe.parts, kind)).await?;
    if bytes != recipe.bytes {
        let message = format!("{key} came out with {bytes} bytes, its parts have {}", recipe.bytes);
        return Err(Failure::new(Code::StorageUnavailable, message));
    }
    Ok(Object { key, bytes, sha256: String::new() })
}

/// What tasks made of a rendition, in their order.
///
/// # Errors
/// [`Code::Internal`] when one has made nothing of it; of the storage.
pub(crate) async fn made(
    state: &Storage,
    job: &JobId,
    tasks: &[TaskId],
    rendition: &RenditionId,
) -> Result<Vec<Encoded>, Failure> {
    let mut made = Vec::with_capacity(tasks.len());
    for task in tasks {
        made.push(part(state, job, task, rendition).await?);
    }
    Ok(made)
}

/// What a task made of a rendition, by its marker.
async fn part(state: &Storage, job: &JobId, task: &TaskId, rendition: &RenditionId) -> Result<Encoded, Failure> {
    let key = keys::done(job, task);
    let marker = patiently(storage_may_pass, || state.get(&key)).await?;
    let broken = |why: String| Failure::new(Code::Internal, format!("{key} cannot be used: {why}"));
    let marker: Marker = serde_json::from_slice(&marker).map_err(|error| broken(error.to_string()))?;
    let Outcome::Encoded { renditions, .. } = marker.outcome else { return Err(broken("no encode task's".to_owned())) };
    let made = renditions.into_iter().find(|made| made.rendition == *rendition);
    made.ok_or_else(|| broken(format!("it made nothing of {rendition}")))
}

/// What a file is joined from, and how large it gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// In order.
    pub(crate) parts: Vec<Part>,
    /// Bytes of all parts.
    pub(crate) bytes: u64,
}

/// The first part's init segment, then all media in order.
fn recipe(rendition: &RenditionId, parts: &[Encoded]) -> Result<Recipe, Failure> {
    let init = one_init(rendition, parts)?;
    let objects = || std::iter::once(init).chain(parts.iter().flat_map(|part| &part.objects));
    let part = |object: &Object| Part::Object { key: object.key.clone(), range: Some(0..object.bytes) };
    Ok(Recipe { parts: objects().map(part).collect(), bytes: objects().map(|object| object.bytes).sum() })
}

/// The init segment that every part decodes with.
///
/// # Errors
/// [`Code::EncoderFailed`] when they need different ones, [`Code::Internal`] without parts.
pub(crate) fn one_init<'a>(rendition: &RenditionId, parts: &'a [Encoded]) -> Result<&'a Object, Failure> {
    let nothing = || Failure::new(Code::Internal, format!("{rendition} has no parts"));
    let first = parts.first().ok_or_else(nothing)?;
    if let Some(other) = parts.iter().find(|part| part.init.sha256 != first.init.sha256) {
        let message = format!("the parts of {rendition} need different init segments: {} and {}", first.init.key, other.init.key);
        return Err(Failure::new(Code::EncoderFailed, message));
    }
    Ok(&first.init)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(n: u64, init: &str) -> Encoded {
        let object = |name: &str, bytes| Object { key: format!("v720/{n}/{name}"), bytes, sha256: init.to_owned() };
        Encoded {
            rendition: RenditionId("v720".to_owned()),
            codecs: "avc1.64001F".to_owned(),
            timescale: 12_800,
            init: object("init.mp4", 10),
            objects: vec![object("part.m4s", 100 + n)],
            segments: Vec::new(),
            samples: None,
        }
    }

    #[test]
    fn one_init_segment_goes_before_all_parts_in_order() {
        let id = RenditionId("v720".to_owned());
        let recipe = recipe(&id, &[part(1, "same"), part(2, "same")]).expect("parts that fit");
        let part = |key: &str, bytes| Part::Object { key: key.to_owned(), range: Some(0..bytes) };
        let parts = [part("v720/1/init.mp4", 10), part("v720/1/part.m4s", 101), part("v720/2/part.m4s", 102)];
        assert_eq!(recipe.parts, parts);
        assert_eq!(recipe.bytes, 10 + 101 + 102);
    }

    #[test]
    fn parts_of_different_encoders_are_not_joined() {
        let id = RenditionId("v720".to_owned());
        let refused = recipe(&id, &[part(1, "one"), part(2, "other")]).map_err(|f| f.code);
        assert_eq!(refused, Err(Code::EncoderFailed));
        assert!(recipe(&id, &[]).is_err());
    }
}
