//! The seal: exactly which objects make up the result. After it, nobody asks the markers again.

mod codecs;

use std::collections::BTreeMap;
use std::ops::Range;

use farm::job::Layout;
use farm::plan::{AudioPlan, Pass, Plan, RenditionId, Rung};
use farm::stills::{Stills, StillsPlan};
use farm::task::{Account, Cost, Encoded, Marker, Object, Outcome, Segment, TaskId, Token};
use farm::text::{TextPlan, TextTrackPlan, Texts};
use farm::{Code, Failure, Rate, keys};
use serde::{Deserialize, Serialize};

/// Packets of sound that a rendition may have more or fewer than its samples ask for: encoders add one to flush themselves.
const PACKETS_OFF_MAX: u64 = 4;

/// Largest init segment in bytes.
const INIT_BYTES_MAX: u64 = 1 << 20;

/// Samples of an AAC packet.
const PACKET_SAMPLES: u64 = 1024;

/// Exactly what the result consists of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seal {
    /// Renditions in the plan's order: picture from the largest to the smallest, then sound.
    pub renditions: Vec<Rendition>,
    /// Where both layouts are made, the same renditions as a file each; `renditions` are in segments then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Rendition>,
    /// Plain MP4 files, in the order of renditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mp4: Vec<Download>,
    /// The still pictures, if some were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stills: Option<Stills>,
    /// Renditions of text, in the plan's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<TextRendition>,
    /// The executions that count, in the order of their tasks.
    pub executions: Vec<Execution>,
    /// What was made on the processor because a device failed at it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<Fallback>,
}

/// A task that a device failed at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// The task.
    pub task: TaskId,
    /// The attempt at it that failed.
    pub attempt: u32,
    /// The device and what it did.
    pub failure: Failure,
}

/// A plain MP4 file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Download {
    /// The rendition that it is named after.
    pub id: RenditionId,
    /// The object.
    pub object: Object,
}

/// An execution that counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Execution {
    /// Its task.
    pub task: TaskId,
    /// Its name.
    pub token: Token,
    /// What it cost.
    pub cost: Cost,
    /// What became of the frames or samples, if it encoded.
    pub account: Option<Account>,
    /// The device that rungs were encoded on, where it was not the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// A finished rendition of text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextRendition {
    /// What it is.
    pub track: TextTrackPlan,
    /// Where its segments are.
    pub made: Texts,
}

/// A finished rendition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rendition {
    /// Its name in paths.
    pub id: RenditionId,
    /// What it carries.
    pub medium: Medium,
    /// Codec string (RFC 6381): one that is true of all, where pieces were made by different encoders.
    pub codecs: String,
    /// Ticks per second of the segments' durations.
    pub timescale: u32,
    /// Where its bytes are.
    pub media: Media,
}

/// What a rendition carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// Frames.
    Picture {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Frames per second.
        rate: Rate,
    },
    /// Samples.
    Sound {
        /// Samples per second.
        rate: u32,
        /// Channels.
        channels: u32,
        /// Language tag, if known.
        language: Option<String>,
        /// Name to show.
        name: String,
        /// Whether it is the one to play when nobody chose.
        default: bool,
    },
}

/// Where the bytes of a rendition are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Media {
    /// In an object per segment; a piece per chunk.
    Objects {
        /// In order of time.
        pieces: Vec<Piece>,
    },
    /// In one object: init segment, then the segments one after another.
    File {
        /// The object.
        object: Object,
        /// Size of the init segment in bytes.
        init_bytes: u64,
        /// Segments in order.
        segments: Vec<Segment>,
    },
}

/// What one chunk contributes to a rendition. Each keeps its own init segment: where parameter sets differ, the playlist
/// names another one from there on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// The init segment its segments need.
    pub init: Object,
    /// Media objects, one per segment.
    pub objects: Vec<Object>,
    /// Segments in order.
    pub segments: Vec<Segment>,
}

