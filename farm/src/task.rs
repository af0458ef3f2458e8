//! Tasks: the units of work that workers take, what they leave behind, and what they say.
//!
//! A [`TaskMessage`] is small: spec and plan are in storage. A [`Marker`] makes the objects of one execution count.
//! An [`Event`] only tells the scheduler to look.

use std::fmt;
use std::str::FromStr;

use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::encoder::Offer;
use crate::job::{JobId, Mp4};
use crate::media::MediaInfo;
use crate::plan::{Plan, RenditionId, VideoPlan};
use crate::presence::Presence;
use crate::stills::Stills;
use crate::text::Texts;
use crate::{Class, Failure, Life};

/// A unit of work of a job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum TaskId {
    /// Find out what the source is.
    Probe,
    /// Find out what another source is, by its number, which its edits name.
    ProbeOther(u32),
    /// Encode this chunk of the picture into every rung.
    Video(u32),
    /// Encode this chunk of the rung that is made before the others.
    First(u32),
    /// Encode this rendition of the sound, by its place in the plan.
    Audio(u32),
    /// Make the still pictures.
    Stills,
    /// Make every rendition of text.
    Text,
    /// Join the parts of a rendition into one file.
    Pack(RenditionId),
    /// Make a plain MP4 of a rung and the main sound, or of that sound alone.
    Mp4(RenditionId),
}

impl TaskId {
    /// Whose device a task takes by the plan.
    pub fn class_in(&self, plan: &Plan) -> Class {
        let pass = match self {
            Self::Video(_) => plan.video.as_ref(),
            Self::First(_) => plan.first.as_ref(),
            Self::Probe | Self::ProbeOther(_) | Self::Audio(_) | Self::Stills | Self::Text | Self::Pack(_) | Self::Mp4(_) => None,
        };
        pass.map(VideoPlan::class).unwrap_or_default()
    }

    /// Every task after the probe that a plan calls for, packing not among them.
    pub fn encodes_of(plan: &Plan) -> impl Iterator<Item = Self> {
        let picture = plan.passes().flat_map(|pass| pass.pieces().map(|(task, _)| task));
        let audio = (0..).take(plan.audio.len()).map(Self::Audio);
        let stills = plan.stills.as_ref().map(|_| Self::Stills);
        let text = plan.text.as_ref().map(|_| Self::Text);
        audio.chain(picture).chain(stills).chain(text)
    }

    /// The tasks that make a rendition of picture or sound, in order of time; none when the plan has no such rendition.
    pub fn makers_of(plan: &Plan, rendition: &RenditionId) -> Vec<Self> {
        if let Some((index, _)) = (0..).zip(&plan.audio).find(|(_, audio)| audio.id == *rendition) {
            return vec![Self::Audio(index)];
        }
        let rung = plan.rungs().into_iter().find(|(rung, _)| rung.id == *rendition);
        rung.map(|(_, pass)| pass.pieces().map(|(task, _)| task).collect()).unwrap_or_default()
    }

    /// Every task that a plan calls for to put together what others made.
    pub fn joins_of(plan: &Plan) -> impl Iterator<Item = Self> {
        let rungs: Vec<&RenditionId> = plan.rungs().into_iter().map(|(rung, _)| &rung.id).collect();
        let sounds = plan.audio.iter().map(|audio| &audio.id);
        let packs = rungs.clone().into_iter().chain(sounds).filter(|_| plan.layout.has_files()).map(|id| Self::Pack(id.clone()));
        let alone = rungs.is_empty() || plan.mp4 == Mp4::EachRungAndSound;
        let sound = plan.main_sound().filter(|_| alone).map(|(_, audio)| &audio.id);
        let files = rungs.into_iter().chain(sound).filter(|_| plan.mp4 != Mp4::None).map(|id| Self::Mp4(id.clone()));
        packs.chain(files)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe => f.write_str("probe"),
            Self::ProbeOther(number) => write!(f, "probe-{number}"),
            Self::Video(chunk) => write!(f, "video-{chunk:05}"),
            Self::First(chunk) => write!(f, "first-{chunk:05}"),
            Self::Audio(index) => write!(f, "audio-{index}"),
            Self::Stills => f.write_str("stills"),
            Self::Text => f.write_str("text"),
            Self::Pack(rendition) => write!(f, "pack-{rendition}"),
            Self::Mp4(rendition) => write!(f, "mp4-{rendition}"),
        }
    }
}

/// A text that names no task.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' names no task")]
pub struct NotATask(String);

impl FromStr for TaskId {
    type Err = NotATask;

