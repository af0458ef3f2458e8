//! The plan of a job: everything decided, so that nothing is left to choose while it runs. Immutable once stored.
//!
//! Two timelines meet here. *Stream time* is the source's own, in ns. *Presentation time* is the result's, and starts at 0
//! with frame 0 of the highest frame rate of the ladder (or the first sample, without picture):
//! presentation time 0 is stream time [`Plan::origin_ns`].

use std::fmt;
use std::num::NonZeroU32;
use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::edit::EditPlan;
use crate::job::{Layout, Loudness, Mp4, VideoCodec};
use crate::media::{Colour, Interlace, Orientation, SourceVersion, TrackId, VideoTrack};
use crate::stills::StillsPlan;
use crate::task::TaskId;
use crate::text::TextPlan;
use crate::{Class, Quality, Rate};

/// Everything decided about a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// Which version of the source it was made for; no task may read another. Absent where versions cannot be told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceVersion>,
    /// Stream time of the source, in ns, at which presentation starts.
    pub origin_ns: u64,
    /// How long the result lasts, in ns.
    pub duration_ns: u64,
    /// Lead of every track, in ns: media time at which presentation time 0 stands in every file, told by an edit list.
    /// It is room for frame reordering and for the encoder's audio priming, equal in all tracks, so that readers that
    /// honour edit lists and readers that do not agree on sync.
    pub lead_ns: u64,
    /// How media bytes are laid out.
    pub layout: Layout,
    /// Which plain MP4 files are made besides.
    #[serde(default)]
    pub mp4: Mp4,
    /// The picture, if there is one.
    pub video: Option<VideoPlan>,
    /// Where the result is published in stages, the rung of the same picture that is made before those of `video`, in pieces of
    /// its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<VideoPlan>,
    /// The sound, a rendition per track.
    pub audio: Vec<AudioPlan>,
    /// The still pictures, if some are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stills: Option<StillsPlan>,
    /// The text, a rendition per track, if there is some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextPlan>,
    /// What the source's edits come to, if there are some. Presentation time is theirs then, and starts at stream time 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edit: Option<EditPlan>,
    /// What was decided that a viewer may wonder about.
    pub notes: Vec<String>,
}

impl Plan {
    /// Each time that the source's picture is gone through: for the rung that is made first, if one is, and for the others.
    pub fn passes(&self) -> impl Iterator<Item = Pass<'_>> {
        let first = self.first.iter().map(|video| Pass { video, name: TaskId::First });
        first.chain(self.video.iter().map(|video| Pass { video, name: TaskId::Video }))
    }

    /// Every rung with the pass that makes it, from the largest to the smallest.
    pub fn rungs(&self) -> Vec<(&Rung, Pass<'_>)> {
        let mut rungs: Vec<_> = self.passes().flat_map(|pass| pass.video.rungs.iter().map(move |rung| (rung, pass))).collect();
        rungs.sort_by_key(|(rung, _)| std::cmp::Reverse(u64::from(rung.width) * u64::from(rung.height)));
        rungs
    }

    /// Whether there is picture or sound to play. Where there is none, still pictures alone are made.
    pub fn has_media(&self) -> bool {
        self.passes().next().is_some() || !self.audio.is_empty()
    }

    /// What of it is published before the rest, if something is: all but the other rungs, still pictures and plain files.
    pub fn first_stage(&self) -> Option<Self> {
        self.first.as_ref()?;
        Some(Self { video: None, stills: None, mp4: Mp4::None, ..self.clone() })
    }

    /// The sound that plays when nobody chose, and its place in the plan.
    pub fn main_sound(&self) -> Option<(u32, &AudioPlan)> {
        let mut sounds = (0..).zip(&self.audio);
        sounds.clone().find(|(_, audio)| audio.default).or_else(|| sounds.next())
    }
}

/// One time that the source's picture is gone through: the rungs that are made together, in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// What is made.
    pub video: &'a VideoPlan,
    /// What its pieces are called as tasks.
    name: fn(u32) -> TaskId,
}