/// A segment and where its bytes are.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed<'a> {
    /// The segment.
    pub segment: &'a Segment,
    /// The object that holds it.
    pub object: &'a Object,
    /// Where it begins in the object, in bytes; none when it is the whole object.
    pub offset: Option<u64>,
    /// The init segment, where another one is needed from here on.
    pub init: Option<PlacedInit<'a>>,
}

/// An init segment and where its bytes are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlacedInit<'a> {
    /// The object that holds it.
    pub object: &'a Object,
    /// How many bytes from the object's start it is; none when it is the whole object.
    pub bytes: Option<u64>,
}

impl Rendition {
    /// Segments in order of time, with their places.
    pub fn placed_segments(&self) -> Vec<Placed<'_>> {
        let mut placed = Vec::new();
        match &self.media {
            Media::Objects { pieces } => {
                let mut inits = self.inits().into_iter().peekable();
                for (place, piece) in pieces.iter().enumerate() {
                    let init = inits.next_if(|(first, _)| *first == place);
                    let mut init = init.map(|(_, object)| PlacedInit { object, bytes: None });
                    for (segment, object) in piece.segments.iter().zip(&piece.objects) {
                        placed.push(Placed { segment, object, offset: None, init: init.take() });
                    }
                }
            }
            Media::File { object, init_bytes, segments } => {
                let (mut init, mut offset) = (Some(PlacedInit { object, bytes: Some(*init_bytes) }), *init_bytes);
                for segment in segments {
                    placed.push(Placed { segment, object, offset: Some(offset), init: init.take() });
                    offset += segment.bytes;
                }
            }
        }
        placed
    }

    /// Segments in order of time.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        let (pieces, file): (&[Piece], &[Segment]) = match &self.media {
            Media::Objects { pieces } => (pieces, &[]),
            Media::File { segments, .. } => (&[], segments),
        };
        pieces.iter().flat_map(|piece| &piece.segments).chain(file)
    }

    /// Duration in ticks of [`Rendition::timescale`].
    pub fn ticks(&self) -> u64 {
        self.segments().map(|segment| segment.ticks).sum()
    }

    /// Bytes of all media segments, init segments not among them.
    pub fn bytes(&self) -> u64 {
        self.segments().map(|segment| segment.bytes).sum()
    }

    /// Keys of every object that belongs to it. An init segment that several pieces share by content is named once.
    pub fn keys(&self) -> Vec<&str> {
        match &self.media {
            Media::File { object, .. } => vec![&object.key],
            Media::Objects { pieces } => {
                let media = pieces.iter().flat_map(|piece| &piece.objects).map(|object| object.key.as_str());
                self.inits().into_iter().map(|(_, init)| init.key.as_str()).chain(media).collect()
            }
        }
    }

    /// The init segments that are used, each with the place of the first piece that needs it: one, unless contents differ.
    pub fn inits(&self) -> Vec<(usize, &Object)> {
        let Media::Objects { pieces } = &self.media else { return Vec::new() };
        let mut used: Vec<(usize, &Object)> = Vec::new();
        for (place, piece) in pieces.iter().enumerate() {
            if used.last().is_none_or(|(_, init)| init.sha256 != piece.init.sha256) {
                used.push((place, &piece.init));
            }
        }
        used
    }
}

impl Seal {
    /// Keys of every object that belongs to the result, playlists and report not among them.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let stills = self.stills.iter().flat_map(Stills::objects).map(|object| object.key.as_str());
        let text = self.text.iter().flat_map(|text| &text.made.segments).map(|object| object.key.as_str());
        let mp4 = self.mp4.iter().map(|download| download.object.key.as_str());
        self.renditions.iter().chain(&self.files).flat_map(Rendition::keys).chain(stills).chain(text).chain(mp4)
    }

    /// Names of all renditions.
    pub fn ids(&self) -> impl Iterator<Item = &RenditionId> {
        self.renditions.iter().map(|rendition| &rendition.id).chain(self.text.iter().map(|text| &text.track.id))
    }
}