    fn from_str(text: &str) -> Result<Self, NotATask> {
        let numbered = |prefix| text.strip_prefix(prefix).and_then(|n: &str| n.parse().ok());
        let task = match text {
            "probe" => Some(Self::Probe),
            "stills" => Some(Self::Stills),
            "text" => Some(Self::Text),
            _ => numbered("video-")
                .map(Self::Video)
                .or_else(|| numbered("first-").map(Self::First))
                .or_else(|| numbered("audio-").map(Self::Audio))
                .or_else(|| numbered("probe-").map(Self::ProbeOther))
                .or_else(|| text.strip_prefix("pack-").map(|id| Self::Pack(RenditionId(id.to_owned()))))
                .or_else(|| text.strip_prefix("mp4-").map(|id| Self::Mp4(RenditionId(id.to_owned())))),
        };
        task.ok_or_else(|| NotATask(text.to_owned()))
    }
}

impl TryFrom<String> for TaskId {
    type Error = NotATask;

    fn try_from(text: String) -> Result<Self, NotATask> {
        text.parse()
    }
}

impl From<TaskId> for String {
    fn from(task: TaskId) -> Self {
        task.to_string()
    }
}

/// Random name of one execution. Everything an execution writes stands under its token, so that no two executions, not
/// even of the same attempt, ever write the same object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// Characters of a token.
    pub const LEN: usize = 16;

    /// A token nobody else has: 64 random bits.
    pub fn random() -> Self {
        Self(format!("{:016x}", rand::rng().random::<u64>()))
    }

    /// Whether a text has the shape of a token.
    pub fn is_shape_of(text: &str) -> bool {
        text.len() == Self::LEN && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    }

    /// The token as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a worker is sent: do this task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskMessage {
    /// The job.
    pub job: JobId,
    /// The task.
    pub task: TaskId,
    /// Life of the job that it is done for.
    #[serde(default)]
    pub life: Life,
    /// Number of this attempt in that life, from 1.
    pub attempt: u32,
    /// Whose device it may take; of the rungs that the plan pins to hardware, none are made on a device where this is the
    /// processor.
    #[serde(default, skip_serializing_if = "Class::is_cpu")]
    pub class: Class,
    /// Epoch of the plan it belongs to.
    pub epoch: u64,
    /// Term of the scheduler that sent it. What an earlier term left on the queue is not worked on: see [`Event::Stale`].
    #[serde(default)]
    pub term: u64,
}

/// What the scheduler is told. It only says where to look: the truth is in storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The task's marker is stored.
    TaskDone {
        /// The job.
        job: JobId,
        /// The task.
        task: TaskId,
    },
    /// An attempt failed; its failure record is stored.
    TaskFailed {
        /// The job.
        job: JobId,
        /// Life of the job.
        #[serde(default)]
        life: Life,
        /// The task.
        task: TaskId,
        /// The attempt.
        attempt: u32,
        /// Why.
        failure: Failure,
    },
    /// A job was submitted: its spec is stored.
    Submitted {
        /// The job.
        job: JobId,
    },
    /// A message of an earlier term was dropped by a worker: if nobody else is at this task, it has to be sent again.
    Stale {
        /// The job.
        job: JobId,
        /// The task.
        task: TaskId,
    },
    /// A worker that is well has given a task back to the queue without doing it: it stops, or its surroundings do not work.
    GivenBack {
        /// The job.
        job: JobId,
        /// The task.
        task: TaskId,
    },
    /// A message that circulates: the scheduler that receives it is the one that acts.
    Tick,
}

/// How far a running execution is. Sent often, lost without harm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// The job.
    pub job: JobId,
    /// The task.
    pub task: TaskId,
    /// The execution.
    pub token: Token,
    /// How much of the source has been gone through by this task, in ns of media.
    pub media_ns: u64,
}

/// What workers say to whoever listens. A word is known by its fields, and is the first of these that it can be: new ones come
/// last, and hold no others. What is none of them is not heard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Word {
    /// How far a task is.
    Progress(Progress),
    /// What a worker offers.
    Offer(Offer),
    /// That a worker is there.
    Here(Presence),
}

/// Commit record of a task: names exactly the objects of the one execution that counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Marker {
    /// The task.
    pub task: TaskId,
    /// The execution.
    pub token: Token,
    /// What it made.
    pub outcome: Outcome,
    /// What it cost.
    pub cost: Cost,
    /// The device that rungs were encoded on, where it was not the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Number of the attempt in its life; older workers do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The worker, by the name that it gives itself; older ones do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Token>,
}

/// Record of a failed execution. Whoever wants to know no more than why reads it as a [`Failure`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAttempt {
    /// Why.
    #[serde(flatten)]
    pub failure: Failure,
    /// How long the worker was at it, in ms; none where a scheduler noted that nothing was heard of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
    /// The worker, where it has noted the failure itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Token>,
}