impl<'a> Pass<'a> {
    /// The task of a piece, by its number.
    pub fn task(self, piece: u32) -> TaskId {
        (self.name)(piece)
    }

    /// Every piece, with its task.
    pub fn pieces(self) -> impl Iterator<Item = (TaskId, &'a Chunk)> {
        (0..).map(self.name).zip(&self.video.chunks)
    }
}

/// The picture of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VideoPlan {
    /// The stream to decode.
    pub track: TrackId,
    /// Rate of the frame grid: the highest of the rungs. Every rung's rate divides it.
    pub rate: Rate,
    /// Frames of the whole result on the grid.
    pub frames: u64,
    /// Frames of a closed GOP on the grid; every rung's divisor divides it.
    pub gop_frames: u32,
    /// Frames of a segment on the grid; a multiple of `gop_frames`.
    pub segment_frames: u32,
    /// How decoded pictures become upright, progressive and square.
    pub picture: PicturePlan,
    /// Rungs from the largest to the smallest.
    pub rungs: Vec<Rung>,
    /// Pieces of work, in order, without gap or overlap, cut at multiples of `segment_frames`.
    pub chunks: Vec<Chunk>,
}

impl VideoPlan {
    /// Whose device its tasks take.
    pub fn class(&self) -> Class {
        self.rungs.iter().map(|rung| rung.class).find(|class| class.is_hardware()).unwrap_or_default()
    }

    /// The segments of a chunk, as frames of the grid.
    pub fn segments(&self, chunk: &Chunk) -> Vec<Range<u64>> {
        let mut start = chunk.start;
        let lengths = segment_lengths(chunk.end.saturating_sub(chunk.start), self.segment_frames.into());
        let segment = |length| {
            let frames = start..start + length;
            start = frames.end;
            frames
        };
        lengths.into_iter().map(segment).collect()
    }
}

/// Cuts `total` up into segments of `whole`. A rest of less than an eighth makes the last one longer instead: players treat a
/// stub that is shorter than the reordering of frames as missing (hls.js 1.7 stops before it).
pub fn segment_lengths(total: u64, whole: u64) -> Vec<u64> {
    let whole = whole.max(1);
    let (count, rest) = (total / whole, total % whole);
    let mut lengths = vec![whole; usize::try_from(count).unwrap_or(usize::MAX)];
    match lengths.last_mut() {
        Some(last) if rest < whole.div_ceil(STUB_DIVISOR) => *last += rest,
        _ => lengths.extend((rest > 0).then_some(rest)),
    }
    lengths
}

/// A rest shorter than the whole by this factor is no segment of its own.
const STUB_DIVISOR: u64 = 8;

/// What is done to every decoded picture before it is scaled to the rungs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PicturePlan {
    /// Turn and mirror.
    pub orientation: Orientation,
    /// Whether to deinterlace.
    pub interlace: Interlace,
    /// Colours of the source, with guesses filled in.
    pub colour: Colour,
}

impl PicturePlan {
    /// Of a track.
    pub fn of(track: &VideoTrack) -> Self {
        Self { orientation: track.orientation, interlace: track.interlace, colour: track.colour }
    }

    /// Of pictures that are as those of a rung.
    pub const MADE: Self = Self {
        orientation: Orientation { mirrored: false, quarter_turns: 0 },
        interlace: Interlace::Progressive,
        colour: Colour::BT709,
    };
}

/// A piece of the picture's work: frames `start..end` of the grid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Chunk {
    /// First frame.
    pub start: u64,
    /// One past the last frame.
    pub end: u64,
    /// Stream time in ns of the key frame that decoding starts at; 0 for the start of the source.
    pub decode_from_ns: u64,
}

impl Chunk {
    /// The frames as a half-open range.
    pub fn frames(&self) -> Range<u64> {
        self.start..self.end
    }
}