/// Why markers do not make a result: a mistake in Shoal or in what was stored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum Mismatch {
    #[error("task {0} has no marker")]
    NoMarker(TaskId),
    #[error("the marker of {0} is of another kind")]
    WrongOutcome(TaskId),
    #[error("{task} made no {rendition}")]
    NotMade { task: TaskId, rendition: RenditionId },
    #[error("{task} made {rendition} in {found}, others in {expected}")]
    Differs { task: TaskId, rendition: RenditionId, found: String, expected: String },
    #[error("{task} made {found} samples in segment {segment} of {rendition}, the plan says {expected}")]
    Samples { task: TaskId, rendition: RenditionId, segment: usize, found: u64, expected: u64 },
    #[error("{task} made {found} segments of {rendition}, the plan says {expected}")]
    Segments { task: TaskId, rendition: RenditionId, found: usize, expected: usize },
    #[error(
        "{task} made segment {segment} of {rendition} last {ticks} ticks of 1/{timescale} s, which is not what its samples last"
    )]
    Ticks { task: TaskId, rendition: RenditionId, segment: usize, ticks: u64, timescale: u32 },
    #[error("{task} made other key frames in segment {segment} of {rendition} than the plan says")]
    KeyFrames { task: TaskId, rendition: RenditionId, segment: usize },
    #[error("{task} made {found} ticks of {rendition}, the plan says {expected}")]
    Duration { task: TaskId, rendition: RenditionId, found: u64, expected: u64 },
    #[error("objects and segments of {rendition} by {task} do not match in number or size")]
    Bytes { task: TaskId, rendition: RenditionId },
    #[error("{0} made other pictures than the plan says")]
    Stills(TaskId),
    #[error("{0} made other text than the plan says")]
    Text(TaskId),
    #[error("{task} stored {rendition} under {key}")]
    Key { task: TaskId, rendition: RenditionId, key: String },
}

impl From<Mismatch> for Failure {
    fn from(mismatch: Mismatch) -> Self {
        Self::new(Code::Internal, format!("the result does not fit together: {mismatch}"))
    }
}

/// Chooses the objects of the result: those that the markers name, when they are what the plan says.
///
/// # Errors
/// [`Code::Internal`] naming what does not fit.
pub fn seal(plan: &Plan, markers: &BTreeMap<TaskId, Marker>) -> Result<Seal, Failure> {
    let (shape, second) = match plan.layout {
        Layout::Segments => (Shape::Segments, None),
        Layout::SingleFile => (Shape::File, None),
        Layout::Both => (Shape::Segments, Some(Shape::File)),
    };
    let made = renditions(shape, plan, markers)?;
    let files = second.map(|shape| renditions(shape, plan, markers)).transpose()?.unwrap_or_default();
    let others = markers.keys().filter(|task| matches!(task, TaskId::ProbeOther(_))).cloned();
    let counting = [TaskId::Probe].into_iter().chain(others).chain(TaskId::encodes_of(plan)).chain(TaskId::joins_of(plan));
    let executions = counting.filter_map(|task| markers.get(&task)).map(|marker| Execution {
        task: marker.task.clone(),
        token: marker.token.clone(),
        cost: marker.cost,
        device: marker.device.clone(),
        account: match &marker.outcome {
            Outcome::Encoded { account, .. } => Some(*account),
            Outcome::Probed { .. } | Outcome::Pictured { .. } | Outcome::Texted { .. } | Outcome::Packed { .. } => None,
        },
    });
    let stills = plan.stills.as_ref().map(|stills| pictured(stills, markers)).transpose()?;
    let text = plan.text.as_ref().map(|text| texted(text, markers)).transpose()?.unwrap_or_default();
    let executions = executions.collect();
    Ok(Seal { executions, stills, text, renditions: made, files, mp4: downloads(plan, markers)?, fallbacks: Vec::new() })
}

/// How the bytes of a rendition are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// An object per segment.
    Segments,
    /// One file.
    File,
}