/// What an execution made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A probe's findings.
    Probed {
        /// The source, described.
        info: Box<MediaInfo>,
    },
    /// Media of one or more renditions.
    Encoded {
        /// What was made, in the plan's order of renditions.
        renditions: Vec<Encoded>,
        /// What became of the source's frames or samples.
        account: Account,
    },
    /// Still pictures.
    Pictured {
        /// What was made.
        stills: Stills,
    },
    /// Renditions of text.
    Texted {
        /// What was made, in the plan's order.
        renditions: Vec<Texts>,
    },
    /// A file put together of what others made.
    Packed {
        /// The file.
        object: Object,
    },
}

impl Outcome {
    /// Every object that was made.
    pub fn objects(&self) -> Vec<&Object> {
        match self {
            Self::Probed { .. } => Vec::new(),
            Self::Encoded { renditions, .. } => {
                renditions.iter().flat_map(|made| [&made.init].into_iter().chain(&made.objects).chain(&made.samples)).collect()
            }
            Self::Pictured { stills } => stills.objects().collect(),
            Self::Texted { renditions } => renditions.iter().flat_map(|made| &made.segments).collect(),
            Self::Packed { object } => vec![object],
        }
    }
}

/// What an execution costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cost {
    /// CPU time of the child in ms, user and system.
    pub cpu_ms: u64,
    /// Wall time in ms.
    pub wall_ms: u64,
    /// Largest resident memory of the child in KiB.
    pub rss_kib: u64,
}

/// An object in storage, by its key under the job's output prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Object {
    /// Key, relative to the output prefix.
    pub key: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content in hex; empty for a joined file, whose parts carry their own.
    pub sha256: String,
}

/// Part of a rendition that one execution made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Encoded {
    /// The rendition.
    pub rendition: RenditionId,
    /// Codec string for playlists (RFC 6381), read from the init segment's bytes.
    pub codecs: String,
    /// Ticks per second of the durations here.
    pub timescale: u32,
    /// The init segment.
    pub init: Object,
    /// Media objects in order: one per segment, or with the single-file layout one for many of them, cut anywhere between two.
    pub objects: Vec<Object>,
    /// Segments in order.
    pub segments: Vec<Segment>,
    /// Where each sample is, when a plain MP4 is to be made of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Object>,
}

/// A media segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Segment {
    /// Duration in ticks.
    pub ticks: u64,
    /// Samples in it: frames of picture, or packets of sound.
    pub samples: u32,
    /// Size in bytes.
    pub bytes: u64,
    /// Key frames of picture that are fragments by themselves, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_frames: Vec<KeyFrame>,
}

/// A key frame of a segment: a fragment of its own, which decodes alone after the init segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyFrame {
    /// When it is shown, in ticks after the segment's first frame.
    pub ticks: u64,
    /// Where its fragment begins, in bytes after the segment's first.
    pub offset: u64,
    /// Size of its fragment in bytes.
    pub bytes: u64,
}

/// What became of the source's frames in a chunk, on the grid; for sound, of its samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Account {
    /// Frames or samples that went into the result.
    pub kept: u64,
    /// Frames that no place on the grid was left for.
    pub dropped: u64,
    /// Places on the grid filled by showing a frame again, or samples of silence put in.
    pub filled: u64,
    /// Places on the grid filled because the source ended early: part of `filled`.
    pub missing: u64,
    /// Samples that were handed on as they were: part of `kept`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub copied: u64,
    /// Frames that the decoder says are damaged, and shows as well as it can.
    pub decode_errors: u64,
    /// How sound was brought to a common loudness, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub levelling: Option<Levelling>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// How sound was brought to a common loudness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Levelling {
    /// Before, in the rendition's channels and codec.
    pub source: Loudness,
    /// Gain in thousandths of a dB.
    pub gain_millidb: i32,
    /// Whether peaks were lowered more than the rest.
    pub is_limited: bool,
    /// After.
    pub result: Loudness,
}

/// Loudness by EBU R 128, of sound as a decoder gives it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loudness {
    /// Integrated loudness in thousandths of LUFS; none when all is silence.
    pub millilufs: Option<i32>,
    /// Highest true peak in thousandths of a dB of full scale; none when all is silence.
    pub peak_millidbtp: Option<i32>,
}

impl std::ops::AddAssign for Account {
    fn add_assign(&mut self, other: Self) {
        self.kept += other.kept;
        self.dropped += other.dropped;
        self.filled += other.filled;
        self.missing += other.missing;
        self.copied += other.copied;
        self.decode_errors += other.decode_errors;
        self.levelling = self.levelling.or(other.levelling);
    }
}
