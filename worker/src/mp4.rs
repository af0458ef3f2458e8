//! A plain MP4 of renditions that are made already: their samples, byte by byte, behind a head that says where each is. No
//! child takes part.

use farm::job::JobId;
use farm::plan::{AudioPlan, Plan, RenditionId};
use farm::rate::SECOND_NS;
use farm::storage::{Part, Storage};
use farm::task::{Encoded, Object, Token};
use farm::{Code, Failure, keys};
use pipelines::movie::{self, Run, Track};

use crate::pack::{Recipe, join, made, one_init};
use crate::retry::{patiently, storage_may_pass};
use crate::work::{Medium, parts_of, tracks_of};

/// Makes the file that is named after `rendition` under `token`.
///
/// # Errors
/// [`Code::InvalidRequest`] for a file that the plan has not; [`Code::Internal`] when what was made does not fit together; of
/// the storage.
pub(crate) async fn mp4(
    state: &Storage,
    output: &Storage,
    (job, plan): (&JobId, &Plan),
    rendition: &RenditionId,
    token: &Token,
) -> Result<Object, Failure> {
    let unknown = || Failure::new(Code::InvalidRequest, format!("the plan has no plain MP4 of {rendition}"));
    let mut whole = Vec::new();
    let mut kind = Medium::Sound;
    for id in tracks_of(plan, rendition).ok_or_else(unknown)? {
        let (medium, tasks) = parts_of(plan, &id).ok_or_else(unknown)?;
        if medium == Medium::Picture {
            kind = medium;
        }
        let parts = made(state, job, &tasks, &id).await?;
        let audio = plan.audio.iter().find(|audio| audio.id == id);
        whole.push(Whole::fetch(output, &id, &parts, audio).await?);
    }
    join(output, keys::download(rendition, token), &recipe(whole)?, kind).await
}

/// All of a rendition.
struct Whole {
    init: bytes::Bytes,
    /// How long it is shown, in ticks.
    ticks: u64,
    timescale: u32,
    /// In order of time.
    segments: Vec<Placed>,
}

/// Where the samples of a segment are.
struct Placed {
    key: String,
    runs: Vec<Run>,
}

impl Whole {
    async fn fetch(output: &Storage, id: &RenditionId, parts: &[Encoded], audio: Option<&AudioPlan>) -> Result<Self, Failure> {
        let timescale = parts.first().map_or(1, |part| part.timescale);
        let init = match one_init(output, id, parts).await? {
            Part::Bytes(joined) => joined,
            Part::Object { key, .. } => patiently(storage_may_pass, || output.get(&key)).await?,
        };
        let mut segments = Vec::new();
        for part in parts {
            let broken = |why: &str| Failure::new(Code::Internal, format!("samples of {id} cannot be used: {why}"));
            let object = part.samples.as_ref().ok_or_else(|| broken("nobody said where they are"))?;
            let samples = patiently(storage_may_pass, || output.get(&object.key)).await?;
            let samples: Vec<Vec<Run>> = serde_json::from_slice(&samples).map_err(|error| broken(&error.to_string()))?;
            if samples.len() != part.objects.len() {
                return Err(broken("they are of other segments"));
            }
            let placed = |(object, runs): (&Object, Vec<Run>)| Placed { key: object.key.clone(), runs };
            segments.extend(part.objects.iter().zip(samples).map(placed));
        }
        let samples = segments.iter().flat_map(|segment| &segment.runs).flat_map(|run| &run.samples);
        let media_ticks = samples.map(|sample| u64::from(sample.duration)).sum();
        // The encoder's packets are more than the sound: silence before and after it is not shown.
        let sound = |audio: &AudioPlan| audio.samples * u64::from(timescale) / u64::from(audio.rate.max(1));
        Ok(Self { init, ticks: audio.map_or(media_ticks, sound), timescale, segments })
    }
}

/// The head, then all samples, a segment of each rendition in turn, as they are shown.
fn recipe(whole: Vec<Whole>) -> Result<Recipe, Failure> {
    let mut tracks: Vec<Track<'_>> = Vec::new();
    let mut segments = Vec::new();
    for (track, Whole { init, ticks, timescale, segments: own }) in whole.iter().enumerate() {
        tracks.push(Track { init, ticks: *ticks, runs: Vec::new() });
        let start = |run: &Run| u128::from(run.start) * u128::from(SECOND_NS) / u128::from(*timescale).max(1);
        segments.extend(own.iter().map(|segment| (segment.runs.first().map_or(0, start), track, segment)));
    }
    segments.sort_by_key(|(start_ns, track, _)| (*start_ns, *track));
    let (mut parts, mut offset) = (Vec::new(), 0);
    for (_, track, Placed { key, runs }) in segments {
        for run in runs {
            let bytes = run.bytes();
            if let Some(track) = tracks.get_mut(track) {
                track.runs.push(Run { offset, ..run.clone() });
            }
            offset += bytes.end - bytes.start;
            parts.push(Part::Object { key: key.clone(), range: Some(bytes) });
        }
    }
    let head = movie::head(&tracks, offset)
        .map_err(|error| Failure::new(Code::Internal, format!("what was made does not fit into an MP4: {error}")))?;
    let bytes = offset + head.len() as u64;
    parts.insert(0, Part::Bytes(head));
    Ok(Recipe { parts, bytes })
}