fn renditions(shape: Shape, plan: &Plan, markers: &BTreeMap<TaskId, Marker>) -> Result<Vec<Rendition>, Mismatch> {
    let mut renditions = Vec::new();
    for (rung, pass) in plan.rungs() {
        renditions.push(picture(shape, pass, rung, markers)?);
    }
    for (index, audio) in (0..).zip(&plan.audio) {
        renditions.push(sound(shape, &TaskId::Audio(index), audio, markers)?);
    }
    Ok(renditions)
}

/// The plain MP4 files of a plan.
fn downloads(plan: &Plan, markers: &BTreeMap<TaskId, Marker>) -> Result<Vec<Download>, Mismatch> {
    let mut downloads = Vec::new();
    for task in TaskId::joins_of(plan) {
        if let TaskId::Mp4(id) = &task {
            downloads.push(Download { id: id.clone(), object: joined(&task, id, markers)? });
        }
    }
    Ok(downloads)
}

/// The still pictures, when they are among those of the plan.
fn pictured(plan: &StillsPlan, markers: &BTreeMap<TaskId, Marker>) -> Result<Stills, Mismatch> {
    let task = TaskId::Stills;
    let marker = markers.get(&task).ok_or_else(|| Mismatch::NoMarker(task.clone()))?;
    let Outcome::Pictured { stills } = &marker.outcome else { return Err(Mismatch::WrongOutcome(task)) };
    if !stills.are_of(plan) || !stills.objects().all(|object| farm::keys::token_in(&object.key) == Some(marker.token.as_str())) {
        return Err(Mismatch::Stills(task));
    }
    Ok(stills.clone())
}

/// The renditions of text, when they are those of the plan.
fn texted(plan: &TextPlan, markers: &BTreeMap<TaskId, Marker>) -> Result<Vec<TextRendition>, Mismatch> {
    let task = TaskId::Text;
    let marker = markers.get(&task).ok_or_else(|| Mismatch::NoMarker(task.clone()))?;
    let Outcome::Texted { renditions } = &marker.outcome else { return Err(Mismatch::WrongOutcome(task)) };
    let segments = plan.segments().len();
    let is_of = |made: &Texts| {
        let keys = (1..).map(|number| keys::text_segment(&made.rendition, &marker.token, number));
        made.segments.len() == segments && made.segments.iter().zip(keys).all(|(object, key)| object.key == key)
    };
    let are_planned = renditions.iter().map(|made| &made.rendition).eq(plan.tracks.iter().map(|track| &track.id));
    if !are_planned || !renditions.iter().all(is_of) {
        return Err(Mismatch::Text(task));
    }
    let made = plan.tracks.iter().cloned().zip(renditions.iter().cloned());
    Ok(made.map(|(track, made)| TextRendition { track, made }).collect())
}

fn picture(shape: Shape, pass: Pass<'_>, rung: &Rung, markers: &BTreeMap<TaskId, Marker>) -> Result<Rendition, Mismatch> {
    let video = pass.video;
    let divisor = u64::from(rung.divisor.get());
    let rate = video.rate.divided_by(rung.divisor.get()).unwrap_or(video.rate);
    let mut pieces: Vec<(TaskId, &Encoded)> = Vec::with_capacity(video.chunks.len());
    for (task, chunk) in pass.pieces() {
        let made = made(markers, &task, &rung.id)?;
        let frames = |segment: Range<u64>| (segment.end - segment.start).div_ceil(divisor);
        let expected: Vec<u64> = video.segments(chunk).into_iter().map(frames).collect();
        let rendition = || rung.id.clone();
        if made.segments.len() != expected.len() {
            return Err(Mismatch::Segments {
                task,
                rendition: rendition(),
                found: made.segments.len(),
                expected: expected.len(),
            });
        }
        for (segment, (found, expected)) in made.segments.iter().zip(expected).enumerate() {
            let samples = u64::from(found.samples);
            if samples != expected {
                return Err(Mismatch::Samples { task, rendition: rendition(), segment, found: samples, expected });
            }
            let exact = u128::from(samples) * u128::from(rate.den()) * u128::from(made.timescale);
            if u128::from(found.ticks) * u128::from(rate.num()) != exact {
                let (ticks, timescale) = (found.ticks, made.timescale);
                return Err(Mismatch::Ticks { task, rendition: rendition(), segment, ticks, timescale });
            }
            if !has_key_frames(found, u64::from(video.gop_frames) / divisor) {
                return Err(Mismatch::KeyFrames { task, rendition: rendition(), segment });
            }
        }
        pieces.push((task, made));
    }
    rendition(shape, rung.id.clone(), Medium::Picture { width: rung.width, height: rung.height, rate }, &pieces, markers)
}