/// A rendition of the picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rung {
    /// Its name in paths.
    pub id: RenditionId,
    /// Width in pixels, even.
    pub width: u32,
    /// Height in pixels, even.
    pub height: u32,
    /// Every how many frames of the grid make one of this rung.
    pub divisor: NonZeroU32,
    /// The codec.
    pub codec: VideoCodec,
    /// How many bits it may use.
    pub rate_control: RateControl,
    /// Whose encoder makes it. Where that fails, its pieces are made on the processor, of the same quality.
    #[serde(default, skip_serializing_if = "Class::is_cpu")]
    pub class: Class,
    /// Threads of its encoder, from 1. More than one costs CPU time, and is for what no other task can be done beside.
    #[serde(default = "one")]
    pub threads: NonZeroU32,
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// How many bits a rung may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RateControl {
    /// Constant quality on x264's CRF scale, with a cap over two seconds.
    CappedQuality {
        /// CRF.
        quality: Quality,
        /// Cap in bit/s.
        max_bitrate: u32,
    },
    /// An average, with a cap over one second.
    Average {
        /// Average in bit/s.
        bitrate: u32,
        /// Cap in bit/s.
        max_bitrate: u32,
    },
    /// The source's own packets, as they are.
    Copied {
        /// What they have on average at most, and half of what they have in any two seconds, in bit/s.
        max_bitrate: u32,
    },
}

impl Rung {
    /// Whether it is made of the source's own packets.
    pub fn is_copied(&self) -> bool {
        matches!(self.rate_control, RateControl::Copied { .. })
    }
}

/// A rendition of the sound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AudioPlan {
    /// Its name in paths.
    pub id: RenditionId,
    /// The stream to decode.
    pub track: TrackId,
    /// Samples per second of the result.
    pub rate: u32,
    /// Channels of the result.
    pub channels: u32,
    /// Bits per second of the result.
    pub bitrate: u32,
    /// Which of the source's packets to hand on, where they will do. Those that do not decode are no use: then it is encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<AacCopy>,
    /// Samples of the result: silence is added or sound cut at the end to make just these.
    pub samples: u64,
    /// Whether to bring it to a common loudness.
    #[serde(default)]
    pub loudness: Loudness,
    /// Wanted duration of a segment in ns.
    pub segment_ns: u64,
    /// Language as ISO 639, if known.
    pub language: Option<String>,
    /// Name to show.
    pub name: String,
    /// Whether it is the one to play when nobody chose.
    pub default: bool,
}

impl AudioPlan {
    /// Samples per packet of AAC-LC (ISO/IEC 14496-3).
    pub const PACKET_SAMPLES: u32 = 1024;

    /// The packets of each segment when it is encoded: the first of all comes before the sound, for the decoder to warm up on.
    pub fn segment_packets(&self) -> Vec<u64> {
        self.in_segments(self.samples.div_ceil(Self::PACKET_SAMPLES.into()) + 1)
    }

    /// So many packets, in segments.
    pub fn in_segments(&self, packets: u64) -> Vec<u64> {
        let unit = u128::from(Self::PACKET_SAMPLES) * u128::from(crate::rate::SECOND_NS);
        let whole = u128::from(self.segment_ns) * u128::from(self.rate) / unit;
        segment_lengths(packets, u64::try_from(whole).unwrap_or(u64::MAX))
    }
}

/// Packets of AAC that are handed on as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AacCopy {
    /// How many samples before presentation time 0 the first one starts: a packet to warm up on, where there is one, and what
    /// of the next one lies before.
    pub early_samples: u32,
    /// How many there are.
    pub packets: u64,
}

/// Name of a rendition in paths and playlists: `v720`, `a0`, `t0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct RenditionId(pub String);

impl fmt::Display for RenditionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_is_joined_to_the_segment_before() {
        assert_eq!(segment_lengths(250, 100), [100, 100, 50]);
        assert_eq!(segment_lengths(213, 100), [100, 100, 13]);
        assert_eq!(segment_lengths(212, 100), [100, 112]);
        assert_eq!(segment_lengths(200, 100), [100, 100]);
        assert_eq!(segment_lengths(3, 100), [3], "a stub alone is all there is");
        assert_eq!(segment_lengths(0, 100), [0; 0]);
    }
}
