//! What a source is, as the probe found it: by reading every packet, not by believing headers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text::StreamName;
use crate::{Code, Failure, Rate};

/// Stream times that differ by no more ns are the same, however they were rounded.
pub const SAME_TIME_NS: u64 = 1_000_000;

/// Names a stream of a source for demuxer and decoder: its place among the streams that the demuxer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct TrackId(pub u32);

/// A source, described.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MediaInfo {
    /// Bytes of the source.
    pub bytes: u64,
    /// Which version of the source this is about, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<SourceVersion>,
    /// Media type of the container, as GStreamer names it: `video/quicktime`, `video/x-matroska`.
    pub container: String,
    /// End of the last packet of picture or sound, in ns after the first, by content.
    pub duration_ns: u64,
    /// Duration that the header claims, if it claims one. Only for comparison.
    pub header_duration_ns: Option<u64>,
    /// Picture tracks that can be decoded, in the container's order. Cover art is not among them.
    pub video: Vec<VideoTrack>,
    /// Sound tracks that can be decoded, in the container's order.
    pub audio: Vec<AudioTrack>,
    /// Text tracks that can be read: subtitles and captions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<TextTrack>,
    /// Everything else, with the reason why it is not used.
    pub dropped: Vec<DroppedTrack>,
    /// Chapters, in order.
    pub chapters: Vec<Chapter>,
    /// What a viewer of the result should know: a truncated file, a header that lies.
    pub warnings: Vec<String>,
}

impl MediaInfo {
    /// Of something of which nothing is known but where it came from.
    pub fn unknown(version: SourceVersion) -> Self {
        Self {
            bytes: version.bytes,
            version: Some(version),
            container: String::new(),
            duration_ns: 0,
            header_duration_ns: None,
            video: Vec::new(),
            audio: Vec::new(),
            text: Vec::new(),
            dropped: Vec::new(),
            chapters: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

/// A version of a source, as the place where it is tells versions apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceVersion {
    /// Bytes.
    pub bytes: u64,
    /// ETag of HTTP or S3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// When it was last changed, in the words of its place. Only compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<String>,
}

impl SourceVersion {
    /// Whether both are of one version. What one of them does not say is no evidence: some caches leave a header out.
    pub fn fits(&self, other: &Self) -> bool {
        fn same(one: Option<&String>, other: Option<&String>) -> bool {
            one.zip(other).is_none_or(|(one, other)| one == other)
        }
        // An ETag that agrees outweighs a date: servers behind one name may have copied the file at different times.
        let dates = self.etag.is_some() && other.etag.is_some() || same(self.modified.as_ref(), other.modified.as_ref());
        self.bytes == other.bytes && same(self.etag.as_ref(), other.etag.as_ref()) && dates
    }
}

/// A picture track.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VideoTrack {
    /// Which stream it is.
    pub track: TrackId,
    /// Name of the codec: `H.264`, `VP9`.
    pub codec: String,
    /// Width of the coded picture in pixels, before rotation.
    pub width: u32,
    /// Height of the coded picture in pixels, before rotation.
    pub height: u32,
    /// Shape of a pixel, width over height.
    pub pixel_aspect: (u32, u32),
    /// How the picture is to be turned to be upright.
    pub orientation: Orientation,
    /// Raw format out of the decoder, as GStreamer names it: `I420`, `I420_10LE`.
    pub format: String,
    /// Colours, with guesses filled in for what the source does not say.
    pub colour: Colour,
    /// Whether frames hold two fields.
    pub interlace: Interlace,
    /// When frames are shown.
    pub timing: Timing,
    /// Bits per second of the packets, on average.
    pub bitrate: u64,
    /// Start of each key frame in ns on the source's stream time, in order. Thinned out evenly where there are more than
    /// [`VideoTrack::KEY_FRAMES_MAX`].
    pub key_frames_ns: Vec<u64>,
    /// Its packets, where they are H.264 that can be handed on as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub h264: Option<H264Packets>,
    /// Language as ISO 639, if said.
    pub language: Option<String>,
}

/// Packets of H.264 with one set of parameters for all, 8-bit 4:2:0, in the form that MP4 has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct H264Packets {
    /// Whether every key frame is an IDR picture: what follows it, in whatever order, leans on nothing before it.
    pub keys_are_idr: bool,
    /// By how many frames at most a frame is decoded later than it would be in order of presentation.
    pub reorder_frames: u32,
    /// Bits per second in the two seconds that have most.
    pub peak_bps: u64,
}

impl VideoTrack {
    /// Most key frames that are listed.
    pub const KEY_FRAMES_MAX: usize = 100_000;
    /// Longest side of a picture in pixels, coded or shown.
    pub const SIDE_PX_MAX: u32 = 16_384;
    /// Most pixels of a coded picture.
    pub const PICTURE_PX_MAX: u64 = 1 << 27;