/// Whether a segment names a key frame for each of its GOPs of so many frames, one after another and within its bytes.
fn has_key_frames(segment: &Segment, gop_frames: u64) -> bool {
    let samples = u64::from(segment.samples);
    let starts = (0..samples).step_by(usize::try_from(gop_frames).unwrap_or(usize::MAX).max(1));
    let starts = starts.map(|frame| segment.ticks / samples * frame);
    let mut end = 0;
    let in_order = segment.key_frames.iter().all(|key| {
        let follows = key.offset >= end && key.bytes > 0;
        end = key.offset.saturating_add(key.bytes);
        follows
    });
    in_order && end <= segment.bytes && segment.key_frames.iter().map(|key| key.ticks).eq(starts)
}

fn sound(shape: Shape, task: &TaskId, audio: &AudioPlan, markers: &BTreeMap<TaskId, Marker>) -> Result<Rendition, Mismatch> {
    let made = made(markers, task, &audio.id)?;
    let found: u64 = made.segments.iter().map(|segment| segment.ticks).sum();
    let ticks = |numerator: u128, denominator: u128| {
        u64::try_from(numerator * u128::from(made.timescale) / denominator).unwrap_or(u64::MAX)
    };
    // One packet before the first sound, for the decoder to warm up on.
    let expected = ticks(u128::from(audio.samples) + u128::from(PACKET_SAMPLES), audio.rate.into());
    if found.abs_diff(expected) > ticks((PACKETS_OFF_MAX * PACKET_SAMPLES).into(), audio.rate.into()) {
        return Err(Mismatch::Duration { task: task.clone(), rendition: audio.id.clone(), found, expected });
    }
    let medium = Medium::Sound {
        rate: audio.rate,
        channels: audio.channels,
        language: audio.language.clone(),
        name: audio.name.clone(),
        default: audio.default,
    };
    rendition(shape, audio.id.clone(), medium, &[(task.clone(), made)], markers)
}

/// What the counting execution of a task made of a rendition.
fn made<'a>(markers: &'a BTreeMap<TaskId, Marker>, task: &TaskId, rendition: &RenditionId) -> Result<&'a Encoded, Mismatch> {
    let marker = markers.get(task).ok_or_else(|| Mismatch::NoMarker(task.clone()))?;
    let Outcome::Encoded { renditions, .. } = &marker.outcome else { return Err(Mismatch::WrongOutcome(task.clone())) };
    let made = renditions.iter().find(|made| made.rendition == *rendition);
    made.ok_or_else(|| Mismatch::NotMade { task: task.clone(), rendition: rendition.clone() })
}

