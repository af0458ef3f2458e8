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
    let recipe = recipe(one_init(output, rendition, &parts).await?, &parts);
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

/// The init segment, then all media in order.
fn recipe(init: Part, parts: &[Encoded]) -> Recipe {
    let init_bytes = match &init {
        Part::Object { range, .. } => range.as_ref().map_or(0, |range| range.end - range.start),
        Part::Bytes(bytes) => bytes.len() as u64,
    };
    let media = || parts.iter().flat_map(|part| &part.objects);
    let bytes = init_bytes + media().map(|object| object.bytes).sum::<u64>();
    Recipe { parts: std::iter::once(init).chain(media().map(whole)).collect(), bytes }
}

/// All of an object.
fn whole(object: &Object) -> Part {
    Part::Object { key: object.key.clone(), range: Some(0..object.bytes) }
}

/// The init segment that every part decodes with: theirs, or one with the parameter sets of all, where pieces were made by
/// different encoders.
///
/// # Errors
/// [`Code::EncoderFailed`] when theirs do not go together, [`Code::Internal`] without parts; of the storage.
pub(crate) async fn one_init(output: &Storage, rendition: &RenditionId, parts: &[Encoded]) -> Result<Part, Failure> {
    let nothing = || Failure::new(Code::Internal, format!("{rendition} has no parts"));
    let first = &parts.first().ok_or_else(nothing)?.init;
    let mut different: Vec<&Object> = Vec::new();
    for part in parts {
        if different.iter().all(|init| init.sha256 != part.init.sha256) {
            different.push(&part.init);
        }
    }
    if different.len() == 1 {
        return Ok(whole(first));
    }
    let mut inits = Vec::with_capacity(different.len());
    for init in &different {
        inits.push(patiently(storage_may_pass, || output.get(&init.key)).await?);
    }
    let joined = pipelines::parameter_sets::join(&inits).map_err(|error| {
        let keys: Vec<&str> = different.iter().map(|init| init.key.as_str()).collect();
        let message = format!("the parts of {rendition} need different init segments: {}: {error}", keys.join(", "));
        Failure::new(Code::EncoderFailed, message)
    })?;
    Ok(Part::Bytes(joined))
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

    #[tokio::test]
    async fn one_init_segment_goes_before_all_parts_in_order() {
        let id = RenditionId("v720".to_owned());
        let made = [part(1, "same"), part(2, "same")];
        let folder = tempfile::tempdir().expect("a folder");
        let init = one_init(&Storage::folder(folder.path()), &id, &made).await.expect("parts that fit");
        let recipe = recipe(init, &made);
        let part = |key: &str, bytes| Part::Object { key: key.to_owned(), range: Some(0..bytes) };
        let parts = [part("v720/1/init.mp4", 10), part("v720/1/part.m4s", 101), part("v720/2/part.m4s", 102)];
        assert_eq!(recipe.parts, parts);
        assert_eq!(recipe.bytes, 10 + 101 + 102);
    }

    #[tokio::test]
    async fn parts_whose_init_segments_do_not_go_together_are_not_joined() {
        let id = RenditionId("v720".to_owned());
        let folder = tempfile::tempdir().expect("a folder");
        let output = Storage::folder(folder.path());
        for n in [1, 2] {
            output.put(&format!("v720/{n}/init.mp4"), vec![n; 10].into(), Kind::VideoMp4).await.expect("stored");
        }
        let refused = one_init(&output, &id, &[part(1, "one"), part(2, "other")]).await.map_err(|f| f.code);
        assert_eq!(refused, Err(Code::EncoderFailed));
        assert!(one_init(&output, &id, &[]).await.is_err());
    }
}