    /// Whether pictures of this size are read: asked before the first is decoded, which could take any amount of memory.
    ///
    /// # Errors
    /// [`Code::LimitExceeded`] for pictures without or with too many pixels.
    pub fn check_size(width: u32, height: u32) -> Result<(), Failure> {
        let (sides, px) = (1..=Self::SIDE_PX_MAX, u64::from(width) * u64::from(height));
        if sides.contains(&width) && sides.contains(&height) && px <= Self::PICTURE_PX_MAX {
            return Ok(());
        }
        let (side, all) = (Self::SIDE_PX_MAX, Self::PICTURE_PX_MAX);
        let message = format!("picture of {width}x{height}: up to {side} pixels a side and {all} in all can be read");
        Err(Failure::new(Code::LimitExceeded, message))
    }

    /// Whether pixels are shown as wide as they are high, or nearly so: sizes that were rounded to whole pixels leave shapes like
    /// 1281 to 1280. A shape that says nothing counts as square.
    pub fn pixels_are_square(&self) -> bool {
        let (across, down) = (u64::from(self.pixel_aspect.0), u64::from(self.pixel_aspect.1));
        across == 0 || down == 0 || across.abs_diff(down) * 200 <= across.max(down)
    }
}

/// When the frames of a track are shown, by their time stamps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// The constant rate that fits the time stamps best; a usual rate where one is near.
    pub rate: Rate,
    /// Stream time of the first frame in ns.
    pub start_ns: u64,
    /// Stream time at which the last frame ends in ns.
    pub end_ns: u64,
    /// Frames (packets) in the track.
    pub frames: u64,
    /// Whether each frame falls on its own place of the constant rate.
    pub constant: bool,
}

/// Turn that makes a coded picture upright, in the order: mirror left-right first, then turn clockwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Orientation {
    /// Mirror left-right before turning.
    pub mirrored: bool,
    /// Quarter turns clockwise, 0 to 3.
    pub quarter_turns: u8,
}

impl Orientation {
    /// Whether width and height change places.
    pub fn swaps_sides(self) -> bool {
        self.quarter_turns % 2 == 1
    }
}

/// Colours by the code points of ITU-T H.273.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Colour {
    /// ColourPrimaries.
    pub primaries: u8,
    /// TransferCharacteristics.
    pub transfer: u8,
    /// MatrixCoefficients.
    pub matrix: u8,
    /// Whether code values use the whole range (0 to 255) rather than the limited one (16 to 235).
    pub full_range: bool,
}

impl Colour {
    /// BT.709, limited range: what every rung is made in.
    pub const BT709: Self = Self { primaries: 1, transfer: 1, matrix: 1, full_range: false };

    /// Whether the transfer is PQ (16) or HLG (18).
    pub fn is_hdr(self) -> bool {
        matches!(self.transfer, 16 | 18)
    }
}

/// Which field of a frame is shown first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fields {
    /// The one that begins with the uppermost line.
    TopFirst,
    /// The other.
    BottomFirst,
}

/// Whether a track is interlaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Interlace {
    /// Whole frames.
    #[default]
    Progressive,
    /// Every frame holds two fields.
    Interlaced(Fields),
    /// Some frames do.
    Mixed,
    /// Every frame holds two fields, by what is seen, and the flags say otherwise.
    Unflagged(Fields),
}

/// A sound track.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AudioTrack {
    /// Which stream it is.
    pub track: TrackId,
    /// Name of the codec: `MPEG-4 AAC`.
    pub codec: String,
    /// Samples per second.
    pub rate: u32,
    /// Channels.
    pub channels: u32,
    /// Stream time of the first sample in ns.
    pub start_ns: u64,
    /// Stream time of the end of the last sample in ns.
    pub end_ns: u64,
    /// Bits per second of the packets, on average.
    pub bitrate: u64,
    /// Its packets, where they are AAC-LC that can be handed on as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aac: Option<AacPackets>,
    /// Language as ISO 639, if said.
    pub language: Option<String>,
    /// Title, if said.
    pub title: Option<String>,
}

/// Packets of AAC-LC, of 1024 samples each, of which each follows the one before without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AacPackets {
    /// Stream time of the first in ns: below 0 where sound before the start of what is presented is there to warm up on.
    pub first_ns: i64,
    /// How many there are.
    pub count: u64,
}

impl AacPackets {
    /// How long a packet lasts at so many samples per second, in ns.
    pub fn packet_ns(rate: u32) -> u64 {
        u64::from(crate::plan::AudioPlan::PACKET_SAMPLES) * crate::rate::SECOND_NS / u64::from(rate.max(1))
    }
}

/// A text track.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TextTrack {
    /// Which stream it is.
    pub stream: StreamName,
    /// Name of the format.
    pub codec: String,
    /// Packets of it, of which each holds a text or nothing.
    pub packets: u64,
    /// Language as ISO 639, if said.
    pub language: Option<String>,
    /// Title, if said.
    pub title: Option<String>,
}

/// A stream that is not used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DroppedTrack {
    /// Which stream it is.
    pub track: TrackId,
    /// What it is: a codec name or media type.
    pub kind: String,
    /// Why it is not used.
    pub why: Failure,
}

/// A chapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Chapter {
    /// Start in ns of the source's stream time.
    pub start_ns: u64,
    /// End in ns of the source's stream time.
    pub end_ns: u64,
    /// Title.
    pub title: String,
}