/// Puts the pieces of a rendition together, when they go together.
fn rendition(
    shape: Shape,
    id: RenditionId,
    medium: Medium,
    pieces: &[(TaskId, &Encoded)],
    markers: &BTreeMap<TaskId, Marker>,
) -> Result<Rendition, Mismatch> {
    let Some((_, first)) = pieces.first() else { return Err(Mismatch::NoMarker(TaskId::Video(0))) };
    for (task, piece) in pieces {
        let differs = |found: &dyn std::fmt::Display, expected: &dyn std::fmt::Display| Mismatch::Differs {
            task: task.clone(),
            rendition: id.clone(),
            found: found.to_string(),
            expected: expected.to_string(),
        };
        if codecs::of_all([piece.codecs.as_str(), &first.codecs].into_iter()).is_none() {
            return Err(differs(&piece.codecs, &first.codecs));
        }
        if piece.timescale != first.timescale {
            return Err(differs(&format!("1/{} s", piece.timescale), &format!("1/{} s", first.timescale)));
        }
        check_bytes(shape, task, &id, piece)?;
    }
    let media = match shape {
        Shape::Segments => Media::Objects {
            pieces: pieces
                .iter()
                .map(|(_, made)| Piece {
                    init: made.init.clone(),
                    objects: made.objects.clone(),
                    segments: made.segments.clone(),
                })
                .collect(),
        },
        Shape::File => {
            let segments: Vec<Segment> = pieces.iter().flat_map(|(_, made)| made.segments.iter().cloned()).collect();
            let is_one = pieces.iter().all(|(_, piece)| piece.init.sha256 == first.init.sha256);
            let (object, init_bytes) = packed(&id, is_one.then_some(first.init.bytes), &segments, markers)?;
            Media::File { object, init_bytes, segments }
        }
    };
    let codecs = codecs::of_all(pieces.iter().map(|(_, piece)| piece.codecs.as_str())).unwrap_or_else(|| first.codecs.clone());
    Ok(Rendition { id, medium, codecs, timescale: first.timescale, media })
}

/// Objects and segments of a piece are the same bytes, and stand where playlists can name them.
fn check_bytes(shape: Shape, task: &TaskId, id: &RenditionId, piece: &Encoded) -> Result<(), Mismatch> {
    let objects = piece.objects.iter().map(|object| object.bytes);
    let segments = piece.segments.iter().map(|segment| segment.bytes);
    let fits = match shape {
        Shape::Segments => objects.eq(segments),
        Shape::File => objects.sum::<u64>() == segments.sum::<u64>(),
    };
    if !fits || piece.segments.iter().any(|segment| segment.ticks == 0) {
        return Err(Mismatch::Bytes { task: task.clone(), rendition: id.clone() });
    }
    [&piece.init].into_iter().chain(&piece.objects).try_for_each(|object| check_key(task, id, object))
}

fn check_key(task: &TaskId, id: &RenditionId, object: &Object) -> Result<(), Mismatch> {
    let inside = object.key.strip_prefix(&id.0).is_some_and(|rest| rest.starts_with('/'));
    if inside && farm::keys::token_in(&object.key).is_some() {
        return Ok(());
    }
    Err(Mismatch::Key { task: task.clone(), rendition: id.clone(), key: object.key.clone() })
}

/// The joined file of a rendition, when it holds just what the parts held, and the size of its init segment: that of all parts,
/// where they have the same.
fn packed(
    id: &RenditionId,
    init_bytes: Option<u64>,
    segments: &[Segment],
    markers: &BTreeMap<TaskId, Marker>,
) -> Result<(Object, u64), Mismatch> {
    let task = TaskId::Pack(id.clone());
    let object = joined(&task, id, markers)?;
    match object.bytes.checked_sub(segments.iter().map(|segment| segment.bytes).sum::<u64>()) {
        Some(before @ 1..=INIT_BYTES_MAX) if init_bytes.is_none_or(|bytes| bytes == before) => Ok((object, before)),
        _ => Err(Mismatch::Bytes { task, rendition: id.clone() }),
    }
}

/// The file that a task put together.
fn joined(task: &TaskId, id: &RenditionId, markers: &BTreeMap<TaskId, Marker>) -> Result<Object, Mismatch> {
    let marker = markers.get(task).ok_or_else(|| Mismatch::NoMarker(task.clone()))?;
    let Outcome::Packed { object } = &marker.outcome else { return Err(Mismatch::WrongOutcome(task.clone())) };
    check_key(task, id, object)?;
    Ok(object.clone())
}

#[cfg(test)]
mod tests;
